"""How tests ask for a refusal and assert its whole shape; the fixtures stand in unit/bad_inputs/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from tests.serving_rig import MINIMAL, Rig

JSON = {"content-type": "application/json"}
GENERATE, EVENTS, CAMPAIGN = "/v1/generate", "/v1/events", "/v1/campaigns/new"
API_KEYS = (
    "serving-Key-4711-aa:acme:serve,ingest-Key-4711-bbb:acme:ingest,reader-Key-4711-ccc:acme:reader,"
    "admin-Key-4711-dddd:acme:admin,admin-Key-4711-eeee:other:admin"
)


def refused(response: Any, status: int) -> list[dict[str, str]]:
    """Assert the whole shape of a refusal; returns its errors."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) >= {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["errors"]
    for error in problem["errors"]:
        assert set(error) == {"field", "got", "expected", "fix"}
        assert all(isinstance(text, str) and text for text in error.values())
    found: list[dict[str, str]] = problem["errors"]
    return found


def unchanged(rig: Rig, act: Callable[[], object]) -> None:
    """Run `act` and assert that the log is as it was."""
    topics = ("campaigns", "decisions", "events", "policies", "candidates")
    before = {topic: rig.records(topic) for topic in topics}
    act()
    assert {topic: rig.records(topic) for topic in topics} == before


def refuse_events(client: TestClient, content: Any) -> None:
    refused(client.post(EVENTS, content=content, headers=JSON), 413)


def refuse_campaign(client: TestClient, body: dict[str, Any]) -> None:
    refused(client.put(CAMPAIGN, json=body), 422)


def refuse_nested(client: TestClient, method: str, path: str, body: str) -> None:
    refused(client.request(method, path, content=body, headers=JSON), 400)


def campaign(**fields: object) -> dict[str, Any]:
    return {**MINIMAL, **fields}


def event(rig: Rig, **fields: object) -> dict[str, Any]:
    """A good click on a decision made now, with `fields` changed."""
    variant = rig.generate().variants[0]
    good = {"event_id": "e-1", "type": "click", "decision_id": variant.decision_id, "token": variant.token}
    return {**good, **fields}
