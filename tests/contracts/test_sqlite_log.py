"""The embedded log: the common contract, and what is its own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from optimizer.clock import Clock, ManualClock
from optimizer.errors import AdloopError, ConfigError, LogTruncated
from optimizer.stream.log import Append, EventLog, TopicPartition, whole
from optimizer.stream.open import open_log
from optimizer.stream.partitioner import murmur2, partition_of
from optimizer.stream.sqlite_log import SqliteLog
from tests.contracts.log_suite import NOW, LogContract, read


class TestSqliteLog(LogContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "log.db"

    def open(self, partitions: int, clock: Clock) -> EventLog:
        return SqliteLog(self.path, clock, partitions)


@pytest.mark.parametrize(
    ("key", "expected"),
    # The vectors of Apache Kafka's own UtilsTest.testMurmur2 (signed there).
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


@pytest.mark.filterwarnings("ignore:.*_text is deprecated:DeprecationWarning")  # kafka-python's own import
def test_murmur2_agrees_with_the_kafka_client() -> None:
    from kafka.partitioner.default import murmur2 as kafkas_murmur2

    for i in range(300):
        key = (f"{i:x}" * 7)[: i % 23].encode()
        assert murmur2(key) == kafkas_murmur2(key) & 0xFFFFFFFF


def test_one_partition_needs_no_hash() -> None:
    assert partition_of(b"anything", 1) == 0


def test_another_partition_count_refuses_to_start_and_names_the_way_out(tmp_path: Path) -> None:
    open_log(f"sqlite:///{tmp_path}/log.db?partitions=2").close()
    with pytest.raises(ConfigError, match=r"partitions: got 4, expected 2.*leave"):
        open_log(f"sqlite:///{tmp_path}/log.db?partitions=4")
    log = open_log(f"sqlite:///{tmp_path}/log.db")
    assert log.partitions("events") == 2
    log.close()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("sqlite:///", "path"),
        ("redis://host", "redis"),
        ("log.db", "expected sqlite"),
        ("sqlite:///{}/x?partitions=0", "1 to"),
        ("sqlite:///{}/x?partitions=two", "whole number"),
        ("sqlite:///{}/x?synchronous=normal", "full or off"),
        ("sqlite:///{}/x?sync=off", "option 'sync'"),
        ("sqlite:////proc/nowhere/x", "can't be"),
        ("http://[", "log: got 'http', expected sqlite"),
        ("sqlite:///{}/x%00y", "null byte"),
        ("sqlite:///{}/x?partitions=" + "9" * 5_000, "whole number"),
    ],
)
def test_a_wrong_url_is_refused_by_name(url: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        open_log(url.format(tmp_path))


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(ConfigError, match="not a usable SQLite file"):
        SqliteLog(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ConfigError, match="not an Adloop log"):
        SqliteLog(tmp_path / "other.db")


def test_positions_below_the_start_are_truncated(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW))
    at = TopicPartition("policies", 0)
    log.append([Append("policies", "v", bytes([i])) for i in range(10)])
    behind = log.reader({at: 0})
    log.truncate(at, 6)
    assert (log.start(at), log.end(at)) == (6, 10)
    with pytest.raises(LogTruncated, match="holds 6 to 10"):
        behind.poll()
    with pytest.raises(LogTruncated):
        log.reader({at: 5})
    log.truncate(at, 10)
    with pytest.raises(LogTruncated):
        behind.poll()
    assert (log.start(at), log.end(at)) == (10, 10), "an empty partition keeps its place"
    assert log.append([Append("policies", "v", b"x")]) == [(0, 10)]
    behind.close()
    log.close()


def test_two_processes_append_to_one_file_and_see_each_other(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW), partitions=2)
    reader = log.reader(whole(log, "events"))
    script = (
        "import sys; from optimizer.stream.open import open_log; from optimizer.stream.log import Append\n"
        "log = open_log(sys.argv[1])\n"
        "for i in range(60): log.append([Append('events', f'theirs-{i}', b'x')])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, f"sqlite:///{tmp_path}/log.db"])
    for i in range(60):
        log.append([Append("events", f"mine-{i}", b"x")])
    seen: list[bytes | None] = []
    deadline = time.monotonic() + 120
    while len(seen) < 120 and time.monotonic() < deadline:
        seen += [record.key for record in reader.poll(timeout_s=0.2)]
    assert child.wait(120) == 0
    assert len(seen) == len(set(seen)) == 120
    reader.close()
    log.close()


def test_a_refused_commit_is_an_error_for_every_caller_and_the_log_goes_on(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW))
    log.append([Append("events", "k", b"before")])
    pages = log._writer.execute("PRAGMA page_count").fetchone()[0]
    log._writer.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to a full disk
    errors: list[OSError] = []

    def fill() -> None:
        try:
            log.append([Append("events", "k", b"x" * 100_000)])
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(errors) == 4
    assert "full" in str(errors[0])
    log._writer.execute("PRAGMA max_page_count=1000000")
    log.append([Append("events", "k", b"after")])
    assert [record.value for record in read(log, "events")] == [b"before", b"after"]
    log.close()


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW))
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.append([Append("events", "k", b"x")])


def test_a_poll_stops_at_its_byte_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.stream.sqlite_reader.POLL_BYTES", 2_500)
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW))
    log.append([Append("events", "k", b"x" * 1_000) for _ in range(10)])
    reader = log.reader(whole(log, "events"))
    assert [len(reader.poll()) for _ in range(5)] == [3, 3, 3, 1, 0]
    reader.close()
    log.close()


def test_a_wrong_value_fails_its_caller_alone_later(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(NOW))
    with pytest.raises((AdloopError, OSError, TypeError)):
        log.append([Append("events", "k", object())])  # type: ignore[arg-type]
    assert log.append([Append("events", "k", b"x")]) == [(0, 0)]
    log.close()
