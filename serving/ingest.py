"""Posted events: what can be told at the edge, in the order of contracts section 4, and the record that is appended."""

from __future__ import annotations

import re

from optimizer.errors import BadInput
from optimizer.stream.tokens import TokenError, TokenKeys
from optimizer.types import Event, Reason
from serving.schemas import MAX_VALUE, EventIn, EventResult
from serving.wire import MAX_DEPTH, convert, overflowing, shown, too_deep

EARLIEST_TS = 1_577_836_800_000  # 2020-01-01: a decision's own ts is from then on
CLOCK_SKEW_MS = 5_000
_JSON_MEDIA = re.compile(r"(?:application|text)/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


class Rejected(Exception):
    """An event that is not let in: one reason of the closed list and a sentence."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.detail = detail
        super().__init__(detail)


def admit(raw: object, tenant: str, keys: TokenKeys, now_ms: int) -> Event:
    """The record of one posted event (JSON as parsed). Raises Rejected with the first check that fails."""
    if too_deep(raw):
        raise Rejected("undecodable", f"body: got JSON nested too deep, expected at most {MAX_DEPTH} levels")
    raw = unwrapped(raw)
    path = overflowing(raw)
    if path is not None:
        raise Rejected("undecodable", f"{path}: got a number that overflows, expected one within 1.8e308")
    try:
        event = convert(raw, EventIn)
    except BadInput as error:
        raise Rejected("schema", str(error)) from error
    _check_kind(event)
    _check_value(event)
    exp_s = _check_token(event, tenant, keys, now_ms)
    ts = now_ms if event.ts is None else event.ts
    # The decision's own ts is not known here; its retention ends within the second before the token's `exp`.
    if not EARLIEST_TS - CLOCK_SKEW_MS <= ts <= exp_s * 1000:
        raise Rejected(
            "clock",
            f"ts: got {ts}, expected epoch milliseconds within the decision's retention (by {exp_s * 1000})",
        )
    return Event(
        event_id=event.event_id,
        type=event.type,
        decision_id=event.decision_id,
        token=event.token,
        ts=ts,
        schema=1,
        value=event.value,
        retracts=event.retracts,
        received_ts=now_ms,
        ts_defaulted=event.ts is None,
    )


def unwrapped(raw: object) -> object:
    """The event inside a CloudEvents 1.0 envelope in structured mode; anything else as it is."""
    if not isinstance(raw, dict) or "specversion" not in raw:
        return raw
    if raw["specversion"] != "1.0":
        raise Rejected("schema", f'specversion: got {shown(raw["specversion"])}, expected "1.0"')
    for name in ("id", "source", "type"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise Rejected("schema", f"{name}: got {shown(raw.get(name))}, expected a text, as CloudEvents requires")
    media = raw.get("datacontenttype", "application/json")
    if not isinstance(media, str) or not _JSON_MEDIA.fullmatch(media):
        raise Rejected("schema", f"datacontenttype: got {shown(media)}, expected application/json")
    if not isinstance(raw.get("data"), dict):
        raise Rejected("schema", f"data: got {shown(raw.get('data'))}, expected the event as a JSON object")
    return raw["data"]


def rejected(raw: object, reason: Reason, detail: str) -> EventResult:
    """The result of an event that was refused, with its id as far as one can be read."""
    if isinstance(raw, dict) and isinstance(raw.get("data"), dict):
        raw = raw["data"]
    event_id = raw.get("event_id") if isinstance(raw, dict) else None
    return EventResult(event_id if isinstance(event_id, str) else None, "rejected", reason, detail)


def _check_kind(event: EventIn) -> None:
    """Which fields a type needs."""
    if event.type == "rating" and event.value is None:
        raise Rejected("schema", "value: got nothing, expected a number from 0 to 1; a rating needs one")
    if event.type == "retraction" and event.retracts is None:
        raise Rejected("schema", "retracts: got nothing, expected the event_id to take back; a retraction needs one")


def _check_value(event: EventIn) -> None:
    limit = 1.0 if event.type == "rating" else MAX_VALUE
    if event.value is not None and not 0.0 <= event.value <= limit:
        raise Rejected("value", f"value: got {event.value}, expected 0 to {limit:g} for a {event.type}")


def _check_token(event: EventIn, tenant: str, keys: TokenKeys, now_ms: int) -> int:
    """The token's `exp` in seconds, once everything about it that can be known here holds."""
    try:
        claims = keys.verify(event.token)
    except TokenError as error:
        raise Rejected(error.reason, str(error)) from error
    if claims.exp * 1000 <= now_ms:
        raise Rejected("expired_token", f"token: expired at {claims.exp * 1000}, received at {now_ms}")
    if claims.sub != event.decision_id:
        raise Rejected("token_mismatch", "token: it belongs to another decision than decision_id names")
    if claims.ten != tenant:
        # The same words as above: whose decision it is instead is nobody's business here.
        raise Rejected("token_mismatch", "token: it belongs to another decision than decision_id names")
    return claims.exp
