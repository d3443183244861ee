"""What the HTTP edge refuses of an event, the joiner refuses in the same words; what it lets in, the joiner lets in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from optimizer.stream.admission import MAX_VALUE, Refused, read_event
from optimizer.stream.log import Record
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Event, to_json
from serving.ingest import admit
from tests.stream_rig import KEYS, T0, decision, event, token

D = decision()
NOW = T0 + 1_000
STRANGERS = TokenKeys({"stranger": b"x" * 32})


def edge(posted: dict[str, Any]) -> Event | tuple[str, str]:
    """The record, or the reason and the sentence."""
    try:
        return admit(posted, "default", KEYS, NOW)
    except Refused as refused:
        return refused.reason, str(refused)


def joiner(value: bytes) -> Event | tuple[str, str]:
    """The same of the joiner, of a record in the log."""
    try:
        return read_event(Record("events", 0, 0, b"d1", value, NOW), value, KEYS).event
    except Refused as refused:
        return refused.reason, str(refused)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"type": "rating"}, "schema"),
        ({"type": "retraction"}, "schema"),
        ({"type": "rating", "value": 1.01}, "value"),
        ({"type": "conversion", "value": -0.5}, "value"),
        ({"type": "conversion", "value": MAX_VALUE * 1.1}, "value"),
        ({"type": "click", "value": -1.0}, "value"),
        ({"token": "a.b.c"}, "bad_token"),
        ({"token": token(D, STRANGERS)}, "unknown_key"),
        ({"token": token(D, exp_s=T0 // 1000 + 1)}, "expired_token"),
        ({"token": token(decision("d2"))}, "token_mismatch"),
        # Of two faults the first that is looked at is told, and both look in the contract's order.
        ({"type": "rating", "token": "a.b.c"}, "schema"),
        ({"type": "rating", "value": 2.0, "token": "a.b.c"}, "value"),
        ({"token": token(decision("d2"), exp_s=T0 // 1000)}, "expired_token"),
    ],
)
def test_both_refuse_for_the_same_reason_in_the_same_words(changed: dict[str, Any], reason: str) -> None:
    stands = event(D, "e", **changed)
    posted = {name: value for name, value in stands.items() if name not in ("schema", "received_ts")}
    refused = edge(posted)
    assert not isinstance(refused, Event)
    assert refused[0] == reason
    assert joiner(json.dumps(stands).encode()) == refused


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"type_": "click", "ts": T0 + 5},
        {"type_": "conversion", "value": MAX_VALUE},
        {"type_": "conversion", "value": 0.0},
        {"type_": "rating", "value": 1.0},
        {"type_": "retraction", "retracts": "i"},
    ],
)
def test_what_the_edge_lets_in_the_joiner_does(more: dict[str, Any]) -> None:
    posted = {name: value for name, value in event(D, "e", **more).items() if name not in ("schema", "received_ts")}
    let_in = edge(posted)
    assert isinstance(let_in, Event)
    read = joiner(to_json(let_in))
    assert isinstance(read, Event)
    assert msgspec.to_builtins(read) == msgspec.to_builtins(let_in)


def test_another_tenants_event_is_told_in_the_words_of_another_decisions() -> None:
    posted = {"event_id": "e", "type": "click", "decision_id": "d1", "ts": T0}
    theirs = edge({**posted, "token": token(decision(tenant="acme"))})
    assert theirs == edge({**posted, "token": token(decision("d2"))})
    assert theirs == ("token_mismatch", "token: it belongs to another decision than decision_id names")
