"""Adloop's serving layer: HTTP, candidate pools, the selector, the generator and the live page."""
