"""One impression all the way round: over real HTTP, through every record of the log, to a wiser next one."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from optimizer.stream.log import EventLog, Record, whole
from optimizer.stream.open import open_log
from optimizer.stream.tokens import TokenKeys
from tests.served import Served

T = TypeVar("T")
STEP_WITHIN_S = 240.0  # importing torch alone takes a slow machine a minute
REQUESTS = 80  # the learner waits for 32 revisions; twice that starts an increment for sure
CAMPAIGN: dict[str, Any] = {
    "product": {"name": "Trail Runner 3"},
    "segments": ["all", "beginners"],
    "controls": [{"headline": "Trail Runner 3: made for the trail"}],
    "holdback": 0.0,
}


def wait_for(look: Callable[[], T | None], within_s: float, what: str) -> T:
    """What `look` gives as soon as it gives something."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"{what} did not come within {within_s:g} s"
        time.sleep(0.1)
    return found


class Topics:
    """The log as another process reads it."""

    def __init__(self, url: str) -> None:
        self.log: EventLog = open_log(url)

    def records(self, topic: str, key: str | None = None) -> list[Record]:
        reader = self.log.reader(whole(self.log, topic))
        try:
            found: list[Record] = []
            while records := reader.poll(1000):
                found.extend(records)
        finally:
            reader.close()
        return [record for record in found if key is None or record.key == key.encode()]

    def values(self, topic: str, key: str | None = None) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in self.records(topic, key) if record.value is not None]


@pytest.mark.timeout(900)
def test_one_impression_all_the_way_round(tmp_path: Path, tiny_model_folder: Path) -> None:
    """With a model folder of the user's own: here one that a second of training on a small corpus has made."""
    with Served(tmp_path, "--all", "--model", str(tiny_model_folder)) as served:
        topics = Topics(f"sqlite:///{tmp_path / 'log.db'}")
        try:
            follow(served, topics, tmp_path)
        finally:
            topics.log.close()
        assert served.stop() == 0


def follow(served: Served, topics: Topics, data: Path) -> None:
    # The campaign: what was answered is what stands in the log.
    put = served.put("/v1/campaigns/c1", CAMPAIGN)
    (campaign,) = topics.values("campaigns", "default/c1")
    assert {**put, "tenant": "default", "schema": 1} == campaign

    # Until there is a model, the control is served.
    first = served.post("/v1/generate", {"campaign_id": "c1"})["variants"][0]
    assert (first["source"], first["text"], first["propensity"]) == (
        "control",
        CAMPAIGN["controls"][0]["headline"],
        1.0,
    )

    # The reference policy, and a pool that it wrote.
    def from_pool() -> dict[str, Any] | None:
        answer: dict[str, Any] = served.post("/v1/generate", {"campaign_id": "c1", "context": {"device": "mobile"}})
        return answer if answer["variants"][0]["source"] == "pool" else None

    answer = wait_for(from_pool, STEP_WITHIN_S, "a pool")
    reference = topics.values("policies")[0]
    assert (reference["stage"], reference["parent"]) == ("live", None)
    assert answer["policy_version"] == reference["version"]
    variant = answer["variants"][0]
    (decision,) = topics.values("decisions", variant["decision_id"])
    (pool,) = topics.values("candidates", decision["pool_id"])
    assert (pool["tenant"], pool["campaign_id"], pool["segment"]) == ("default", "c1", "all")
    assert pool["policy_version"] == reference["version"]
    chosen = pool["candidates"][decision["candidate"]]
    assert chosen["rejected"] is None
    assert chosen["slots"] == variant["slots"]
    assert chosen["variant_id"] == decision["variant_id"] == variant["variant_id"]
    assert len(chosen["token_ids"]) == len(chosen["log_probs"]) == len(CAMPAIGN["controls"][0])

    # The decision: exact probabilities over the candidates, and the propensity that was answered.
    assert len(decision["probabilities"]) == len(pool["candidates"])
    assert sum(decision["probabilities"]) == pytest.approx(1.0)
    for candidate, probability in zip(pool["candidates"], decision["probabilities"], strict=True):
        assert (probability > 0) == (candidate["rejected"] is None)
    assert decision["propensity"] == variant["propensity"] == decision["probabilities"][decision["candidate"]]
    assert decision["request_id"] == answer["request_id"]
    assert decision["context"] == {"device": "mobile", "segment": "all"}
    assert decision["attribution"] == put["attribution"]
    assert decision["reward"] == put["reward"]

    # The token says the same, signed with the key of the data folder.
    claims = TokenKeys.load(data / "token_keys").verify(variant["token"])
    assert (claims.ten, claims.sub, claims.var) == ("default", variant["decision_id"], variant["variant_id"])
    assert (claims.prp, claims.pol) == (variant["propensity"], answer["policy_version"])

    # Impression, then click: events as posted, one revision of the outcome for each.
    shown_ts = decision["ts"] + 40
    for number, (kind, ts) in enumerate((("impression", shown_ts), ("click", shown_ts + 1500)), start=1):
        event = {
            "event_id": f"e-{number}",
            "type": kind,
            "decision_id": variant["decision_id"],
            "token": variant["token"],
        }
        result = served.post("/v1/events", {**event, "ts": ts})["results"][0]
        assert result == {"event_id": f"e-{number}", "status": "accepted", "reason": None, "detail": None}
        stored = topics.values("events", variant["decision_id"])[-1]
        assert {**event, "ts": ts, "schema": 1, "received_ts": stored["received_ts"]} == stored

        def revisions(count: int = number) -> list[dict[str, Any]] | None:
            found = topics.values("outcomes", variant["decision_id"])
            return found if len(found) >= count else None

        outcome = wait_for(revisions, STEP_WITHIN_S, f"revision {number}")[-1]
        clicked = kind == "click"
        assert (outcome["revision"], outcome["state"], outcome["schema"]) == (number, "open", 1)
        assert (outcome["impression_ts"], outcome["click_ts"]) == (shown_ts, ts if clicked else None)
        assert outcome["components"] == {"click": int(clicked), "conversion": 0, "value": 0.0, "rating": None}
        assert outcome["reward"] == float(clicked)
        assert outcome["events"] == [f"e-{index}" for index in range(1, number + 1)]
        assert outcome["decision"] == decision

    # More traffic of the same kind, until the learner takes an increment and publishes a version.
    for index in range(REQUESTS):
        shown = served.post("/v1/generate", {"campaign_id": "c1"})["variants"][0]
        kinds = ["impression", "click"] if index % 4 == 0 else ["impression"]
        base = {"decision_id": shown["decision_id"], "token": shown["token"]}
        served.post("/v1/events", [{"event_id": kind, "type": kind, **base} for kind in kinds])
    version = wait_for(lambda: next(iter(topics.values("policies")[1:]), None), STEP_WITHIN_S, "a new version")
    assert (version["stage"], version["parent"]) == ("live", reference["version"])
    assert version["evidence"]["outcomes"] > 0
    manifest = json.loads((data / version["uri"] / "manifest.json").read_text())
    assert manifest["content_hash"] == version["content_hash"]

    # The next decision comes from a pool that the new version (or a newer one) wrote, scored by its critic.
    def from_new_version() -> dict[str, Any] | None:
        answer: dict[str, Any] = served.post("/v1/generate", {"campaign_id": "c1"})
        return answer if answer["policy_version"] > reference["version"] else None

    following = wait_for(from_new_version, STEP_WITHIN_S, "a pool of the new version")
    (decision,) = topics.values("decisions", following["variants"][0]["decision_id"])
    assert decision["policy_version"] == following["policy_version"]
    assert decision["critic_version"].startswith("c-")
    known = {record["version"] for record in topics.values("policies")}
    assert following["policy_version"] in known

    # What the statistics say is what the log holds, once the joiner has read all; nothing was refused on the way.
    def settled() -> dict[str, Any] | None:
        stats: dict[str, Any] = served.get("/v1/stats")["campaigns"]["c1"]
        totals = [(side["impressions"], side["clicks"]) for side in stats["policies"].values()]
        whole = (REQUESTS + 1, REQUESTS // 4 + 1)
        return stats if (sum(n for n, _ in totals), sum(clicks for _, clicks in totals)) == whole else None

    stats = wait_for(settled, STEP_WITHIN_S, "the statistics of all events")
    last = {outcome["decision_id"]: outcome for outcome in topics.values("outcomes")}
    assert len(last) == REQUESTS + 1
    assert sum(outcome["reward"] for outcome in last.values()) == REQUESTS // 4 + 1
    assert stats["newest"]
    assert topics.values("quarantine") == []
    head = base64.urlsafe_b64decode(variant["token"].split(".")[0] + "==")
    assert json.loads(head)["alg"] == "HS256"
