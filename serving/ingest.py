"""Posted events: what can be told at the edge, in the order of docs/api.md, and the record that is appended."""

from __future__ import annotations

import re

from optimizer.errors import BadInput
from optimizer.maths.attribution import CLOCK_SKEW_MS
from optimizer.stream.admission import ANOTHERS, YEAR_2020_MS, Refused, check_kind, check_token
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Event, Reason
from serving.schemas import EventIn, EventResult
from serving.wire import MAX_DEPTH, convert, overflowing, shown, too_deep

_JSON_MEDIA = re.compile(r"(?:application|text)/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


def admit(raw: object, tenant: str, keys: TokenKeys, now_ms: int) -> Event:
    """The record of one posted event (JSON as parsed). Raises Refused with the first check that fails."""
    if too_deep(raw):
        raise Refused("undecodable", f"body: got JSON nested too deep, expected at most {MAX_DEPTH} levels")
    raw = unwrapped(raw)
    path = overflowing(raw)
    if path is not None:
        raise Refused("undecodable", f"{path}: got a number that overflows, expected one within 1.8e308")
    try:
        event = convert(raw, EventIn)
    except BadInput as error:
        raise Refused("schema", str(error)) from error
    check_kind(event)
    claims = check_token(event, now_ms, keys)
    if claims.ten != tenant:
        # The same words as of another decision: whose it is instead is nobody's business here.
        raise Refused("token_mismatch", ANOTHERS)
    ts = now_ms if event.ts is None else event.ts
    # The decision's own ts is not known here; its retention ends within the second before the token's `exp`.
    until = claims.exp * 1000
    if not YEAR_2020_MS - CLOCK_SKEW_MS <= ts <= until:
        raise Refused(
            "clock", f"ts: got {ts}, expected epoch milliseconds within the decision's retention (by {until})"
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
        raise Refused("schema", f'specversion: got {shown(raw["specversion"])}, expected "1.0"')
    for name in ("id", "source", "type"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise Refused("schema", f"{name}: got {shown(raw.get(name))}, expected a text, as CloudEvents requires")
    media = raw.get("datacontenttype", "application/json")
    if not isinstance(media, str) or not _JSON_MEDIA.fullmatch(media):
        raise Refused("schema", f"datacontenttype: got {shown(media)}, expected application/json")
    if not isinstance(raw.get("data"), dict):
        raise Refused("schema", f"data: got {shown(raw.get('data'))}, expected the event as a JSON object")
    return raw["data"]


def rejected(raw: object, reason: Reason, detail: str) -> EventResult:
    """The result of an event that was refused, with its id as far as one can be read."""
    if isinstance(raw, dict) and isinstance(raw.get("data"), dict):
        raw = raw["data"]
    event_id = raw.get("event_id") if isinstance(raw, dict) else None
    return EventResult(event_id if isinstance(event_id, str) else None, "rejected", reason, detail)
