"""Lost state: what an earlier joiner found depends on its event time, and a rebuild does not find otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import AdloopError
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append
from tests.stream_rig import HOUR, KEYS, RETENTION, RULE, T0, Rig, decision, event, last_revisions, token, values

D = decision()
CLOSES = T0 + RULE.window_ms() + HOUR


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def lose(rig: Rig) -> None:
    rig.joiner.close()
    shutil.rmtree(rig.folder / "state")
    rig.joiner = Joiner(rig.log, rig.folder / "state", KEYS, rig.clock, durable=False)


def test_nothing_new_is_published_when_nothing_is_new(rig: Rig) -> None:
    rig.join(
        D, event(D, "i"), event(D, "c", "click", T0 + 5), Append("events", "d1", b"{"), event(D, "b", token="a.b.c")
    )
    rig.pass_time(CLOSES + 1)
    before = values(rig.log, "outcomes"), values(rig.log, "quarantine")
    counts = rig.joiner.counts
    lose(rig)
    rig.join()
    assert (values(rig.log, "outcomes"), values(rig.log, "quarantine")) == before
    after = rig.joiner.counts
    for name in ("decisions", "events", "outcomes", "closed", "quarantined"):
        assert after[name] == counts[name], name
    assert rig.joiner.event_time(0) == CLOSES + 1


def test_what_was_in_time_is_not_called_late(rig: Rig) -> None:
    # One decision and one event a step: the decisions hold event time back while the click is read, though an event of
    # much later has been. In the rebuild all decisions are read before it.
    made = [D, *(decision(f"d{i}", ts=T0 + i) for i in range(2, 9))]
    long_token = token(made[1], exp_s=T0 // 1000 + RETENTION)
    ahead = event(made[1], "a", "click", token=long_token, received_ts=T0 + RETENTION + 10_000)
    rig.put(*made, event(D, "i"), ahead, event(D, "c", "click", T0 + 5))
    while rig.joiner.step(max_records=2):
        pass
    rig.join()
    assert (rig.joiner.counts["let_go"], rig.reasons()) == (8, [])
    before = values(rig.log, "outcomes")
    assert last_revisions(rig.log)["d1"]["components"]["click"] == 1
    lose(rig)
    rig.join()
    assert rig.reasons() == []
    assert values(rig.log, "outcomes") == before


def test_what_was_late_or_an_orphan_stays_so(rig: Rig) -> None:
    other = decision("other")
    rig.join(D, event(D, "i"), event(other, "i"))
    rig.pass_time(T0 + RETENTION + 1)
    rig.join(event(D, "c", "click", T0 + 5), other)
    assert sorted(rig.reasons()) == ["late", "orphan"]
    before = values(rig.log, "outcomes")
    lose(rig)
    rig.join()
    assert values(rig.log, "outcomes") == before
    assert rig.joiner.counts["quarantined"] == {"late": 1, "orphan": 1}
    assert len(values(rig.log, "quarantine")) == 2


def test_a_closed_outcome_stays_closed_though_only_the_clock_had_closed_it(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    rig.clock.advance(60_000)
    rig.join()
    rig.clock.advance(CLOSES - T0)
    assert rig.join()["d1"]["state"] == "closed"
    lose(rig)
    last = rig.join(event(D, "r", "rating", value=1.0))["d1"]
    assert (last["state"], last["revision"], last["components"]["rating"]) == ("closed", 3, 1.0)


def test_revisions_go_on_where_they_stood(rig: Rig) -> None:
    rig.join(D, event(D, "i"), event(D, "c", "click", T0 + 5))
    rig.joiner.close()
    shutil.rmtree(rig.folder / "state")
    rig.put(event(D, "r", "rating", value=0.5), event(D, "x", "retraction", retracts="c"))
    rig.joiner = Joiner(rig.log, rig.folder / "state", KEYS, rig.clock, durable=False)
    last = rig.join()["d1"]
    assert (last["revision"], last["events"]) == (3, ["i", "r"]), "one revision for all that came meanwhile"


def test_a_rebuild_that_is_interrupted_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.stream.partition.TIMERS_PER_STEP", 3)
    made = [decision(f"d{i}") for i in range(10)]
    rig.join(*made, *(event(d, "i") for d in made))
    lose(rig)
    rig.put(*(event(d, "c", "click", T0 + 5) for d in made))
    for _ in range(12):
        rig.joiner.step(max_records=4)
        rig.restart()
    last = rig.join()
    assert [(outcome["revision"], outcome["components"]["click"]) for outcome in last.values()] == [(2, 1)] * 10


@pytest.mark.parametrize("value", [b"nonsense", b'{"events": ["\xff"]}', b'{"x": ' + b"[" * 100_000])
def test_outcomes_that_no_joiner_wrote_stop_a_rebuild(tmp_path: Path, value: bytes) -> None:
    rig = Rig(tmp_path)
    rig.joiner.close()
    shutil.rmtree(rig.folder / "state")
    rig.put(Append("outcomes", "d1", value))
    with pytest.raises(AdloopError, match="outcomes: a record is not as a joiner writes it"):
        Joiner(rig.log, rig.folder / "state", KEYS, rig.clock, durable=False)
    rig.log.close()
