"""A role alone in its process: step after step until it is told to stop."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Final

IDLE_S: Final = 0.1
RETRY_S: Final = 1.0


def step_until(stopping: threading.Event, step: Callable[[], object], idle_s: float = IDLE_S) -> None:
    """Call `step` until `stopping` is set, with a pause of `idle_s` after one that found nothing to do (false).

    Brokers that are away and a disk that is full may come back: that is told on stderr, and the role goes on after a
    second. What it has read it keeps, and what it has not appended it appends with its next step.
    """
    while not stopping.is_set():
        try:
            worked = step()
        except (OSError, sqlite3.OperationalError) as error:
            print(f"adloop: {error}; trying again", file=sys.stderr, flush=True)
            stopping.wait(RETRY_S)
            continue
        if not worked:
            stopping.wait(idle_s)
