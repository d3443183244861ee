"""Kill the real process 20 times, at random moments and under traffic: no accepted event is lost, none counts twice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from optimizer.stream.log import whole
from optimizer.stream.open import open_log
from tests.served import Served
from tests.serving_rig import MINIMAL

KILLS = 20
SETTLED_WITHIN_S = 120.0
CAMPAIGN = {**MINIMAL, "attribution": {"count": "all"}, "reward": {"click": 1.0, "conversion": 1.0}}


class Client:
    """An ad server that never gives up: what was not answered is sent again, under the same event ids."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.unanswered: list[list[dict[str, Any]]] = []
        self.accepted: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def play(self, served: Served, under_way: Callable[[], None]) -> None:
        """Requests and events until the process dies under them; `under_way` is called after the first whole round."""
        while self.unanswered:
            self._post(served, self.unanswered[-1])
            self.unanswered.pop()
        while True:
            variants = served.post("/v1/generate", {"campaign_id": "c1"})["variants"]
            self.unanswered.append([event for variant in variants for event in self._events(variant)])
            self._post(served, self.unanswered[-1])
            self.unanswered.pop()
            under_way()
            under_way = _nothing

    def flush(self, served: Served) -> None:
        """Send what is left, and everything of the last answers once more: repeats must not count."""
        for events in self.unanswered:
            self._post(served, events)
        for events in list(self.accepted.values())[-50:]:
            served.post("/v1/events", events)

    def _events(self, variant: dict[str, Any]) -> list[dict[str, Any]]:
        name, now = variant["decision_id"], time.time_ns() // 1_000_000
        kinds = ["impression"] + ["click"] * self.rng.randint(0, 1) + ["conversion"] * self.rng.randint(0, 3)
        events: list[dict[str, Any]] = [
            {"event_id": f"{index}-{name}", "type": kind, "decision_id": name, "token": variant["token"]}
            for index, kind in enumerate(kinds)
        ]
        # Half of the answers leave their events' time to the server, which says something else at every repeat. Never
        # only some of an answer's events: a click dated by a repeat would come after conversions dated before the kill.
        return events if self.rng.random() < 0.5 else [{**event, "ts": now} for event in events]

    def _post(self, served: Served, events: list[dict[str, Any]]) -> None:
        results = served.post("/v1/events", events)["results"]
        assert [result["status"] for result in results] == ["accepted"] * len(events)
        for event in events:
            self.accepted[event["decision_id"]].append(event)


def _nothing() -> None:
    """What is called after every round but a life's first."""


def last_outcomes(url: str) -> dict[str, dict[str, Any]]:
    """The last revision of every outcome; asserts that no revision stands there with two contents."""
    log = open_log(url)
    reader = log.reader(whole(log, "outcomes"))
    contents: dict[tuple[str, int], bytes] = {}
    last: dict[str, dict[str, Any]] = {}
    while records := reader.poll(1000):
        for record in records:
            assert record.value is not None
            outcome = json.loads(record.value)
            at = (outcome["decision_id"], outcome["revision"])
            assert contents.setdefault(at, record.value) == record.value
            if outcome["revision"] >= last.get(at[0], outcome)["revision"]:
                last[at[0]] = outcome
    reader.close()
    log.close()
    return last


def expected(events: list[dict[str, Any]]) -> tuple[int, int]:
    """(click, conversions) that a decision's events amount to: a conversion needs the click."""
    kinds = {event["event_id"]: event["type"] for event in events}
    clicked = "click" in kinds.values()
    return int(clicked), sum(kind == "conversion" for kind in kinds.values()) if clicked else 0


def stats_of(served: Served) -> tuple[int, int, int]:
    """(impressions, clicks, conversions) of the campaign by `/v1/stats`, controls and policies together."""
    stats = served.get("/v1/stats")["campaigns"]["c1"]
    sides = [stats["control"], *stats["policies"].values()]
    return (
        sum(side["impressions"] for side in sides),
        sum(side["clicks"] for side in sides),
        sum(side["conversions"] for side in sides),
    )


@pytest.mark.timeout(600)
def test_20_kills_lose_nothing_and_count_nothing_twice(tmp_path: Path, tiny_model_folder: Path) -> None:
    options = ("--all", "--model", str(tiny_model_folder))
    rng = random.Random(11)
    client = Client(rng)
    for kill in range(KILLS):
        served = Served(tmp_path, *options)
        if kill % 5 == 4:
            time.sleep(rng.uniform(0.1, 1.5))  # most likely before it is ready
        else:
            served.wait_ready()
            if kill == 0:
                served.put("/v1/campaigns/c1", CAMPAIGN)
            timer = threading.Timer(rng.uniform(0.02, 0.8), served.process.kill)
            # Some die at their first request, at whatever they are then; the others' time runs from their first round,
            # which on a slow machine takes longer than the rest of their lives.
            at_once = kill % 5 == 3
            if at_once:
                timer.start()
            with pytest.raises(httpx.HTTPError):
                client.play(served, _nothing if at_once else timer.start)
            timer.join()
        served.kill()
    with Served(tmp_path, *options) as served:
        client.flush(served)
        wanted = {name: expected(events) for name, events in client.accepted.items()}
        shown = len(wanted)
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            found = {
                name: (outcome["components"]["click"], outcome["components"]["conversion"])
                for name, outcome in last_outcomes(f"sqlite:///{tmp_path / 'log.db'}").items()
            }
            if found == wanted or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert found == wanted
        assert shown > KILLS
        figures = (shown, sum(click for click, _ in wanted.values()), sum(sold for _, sold in wanted.values()))
        while (told := stats_of(served)) != figures and time.monotonic() < deadline:
            time.sleep(0.05)
        assert told == figures
