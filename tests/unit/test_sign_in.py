"""The live page of a server with keys: a browser signs in by HTTP Basic, a key as the password; nothing else may."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from optimizer.clock import ManualClock
from serving.app import build_app
from serving.auth import from_browser
from serving.board import LiveBoard
from serving.live import live_router
from tests.serving_rig import Rig, make_rig

READER, SERVE, ADMIN = "reader-Key-4711-ccc", "serving-Key-4711-aa", "admin-Key-4711-dddd"
KEYS = f"{READER}:acme:reader,{SERVE}:acme:serve,{ADMIN}:other:admin"
PAGE = ("/", "/assets/live.js", "/assets/app.css")


def basic(key: str, user: str = "me") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path, api_keys=KEYS)
    rig.put("c1", tenant="acme")
    yield rig
    rig.close()


@pytest.fixture
def client(rig: Rig) -> TestClient:
    app = build_app(rig.parts, live_router(LiveBoard(), ManualClock()))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("path", PAGE)
def test_without_a_key_the_browser_is_asked_for_one(client: TestClient, path: str) -> None:
    for headers in ({}, basic("wrong"), {"authorization": "Basic !"}, {"authorization": "Basic " + "bm9jb2xvbg=="}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["errors"][0]["field"] == "Authorization"
        assert answer.headers["www-authenticate"].startswith('Basic realm="Adloop')


@pytest.mark.parametrize("path", PAGE)
def test_a_key_of_reader_or_admin_opens_the_page_either_way(client: TestClient, path: str) -> None:
    for key in (READER, ADMIN):
        assert client.get(path, headers=basic(key)).status_code == 200
        assert client.get(path, headers=basic(key, user="")).status_code == 200
        assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert client.get(path, headers=basic(SERVE)).status_code == 403


@pytest.mark.parametrize("path", PAGE)
@pytest.mark.parametrize("header", [b"Basic \xe9", b"Basic \xff\xfe", b"B\xe9sic x", b"Bearer \xe9"])
def test_a_header_that_is_not_ascii_is_a_wrong_key(client: TestClient, path: str, header: bytes) -> None:
    answer = client.get(path, headers=[(b"authorization", header)])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm")


def test_without_keys_no_header_matters(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    client = TestClient(build_app(rig.parts, live_router(LiveBoard(), ManualClock())), raise_server_exceptions=False)
    for path in PAGE:
        assert client.get(path, headers=[(b"authorization", b"Basic \xe9")]).status_code == 200
    rig.close()


def test_routes_take_no_key_that_a_browser_adds_by_itself(client: TestClient) -> None:
    """Otherwise another site could make a signed-in browser pause the learner."""
    for method, path in (("POST", "/v1/learner/pause"), ("DELETE", "/v1/campaigns/c1"), ("GET", "/v1/stats")):
        answer = client.request(method, path, headers=basic(ADMIN))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


def test_other_headers_are_left_as_they_are() -> None:
    for header in (
        None,
        "",
        "Bearer x",
        "Basic",
        "Basic ?",
        "Basic é",
        "Basic " + base64.b64encode(b"\xff:x").decode(),
    ):
        assert from_browser(header) == header
    assert from_browser(basic("a:b")["authorization"]) == "Bearer a:b"
