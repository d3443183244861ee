"""A decision that can still change, in memory: its events, what they come to, and its next timer."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

from optimizer.maths.attribution import Attributed, attribute, retention_ms
from optimizer.stream.state import NEVER, DecisionBody, Row
from optimizer.stream.tokens import Claims
from optimizer.types import SCHEMA, Components, Decision, to_json

_encode: Final = msgspec.msgpack.encode


class _OutcomeRecord(Struct, frozen=True, gc=False):
    """An outcome as written: `types.Outcome` with the decision's own bytes, unknown fields and all."""

    schema: int
    decision_id: str
    revision: int
    state: Literal["open", "closed"]
    as_of: int
    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]
    decision: msgspec.Raw


class OpenDecision:
    """A decision that can still change, in memory. `verified` is the last token that was made for it, `settled` says
    that what a catch-up had to say about it has been heard, `noted` that what was published before one is noted."""

    __slots__ = (
        "closed",
        "current",
        "decision",
        "events",
        "expires",
        "hash",
        "noted",
        "record",
        "revision",
        "seq",
        "settled",
        "stored",
        "verified",
        "window_ms",
    )

    def __init__(
        self, seq: int, hash_: int, decision: Decision, body: DecisionBody, extra_ms: int, stored: bool
    ) -> None:
        self.seq = seq
        self.hash = hash_
        self.decision = decision
        self.record = body.record
        self.revision = body.revision
        self.closed = body.closed
        self.events = {event.event_id: event for event in body.events}
        self.window_ms = decision.attribution.window_ms()
        self.expires = decision.ts + retention_ms(decision.attribution, extra_ms)
        self.current: Attributed | None = attribute(decision, body.events) if body.events else None
        self.verified: tuple[str, Claims] | None = None
        self.stored = stored
        self.settled = False
        self.noted = False

    def closes(self, grace_ms: int) -> int | None:
        """When event time passes this, the outcome closes; None where there is none, or it is closed already."""
        if self.current is None or self.closed:
            return None
        return self.current.impression_ts + self.window_ms + grace_ms

    def due(self, grace_ms: int) -> int:
        """The next timer: closing, or being let go. What is open is kept until it has closed."""
        closes = self.closes(grace_ms)
        return self.expires if closes is None else closes

    def row(self, grace_ms: int) -> Row:
        """As it is to be stored."""
        body = _encode((self.record, self.revision, self.closed, list(self.events.values())))
        due = self.due(grace_ms)
        return Row(self.seq, self.hash, min(NEVER, due), body)

    def outcome(self, current: Attributed, as_of: int) -> bytes:
        """The record of the next revision."""
        return to_json(
            _OutcomeRecord(
                SCHEMA,
                self.decision.decision_id,
                self.revision + 1,
                "closed" if self.closed else "open",
                as_of,
                current.impression_ts,
                current.click_ts,
                current.components,
                current.reward,
                current.events,
                msgspec.Raw(self.record),
            )
        )
