"""Adloop's optimizer: records, the event stream, learning and the policy store. Imports nothing above itself."""
