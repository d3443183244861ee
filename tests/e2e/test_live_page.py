"""The live page in a real Chromium (scripts/browser installs it): what markup alone cannot show."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from docs.screenshot import browser, complaints, open_live, resize
from serving.board import LiveBoard
from serving.joiners import Lane, StreamFigures
from tests.fakes.live_feed import SEGMENTS, START, campaign, outcome, play, policy, pool
from tests.served import Served
from tests.serving_rig import MINIMAL
from tests.unit.test_live import app, served

HOSTILE = '<script>document.title="taken"</script><img src=x onerror="document.title=1">'
LONG = "Unbreakable" * 24
LONG_ID = "campaign-with-a-very-long-id-0123456789-"
PATIENCE_S = 60.0
WIDTHS = (320, 390, 768, 1100, 1360, 2200)


@pytest.fixture(scope="module")
def page() -> Iterator[webdriver.Chrome]:
    with browser() as chrome:
        yield chrome


@contextmanager
def shown(page: webdriver.Chrome, board: LiveBoard, path: str = "/", width: int = 1360) -> Iterator[str]:
    resize(page, width, 900)
    with served(app(board)) as (url, _, _):
        open_live(page, url + path)
        try:
            yield url
            assert complaints(page) == []
        finally:
            page.get("about:blank")
            board.close()


def playing(impressions: int = 2000) -> LiveBoard:
    board = LiveBoard()
    assert sum(1 for _ in play(board, impressions)) == impressions
    return board


def within(seconds: float, holds: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return bool(holds())


def overflow(page: webdriver.Chrome) -> int:
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(page.execute_script(script))


def extreme() -> LiveBoard:
    board = LiveBoard()
    board.on_campaign(campaign(LONG_ID, LONG, HOSTILE + " control"))
    board.on_policy(policy("v" * 60, 123456.789, START))
    for k, text in enumerate((LONG, HOSTILE, "a\N{COMBINING ACUTE ACCENT}" * 200, "word " * 70)):
        board.on_pool(pool(LONG_ID, [text], "v" * 60, SEGMENTS[0] * 8, START + k))
        for n in range(40):
            board.on_outcome(None, outcome(text, n % 2, LONG_ID, "v" * 60, ts=START + n * 1000, decision_id=f"{k}-{n}"))
    board.set_gauges("halted", "KL over its budget: " + LONG)
    lanes = tuple(Lane(partition, 10**12, 10**12, 1e9, 10**12) for partition in range(64))
    refused = dict.fromkeys(("undecodable", "schema", "bad_token", "token_mismatch", "orphan", "late"), 10**12)
    board.set_stream(StreamFigures(64, 0, False, 10**12, 10**12, refused, lanes), 1e5, 1e7)
    return board


def test_hostile_text_is_shown_as_text(page: webdriver.Chrome) -> None:
    board = extreme()
    with shown(page, board):
        assert HOSTILE in page.find_element(By.ID, "newest").text
        # Once more through the stream and its morphing.
        board.on_pool(pool(LONG_ID, [HOSTILE + " again"], "v2", ts=START + 9))
        assert within(PATIENCE_S, lambda: HOSTILE + " again" in page.find_element(By.ID, "newest").text)
        assert page.title == "Adloop"
        assert page.find_elements(By.CSS_SELECTOR, "main img, main script") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_at_any_width(page: webdriver.Chrome, width: int) -> None:
    one = LiveBoard()
    one.on_campaign(campaign())
    one.on_outcome(None, outcome())
    for board in (LiveBoard(), one, playing(300), extreme()):
        with shown(page, board, width=width):
            assert overflow(page) <= 0


def test_updates_come_without_a_reload_and_leave_what_the_reader_does_alone(page: webdriver.Chrome) -> None:
    board = playing()
    with shown(page, board):
        page.execute_script("window.mark = 1; document.querySelector('#rates details').open = true")
        page.find_element(By.CSS_SELECTOR, "#rates summary").send_keys("")
        before = page.find_element(By.ID, "tiles").text
        heights = page.execute_script("return [...document.querySelectorAll('.grid > *')].map(e => e.offsetHeight)")
        for n in range(50):
            board.on_outcome(None, outcome("Fresh one", 0, ts=START + n, decision_id=f"x{n}"))
        assert "2,050" not in before
        assert within(PATIENCE_S, lambda: "2,050" in page.find_element(By.ID, "tiles").text)
        assert page.execute_script("return window.mark") == 1
        assert page.execute_script("return document.querySelector('#rates details').open")
        assert page.execute_script("return document.activeElement.tagName") == "SUMMARY"
        after = page.execute_script("return [...document.querySelectorAll('.grid > *')].map(e => e.offsetHeight)")
        assert after == heights


def test_the_campaign_filter_switches_the_stream(page: webdriver.Chrome) -> None:
    with shown(page, playing()):
        everything = page.find_element(By.CSS_SELECTOR, "#tiles").text
        page.execute_script("window.mark = 1")
        Select(page.find_element(By.ID, "campaign")).select_by_value("kettle")
        assert within(PATIENCE_S, lambda: page.find_element(By.CSS_SELECTOR, "#tiles").text != everything)
        assert page.current_url.endswith("/?campaign=kettle")
        page.find_element(By.LINK_TEXT, "Impressions").click()
        assert within(PATIENCE_S, lambda: page.current_url.endswith("axis=count&campaign=kettle"))
        chosen = "return document.querySelector('.segmented [aria-current=true]').textContent"
        assert within(PATIENCE_S, lambda: page.execute_script(chosen) == "Impressions")
        assert page.execute_script("return window.mark") == 1
        assert Select(page.find_element(By.ID, "campaign")).first_selected_option.get_attribute("value") == "kettle"


def test_the_first_impression_appears_on_a_waiting_page(page: webdriver.Chrome) -> None:
    board = LiveBoard()
    with shown(page, board):
        assert "Waiting for the first impression" in page.find_element(By.TAG_NAME, "main").text
        page.find_element(By.CSS_SELECTOR, "[data-copy]").click()
        button = "[data-copy]"
        assert within(PATIENCE_S, lambda: page.find_element(By.CSS_SELECTOR, button).text in ("Copied", "Selected"))
        board.on_campaign(campaign())
        board.on_outcome(None, outcome())
        assert within(PATIENCE_S, lambda: page.find_elements(By.ID, "rates"))
        assert "first impression" not in page.find_element(By.TAG_NAME, "main").text


def test_the_theme_toggle_holds_over_a_reload(page: webdriver.Chrome) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    with shown(page, playing(60)) as url:
        light = page.execute_script(ground)
        page.find_element(By.ID, "theme").click()
        dark = page.execute_script(ground)
        assert dark != light
        open_live(page, url)
        assert page.execute_script(ground) == dark
        page.find_element(By.ID, "theme").click()
        assert page.execute_script(ground) == light


def test_a_chart_is_read_by_pointer_and_by_keyboard(page: webdriver.Chrome) -> None:
    with shown(page, playing()):
        box = page.find_element(By.CSS_SELECTOR, "#rates .plot-box")
        ActionChains(page).move_to_element(box).perform()
        assert "Learned" in box.find_element(By.CLASS_NAME, "readout").text
        page.execute_script("arguments[0].focus()", box)
        ActionChains(page).send_keys(Keys.ESCAPE, Keys.ARROW_RIGHT).perform()
        rows = page.execute_script(
            "return [...document.querySelectorAll('#rates tbody th')].map(cell => cell.textContent)"
        )
        assert box.find_element(By.CLASS_NAME, "readout").text.splitlines()[0] == rows[0]
        ActionChains(page).send_keys(Keys.ESCAPE, Keys.ARROW_LEFT).perform()
        assert box.find_element(By.CLASS_NAME, "readout").text.splitlines()[0] == rows[-1]
        for chart in page.find_elements(By.CSS_SELECTOR, "svg.chart"):
            places = (chart.get_attribute("data-x") or "").split()
            table = "return arguments[0].closest('figure').querySelectorAll('tbody tr').length"
            assert len(places) == page.execute_script(table, chart)


def test_a_lost_server_is_said_and_forgiven(page: webdriver.Chrome) -> None:
    board = playing(60)
    with shown(page, board):
        board.close()
        status = page.find_element(By.ID, "status")
        assert within(PATIENCE_S, lambda: status.get_attribute("data-state") == "lost")
        board.closed.clear()
        assert within(PATIENCE_S, lambda: status.get_attribute("data-state") == "live")
        # The browser logs the refused connection; that is what the test brought about.
        assert all("/live" in complaint for complaint in complaints(page))


def test_a_browser_signs_in_to_a_server_with_keys(page: webdriver.Chrome, tmp_path: Path) -> None:
    """What a person types into the browser's own dialogue stands in the address here; the stream signs in with it."""
    key, signing = "Zk3vQ9rT1xLw7bNc", base64.b64encode(bytes(range(32))).decode()
    environment = {"ADLOOP_API_KEYS": f"{key}:acme:admin", "ADLOOP_TOKEN_KEYS": f"k1:{signing}"}
    with Served(tmp_path, "--production", environment=environment) as server:
        server.http.headers["authorization"] = f"Bearer {key}"
        server.put("/v1/campaigns/first", MINIMAL)
        try:
            open_live(page, server.url.replace("http://", f"http://me:{key}@") + "/")
            server.put("/v1/campaigns/second", MINIMAL)
            assert within(PATIENCE_S, lambda: "second" in page.page_source)
            assert complaints(page) == []
        finally:
            page.get("about:blank")
