"""Event time of one partition (docs/api.md, rule 6): how far decisions and events are known to have come."""

from __future__ import annotations

from typing import Final

NONE: Final = -1  # nothing has been let in yet
QUIET_MS: Final = 60_000
STEP_MS: Final = 1_000  # in quiet, time moves on by whole seconds: each move is a transaction


class EventTime:
    """The smaller of the largest decision `ts` and the largest event `received_ts` let in; never goes back.

    A topic that was read to its end does not hold the other one back. While `held` (a rebuild) it stands still: state
    that is read again from the log must call nothing late that was in time before.
    """

    def __init__(self, now: int = NONE, decisions: int = NONE, events: int = NONE, held: bool = False) -> None:
        self.now = now
        self.decisions = decisions
        self.events = events
        self.decisions_ended = False
        self.events_ended = False
        self.held = held
        self._quiet: tuple[int, int] | None = None

    def decision(self, ts: int) -> None:
        """A decision was let in."""
        if ts > self.decisions:
            self.decisions = ts
            self.advance()

    def event(self, received_ts: int) -> None:
        """An event was let in."""
        if received_ts > self.events:
            self.events = received_ts
            self.advance()

    def ended(self, decisions: bool, events: bool) -> None:
        """Say which topics have been read to their end at this moment."""
        self.decisions_ended, self.events_ended = decisions, events
        self.advance()

    def advance(self) -> None:
        """Bring `now` up to what has been let in."""
        if self.held:
            return
        if self.decisions_ended:
            now = max(self.decisions, self.events) if self.events_ended else self.events
        else:
            now = self.decisions if self.events_ended else min(self.decisions, self.events)
        self.now = max(self.now, now)

    def resume(self, as_of: int) -> None:
        """End a hold; `as_of` is an event time that had been reached before it, NONE if that is not known."""
        self.held = False
        self.now = max(self.now, as_of)
        self.advance()

    def quiet(self, clock_ms: int) -> None:
        """Nothing came and both topics are at their end: after a minute of that, time moves on with the clock."""
        if self._quiet is None:
            self._quiet = clock_ms, self.now
        since, base = self._quiet
        if base != NONE and not self.held and clock_ms - since >= QUIET_MS:
            self.now = max(self.now, base + (clock_ms - since) // STEP_MS * STEP_MS)

    def busy(self) -> None:
        """Something came."""
        self._quiet = None
