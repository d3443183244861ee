"""Faults on a real broker, with real joiner processes: `python -m tests.faults --help`, `make test-faults`."""
