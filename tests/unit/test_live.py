from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from optimizer.clock import ManualClock
from serving import live
from serving.board import LiveBoard
from serving.joiners import Lane, StreamFigures
from serving.live import live_router
from serving.page.parts import asset
from serving.page.welcome import calls
from serving.problems import Problem
from serving.refusals import HANDLERS
from tests.fakes.live_feed import START, campaign, outcome, play, pool
from tests.serving_rig import make_policy

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def everyone(_: Request) -> str:
    return "default"


def app(
    board: LiveBoard, max_streams: int = 64, heartbeat_s: float = 15.0, tenant_of: Callable[[Request], str] = everyone
) -> FastAPI:
    made = FastAPI()
    made.include_router(live_router(board, ManualClock(START), tenant_of, max_streams, heartbeat_s))
    for kind, handler in HANDLERS.items():
        made.add_exception_handler(kind, handler)
    return made


@contextmanager
def served(made: FastAPI) -> Iterator[tuple[str, uvicorn.Server, threading.Thread]]:
    """The app under a real server on loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(made, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server, thread
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def get(made: FastAPI, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    with served(made) as (url, _, _):
        return httpx.get(url + path, headers=headers)


def playing(impressions: int = 1500) -> LiveBoard:
    board = LiveBoard()
    assert sum(1 for _ in play(board, impressions)) == impressions
    return board


def test_the_page_is_whole_without_scripts_and_loads_only_its_own() -> None:
    answer = get(app(playing()), "/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    html = answer.text
    assert set(re.findall(r'(?:src|href)="([^"#]*)"', html)) <= {
        "/assets/icon.svg", "/assets/app.css", "/assets/theme.js", "/assets/live.js", "/?axis=time", "/?axis=count",
    }  # fmt: skip
    assert "style=" not in html
    assert re.findall(r"<script(?! src=)", html) == []
    for panel in ("lift", "tiles", "rates", "kl", "traffic", "versions", "critic", "stream", "best", "newest"):
        assert html.count(f'id="{panel}"') == 1
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    labels = {name for names in re.findall(r'aria-labelledby="([^"]+)"', html) for name in names.split()}
    assert labels
    assert labels <= set(ids)


def test_a_newcomer_is_told_the_three_calls_at_this_address() -> None:
    answer = get(app(LiveBoard()), "/", {"host": "ads.example:99"})
    assert "Waiting for the first impression" in answer.text
    assert answer.text.count("curl -X") == 3
    assert "http://ads.example:99/v1/campaigns/trail-runner" in answer.text
    put, generate, events = (json.loads(command.split("-d '")[1].rstrip("'")) for command in calls("http://x"))
    assert put["controls"] == [{"headline": "Trail Runner 3: light and waterproof"}]
    assert generate == {"campaign_id": "trail-runner"}
    assert [event["type"] for event in events] == ["impression", "click"]


def test_text_of_ads_and_campaigns_is_text() -> None:
    board = LiveBoard()
    board.on_campaign(campaign("c1", HOSTILE, HOSTILE))
    board.on_pool(pool("c1", [HOSTILE + " new"], "v1", segment="<b>"))
    board.on_outcome(None, outcome(HOSTILE + " new", campaign_id="c1"))
    board.set_gauges(learner="halted", learner_reason=HOSTILE)
    html = get(app(board), "/").text
    assert "<img" not in html
    assert "<script>" not in html
    assert "<b>" not in html.replace("<b>Version", "")
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4


def cells(html: str, panel: str = "stream") -> list[list[str]]:
    """The rows of a panel's table."""
    panel = html.split(f'id="{panel}"')[1].split("</section>")[0]
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", panel)]


def test_the_stream_is_shown_partition_by_partition() -> None:
    board = playing(60)
    assert "does not see its joiner" in get(app(board), "/").text
    lanes = (Lane(0, 3, 4, 1.4, 0), Lane(1, 0, 0, None, 1250))
    told = StreamFigures(
        joiners=2, open_decisions=31, revisions=9120, quarantined={"late": 1, "schema": 2}, lanes=lanes
    )
    board.set_stream(told, 0.043, 1.25)
    html = get(app(board), "/").text
    assert cells(html)[1:] == [["0", "3", "4", "1.0 s", "0"], ["1", "0", "0", "\N{EN DASH}", "1,250"]]
    for words in ("43 ms", "1.2 s", "9,120", "late 1, schema 2", "2 joiners up to date"):
        assert words in html
    board.set_stream(replace(told, ready=False))
    assert "Catching up" in get(app(board), "/").text
    board.set_stream(replace(told, ready=False, silent=1))
    assert "1 of 2 joiners silent" in get(app(board), "/").text


def test_what_the_critic_expected_stands_beside_what_came() -> None:
    board = playing(60)
    board.on_policy(make_policy("0000008-abc", stage="live"))
    assert "Nothing can be told yet" in get(app(board), "/").text
    told: dict[str, Any] = {
        "clicks_expected": 0.123,
        "clicks_seen": 0.119,
        "brier": 0.10123,
        "brier_skill": 0.0345,
        "reliability_curve": "900:0.01200:0.01100;100:0.50000:0.40000",
    }
    board.on_policy(make_policy("0000009-abc", stage="live", **told))
    html = get(app(board), "/").text
    assert cells(html, "critic")[1:] == [["12.0", "11.0", "900"], ["500.0", "400.0", "100"]]
    for words in ("123.0", "119.0", "0.1012", "3.5%"):
        assert words in html.split('id="critic"')[1].split("</section>")[0]
    # Damaged records, and those of other versions of Adloop, tell nothing.
    for odd in ("1:2", "a:b:c", "nan:1:1", 7):
        board.on_policy(make_policy("0000009-abc", stage="live", **{**told, "reliability_curve": odd}))
        assert "Nothing can be told yet" in get(app(board), "/").text


def test_what_does_not_exist_is_refused() -> None:
    made = app(playing(60))
    with served(made) as (url, _, _):
        for path in ("/?campaign=nobody", "/live?campaign=nobody", "/assets/..%2flive.py", "/assets/__init__.py"):
            answer = httpx.get(url + path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
            assert set(answer.json()["errors"][0]) == {"field", "got", "expected", "fix"}
        assert httpx.get(url + "/?axis=sideways").status_code == 422
        assert httpx.get(url + "/?campaign=kettle&axis=count").status_code == 200


def test_assets_are_the_packages_own_and_revalidated() -> None:
    made = app(LiveBoard())
    with served(made) as (url, _, _):
        for name, kind in live.ASSETS.items():
            first = httpx.get(f"{url}/assets/{name}")
            assert first.content == asset(name)
            assert first.headers["content-type"].startswith(kind)
            again = httpx.get(f"{url}/assets/{name}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


def test_a_stream_sends_everything_once_and_then_only_what_changed() -> None:
    board = playing()
    with served(app(board)) as (url, _, _), httpx.stream("GET", url + "/live", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        news = messages(stream.iter_lines())
        assert set(next(news)) == {"chooser", "main"}
        board.set_stream(StreamFigures(lanes=(Lane(0, 70, 7),)))
        tiles = next(news)
        assert set(tiles) == {"tiles", "stream"}
        assert "77" in tiles["tiles"]
        board.close()


def test_the_first_impression_turns_the_first_steps_into_figures() -> None:
    board = LiveBoard()
    with served(app(board)) as (url, _, _), httpx.stream("GET", url + "/live", timeout=60) as stream:
        news = messages(stream.iter_lines())
        assert "Waiting for the first impression" in next(news)["main"]
        board.on_campaign(campaign())
        assert "Done" in next(news)["main"]
        board.on_outcome(None, outcome())
        assert 'id="rates"' in next(news)["main"]
        board.close()


def test_a_quiet_stream_beats_and_a_closed_board_ends_it_at_once() -> None:
    board = playing(60)
    with served(app(board, heartbeat_s=1.0)) as (url, _, _), httpx.stream("GET", url + "/live", timeout=60) as stream:
        lines = stream.iter_lines()
        assert ": still here" in lines
        board.close()
        assert all(not line.startswith("data: ") for line in lines)


def test_streams_are_bounded_and_a_client_that_left_gives_its_place_back() -> None:
    board = playing(60)
    with served(app(board, max_streams=1)) as (url, _, _):
        with httpx.stream("GET", url + "/live", timeout=60) as first:
            lines = first.iter_lines()
            assert next(lines) == "retry: 2000"
            refused = httpx.get(url + "/live")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with httpx.stream("GET", url + "/live", timeout=60) as again:
                if again.status_code == 200:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("the place of a client that left stayed taken")
        board.close()


def test_a_deleted_campaigns_stream_ends() -> None:
    board = playing(60)
    with served(app(board)) as (url, _, _), httpx.stream("GET", url + "/live?campaign=kettle", timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(messages(lines))
        board.on_campaign_deleted("default", "kettle")
        assert list(messages(lines)) == []


def test_who_may_not_read_sees_nothing() -> None:
    def nobody(request: Request) -> str:
        raise Problem(401, "no", [])

    with served(app(playing(60), tenant_of=nobody)) as (url, _, _):
        assert {httpx.get(url + path).status_code for path in ("/", "/live", "/assets/app.css")} == {401}


def tokens(css: str, block: str) -> dict[str, str]:
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", css[css.index(block) :].split("}")[0]))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_contrast_is_aa_in_both_themes(theme: str) -> None:
    css = asset("app.css").decode()
    colour = tokens(css, theme)
    for ink in ("--ink", "--ink-2", "--ink-3"):
        for ground in ("--ground", "--surface", "--raised"):
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    for name in ("good", "bad", "warn"):
        assert contrast(colour[f"--{name}"], colour[f"--{name}-soft"]) >= 4.5, name
        assert contrast(colour[f"--{name}"], colour["--surface"]) >= 4.5, name
    assert contrast(colour["--accent-ink"], colour["--accent-soft"]) >= 4.5
    # Lines and dots of charts need 3:1 (WCAG 1.4.11).
    for name in ("--accent", "--control", "--kl", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"):
        assert contrast(colour[name], colour["--surface"]) >= 3, name


def test_the_dark_tokens_stand_twice_alike() -> None:
    css = asset("app.css").decode()
    assert tokens(css, ':root:not([data-theme="light"]) {') == tokens(css, ':root[data-theme="dark"] {')
