"""The joiner in event time: closing, letting go, waiting in vain; and running it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import ConfigError
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append
from optimizer.types import Attribution
from tests.stream_rig import DAY, HOUR, KEYS, MINUTE, RETENTION, RULE, T0, Rig, decision, event, raw, token, values

D = decision()
CLOSES = T0 + RULE.window_ms() + HOUR


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


# -- event time, closing, letting go -------------------------------------------------------------------------------


def test_an_outcome_closes_when_event_time_passes_its_windows_and_grace(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    rig.pass_time(CLOSES)
    assert rig.join()["d1"]["state"] == "open"
    rig.pass_time(CLOSES + 1)
    last = rig.join()["d1"]
    assert (last["state"], last["revision"], last["as_of"]) == ("closed", 2, CLOSES + 1)
    assert rig.joiner.counts["closed"] == 1


def test_a_closed_outcome_is_still_revised_and_stays_closed(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    rig.pass_time(CLOSES + 1)
    last = rig.join(event(D, "r", "rating", value=1.0, received_ts=CLOSES))["d1"]
    assert (last["state"], last["revision"], last["components"]["rating"]) == ("closed", 3, 1.0)


def test_what_comes_after_the_retention_is_late(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    rig.pass_time(T0 + RETENTION)
    rig.join(event(D, "c", "click", T0 + 5))
    assert rig.join()["d1"]["components"]["click"] == 1, "event time has not passed the expiry yet"
    rig.pass_time(T0 + RETENTION + 1)
    rig.join(event(D, "c2", "click", T0 + 6))
    assert rig.reasons() == ["late"]
    assert rig.joiner.counts["let_go"] == 1


def test_an_event_whose_decision_never_comes_is_an_orphan(rig: Rig) -> None:
    rig.join(event(D, "i"))
    rig.pass_time(T0 + RETENTION)
    assert rig.reasons() == []
    rig.pass_time(T0 + RETENTION + 1)
    assert rig.quarantined() == {("events", 0, 0): "orphan"}
    (record,) = values(rig.log, "quarantine")
    assert json.loads(base64.b64decode(record["payload"])) == event(D, "i")


def test_what_comes_after_the_close_of_a_batch_is_judged_as_if_timers_ran_at_once(rig: Rig) -> None:
    marker = decision("marker", ts=CLOSES + 1)
    rig.join(D, event(D, "i"), marker, event(marker, "m", received_ts=CLOSES + 1), event(D, "r", "rating", value=1.0))
    states = [(o["revision"], o["state"]) for o in values(rig.log, "outcomes") if o["decision_id"] == "d1"]
    assert states == [(1, "open"), (2, "closed"), (3, "closed")]


def test_refused_records_and_the_senders_time_do_not_move_event_time(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    rig.join(
        raw(decision("d9", ts=T0 + DAY), propensity=2.0),
        event(D, "b", "click", T0 + DAY, received_ts=T0 + 2_000),
        event(D, "x", token="a.b.c", received_ts=T0 + DAY),
        event(D, "i", received_ts=T0 + DAY),  # a copy
    )
    assert rig.joiner.event_time(0) == T0 + 2_000


def test_event_time_is_the_smaller_of_two_topics_unless_one_is_read_to_its_end(rig: Rig) -> None:
    made = [decision(f"d{i}", ts=T0 + i * MINUTE) for i in range(10)]
    rig.put(*made, *(event(d, "i") for d in made))
    times = []
    while rig.joiner.step(max_records=2):  # one decision and one event
        times.append(rig.joiner.event_time(0))
    assert times == [T0 + i * MINUTE for i in range(9)] + [T0 + 9 * MINUTE + 1_000]
    rig.join(decision("ahead", ts=T0 + DAY))
    assert rig.joiner.event_time(0) == T0 + DAY, "the events, read to their end, do not hold it back"


def test_in_quiet_event_time_moves_on_with_the_clock_after_a_minute(rig: Rig) -> None:
    rig.join(D, event(D, "i"))
    base = rig.joiner.event_time(0)
    assert base == T0 + 1_000
    rig.clock.advance(59_999)
    rig.join()
    assert rig.joiner.event_time(0) == base
    rig.clock.advance(1)
    rig.join()
    assert rig.joiner.event_time(0) == base + MINUTE
    rig.clock.advance(CLOSES - T0)
    assert rig.join()["d1"]["state"] == "closed"
    rig.restart()
    assert (rig.joiner.event_time(0) or 0) > CLOSES


def test_before_anything_is_let_in_there_is_no_event_time(rig: Rig) -> None:
    rig.clock.advance(DAY)
    rig.join(event(D, "i"))
    assert rig.joiner.event_time(0) is None


def test_state_of_what_is_let_go_leaves_nothing_behind(rig: Rig) -> None:
    made = [decision(f"d{i}") for i in range(30)]
    rig.join(*made, *(event(d, "i") for d in made), event(decision("nobody"), "i"))
    assert rig.joiner.open_decisions == 30
    rig.pass_time(T0 + RETENTION + 1)
    rig.pass_time(T0 + 3 * RETENTION)
    assert rig.joiner.open_decisions == 1, "only the last marker"
    assert rig.joiner._parts[0]._store.waiting_count() == 0
    assert rig.joiner.counts["closed"] == 30


def test_timers_fire_in_bounded_bulk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.stream.partition.TIMERS_PER_STEP", 7)
    made = [decision(f"d{i}") for i in range(30)]
    rig.join(*made, *(event(d, "i") for d in made))
    marker = decision("marker", ts=CLOSES + 1)
    rig.put(marker, event(marker, "m", "click", ts=CLOSES + 1, received_ts=CLOSES + 1))
    assert [rig.joiner.step() for _ in range(6)] == [9, 7, 7, 7, 2, 0]
    assert rig.joiner.counts["closed"] == 30


def test_events_read_ahead_of_their_decisions_are_left_for_a_later_step(rig: Rig) -> None:
    made = [decision(f"d{i}", ts=T0 + i) for i in range(20)]
    for d in made:
        rig.put(d)
        rig.clock.advance(1)
        if d in made[10:]:
            rig.put(event(d, "i"))
    steps = 0
    while rig.joiner.step(max_records=4):
        steps += 1
        read, judged = rig.joiner._parts[0].positions
        assert judged <= max(0, read - 10), "no event is judged before its decision"
        if steps == 3:
            rig.restart()
    assert rig.joiner.counts["outcomes"] == 10
    assert rig.joiner.counts["waited"] == 0


# -- running it ----------------------------------------------------------------------------------------------------


def test_a_second_joiner_on_the_same_state_is_refused(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="another joiner is using it"):
        Joiner(rig.log, rig.folder / "state", KEYS, rig.clock)


def test_counts_survive_a_restart(rig: Rig) -> None:
    rig.join(D, event(D, "i"), Append("events", "d1", b"{"))
    before = rig.joiner.counts
    rig.restart()
    assert rig.joiner.counts == before
    assert rig.joiner.lag() == 0
    rig.put(event(D, "c"))
    assert rig.joiner.lag() == 1


def test_an_outcome_too_large_for_the_log_is_counted_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.stream.ledger.MAX_RECORD_BYTES", 1_500)
    rig = Rig(tmp_path)
    big = decision("big", attribution=Attribution(10 * MINUTE, HOUR, 0, "all"))
    rig.join(big, event(big, "i"), *(event(big, f"{i:060d}", "rating", value=1.0) for i in range(20)))
    last = rig.join(D, event(D, "i"))
    assert set(last) == {"big", "d1"}
    assert rig.joiner.counts["unpublishable"] == 21 - last["big"]["revision"] > 0
    rig.close()


def test_what_event_time_has_let_go_is_gone_though_its_timer_has_not_run(rig: Rig) -> None:
    far = token(D, exp_s=T0 // 1000 + 10 * RETENTION)
    marker = decision("marker", ts=T0 + RETENTION + 1)
    moves = event(marker, "m", "click", ts=marker.ts, received_ts=marker.ts)
    last = rig.join(D, event(D, "i"), marker, moves, event(D, "c", "click", T0 + 5, token=far))
    assert last["d1"]["components"]["click"] == 0
    assert rig.joiner.counts["waited"] == 1


def test_a_decision_that_comes_with_what_orphans_its_events_comes_too_late(rig: Rig) -> None:
    rig.join(event(D, "i"))
    rig.join(decision("marker", ts=T0 + RETENTION + 1), D)
    assert rig.reasons() == ["orphan"]
    assert rig.joiner.counts["outcomes"] == 0


def test_a_step_that_fails_is_repeated_from_the_last_commit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put(D, event(D, "i"), event(D, "c", "click", T0 + 5))

    def full(saved: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.joiner._parts[0]._store, "write", full)
        for _ in range(2):
            with pytest.raises(OSError, match="disk full"):
                rig.joiner.step()
    last = rig.join()["d1"]
    assert (last["revision"], last["reward"]) == (2, 1.0)
    assert rig.joiner.counts["duplicates"] == 0
