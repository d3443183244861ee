"""The service without HTTP: the same answer to the same idempotency key, events, statistics."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer.types import Event
from serving.schemas import GenerateIn
from serving.wire import convert
from tests.serving_rig import CONTROLS, TENANT, TEXTS, Rig, decisions, make_outcome, make_policy, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


# -- idempotency ------------------------------------------------------------------------------------------------------


def keyed(rig: Rig, key: str, tenant: str = TENANT, **fields: object) -> Any:
    return rig.service.generate(tenant, convert({"campaign_id": "c1", **fields}, GenerateIn), key)


def test_a_key_gives_the_same_answer_for_ten_minutes_per_tenant(rig: Rig) -> None:
    rig.put(controls=CONTROLS)
    rig.put(controls=CONTROLS, tenant="other")
    first = keyed(rig, "k")
    assert keyed(rig, "other") != first != keyed(rig, "k", tenant="other")
    rig.clock.advance(600_000 - 1)
    assert keyed(rig, "k") == first
    rig.clock.advance(1)
    assert keyed(rig, "k") != first


def test_concurrent_duplicates_are_one_request(rig: Rig) -> None:
    rig.put(controls=CONTROLS)
    gate, started = threading.Event(), threading.Event()
    append = rig.log.append

    def slow(records: Any) -> Any:
        started.set()
        assert gate.wait(60)
        return append(records)

    rig.log.append = slow  # type: ignore[method-assign]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(keyed(rig, "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    gate.set()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers)
    assert len(decisions(rig)) == 1


def test_a_failure_is_not_kept(rig: Rig) -> None:
    rig.put()
    append = rig.log.append

    def full(_records: Any) -> Any:
        raise OSError(28, "No space left on device")

    rig.log.append = full  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="space"):
        keyed(rig, "k")
    assert rig.service.log_refuses()
    rig.log.append = append  # type: ignore[method-assign]
    assert keyed(rig, "k").variants
    assert not rig.service.log_refuses()


# -- events -----------------------------------------------------------------------------------------------------------


def test_an_accepted_event_stands_in_the_log_as_posted(rig: Rig) -> None:
    rig.put()
    variant = rig.generate().variants[0]
    now = rig.clock.now_ms()
    base = {"decision_id": variant.decision_id, "token": variant.token}
    posted: list[dict[str, Any]] = [
        {"event_id": "e1", "type": "impression", "ts": now + 7, **base},
        {"event_id": "e2", "type": "conversion", "value": 3.5, **base},
        {"event_id": "e3", "type": "retraction", "retracts": "e2", **base},
    ]
    results = rig.service.post_events(TENANT, posted)
    assert [(r.event_id, r.status) for r in results] == [("e1", "accepted"), ("e2", "accepted"), ("e3", "accepted")]
    stored = [json.loads(raw) for raw in rig.records("events")]
    assert stored[0] == {**posted[0], "schema": 1, "received_ts": now}
    assert stored[1] == {**posted[1], "ts": now, "ts_defaulted": True, "schema": 1, "received_ts": now}
    assert stored[2]["retracts"] == "e2"
    assert msgspec.json.decode(rig.records("events")[0], type=Event).schema == 1


def test_cloudevents_carry_the_same_object(rig: Rig) -> None:
    rig.put()
    variant = rig.generate().variants[0]
    data = {"event_id": "e1", "type": "click", "decision_id": variant.decision_id, "token": variant.token}
    envelope = {"specversion": "1.0", "id": "x", "source": "/shop", "type": "ad.click", "time": "2026-01-01T00:00:00Z"}
    client = rig.client()
    headers = {"content-type": "application/cloudevents+json"}
    good = client.post("/v1/events", content=json.dumps({**envelope, "data": data}), headers=headers).json()
    assert good["results"][0] == {"event_id": "e1", "status": "accepted", "reason": None, "detail": None}
    batch = {"content-type": "application/cloudevents-batch+json"}
    media = ["application/json; charset=utf-8", "application/vnd.shop.event+json", "text/json"]
    sent = [
        {**envelope, "datacontenttype": kind, "data": {**data, "event_id": f"m{at}"}} for at, kind in enumerate(media)
    ]
    answers = client.post("/v1/events", content=json.dumps(sent), headers=batch).json()["results"]
    assert [answer["status"] for answer in answers] == ["accepted"] * 3
    bad = [
        {**envelope, "datacontenttype": "application/xml"},
        {**envelope, "specversion": "0.3"},
        {**envelope, "data": "e1"},
        {k: v for k, v in envelope.items() if k != "id"},
    ]
    results = client.post("/v1/events", content=json.dumps([{"data": data, **e} for e in bad]), headers=batch).json()[
        "results"
    ]
    assert [r["reason"] for r in results] == ["schema"] * 4
    assert results[0]["detail"].startswith("datacontenttype: ")
    assert len(rig.records("events")) == 1 + len(media)


@pytest.mark.parametrize("missing", ["rating", "retraction"])
def test_fields_that_a_type_needs(rig: Rig, missing: str) -> None:
    rig.put()
    variant = rig.generate().variants[0]
    raw = {"event_id": "e", "type": missing, "decision_id": variant.decision_id, "token": variant.token}
    (result,) = rig.service.post_events(TENANT, [raw])
    assert (result.status, result.reason) == ("rejected", "schema")


# -- statistics -------------------------------------------------------------------------------------------------------


def test_stats_count_the_last_revisions(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0), TEXTS)
    rig.append("policies", "v1", make_policy("v1", kl=1.25))
    rig.generate(), rig.generate()
    first, second = decisions(rig)
    for outcome in (
        make_outcome(first),
        make_outcome(second),
        make_outcome(second),  # stands twice after a crash
        make_outcome(first, revision=2, click=1),
        make_outcome(first),  # an old one comes again
    ):
        rig.append("outcomes", outcome.decision_id, outcome)
    assert rig.service.stats(TENANT) == {
        "campaigns": {
            "c1": {
                "policies": {"v1": {"impressions": 2, "clicks": 1, "conversions": 0, "reward": 1.0}},
                "control": {"impressions": 0, "clicks": 0, "conversions": 0, "reward": 0.0},
                "lift": None,
                "kl": 1.25,
                "newest": TEXTS,
            }
        }
    }
    assert rig.service.stats("other") == {"campaigns": {}}


def test_lift_compares_reward_per_impression(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.5), TEXTS)
    rig.service.generate_many(TENANT, [convert({"campaign_id": "c1"}, GenerateIn)] * 1000)
    for index, decision in enumerate(decisions(rig)):
        clicked = index % (4 if decision.source == "pool" else 8) == 0
        rig.append("outcomes", decision.decision_id, make_outcome(decision, click=int(clicked)))
    stats = rig.service.stats(TENANT)["campaigns"]["c1"]
    learned, control = stats["policies"]["v1"], stats["control"]
    expected = (learned["clicks"] / learned["impressions"]) / (control["clicks"] / control["impressions"]) - 1
    assert stats["lift"]["value"] == pytest.approx(expected)
    assert stats["lift"]["low"] < expected < stats["lift"]["high"]
