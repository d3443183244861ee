"""Partitions that change hands: whoever takes over goes on from what stands in the log, and who lost can't publish."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import ConfigError, Fenced
from optimizer.stream import partition
from optimizer.stream.assignment import Assigned
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append
from optimizer.types import Decision
from tests.laws.test_joiner_laws import LAW, Record, contents, expected, histories, rigs
from tests.stream_rig import HOUR, KEYS, T0, Rig, decision, event, last_revisions, spread, values

D = decision()


class Shares:
    """An assignment that the test changes."""

    def __init__(self, *partitions: int) -> None:
        self.assigned = Assigned(0, frozenset(partitions))

    def give(self, *partitions: int) -> None:
        self.assigned = Assigned(self.assigned.generation + 1, frozenset(partitions))

    def current(self) -> Assigned:
        return self.assigned

    def close(self) -> None:
        """There is nobody to tell."""


def other(rig: Rig, name: str, partitions: Shares | None = None) -> Joiner:
    return Joiner(rig.log, rig.folder / name, KEYS, rig.clock, partitions=partitions, durable=False)


def drain(*joiners: Joiner) -> None:
    while sum(joiner.step() for joiner in joiners):
        pass


@given(histories(), st.data())
@LAW
def test_joiners_with_their_own_states_take_over_from_each_other_at_any_moment(
    history: tuple[list[Decision], list[dict[str, Any]]], data: st.DataObject
) -> None:
    made, told = history
    arrival: list[Record] = data.draw(st.permutations([*made, *told]))
    pieces = spread(arrival, data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=6)))
    names = st.sampled_from(["a", "b", "c"])
    with rigs(data.draw(st.sampled_from([1, 3]))) as rig, ExitStack() as stack:
        # One at a time: a catch-up is then in its midst while timers fire, as a long one is.
        timers = data.draw(st.sampled_from([1, partition.TIMERS_PER_STEP]))
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(partition, "TIMERS_PER_STEP", timers)
        rig.joiner.close()
        running: dict[str, Joiner] = {}
        for piece in pieces:
            rig.put(*piece)
            if data.draw(st.booleans()):  # a clean end of one; otherwise it is left standing, and is fenced
                joiner = running.pop(data.draw(names), None)
                if joiner is not None:
                    joiner.close()
            name = data.draw(names)
            if name not in running:
                running[name] = stack.enter_context(other(rig, name))
            for _ in range(data.draw(st.integers(0, 5))):
                with suppress(Fenced):
                    running[name].step(max_records=data.draw(st.sampled_from([1, 3, 50])))
            if data.draw(st.integers(0, 9)) == 0:
                rig.clock.advance(2 * HOUR + 30 * 60_000)  # some outcomes close
        stack.close()
        rig.joiner = other(rig, data.draw(names))
        assert contents(rig.join()) == expected(made, told)
        assert rig.joiner.caught_up


def test_a_second_joiner_on_the_log_ends_the_first(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.join(D, event(D, "i"))
    second = other(rig, "second")
    rig.put(event(D, "c", "click", T0 + 5))
    with pytest.raises(Fenced, match=r"outcomes\[0\]: another joiner has taken this partition over"):
        rig.joiner.step()
    drain(second)
    assert last_revisions(rig.log)["d1"]["revision"] == 2
    second.close()
    rig.close()


def test_a_state_that_was_behind_goes_on_from_the_others_revisions(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.join(D, event(D, "i"))
    rig.joiner.close()
    second = other(rig, "second")
    rig.put(event(D, "c", "click", T0 + 5), Append("events", "d1", b"{"))
    drain(second)
    second.close()
    before = values(rig.log, "outcomes"), values(rig.log, "quarantine")
    rig.joiner = rig._open()
    assert not rig.joiner.caught_up
    rig.join()
    assert rig.joiner.caught_up
    assert (values(rig.log, "outcomes"), values(rig.log, "quarantine")) == before, "nothing new, so nothing published"
    last = rig.join(event(D, "x", "retraction", retracts="c"))["d1"]
    assert (last["revision"], last["events"]) == (3, ["i"])
    rig.close()


def test_what_falls_due_in_the_midst_of_a_catch_up_is_not_said_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by `make test-faults`: with more than a step's worth to compare, outcomes that nobody else had touched were
    # published again as they stood before they were closed.
    monkeypatch.setattr(partition, "TIMERS_PER_STEP", 1)
    rig = Rig(tmp_path)
    untouched, later = decision("a"), decision("z", ts=T0 + 3 * HOUR)
    touched = [decision(f"d{i}") for i in range(3)]
    rig.join(untouched, *touched, *(event(d, "i") for d in (untouched, *touched)))
    rig.joiner.close()
    rig.put(*(event(d, "c", "click", T0 + 5) for d in touched))
    with other(rig, "second") as second:
        drain(second)
    rig.put(later, event(later, "i"))  # everything before it is to be closed
    rig.joiner = rig._open()
    last = rig.join()
    assert [(last[d]["revision"], last[d]["state"]) for d in ("a", "d0", "d1", "d2")] == [
        (2, "closed"),
        *[(3, "closed")] * 3,
    ]
    rig.close()


def test_what_an_outbox_still_held_is_dropped_where_others_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    e = decision("e1")
    rig.join(D, e, event(D, "i"), event(e, "i"))

    def cut() -> None:
        raise OSError("connection lost")

    rig.put(event(D, "c", "click", T0 + 5), event(e, "c", "click", T0 + 5))
    publisher = rig.joiner._parts[0]._publisher
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "commit", cut)
        with pytest.raises(OSError, match="connection lost"):
            rig.joiner.step()  # committed, but not published
    rig.joiner.close()
    second = other(rig, "second")
    rig.put(event(D, "r", "rating", value=1.0))
    drain(second)
    second.close()
    rig.joiner = rig._open()
    last = rig.join()
    assert (last["d1"]["revision"], last["d1"]["events"]) == (2, ["i", "r", "c"])
    assert (last["e1"]["revision"], last["e1"]["events"]) == (2, ["i", "c"])
    rig.close()


def test_shares_move_between_two_joiners_of_a_group(tmp_path: Path) -> None:
    rig = Rig(tmp_path, partitions=4)
    rig.joiner.close()
    shares = Shares(0, 1, 2, 3), Shares()
    joiners = [other(rig, name, share) for name, share in zip("ab", shares, strict=True)]
    made = [decision(f"d{i}") for i in range(40)]
    rig.put(*made, *(event(d, "i") for d in made))
    joiners[0].step(max_records=20)
    shares[0].give(0, 1)
    shares[1].give(2, 3)
    drain(*joiners)
    assert set(joiners[0].figures()) == {0, 1}
    shares[1].give(1, 2, 3)  # before the other one knows: it is fenced, and gives the partition up
    joiners[1].step()
    rig.put(*(event(d, "c", "click", T0 + 5) for d in made))
    drain(*joiners)
    assert set(joiners[0].figures()) == {0}
    shares[0].give(0, 1, 2, 3)
    shares[1].give()
    rig.put(*(event(d, "r", "rating", value=1.0) for d in made))
    drain(*joiners)
    last = last_revisions(rig.log)
    assert [(o["components"]["click"], o["components"]["rating"]) for o in last.values()] == [(1, 1.0)] * 40
    for joiner in joiners:
        joiner.close()
    rig.log.close()


def test_a_partition_that_could_not_be_taken_is_taken_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, partitions=2)
    rig.joiner.close()
    shares = Shares(0)
    rig.joiner = other(rig, "a", shares)
    made = [decision(f"d{i}") for i in range(10)]
    rig.put(*made, *(event(d, "i") for d in made))

    def away(partition: int) -> None:
        raise OSError("no broker answers")

    shares.give(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(rig.log, "publisher", away)
        for _ in range(2):
            with pytest.raises(OSError, match="no broker answers"):
                rig.joiner.step()
            assert not rig.joiner.caught_up, "not ready while a partition of ours is at nobody's hands"
    assert len(rig.join()) == 10
    assert rig.joiner.caught_up
    rig.close()


def test_what_was_fenced_by_a_late_owner_is_taken_back_while_the_group_calls_it_ours(tmp_path: Path) -> None:
    rig = Rig(tmp_path, partitions=1)
    rig.joiner.close()
    shares = Shares(0)
    rig.joiner = other(rig, "a", shares)
    rig.join(D, event(D, "i"))
    with other(rig, "late"):  # had not heard that the partition is no longer its own, and hears it now
        rig.put(event(D, "c", "click", T0 + 5))
        drain(rig.joiner)
        assert not rig.joiner.caught_up
    rig.clock.advance(4_999)
    drain(rig.joiner)
    assert rig.joiner.figures() == {}, "the other one may be the rightful owner, and we the late one"
    rig.clock.advance(1)
    assert rig.join()["d1"]["components"]["click"] == 1
    assert rig.joiner.caught_up
    rig.close()


def test_a_partition_given_up_after_a_failed_commit_stays_where_it_was_last_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    rig.joiner.close()
    shares = Shares(0)
    rig.joiner = other(rig, "a", shares)
    rig.join(D, event(D, "i"))
    part = rig.joiner._parts[0]

    def full() -> None:
        part._store.rollback()  # as SQLite does by itself where a disk is full
        raise sqlite3.OperationalError("database or disk is full")

    rig.put(event(D, "c", "click", T0 + 5))
    with monkeypatch.context() as patch:
        patch.setattr(part._store, "commit", full)
        with pytest.raises(OSError, match=r"can't be written \(database or disk is full\); nothing is lost"):
            rig.joiner.step()
    shares.give()
    rig.joiner.step()
    shares.give(0)
    assert rig.join()["d1"]["components"]["click"] == 1
    rig.close()


def test_a_partition_beyond_those_of_the_start_stops_the_joiner(tmp_path: Path) -> None:
    rig = Rig(tmp_path, partitions=2)
    rig.joiner.close()
    shares = Shares(0, 1)
    rig.joiner = other(rig, "a", shares)
    shares.give(0, 1, 2)
    with pytest.raises(ConfigError, match=r"gives out partition 2, expected 0 to 1.*under another prefix"):
        rig.joiner.step()
    rig.close()


def test_a_revision_that_is_the_same_as_ours_by_chance_is_still_the_others(tmp_path: Path) -> None:
    # Found by hypothesis: both come to the same second revision by way of another first one.
    rig = Rig(tmp_path)
    rig.joiner.close()
    made = decision(ts=T0 + 3_000)
    told = event(made, "i", received_ts=T0 + 1_000), event(made, "c", "click", received_ts=T0 + 9_000)
    late = other(rig, "late")
    with other(rig, "first") as first:
        for record in (made, *told):
            rig.put(record)
            drain(first)
    with pytest.raises(Fenced):
        late.step()
    rig.put(event(made, "r", "rating", value=1.0))
    drain(late)
    assert last_revisions(rig.log)["d1"]["revision"] == 3
    late.close()
    rig.log.close()
