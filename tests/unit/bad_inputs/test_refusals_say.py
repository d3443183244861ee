"""What a refusal says: the field, what came, what was expected and the fix, for the lines of shared/bad-inputs.md that
reach the HTTP edge. That these are refused at all, and change nothing, stands in the files beside this one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from optimizer.errors import BadInput
from serving.limits import MAX_BODY_BYTES
from serving.schemas import CampaignIn, EventIn, GenerateIn
from serving.wire import convert
from tests.refusals import API_KEYS
from tests.serving_rig import MINIMAL, Rig, make_rig

JSON = {"content-type": "application/json"}
GENERATE, EVENTS, CAMPAIGN = "/v1/generate", "/v1/events", "/v1/campaigns/new"
ID = "1 to 64 of A-Za-z0-9._:-, a letter or digit first"


class Said(NamedTuple):
    """The first error of the answer; `got`, `expected` and `fix` are parts of what stands there."""

    status: int
    field: str
    got: str
    expected: str
    fix: str


def first(response: Any) -> dict[str, str]:
    error: dict[str, str] = response.json()["errors"][0]
    return error


def check(response: Any, said: Said) -> None:
    assert response.status_code == said.status, response.text
    error = first(response)
    assert error["field"] == said.field
    for name in ("got", "expected", "fix"):
        assert getattr(said, name) in error[name], (name, error)
    assert error["field"] in response.json()["detail"]


RAW = {
    "1 empty": (b"", Said(400, "body", "an empty body", "one JSON object", "correct the JSON")),
    "1 truncated": (b'{"a": "c1"', Said(400, "body", "from character 10 on", "one JSON object", "correct the JSON")),
    "1 scalar": (b"3", Said(400, "body", "3", "a JSON object", "correct the JSON")),
    "2 UTF-8": (b'{"a":"\xff"}', Said(400, "body", "invalid UTF-8 at byte 6", "in UTF-8", "correct the JSON")),
    "2 surrogate": (b'{"a":"\\ud800"}', Said(400, "body", "a lone surrogate", "in UTF-8", "correct the JSON")),
    "3 deep": (b"[" * 100_000, Said(400, "body", "nested too deep", "one JSON object", "correct the JSON")),
    "3 twice": (b'{"a":1,"a":2}', Said(400, "body", '"a" stands twice', "one JSON object", "correct the JSON")),
    "4 NaN": (b'{"a":NaN}', Said(400, "body", "NaN is not JSON", "one JSON object", "correct the JSON")),
    "4 overflow": (
        b'{"campaign_id":"c1","context":{"x":1e400}}',
        Said(422, "context.x", "a number that overflows", "within 1.8e308", "smaller"),
    ),
    "5 size": (
        b" " * (MAX_BODY_BYTES + 1),
        Said(413, "body", "1048577 bytes", "at most 1048576 bytes", "send less at once"),
    ),
}


@pytest.mark.parametrize(("content", "said"), RAW.values(), ids=RAW.keys())
def test_lines_1_to_5_bodies(client: TestClient, content: bytes, said: Said) -> None:
    check(client.post(GENERATE, content=content, headers=JSON), said)


def test_lines_5_and_6_headers_methods_and_paths(client: TestClient) -> None:
    gzipped = client.post(EVENTS, content=gzip.compress(b"[]"), headers={**JSON, "content-encoding": "gzip"})
    check(gzipped, Said(415, "Content-Encoding", "gzip", "none", "send the body uncompressed"))
    for media, got in ((None, "nothing"), ("text/plain", "text/plain")):
        headers = {} if media is None else {"content-type": media}
        answer = client.post(GENERATE, content=b"{}", headers=headers)
        check(answer, Said(415, "Content-Type", got, "application/json", "send Content-Type: application/json"))
    many = client.post(EVENTS, json=[{}] * 1001)
    check(many, Said(413, "body", "1001 events", "at most 1000", "several requests"))
    check(client.delete("/v1/stats"), Said(405, "method", "DELETE", "GET", "use an allowed method"))
    check(client.get("/v2"), Said(404, "path", "/v2", "a path of /openapi.json", "correct the path"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, Said(422, "count", "0", "a whole number from 1 to 16", "send that")),
        ({"count": 10**9}, Said(422, "count", "1000000000", "a whole number from 1 to 16", "send that")),
        ({"count": True}, Said(422, "count", "true", "a whole number from 1 to 16", "send that")),
        ({"count": "3"}, Said(422, "count", '"3"', "a whole number from 1 to 16", "send that")),
        ({"tenant": "x"}, Said(422, "tenant", "an unknown field", "only the fields of the contract", "leave it out")),
        ({"fresh": 1}, Said(422, "fresh", "1", "true or false", "send that")),
        ({"context": []}, Said(422, "context", "[]", "an object of 0 to 64 names", "send that")),
        ({"context": {"a": 1, "b": [1]}}, Said(422, "context.b", "[1]", "a text or a whole number", "send that")),
        ({"context": {"a" * 65: 1}}, Said(422, "context", '"aaa', "a text of 1 to 64 characters", "rename it")),
        ({"context": {"segment": "z"}}, Said(422, "context.segment", "'z'", "one of all", "send one of these")),
        ({"campaign_id": 3}, Said(422, "campaign_id", "3", "a text", "send that")),
        ({"campaign_id": "nope"}, Said(404, "campaign_id", "nope", "an id that exists", "check the id")),
    ],
)
def test_lines_7_8_and_14_generate(client: TestClient, change: dict[str, Any], said: Said) -> None:
    check(client.post(GENERATE, json={"campaign_id": "c1", **change}), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"product": {"name": "x", "reward": 1}},
            Said(422, "product.reward", "an unknown", "only the", "leave it out"),
        ),
        ({"product": {}}, Said(422, "product.name", "nothing", "a text of 1 to 200 characters", "add it")),
        ({"product": {"name": "a\x00"}}, Said(422, "product.name", "U+0000", "visible characters", "remove it")),
        ({"product": {"name": "a\u202e"}}, Said(422, "product.name", "U+202E RIGHT-TO-LEFT", "visible", "remove it")),
        ({"landing_url": "http://10.0.0.1"}, Said(422, "landing_url", "an unknown", "only the", "leave it out")),
        ({"attribution": {"click_window_ms": 0}}, Said(422, "attribution.click_window_ms", "0", "from 1 to", "send")),
        (
            {"attribution": {"count": "most"}},
            Said(422, "attribution.count", '"most"', "one of all, first, last", "send"),
        ),
        ({"holdback": 2}, Said(422, "holdback", "2", "a number from 0 to 1", "send that")),
        ({"content_type": "poem"}, Said(422, "content_type", '"poem"', "one of ad, blog_post", "send that")),
        ({"language": "!"}, Said(422, "language", '"!"', "a language tag such as en", "send that")),
        ({"slots": [{"name": "a b"}]}, Said(422, "slots[0].name", '"a b"', ID, "send that")),
        ({"slots": [{"name": "a", "max_chars": 0}]}, Said(422, "slots[0].max_chars", "0", "from 1 to 10,000", "send")),
        ({"controls": "x"}, Said(422, "controls", '"x"', "a list of 1 to 100 entries", "send that")),
        ({"controls": [{"headline": 3}]}, Said(422, "controls[0].headline", "3", "a text", "send that")),
        (
            {"controls": [{"headline": "x" * 81}]},
            Said(422, "controls[0].headline", "81 ch", "at most 80", "shorten it"),
        ),
        ({"segments": ["a", "a"]}, Said(422, "segments[1]", "the same as [0]", "each once", "remove the repeat")),
    ],
)
def test_lines_8_9_21_and_44_campaigns(client: TestClient, change: dict[str, Any], said: Said) -> None:
    check(client.put(CAMPAIGN, json={**MINIMAL, **change}), said)


def test_line_15_credentials(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, api_keys=API_KEYS)
    client = rig.client()
    check(client.get("/v1/stats"), Said(401, "Authorization", "no credentials", "Bearer KEY", "send a valid API key"))
    wrong = client.get("/v1/stats", headers={"authorization": "Bearer wrong-key-of-somebody"})
    check(wrong, Said(401, "Authorization", "not known", "Bearer KEY", "send a valid API key"))
    assert "somebody" not in wrong.text
    reader = client.put(CAMPAIGN, json=MINIMAL, headers={"authorization": "Bearer reader-Key-4711-ccc"})
    check(reader, Said(403, "Authorization", "a key of role reader", "role admin", "use such a key"))
    rig.close()


def test_lines_16_and_20_ids_and_keys(client: TestClient) -> None:
    check(client.put("/v1/campaigns/-a", json=MINIMAL), Said(422, "campaign_id", '"-a"', ID, "send that"))
    check(client.post("/v1/policies/nope/promote"), Said(404, "version", "nope", "an id that exists", "check the id"))
    headers = {"idempotency-key": "k"}
    client.post(GENERATE, json={"campaign_id": "c1"}, headers=headers)
    again = client.post(GENERATE, json={"campaign_id": "c1", "count": 2}, headers=headers)
    check(again, Said(409, "Idempotency-Key", "used with another body", "one key per body", "send a new key"))
    empty = client.post(GENERATE, json={"campaign_id": "c1"}, headers={"idempotency-key": ""})
    check(empty, Said(422, "Idempotency-Key", '""', "1 to 255 visible characters", "no such header"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "nope"}, 'type: got "nope", expected one of click, conversion, impression, rating, retraction'),
        ({"event_id": ""}, f'event_id: got "", expected {ID}'),
        ({"ts": "1"}, 'ts: got "1", expected a whole number or null'),
        ({"reward": 1}, "reward: got an unknown field"),
        ({"ts": 5}, "ts: got 5, expected epoch milliseconds"),
        ({"type": "conversion", "value": -1}, "value: got -1.0, expected 0 to 1e+12 for a conversion"),
        ({"type": "rating"}, "value: got nothing, expected a number from 0 to 1"),
        ({"decision_id": "other"}, "token: it belongs to another decision than decision_id names"),
    ],
)
def test_events_say_it_in_their_detail(rig: Rig, client: TestClient, change: dict[str, Any], told: str) -> None:
    variant = rig.generate().variants[0]
    body = {"event_id": "e", "type": "click", "decision_id": variant.decision_id, "token": variant.token, **change}
    assert client.post(EVENTS, json=body).json()["results"][0]["detail"].startswith(told)


@pytest.mark.parametrize(
    "name",
    ["a\nb", "x - at `$.count", "x` - at `$.count", "`", "a`b", "x - at `key` in `$.context", "\n", "x` - at `$.y\n"],
)
def test_an_unknown_field_is_named_whatever_it_is_called(client: TestClient, name: str) -> None:
    for body, field in (({"campaign_id": "c1", name: 1}, name), ({"campaign_id": "c1", "count": 1, name: 1}, name)):
        check(client.post(GENERATE, json=body), Said(422, field, "an unknown field", "only the", "leave it out"))
    inner = client.put(CAMPAIGN, json={**MINIMAL, "product": {"name": "x", name: 1}})
    check(inner, Said(422, f"product.{name}", "an unknown field", "only the", "leave it out"))


def test_a_value_that_looks_like_a_path_is_not_one(client: TestClient) -> None:
    answer = client.put(CAMPAIGN, json={**MINIMAL, "content_type": "x` - at `$.holdback`"})
    check(answer, Said(422, "content_type", "x` - at", "one of ad, blog_post", "send that"))


@pytest.mark.parametrize("kind", [CampaignIn, GenerateIn, EventIn])
@pytest.mark.parametrize("body", [None, 3, "x", [], [1], {"a": {"b": [1]}}, {"controls": [{"x": None}], "context": 1}])
def test_whatever_comes_the_field_and_the_kind_are_named(kind: type, body: object) -> None:
    with pytest.raises(BadInput, match="got ") as refusal:
        convert(json.loads(json.dumps(body)), kind)
    told = str(refusal.value)
    assert "`" not in told
    assert "regex" not in told
