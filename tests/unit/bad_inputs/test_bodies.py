"""Lines 1 to 6 of shared/bad-inputs.md: bodies, sizes, content types, methods and paths.

For each: the status that is due, a problem document that names a field and a fix, and no change of state.
Lines 17 and 18 need a raw socket and stand in e2e/test_server.py, line 45 in unit/test_start_up.py.
"""

from __future__ import annotations

import gzip
import json
from functools import partial

import pytest
from starlette.testclient import TestClient

from serving.limits import MAX_BODY_BYTES
from serving.wire import NotJSON, decode_json
from tests.refusals import (
    CAMPAIGN,
    EVENTS,
    GENERATE,
    JSON,
    refuse_events,
    refuse_nested,
    refused,
    unchanged,
)
from tests.serving_rig import MINIMAL, Rig

NOT_JSON = {
    "1 empty": b"",
    "1 truncated": b'{"campaign_id": "c1"',
    "1 top-level string": b'"c1"',
    "1 top-level number": b"3",
    "1 top-level null": b"null",
    "2 invalid UTF-8": b'{"campaign_id": "\xff"}',
    "2 lone surrogate": b'{"campaign_id": "\\ud800"}',
    "2 lone low surrogate as a name": b'{"\\udfff": 1}',
    "3 deep arrays": b"[" * 100_000,
    "3 deep objects": b'{"a":' * 100_000,
    "3 duplicate keys": b'{"campaign_id": "c1", "campaign_id": "c2"}',
    "3 duplicate keys inside": b'{"campaign_id": "c1", "context": {"a": 1, "a": 2}}',
    "4 NaN": b'{"campaign_id": "c1", "count": NaN}',
    "4 Infinity": b'{"campaign_id": "c1", "count": Infinity}',
    "4 -Infinity": b'{"campaign_id": "c1", "count": -Infinity}',
}


@pytest.mark.parametrize("path", [GENERATE, EVENTS, CAMPAIGN])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_line_1_to_4_what_is_not_json_is_400(rig: Rig, client: TestClient, path: str, body: bytes) -> None:
    method = "PUT" if path == CAMPAIGN else "POST"
    unchanged(rig, lambda: refused(client.request(method, path, content=body, headers=JSON), 400))


@pytest.mark.timeout(60)
def test_line_3_a_name_that_stands_twice_among_a_hundred_thousand_is_found_at_once() -> None:
    """Comparing each name with all others takes minutes."""
    names = [f'"{name:05d}":1' for name in range(100_000)]
    body = f"{{{','.join([*names, names[-1]])}}}".encode()
    assert len(body) <= MAX_BODY_BYTES
    with pytest.raises(NotJSON, match=r'^the name "99999" stands twice in one object$'):
        decode_json(body)


def test_line_3_of_several_names_that_stand_twice_the_first_is_told() -> None:
    with pytest.raises(NotJSON, match=r'^the name "a" stands twice in one object$'):
        decode_json(b'{"c": 1, "a": 1, "b": 1, "b": 2, "a": 2}')


@pytest.mark.parametrize("depth", [70, 450, 500, 700, 950])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_line_3_nesting_that_the_parser_takes_is_400_too(
    rig: Rig, client: TestClient, depth: int, closed: bool, opening: str, closing: str
) -> None:
    nested = opening * depth + "1" + (closing * depth if closed else "")
    for method, path in (("PUT", CAMPAIGN), ("POST", GENERATE)):
        for body in (nested, f'{{"campaign_id": "c1", "context": {nested}' + ("}" if closed else "")):
            unchanged(rig, partial(refuse_nested, client, method, path, body))


def test_line_3_as_deep_as_is_allowed(client: TestClient) -> None:
    for depth, status in ((63, 422), (64, 400)):
        body = f'{{"campaign_id": "c1", "context": {"[" * depth}{"]" * depth}}}'
        refused(client.post(GENERATE, content=body, headers=JSON), status)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 400, "1" * 5000])
def test_line_4_a_number_that_overflows_is_422(rig: Rig, client: TestClient, number: str) -> None:
    body = f'{{"campaign_id": "c1", "context": {{"x": {number}}}}}'
    unchanged(rig, lambda: refused(client.post(GENERATE, content=body, headers=JSON), 422))
    put = json.dumps(MINIMAL)[:-1] + f', "holdback": {number}}}'
    assert refused(client.put(CAMPAIGN, content=put, headers=JSON), 422)[0]["field"] == "holdback"


def test_line_5_too_large_is_413_before_parsing(rig: Rig, client: TestClient) -> None:
    # It is not even JSON: 413 shows that nothing was parsed.
    for content in (b"x" * (MAX_BODY_BYTES + 1), iter([b"x" * 65536] * 17)):
        unchanged(rig, partial(refuse_events, client, content))


def test_line_5_the_largest_body_passes(client: TestClient) -> None:
    body = b'{"campaign_id": "c1"}'
    padded = body + b" " * (MAX_BODY_BYTES - len(body))
    assert client.post(GENERATE, content=padded, headers=JSON).status_code == 200


def test_line_5_more_than_1000_events_is_413(rig: Rig, client: TestClient) -> None:
    unchanged(rig, lambda: refused(client.post(EVENTS, json=[{}] * 1001), 413))
    assert len(client.post(EVENTS, json=[{}] * 1000).json()["results"]) == 1000


def test_line_5_a_gzip_bomb_is_415(rig: Rig, client: TestClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {**JSON, "content-encoding": "gzip"}
    unchanged(rig, lambda: refused(client.post(EVENTS, content=bomb, headers=headers), 415))


@pytest.mark.parametrize(
    "media",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json; a=b; charset=utf-16",
        'application/json; a="b;c"; Charset="UTF-16"',
        "application/json; charset=utf-8; charset=utf-16",
        "application/json;charset=",
    ],
)
def test_line_6_another_content_type_is_415(rig: Rig, client: TestClient, media: str | None) -> None:
    headers = {} if media is None else {"content-type": media}
    content = b'{"campaign_id": "c1"}'
    unchanged(rig, lambda: refused(client.post(GENERATE, content=content, headers=headers), 415))


@pytest.mark.parametrize(
    "parameters", ["; charset=utf-8", '; a=b; charset="UTF-8"', '; a="; charset=utf-16"', "; charset=utf8 ; a=b", ";"]
)
def test_line_6_json_in_utf_8_passes_whatever_else_is_said(client: TestClient, parameters: str) -> None:
    headers = {"content-type": "application/json" + parameters}
    assert client.post(GENERATE, content=b'{"campaign_id": "c1"}', headers=headers).status_code == 200


def test_line_6_cloudevents_are_for_events_only(client: TestClient) -> None:
    headers = {"content-type": "application/cloudevents+json"}
    refused(client.post(GENERATE, content=b'{"campaign_id": "c1"}', headers=headers), 415)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", GENERATE, 405),
        ("DELETE", "/v1/stats", 405),
        ("POST", "/v1/campaigns/c1", 405),
        ("GET", "/v1/learner/pause", 405),
        ("OPTIONS", EVENTS, 405),
        ("GET", "/v2/stats", 404),
        ("GET", "/v1/stats/", 404),
        ("POST", "/", 404),
    ],
)
def test_line_6_wrong_method_and_path(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    refused(response, status)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/campaigns/c1", "DELETE, GET, HEAD, PUT"),
        ("PATCH", "/v1/campaigns/c1", "DELETE, GET, HEAD, PUT"),
        ("DELETE", "/v1/campaigns", "GET, HEAD"),
        ("GET", GENERATE, "POST"),
    ],
)
def test_line_6_every_method_of_the_path_is_named(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert refused(response, 405)[0]["expected"] == allowed
    assert response.headers["allow"] == allowed
