"""What is let in: the checks of docs/api.md, Attribution, on one record in their order; the first that fails is
the reason.

Three steps, because a joiner knows more as it goes: `read_decision` and `read_event` look at a record alone,
`check_against` at an event once its decision is known. What only the state can tell (late, orphan, conflict, a copy)
is the joiner's to say.

The HTTP edge asks the same before it accepts an event, as far as it can know, by the same functions: `check_kind` and
`check_token`. Its own are the fields (serving/schemas.py says them to a person) and a coarser look at the clock, since
it does not know the decision.

A JSON object with a repeated name is let in, the last one standing, as every decoder in use here reads it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from optimizer.errors import AdloopError
from optimizer.maths.attribution import CLOCK_SKEW_MS
from optimizer.stream.guarded import UNREADABLE
from optimizer.stream.log import Record
from optimizer.stream.tokens import Claims, TokenError, TokenKeys
from optimizer.types import Attribution, CountRule, Decision, Event, EventType, Reason, RewardWeights

MAX_INPUT_BYTES: Final = 1024 * 1024
MAX_VALUE: Final = 1e12
YEAR_2020_MS: Final = 1_577_836_800_000
# Far enough for clocks that are wrong and for streams in simulated time; micro- and nanoseconds and 2100 are beyond it.
YEAR_2100_MS: Final = 4_102_444_800_000
MOST_AHEAD_MS: Final = 3_650 * 24 * 3_600_000
ANOTHERS: Final = "token: it belongs to another decision than decision_id names"
_MAX_MS: Final = 2**61  # so that a time plus a window still fits 64 bits

T = TypeVar("T")
_Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
_Ts = Annotated[int, Meta(ge=-_MAX_MS, le=_MAX_MS)]
_Window = Annotated[int, Meta(ge=0, le=_MAX_MS)]
_MAX_DIGITS: Final = 308
_OVERFLOWING_INTEGER: Final = re.compile(rb"[0-9]{309}")


class Refused(AdloopError):
    """A record, or a posted event, that is not let in: its quarantine reason, and a sentence that names the field."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        super().__init__(detail)


class Claimed(Protocol):
    """What these checks need of an event: that of a log record, or one as posted."""

    @property
    def type(self) -> EventType: ...
    @property
    def decision_id(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def retracts(self) -> str | None: ...


class _StrictAttribution(Attribution, frozen=True, kw_only=True, gc=False):
    """An attribution in a log record: all four there, since a joiner needs nothing but the record."""

    click_window_ms: Annotated[int, Meta(ge=1, le=_MAX_MS)]
    conversion_window_ms: _Window
    view_through_ms: _Window
    count: CountRule


class _StrictDecision(Decision, frozen=True, kw_only=True, gc=False):
    decision_id: _Id
    ts: _Ts
    attribution: _StrictAttribution
    schema: Literal[1]


class _StrictEvent(Event, frozen=True, kw_only=True, gc=False):
    event_id: _Id
    decision_id: _Id
    ts: _Ts
    schema: Literal[1]
    retracts: _Id | None = None
    received_ts: _Ts | None = None


class _KnownAttribution(_StrictAttribution, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An attribution without unknown fields."""


class _KnownReward(RewardWeights, frozen=True, forbid_unknown_fields=True, gc=False):
    """Reward weights without unknown fields."""


class _KnownDecision(_StrictDecision, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A decision without unknown fields."""

    attribution: _KnownAttribution
    reward: _KnownReward


class _KnownEvent(_StrictEvent, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An event without unknown fields."""


# None of these structs can be part of a cycle, and a collector that walks tens of thousands of them costs more than
# decoding them does: gc=False.
_ANY: Final = msgspec.json.Decoder()
_DECISION: Final = msgspec.json.Decoder(_StrictDecision)
_EVENT: Final = msgspec.json.Decoder(_StrictEvent)
# Where every field is known, one typed pass has looked at every byte; only other records need the slow way.
_KNOWN_DECISION: Final = msgspec.json.Decoder(_KnownDecision)
_KNOWN_EVENT: Final = msgspec.json.Decoder(_KnownEvent)


class Arrived(Struct, frozen=True, array_like=True, gc=False):
    """An event whose token verifies; `received_ts` is the server's, or the log's own where the server gave none."""

    event: Event
    claims: Claims
    received_ts: int

    def expires_ms(self) -> int:
        return self.claims.exp * 1000


def read_decision(record: Record, value: bytes) -> Decision:
    """The decision in `value`. Raises Refused: too_large, undecodable, schema, value, clock."""
    decision: Decision
    try:
        decision = _KNOWN_DECISION.decode(value) if len(value) <= MAX_INPUT_BYTES else _decode(_DECISION, value)
    except UNREADABLE:
        decision = _decode(_DECISION, value)
    _check_key(record.key, decision.decision_id)
    if not 0.0 < decision.propensity <= 1.0:
        raise Refused("value", f"propensity: got {decision.propensity!r}, expected more than 0 and at most 1")
    if decision.ts < YEAR_2020_MS:
        raise Refused("clock", f"ts: got {decision.ts}, expected epoch milliseconds from 2020 on")
    # By the log's own time, so that a rebuild says the same; and before 2100, since a producer that is wrong about the
    # time may stamp its records as wrongly. A log that stamps nothing says 0 or -1; one of seconds, 1970.
    latest = YEAR_2100_MS - 1 if record.ts < YEAR_2020_MS else min(record.ts + MOST_AHEAD_MS, YEAR_2100_MS - 1)
    if decision.ts > latest:
        raise Refused("clock", f"ts: got {decision.ts}, expected epoch milliseconds up to {latest}")
    return decision


def read_event(record: Record, value: bytes, keys: TokenKeys, verified: tuple[str, Claims] | None = None) -> Arrived:
    """The event in `value` and what its token claims; `verified` is a token that has been verified, and its claims, so
    that the same one is not verified again. Raises Refused: too_large, undecodable, schema, value, bad_token,
    unknown_key, expired_token, token_mismatch (of the decision_id)."""
    event: Event
    try:
        event = _KNOWN_EVENT.decode(value) if len(value) <= MAX_INPUT_BYTES else _decode(_EVENT, value)
    except UNREADABLE:
        event = _decode(_EVENT, value)
    _check_key(record.key, event.decision_id)
    if event.value is not None or event.type in ("rating", "retraction"):
        check_kind(event)
    received = record.ts if event.received_ts is None else event.received_ts
    return Arrived(event, check_token(event, received, keys, verified), received)


def check_against(decision: Decision, arrived: Arrived, expires: int) -> None:
    """What can be told once the decision is known, `expires` being its ts + its retention. Raises Refused:
    token_mismatch, clock."""
    if not arrived.claims.matches(decision):
        raise Refused("token_mismatch", "token: its tenant, variant, propensity or policy is not the decision's")
    ts, first = arrived.event.ts, decision.ts - CLOCK_SKEW_MS
    if not first <= ts <= expires:
        raise Refused("clock", f"ts: got {ts}, expected {first} to {expires} (the decision's ts and retention)")


def _decode(decoder: msgspec.json.Decoder[T], value: bytes) -> T:
    if len(value) > MAX_INPUT_BYTES:
        raise Refused("too_large", f"record: got {len(value)} bytes, expected at most {MAX_INPUT_BYTES}")
    try:
        # The untyped pass reads every byte, also of unknown fields, which the typed one skips without looking.
        _ANY.decode(value)
    except UNREADABLE as error:
        raise Refused("undecodable", f"record: not JSON ({error})") from error
    if _OVERFLOWING_INTEGER.search(value):
        _check_integers(value)
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise Refused("schema", f"record: {error}") from error


def _check_integers(value: bytes) -> None:
    """Refuse an integer beyond a double's range. So many digits may also stand inside a string, so it is parsed."""

    def parse(digits: str) -> int:
        if len(digits.lstrip("-")) > _MAX_DIGITS:
            raise Refused("undecodable", f"record: a number of {len(digits)} digits overflows")
        return 0

    try:
        json.loads(value, parse_int=parse)
    except (ValueError, RecursionError) as error:
        raise Refused("undecodable", f"record: not JSON ({error})") from error


def _check_key(key: bytes | None, decision_id: str) -> None:
    if key != decision_id.encode():
        raise Refused("schema", f"key: got {(key or b'')[:80]!r}, expected the decision_id {decision_id!r}")


def check_kind(event: Claimed) -> None:
    """The fields that an event's type asks for, and the range of its value. Raises Refused: schema, value."""
    if event.type == "rating" and event.value is None:
        raise Refused("schema", "value: got nothing, expected a number from 0 to 1; a rating needs one")
    if event.type == "retraction" and event.retracts is None:
        raise Refused("schema", "retracts: got nothing, expected the event_id to take back; a retraction needs one")
    if event.value is not None:
        check_value(event.type, event.value)


def check_value(kind: str, value: float) -> None:
    """Raises Refused for a value that an event of this type can't have."""
    most = 1.0 if kind == "rating" else MAX_VALUE
    if not 0.0 <= value <= most:
        raise Refused("value", f"value: got {value!r}, expected 0 to {most:g} for a {kind}")


def check_token(
    event: Claimed, received_ts: int, keys: TokenKeys, verified: tuple[str, Claims] | None = None
) -> Claims:
    """What the event's token claims; `verified` is a token that has been verified, and its claims. Raises Refused:
    bad_token, unknown_key, expired_token, token_mismatch (of the decision_id)."""
    if verified is not None and verified[0] == event.token:
        claims = verified[1]
    else:
        try:
            claims = keys.verify(event.token)
        except TokenError as error:
            raise Refused(error.reason, str(error)) from error
    if claims.exp * 1000 <= received_ts:
        raise Refused("expired_token", f"token: expired at {claims.exp} s, received at {received_ts} ms")
    if claims.sub != event.decision_id:
        raise Refused("token_mismatch", ANOTHERS)
    return claims
