"""Time is an argument: everything that needs 'now' is handed a Clock (UTC epoch milliseconds)."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Producer of the current time in UTC epoch milliseconds."""

    def now_ms(self) -> int: ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until it is moved: for simulations, replays and tests."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, ms: int) -> None:
        """Move forward by `ms` >= 0 milliseconds."""
        if ms < 0:
            raise ValueError(f"a clock does not run backwards: advance({ms})")
        self._now_ms += ms
