"""While a partition waits for its commits, the next records are judged: what that must not change."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.stream import partition
from optimizer.stream.catch_up import take_over
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import EventLog
from optimizer.stream.sqlite_log import SqlitePublisher
from tests.stream_rig import KEYS, T0, Rig, decision, event, last_revisions, values

MADE = [decision(f"d{i}", ts=T0 + i) for i in range(24)]


def filled(folder: Path) -> Rig:
    rig = Rig(folder, partitions=2)
    for d in MADE:
        rig.put(d, event(d, "i", received_ts=d.ts + 5), event(d, "c", "click", d.ts + 1, received_ts=d.ts + 6))
    return rig


def failing_once(real: Callable[[], Any], error: Exception, at: int) -> Callable[[], Any]:
    calls = []

    def call() -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return real()

    return call


def test_a_full_step_returns_before_it_is_published_and_the_next_one_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = filled(tmp_path)
    gate = threading.Event()
    for part in rig.joiner._parts.values():
        publisher: Any = part._publisher
        commit = publisher.commit
        monkeypatch.setattr(publisher, "commit", lambda commit=commit: (gate.wait(30), commit())[1])
    assert rig.joiner.step(max_records=12) == 12
    assert values(rig.log, "outcomes") == []
    threading.Timer(0.2, gate.set).start()
    rig.joiner.step(max_records=12)
    assert gate.is_set(), "a partition's next records are judged once it is through"
    last = rig.join()
    assert len(last) == len(MADE)
    assert all(len(outcome["events"]) == 2 for outcome in last.values())
    rig.close()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("what", ["log", "state"])
def test_a_commit_that_fails_behind_a_full_step_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, at: int
) -> None:
    rig = filled(tmp_path)
    part = rig.joiner._parts[0]
    failing: Any = part._publisher if what == "log" else part._store
    error: Exception = OSError("the broker is away") if what == "log" else sqlite3.OperationalError("the disk is full")
    monkeypatch.setattr(failing, "commit", failing_once(failing.commit, error, at))
    met = 0
    for _ in range(60):
        try:
            if not rig.joiner.step(max_records=8):
                break
        except (OSError, sqlite3.OperationalError):
            met += 1
    assert met == 1
    last = last_revisions(rig.log)
    assert {name: outcome["events"] for name, outcome in last.items()} == {d.decision_id: ["i", "c"] for d in MADE}
    assert rig.joiner.counts["events"] == 2 * len(MADE)
    rig.close()


@pytest.mark.parametrize("doubtful", [(0, 1), (1,)], ids=["all", "the second, with the first staged"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_after_a_dead_connection_every_partition_takes_a_new_one_and_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, doubtful: tuple[int, ...]
) -> None:
    rig = filled(tmp_path)
    before = [part._publisher for at, part in rig.joiner._parts.items() if at in doubtful]
    for _ in range(after):
        rig.joiner.step(max_records=8)
    # One publisher class serves all partitions: those made before have doubts from here on, new ones have none.
    monkeypatch.setattr(SqlitePublisher, "doubtful", property(lambda self: self in before))
    with pytest.raises(OSError, match="all connections are made anew"):
        rig.joiner.step(max_records=8)
    last = rig.join()
    assert {name: outcome["events"] for name, outcome in last.items()} == {d.decision_id: ["i", "c"] for d in MADE}
    assert not any(part._publisher in before for part in rig.joiner._parts.values())
    published = [(outcome["decision_id"], outcome["revision"]) for outcome in values(rig.log, "outcomes")]
    assert len(set(published)) == len(published)
    rig.close()


def test_a_take_over_that_fails_after_a_doubt_is_still_owed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another joiner has published meanwhile would else get second contents under its revisions."""
    rig = filled(tmp_path)
    rig.join()
    before = [part._publisher for part in rig.joiner._parts.values()]
    monkeypatch.setattr(SqlitePublisher, "doubtful", property(lambda self: self in before))
    taken: list[int] = []
    real = take_over

    def failing(log: EventLog, at: int, *rest: Any) -> None:
        if not taken.count(-1):
            taken.append(-1)
            raise OSError("the disk is full")
        real(log, at, *rest)
        taken.append(at)

    monkeypatch.setattr(partition, "take_over", failing)
    with pytest.raises(OSError, match="all connections are made anew"):
        rig.joiner.step()
    with pytest.raises(OSError, match="the disk is full"):
        rig.joiner.step()
    with Joiner(rig.log, tmp_path / "other", KEYS, rig.clock, durable=False) as other:
        rig.put(*(event(d, "c2", "click", d.ts + 2, received_ts=d.ts + 7) for d in MADE))
        rig.put(*(event(d, "v", "conversion", d.ts + 3, received_ts=d.ts + 8, value=1.0) for d in MADE))
        while other.step():
            pass
    theirs = last_revisions(rig.log)
    assert rig.join() == theirs
    assert taken[0] == -1
    assert {0, 1} <= set(taken)
    rig.close()
