"""Routes whose answers have a fixed shape: campaigns, health, metrics, docs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from optimizer.errors import ConfigError
from serving import service
from serving.idempotency import Idempotency
from tests.serving_rig import MINIMAL, Rig, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def client(rig: Rig) -> TestClient:
    return rig.client()


DEFAULTS: dict[str, Any] = {
    "campaign_id": "c1",
    "product": {"name": "Trail Runner 3", "brand": "", "category": "", "price": "", "facts": []},
    "audience": "",
    "content_type": "ad",
    "language": "en",
    "segments": ["all"],
    "slots": [{"name": "headline", "max_chars": 80}],
    "controls": [{"headline": "Trail Runner 3: light"}],
    "rules": {"banned": [], "require_approval": False},
    "reward": {"click": 1.0, "conversion": 0.0, "value": 0.0, "rating": 0.0},
    "attribution": {
        "click_window_ms": 1800000,
        "conversion_window_ms": 604800000,
        "view_through_ms": 0,
        "count": "first",
    },
    "holdback": 0.05,
}


def test_a_campaign_from_its_minimum_to_its_deletion(client: TestClient) -> None:
    created = client.put("/v1/campaigns/c1", json=MINIMAL)
    assert (created.status_code, created.json()) == (201, DEFAULTS)
    assert client.get("/v1/campaigns/c1").json() == DEFAULTS
    # What was answered can be put again.
    again = client.put("/v1/campaigns/c1", json=DEFAULTS)
    assert (again.status_code, again.json()) == (200, DEFAULTS)
    assert client.get("/v1/campaigns").json() == {"campaigns": [DEFAULTS]}
    deleted = client.delete("/v1/campaigns/c1")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.get("/v1/campaigns").json() == {"campaigns": []}
    assert client.put("/v1/campaigns/c1", json=MINIMAL).status_code == 201


def test_each_part_of_a_campaign_has_its_own_default(client: TestClient) -> None:
    body = {**MINIMAL, "reward": {"conversion": 5}, "attribution": {"count": "all"}, "rules": {"banned": ["cheap"]}}
    answer = client.put("/v1/campaigns/c1", json=body).json()
    assert answer["reward"] == {"click": 1.0, "conversion": 5.0, "value": 0.0, "rating": 0.0}
    assert answer["attribution"] == {**DEFAULTS["attribution"], "count": "all"}
    assert answer["rules"] == {"banned": ["cheap"], "require_approval": False}


def test_slots_and_their_order(client: TestClient) -> None:
    slots = [{"name": "headline", "max_chars": 5}, {"name": "body", "max_chars": 10_000}]
    controls = [{"body": "Line one\nLine two", "headline": "😀😀😀😀😀"}]  # five code points
    assert client.put("/v1/campaigns/c1", json={**MINIMAL, "slots": slots, "controls": controls}).status_code == 201
    (variant,) = client.post("/v1/generate", json={"campaign_id": "c1"}).json()["variants"]
    assert variant["text"] == "😀😀😀😀😀\nLine one\nLine two"
    assert list(variant["slots"]) == ["headline", "body"]


def test_generate_answers_the_contracts_fields(client: TestClient) -> None:
    client.put("/v1/campaigns/c1", json=MINIMAL)
    answer = client.post(
        "/v1/generate", json={"campaign_id": "c1", "context": {"device": "mobile", "n": 1.5, "b": True}}
    )
    assert answer.status_code == 200
    assert set(answer.json()) == {"request_id", "policy_version", "variants"}
    (variant,) = answer.json()["variants"]
    fields = {"decision_id", "variant_id", "slots", "text", "propensity", "source", "token"}
    assert set(variant) == fields


def test_health_and_readiness(rig: Rig, client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    rig.parts.health.roles["joiner"] = "running"
    assert client.get("/readyz").json() == {"status": "ready", "roles": {"joiner": "running"}}
    rig.parts.health.roles["joiner"] = "failed, starts again: OSError"
    unready = client.get("/readyz")
    assert unready.status_code == 503
    assert unready.json()["errors"][0]["field"] == "joiner"


def test_a_disk_that_refuses_is_503_and_unready_for_a_while(rig: Rig, client: TestClient) -> None:
    client.put("/v1/campaigns/c1", json=MINIMAL)
    append = rig.log.append

    def full(_records: Any) -> Any:
        raise OSError(28, "No space left on device")

    rig.log.append = full  # type: ignore[method-assign, assignment]
    answer = client.post("/v1/generate", json={"campaign_id": "c1"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert error_of(answer)["field"] == "log"
    assert error_of(answer)["got"] == "No space left on device"
    assert client.get("/readyz").status_code == 503
    rig.log.append = append  # type: ignore[method-assign]
    rig.clock.advance(10_000)
    assert client.get("/readyz").status_code == 200


def test_a_fault_of_ours_is_a_problem_too(rig: Rig, client: TestClient) -> None:
    def broken(_tenant: str) -> Any:
        raise RuntimeError("secret detail")

    rig.service.stats = broken  # type: ignore[method-assign, assignment]
    answer = client.get("/v1/stats")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert error_of(answer)["field"] == "server"
    assert "secret" not in answer.text


def test_what_the_log_refuses_for_a_reason_of_its_own_is_503_with_that_reason(rig: Rig, client: TestClient) -> None:
    client.put("/v1/campaigns/c1", json=MINIMAL)

    def refuses(_records: Any) -> Any:
        raise ConfigError("log: broker:9092 refuses user 'x'; correct its name")

    rig.log.append = refuses  # type: ignore[method-assign, assignment]
    answer = client.post("/v1/generate", json={"campaign_id": "c1"})
    assert answer.status_code == 503
    assert error_of(answer)["got"] == answer.json()["detail"] == "log: broker:9092 refuses user 'x'; correct its name"


def test_a_record_that_is_too_large_is_413(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put("/v1/campaigns/c1", json=MINIMAL)
    monkeypatch.setattr(service, "MAX_RECORD_BYTES", 100)
    answer = client.post("/v1/generate", json={"campaign_id": "c1"})
    assert answer.status_code == 413
    assert (error_of(answer)["field"], error_of(answer)["expected"]) == ("body", "at most 100")


@pytest.mark.parametrize(("act", "name"), [("pause", "learner.paused"), ("resume", "learner.resumed")])
def test_pause_and_resume_name_the_file_that_they_cannot_write(
    rig: Rig, client: TestClient, act: str, name: str
) -> None:
    (rig.data / "learner.halted").write_text("clicks rise while conversions fall")
    # A folder in its place cannot be opened for writing, nor replaced by a file, whoever runs this.
    (rig.data / name).mkdir()
    answer = client.post(f"/v1/learner/{act}")
    assert answer.status_code == 503
    assert error_of(answer)["field"] == name
    assert "log" not in answer.json()["detail"]


def error_of(answer: Any) -> dict[str, str]:
    (error,) = answer.json()["errors"]
    assert all(error[part] for part in ("field", "got", "expected", "fix"))
    return dict(error)


def test_metrics_count_under_the_routes_template(client: TestClient) -> None:
    client.put("/v1/campaigns/c1", json=MINIMAL)
    client.post("/v1/generate", json={"campaign_id": "c1"})
    client.post("/v1/events", json={"event_id": "e"})
    client.get("/no/such/page")
    text = client.get("/metrics").text
    put = 'adloop_http_requests_total{method="PUT",route="/v1/campaigns/{campaign_id}",status="201"} 1.0'
    assert put in text
    assert 'adloop_http_requests_total{method="-",route="unknown",status="404"} 1.0' in text
    assert 'adloop_decisions_total{source="control"} 1.0' in text
    assert 'adloop_events_total{reason="schema",status="rejected"} 1.0' in text


def test_the_interface_describes_itself_without_other_hosts(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"/v1/generate", "/v1/events", "/v1/stats", "/v1/campaigns/{campaign_id}"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for outside in ("http://", "https://", "<script", "@import"):
        assert outside not in page.text
    assert "/v1/generate" in page.text


def test_the_interface_tells_the_packages_version(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert rig.client().get("/openapi.json").json()["info"]["version"] == project["version"]
    monkeypatch.setattr(metadata, "version", {"adloop": "7.8.9"}.__getitem__)
    assert rig.client().get("/openapi.json").json()["info"]["version"] == "7.8.9"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert rig.client().get("/openapi.json").json()["info"]["version"] == "unknown"


def test_idempotency_memory_is_bounded(rig: Rig) -> None:
    kept: Idempotency[int] = Idempotency(rig.clock, max_entries=10)
    for index in range(1000):
        assert kept.run("t", f"k{index}", b"", index.__abs__) == index
    assert len(kept) == 10
    rig.clock.advance(600_000)
    kept.run("t", "k", b"", lambda: 1)
    assert len(kept) == 1
