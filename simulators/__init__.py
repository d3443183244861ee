"""Adloop's simulators: worlds, peers, replay of real tests, the demo and their reports."""
