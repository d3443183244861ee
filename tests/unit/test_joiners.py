"""The joiners' figures on the page: several joiners as one, those that do not answer, and delays of the last minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from http.client import BadStatusLine
from pathlib import Path

import pytest

from optimizer.errors import ConfigError
from optimizer.stream.exporter import Exporter, JoinerFigures
from optimizer.stream.log import Append
from serving.joiners import SILENT_AFTER_S, Asking, Delays, Lane, StreamFigures
from serving.settings import _joiner_url
from tests.stream_rig import T0, Rig, decision, event

D = decision()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def asked(*urls: str) -> StreamFigures:
    asking = Asking(urls)
    assert asking.figures() is None
    assert asking.step() is False
    figures = asking.figures()
    assert figures is not None
    return figures


def test_a_joiner_is_asked_over_http(rig: Rig) -> None:
    figures = JoinerFigures(rig.clock)
    with closing(Exporter(figures, 0)) as exporter:
        url = f"http://127.0.0.1:{exporter.port}"
        assert not asked(url).ready
        rig.clock.advance(3_000)
        rig.join(D, event(D, "i"), Append("events", "d1", b"{"))
        rig.put(event(D, "c", "click", T0 + 5))
        figures.take(rig.joiner)
        seen = asked(url)
        assert seen.lanes == (Lane(0, 0, 1, 2.0, 0),)
        assert (seen.joiners, seen.silent, seen.ready, seen.waiting) == (1, 0, True, 1)
        assert (seen.open_decisions, seen.revisions, dict(seen.quarantined)) == (1, 1, {"undecodable": 1})
        assert (seen.delays[1.0], seen.delays[2.5], seen.delays[float("inf")]) == (0, 1, 1)
        both = asked(url, url)
        assert (both.joiners, both.ready, both.revisions, both.waiting) == (2, True, 2, 1)


def test_a_joiner_that_does_not_answer_is_counted() -> None:
    silent = asked("http://127.0.0.1:9")
    assert (silent.joiners, silent.silent, silent.ready, silent.lanes) == (1, 1, False, ())


def test_what_a_joiner_last_said_stays_when_it_falls_silent() -> None:
    now, page = [100.0], ["adloop_joiner_ready 1.0\nadloop_joiner_open_decisions 7.0\n"]

    def get(url: str) -> str:
        if not page:
            raise TimeoutError
        return page[0]

    asking = Asking(["http://x"], get, lambda: now[0])
    seen = []
    for passed_s in (0.0, SILENT_AFTER_S, 0.1):
        now[0] += passed_s
        asking.step()
        page.clear()
        figures = asking.figures()
        assert figures is not None
        seen.append((figures.open_decisions, figures.silent, figures.ready))
    assert seen == [(7, 0, True), (7, 0, True), (7, 1, False)]


def test_what_is_no_metrics_page_counts_as_silent() -> None:
    asking = Asking(["http://x"], get=lambda url: "<html>hello there</html>")
    asking.step()
    assert asking.figures() == StreamFigures(silent=1, ready=False)


def counts(*totals: float) -> dict[float, float]:
    return dict(zip((0.1, 0.5, 1.0, float("inf")), totals, strict=True))


def test_what_does_not_even_speak_http_counts_as_silent() -> None:
    def get(url: str) -> str:
        raise BadStatusLine("SSH-2.0-OpenSSH_9.2")

    asking = Asking(["http://x"], get)
    assert asking.step() is False
    figures = asking.figures()
    assert figures is not None
    assert figures.silent == 1


def test_delays_are_those_of_the_last_minute() -> None:
    delays = Delays()
    assert delays.quantile(0.5) is None
    delays.take(0.0, counts(0, 0, 100, 100))
    assert delays.quantile(0.5) is None
    delays.take(10.0, counts(10, 20, 120, 120))
    assert delays.quantile(0.5) == pytest.approx(0.1)
    assert delays.quantile(0.75) == pytest.approx(0.3)
    assert delays.quantile(1.0) == pytest.approx(0.5)
    for second in range(20, 90, 10):
        delays.take(float(second), counts(10, 20, 120, 120))
    assert delays.quantile(0.5) is None, "nothing came in the last minute"


def test_delays_beyond_the_last_edge_are_told_as_that_edge() -> None:
    delays = Delays()
    delays.take(0.0, counts(0, 0, 0, 0))
    delays.take(1.0, counts(0, 0, 0, 5))
    assert delays.quantile(0.99) == 1.0


def test_a_joiner_that_starts_again_counts_anew() -> None:
    delays = Delays()
    delays.take(0.0, counts(50, 50, 50, 50))
    delays.take(1.0, counts(0, 2, 2, 2))
    delays.take(2.0, counts(0, 4, 4, 4))
    assert delays.quantile(1.0) == pytest.approx(0.5)


def test_the_urls_of_joiners_are_checked() -> None:
    assert _joiner_url("http://h:9101/") == "http://h:9101"
    assert _joiner_url("http://h:9101/metrics") == "http://h:9101"
    for wrong in ("h:9101", "ftp://h", "http://", "http://h:1/?x"):
        with pytest.raises(ConfigError, match="--joiner"):
            _joiner_url(wrong)
