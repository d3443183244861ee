"""What waits or computes for long is done in a thread: the event loop, which serves every client, goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer import metrics
from serving import routes
from serving.health import Metrics
from serving.routes import INLINE_BYTES, WORKERS
from serving.wire import decode_json
from tests.serving_rig import MINIMAL, Rig, make_policy, make_rig

JSON = {"content-type": "application/json"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    rig.put()
    yield rig
    rig.close()


def noting(work: Callable[..., Any], on_loop: list[bool]) -> Callable[..., Any]:
    """`work`, which notes at each call whether it runs on an event loop."""

    def noted(*args: Any, **named: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_loop.append(False)
        else:
            on_loop.append(True)
        return work(*args, **named)

    return noted


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", "/v1/campaigns/c2", MINIMAL), ("POST", "/v1/generate", {"campaign_id": "c1"}), ("POST", "/v1/events", {})],
)
def test_a_large_body_is_parsed_off_the_loop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: dict[str, Any]
) -> None:
    on_loop: list[bool] = []
    monkeypatch.setattr(routes, "decode_json", noting(decode_json, on_loop))
    client, small = rig.client(), json.dumps(body).encode()
    first = client.request(method, path, content=small.ljust(INLINE_BYTES), headers=JSON)
    again = client.request(method, path, content=small.ljust(INLINE_BYTES + 1), headers=JSON)
    assert on_loop == [True, False]
    assert first.is_success
    assert again.is_success
    refusal = client.request(method, path, content=b"{" * (INLINE_BYTES + 1), headers=JSON)
    assert refusal.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "part", "name"),
    [
        ("GET", "/v1/campaigns", "service", "list_campaigns"),
        ("GET", "/v1/campaigns/c1", "service", "get_campaign"),
        ("GET", "/v1/stats", "service", "stats"),
        ("GET", "/v1/policies", "operator", "policies"),
        ("POST", "/v1/policies/v1/promote", "operator", "promote"),
        ("POST", "/v1/policies/v1/rollback", "operator", "rollback"),
        ("POST", "/v1/learner/pause", "operator", "pause"),
        ("POST", "/v1/learner/resume", "operator", "resume"),
    ],
)
def test_what_reads_the_views_or_the_disk_does_it_off_the_loop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str, path: str, part: str, name: str
) -> None:
    for version, parent in (("v0", None), ("v1", "v0")):
        rig.append("policies", version, make_policy(version, parent=parent))
    on_loop: list[bool] = []
    owner = getattr(rig.parts, part)
    monkeypatch.setattr(owner, name, noting(getattr(owner, name), on_loop))
    assert rig.client().request(method, path).is_success
    assert on_loop == [False]


def test_figures_are_gathered_off_the_loop(rig: Rig) -> None:
    on_loop: list[bool] = []
    rig.parts.metrics = Metrics({metrics.BAD_RECORDS: noting(lambda: 7.0, on_loop)})
    assert "adloop_bad_records 7.0" in rig.client().get("/metrics").text
    assert on_loop == [False]


def test_an_operator_is_heard_while_every_worker_waits_for_the_log(rig: Rig) -> None:
    go = threading.Event()
    waiting = [rig.parts.workers.submit(go.wait, 30.0) for _ in range(2 * WORKERS)]
    try:
        client = rig.client()
        assert client.post("/v1/learner/pause").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/stats").status_code == 200
        assert not any(one.done() for one in waiting)
    finally:
        go.set()
