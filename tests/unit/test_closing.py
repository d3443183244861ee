"""Whoever reads the log lets go of it: each reader that a role has opened is closed with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimizer.clock import ManualClock
from optimizer.errors import AdloopError, StoreError
from optimizer.learning import commands, run
from optimizer.learning.config import LearnerConfig
from optimizer.learning.learner import Learner
from optimizer.store import PolicyStore
from optimizer.stream.log import Append, TopicPartition
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.stream.sqlite_reader import SqliteReader
from optimizer.stream.views import campaign_table
from serving.generator import Generator
from simulators.loop import Loop
from tests.learning_rig import accept, settle

ALONE = LearnerConfig(train_policy=False)


class WatchedLog(SqliteLog):
    """Counts the readers that are open."""

    open_readers = 0

    def reader(self, positions: Mapping[TopicPartition, int]) -> SqliteReader:
        reader = super().reader(positions)
        close, self.open_readers = reader.close, self.open_readers + 1

        def closed() -> None:
            close()
            self.open_readers -= 1

        reader.close = closed  # type: ignore[method-assign]
        return reader


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WatchedLog]:
    log = WatchedLog(tmp_path / "log.db", ManualClock(0))
    yield log
    log.close()


def test_a_table_lets_go_of_the_log_and_keeps_its_rows(log: WatchedLog) -> None:
    table = campaign_table(log)
    assert log.open_readers == 1
    table.close()
    assert (log.open_readers, table.rows) == (0, {})


def test_a_learner_lets_go_of_the_log(log: WatchedLog, tmp_path: Path) -> None:
    learner = Learner(log, PolicyStore(tmp_path / "policies"), None, ManualClock(0), ALONE)
    learner.step()
    assert log.open_readers == 4  # campaigns, policies, candidates, outcomes
    learner.close()
    assert log.open_readers == 0


def test_so_does_one_that_could_not_be_made(log: WatchedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("no version can be published")

    monkeypatch.setattr(PolicyStore, "publish", refuse)
    with pytest.raises(StoreError):
        Learner(log, PolicyStore(tmp_path / "policies"), None, ManualClock(0), ALONE)
    assert log.open_readers == 0


def test_a_generator_lets_go_of_the_log(
    log: WatchedLog, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, store = settle(tmp_path / "data", tiny_model_folder), PolicyStore(tmp_path / "policies")
    generator = Generator(log, store, base, ManualClock(0), accept)
    generator.step()
    assert log.open_readers == 3  # campaigns, policies, candidates
    generator.close()
    assert log.open_readers == 0

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("serving.generator.load_policy", refuse)
    with pytest.raises(MemoryError):
        Generator(log, store, base, ManualClock(0), accept)
    assert log.open_readers == 0


@pytest.mark.parametrize("after", [1, 2, 3])
def test_nothing_stays_open_where_the_log_refuses_a_reader(
    log: WatchedLog, tmp_path: Path, tiny_model_folder: Path, after: int
) -> None:
    base, store = settle(tmp_path / "data", tiny_model_folder), PolicyStore(tmp_path / "policies")
    open_one, left = log.reader, [0]

    def reader(positions: Mapping[TopicPartition, int]) -> SqliteReader:
        left[0] -= 1
        if left[0] < 0:
            raise StoreError("no more connections")
        return open_one(positions)

    log.reader = reader  # type: ignore[method-assign]
    left[0] = after
    with pytest.raises(StoreError, match="no more connections"):
        Learner(log, store, None, ManualClock(0), ALONE)
    assert log.open_readers == 0
    left[0] = after - 1
    with pytest.raises(StoreError, match="no more connections"):
        Generator(log, store, base, ManualClock(0), accept)
    assert log.open_readers == 0


class Role:
    """Says when it was closed, and fails at it where it is told to."""

    def __init__(self, name: str, closed: list[str], error: Exception | None = None) -> None:
        self.name, self.closed, self.error = name, closed, error

    def step(self) -> bool:
        return False

    def close(self) -> None:
        self.closed.append(self.name)
        if self.error is not None:
            raise self.error


def test_a_loop_closes_the_roles_that_were_attached_also_where_one_fails(tmp_path: Path) -> None:
    closed: list[str] = []
    loop = Loop({}, tmp_path, 1)
    loop.attach(Role("first", closed, OSError("gone")), Role("second", closed))
    with pytest.raises(OSError, match="gone"):
        loop.close()
    assert sorted(closed) == ["first", "second"]
    with pytest.raises(OSError, match="closed"):
        loop.log.append([Append("campaigns", "default/c1", None)])


def test_the_learn_command_closes_its_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[str] = []

    class Failing(Role):
        def step(self) -> bool:
            raise AdloopError("the log is gone")

    def opened(*_: object) -> SimpleNamespace:
        return SimpleNamespace(learner=lambda *_: Failing("learner", closed))

    monkeypatch.setattr(run, "open_learning", opened)
    monkeypatch.setattr(run, "share_processor", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    log = f"sqlite:///{tmp_path}/log.db"
    WatchedLog(tmp_path / "log.db", ManualClock(0)).close()
    assert commands.main_learn(["--log", log, "--data", str(tmp_path)]) == 1
    assert closed == ["learner"]
    assert "the log is gone" in capsys.readouterr().err
