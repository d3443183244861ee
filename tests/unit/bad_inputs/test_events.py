"""Lines 24 to 32 of shared/bad-inputs.md: events, each of which stands alone, with a reason of the closed list."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from optimizer.stream.tokens import TokenKeys
from optimizer.types import Decision
from serving.schemas import GenerateIn
from serving.wire import convert, overflowing
from tests.refusals import (
    API_KEYS,
    EVENTS,
    JSON,
    event,
    refuse_nested,
    refused,
    unchanged,
)
from tests.serving_rig import Rig, make_rig


def test_line_24_tokens(rig: Rig, client: TestClient) -> None:
    good = event(rig)
    other = rig.generate().variants[0]
    foreign = TokenKeys({"k9": b"y" * 32})
    forged = TokenKeys({"k1": b"y" * 32})
    decision = json.loads(rig.records("decisions")[0])
    assert decision["decision_id"] == good["decision_id"]

    record = convert(decision, Decision)
    expiry = rig.clock.now_ms() // 1000
    cases = {
        "bad_token": [
            "",
            "a.b.c",
            "x" * 5_000,
            "x" * 50_000,
            good["token"][:-2],
            good["token"] + "x",
            forged.sign(record, expiry + 100),
        ],
        "unknown_key": [foreign.sign(record, expiry + 100)],
        "expired_token": [rig.keys.sign(record, expiry - 1), rig.keys.sign(record, expiry)],
        "token_mismatch": [other.token],
    }
    for reason, tokens in cases.items():
        for token in tokens:
            result = client.post(EVENTS, json={**good, "token": token}).json()["results"][0]
            assert (result["status"], result["reason"]) == ("rejected", reason), token
            assert result["detail"].startswith("token: ")
    missing = {name: value for name, value in good.items() if name != "token"}
    assert client.post(EVENTS, json=missing).json()["results"][0]["reason"] == "schema"
    assert rig.records("events") == []


def test_line_24_the_event_of_an_expired_decision_is_rejected(rig: Rig, client: TestClient) -> None:
    good = event(rig)
    window = 1_800_000 + 604_800_000 + 7 * 86_400_000
    rig.clock.advance(window - 1)
    assert client.post(EVENTS, json=good).json()["results"][0]["status"] == "accepted"
    rig.clock.advance(1000)
    assert client.post(EVENTS, json=good).json()["results"][0]["reason"] == "expired_token"


@pytest.mark.parametrize("ts", [0, 1, 1_700_000_000, 4_102_444_800_000, -5, 2**70])
def test_line_28_timestamps(rig: Rig, client: TestClient, ts: int) -> None:
    good = event(rig)
    unchanged(rig, lambda: rejected(client, {**good, "ts": ts}, "clock"))


@pytest.mark.parametrize("ts", ["1700000000000", 1.5, True, "now"])
def test_line_28_a_timestamp_that_is_no_integer(rig: Rig, client: TestClient, ts: object) -> None:
    good = event(rig)
    unchanged(rig, lambda: rejected(client, {**good, "ts": ts}, "schema"))


@pytest.mark.parametrize(
    ("kind", "value"),
    [("conversion", -0.01), ("conversion", 1.1e12), ("rating", 1.01), ("rating", -1), ("conversion", 1e300)],
)
def test_line_29_values(rig: Rig, client: TestClient, kind: str, value: float) -> None:
    good = event(rig)
    unchanged(rig, lambda: rejected(client, {**good, "type": kind, "value": value}, "value"))


@pytest.mark.parametrize(("kind", "value"), [("conversion", 0), ("conversion", 1e12), ("rating", 0), ("rating", 1)])
def test_line_29_values_at_the_edge(rig: Rig, client: TestClient, kind: str, value: float) -> None:
    body = event(rig, type=kind, value=value)
    assert client.post(EVENTS, json=body).json()["results"][0]["status"] == "accepted"


@pytest.mark.parametrize("propensity", [0, 1.5, 0.5])
def test_line_30_a_propensity_cannot_be_sent(rig: Rig, client: TestClient, propensity: float) -> None:
    good = event(rig)
    unchanged(rig, lambda: rejected(client, {**good, "propensity": propensity}, "schema"))


def test_line_30_propensity_nan_is_not_json(rig: Rig, client: TestClient) -> None:
    body = json.dumps({**event(rig), "propensity": float("nan")})
    unchanged(rig, lambda: refused(client.post(EVENTS, content=body, headers=JSON), 400))


def test_line_32_another_tenants_decision(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, api_keys=API_KEYS)
    rig.put("c1", tenant="acme")
    variant = rig.service.generate("acme", convert({"campaign_id": "c1"}, GenerateIn)).variants[0]
    body = {"event_id": "e", "type": "click", "decision_id": variant.decision_id, "token": variant.token}
    client = rig.client()
    theirs = client.post(EVENTS, json=body, headers={"authorization": "Bearer admin-Key-4711-eeee"})
    assert theirs.json()["results"][0]["reason"] == "token_mismatch"
    mine = client.post(EVENTS, json=body, headers={"authorization": "Bearer ingest-Key-4711-bbb"})
    assert mine.json()["results"][0]["status"] == "accepted"
    rig.close()


@pytest.mark.parametrize("value", [3, None, "x", [], {}, {"event_id": 7}])
def test_events_that_are_none_are_rejected_alone(rig: Rig, client: TestClient, value: object) -> None:
    good = event(rig)
    results = client.post(EVENTS, json=[value, good]).json()["results"]
    assert [result["status"] for result in results] == ["rejected", "accepted"]
    assert results[0]["reason"] == "schema"
    assert len(rig.records("events")) == 1


def test_a_long_name_above_a_long_list_is_not_copied_for_each_element() -> None:
    """Half a megabyte of name above a quarter of a million numbers: together 125 GB."""
    value = {"a" * 500_000: [1] * 250_000, "b": [{"c": 1}, {"c": [2, math.inf]}], "d": math.inf}
    assert overflowing(value) == "b[1].c[1]"
    assert overflowing({"a": [1, {"b": 2}], "c": {}}) is None
    assert overflowing(math.inf) == "body"


def test_an_overflow_in_one_event_is_that_events_matter(rig: Rig, client: TestClient) -> None:
    good = json.dumps(event(rig, type="conversion"))
    body = f'[{good[:-1]}, "value": 1e400}}, {good}]'
    results = client.post(EVENTS, content=body, headers=JSON).json()["results"]
    assert [(result["status"], result["reason"]) for result in results] == [
        ("rejected", "undecodable"),
        ("accepted", None),
    ]


@pytest.mark.parametrize("depth", [65, 70, 450, 500, 700])
@pytest.mark.parametrize("envelope", ["{}", '{{"specversion": {}}}', '{{"event_id": {}}}'])
def test_nesting_in_one_event_is_that_events_matter(rig: Rig, client: TestClient, depth: int, envelope: str) -> None:
    good = json.dumps(event(rig))
    deep = envelope.format("[" * depth + "]" * depth)
    results = client.post(EVENTS, content=f"[{deep}, {good}]", headers=JSON).json()["results"]
    assert [(result["status"], result["reason"]) for result in results] == [
        ("rejected", "undecodable"),
        ("accepted", None),
    ]
    unchanged(rig, partial(refuse_nested, client, "POST", EVENTS, "[" * depth))


@pytest.mark.parametrize("depth", [950, 990])
def test_nesting_at_the_parsers_limit_is_never_a_fault(rig: Rig, client: TestClient, depth: int) -> None:
    """The parser's own limit depends on who calls it: on this side of it the event is refused, beyond it the body."""
    body = f"[{'[' * depth}{']' * depth}, {json.dumps(event(rig))}]"
    response = client.post(EVENTS, content=body, headers=JSON)
    if response.status_code == 202:
        assert [result["status"] for result in response.json()["results"]] == ["rejected", "accepted"]
    else:
        refused(response, 400)


def rejected(client: TestClient, body: object, reason: str) -> None:
    response = client.post(EVENTS, json=body)
    assert response.status_code == 202
    result = response.json()["results"][0]
    assert (result["status"], result["reason"]) == ("rejected", reason)
    assert result["detail"]
