"""What a joiner shows of itself."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from optimizer.errors import ConfigError
from optimizer.metrics import METRICS
from optimizer.stream.exporter import Exporter, JoinerFigures
from optimizer.stream.log import Append
from tests.stream_rig import T0, Rig, decision, event

D = decision()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def shown(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(get(port, "/metrics")[1])
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_every_figure_is_shown(rig: Rig) -> None:
    figures = JoinerFigures(rig.clock)
    exporter = Exporter(figures, 0)
    assert get(exporter.port, "/readyz") == (503, '{"ready": false}')
    rig.clock.advance(3_000)
    rig.join(D, event(D, "i"), Append("events", "d1", b"{"))
    rig.put(event(D, "c", "click", T0 + 5))
    figures.take(rig.joiner)
    seen = shown(exporter.port)
    zero = ("partition", "0")
    assert seen["adloop_joiner_partition_lag_records", frozenset({zero, ("topic", "events")})] == 1
    assert seen["adloop_joiner_partition_lag_records", frozenset({zero, ("topic", "decisions")})] == 0
    assert seen["adloop_joiner_event_time_age_seconds", frozenset({zero})] == 2
    assert seen["adloop_joiner_catch_up_records", frozenset({zero})] == 0
    assert seen["adloop_joiner_quarantined_total", frozenset({("reason", "undecodable")})] == 1
    assert seen["adloop_joiner_revisions_total", frozenset()] == 1
    assert seen["adloop_joiner_open_decisions", frozenset()] == 1
    assert seen["adloop_joiner_ready", frozenset()] == 1
    assert seen["adloop_joiner_delay_seconds_count", frozenset()] == 1
    assert seen["adloop_joiner_delay_seconds_bucket", frozenset({("le", "1.0")})] == 0
    assert seen["adloop_joiner_delay_seconds_bucket", frozenset({("le", "2.5")})] == 1
    assert get(exporter.port, "/readyz")[0] == 200
    assert get(exporter.port, "/else")[0] == 404
    with pytest.raises(ConfigError, match="--metrics-port"):
        Exporter(figures, exporter.port)
    for host, port in (("127.0.0.1", 99_999), ("127.0.0.1", -1), ("x" * 64, 0)):
        with pytest.raises(ConfigError, match=f"--metrics-host {host} --metrics-port {port}: cannot listen"):
            Exporter(figures, port, host)
    exporter.close()


def test_every_metric_of_a_joiner_is_shown_as_the_table_says(rig: Rig) -> None:
    figures = JoinerFigures(rig.clock)
    rig.join(D, event(D, "i"), Append("events", "d1", b"{"))
    figures.take(rig.joiner)
    families = {family.name: family for family in figures.collect()}
    told = {metric.name: metric for metric in METRICS if metric.of_joiner}
    assert set(families) == set(told)
    for name, family in families.items():
        assert (family.type, family.documentation) == (told[name].kind, told[name].meaning)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(told[name].labels)


def test_a_joiner_that_catches_up_or_is_in_trouble_is_not_ready(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    figures = JoinerFigures(rig.clock)
    figures.take(rig.joiner, trouble=True)
    assert not figures.ready
    rig.lose_state()
    rig.joiner = rig._open()
    figures.take(rig.joiner)
    assert not figures.ready
    assert [f.behind for f in rig.joiner.figures().values()] == [2]
    rig.join()
    figures.take(rig.joiner)
    assert figures.ready
