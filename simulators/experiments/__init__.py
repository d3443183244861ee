"""The questions that single worlds were made for, each a run of `python -m simulators.experiments NAME`."""
