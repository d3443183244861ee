"""The embedded log: durable topics in one SQLite file (WAL), safe for many threads and several processes.

Each topic partition is a table whose rowid is the offset: an append goes to the end of one B-tree, a read is one range
scan. Appends are group-committed: while one caller's transaction is on its way to the disk the others queue up, and the
next one in commits for all of them, so that the cost of an fsync is shared. Offsets in a partition have no holes.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from optimizer.clock import Clock, SystemClock
from optimizer.errors import ConfigError, Fenced
from optimizer.stream.log import (
    PARTITIONED,
    TOPICS,
    Append,
    TopicPartition,
    check_partition,
    check_size,
    check_topic,
    taken_over,
    truncated,
)
from optimizer.stream.partitioner import partition_of
from optimizer.stream.sqlite_reader import POLL_INTERVAL_S, SqliteReader, end_of, start_of, table

MAX_PARTITIONS: Final = 64
APPLICATION_ID: Final = 0x41644C70  # "AdLp": what marks a SQLite file as an Adloop log
BUSY_TIMEOUT_S: Final = 30.0
GROUP_RECORDS: Final = 20_000  # largest group commit; keeps one transaction's memory bounded


class _Call:
    """One waiting `append`: what to write, and afterwards either its places or its error. `fence` is the partition and
    the epoch of its publisher, None for an append that needs no right."""

    __slots__ = ("error", "fence", "places", "rows")

    def __init__(
        self, rows: list[tuple[TopicPartition, bytes, bytes | None]], fence: tuple[int, int] | None = None
    ) -> None:
        self.rows = rows
        self.fence = fence
        self.places: list[tuple[int, int]] | None = None
        self.error: OSError | Fenced | None = None


class SqliteLog:
    """An EventLog in one file; `partitions` None takes what the file has (1 for a new one).

    Raises ConfigError where the file is no Adloop log or has another partition count. `synchronous` "off" leaves
    flushing to the operating system: for simulations only, a power cut may lose or damage the file.
    """

    def __init__(
        self,
        path: str | Path,
        clock: Clock | None = None,
        partitions: int | None = None,
        synchronous: Literal["full", "off"] = "full",
    ) -> None:
        if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"partitions: got {partitions}, expected 1 to {MAX_PARTITIONS}; correct the log's URL")
        self.path = Path(path)
        self.synchronous = synchronous
        self._clock: Clock = clock if clock is not None else SystemClock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"log {self.path}: its folder can't be made ({error}); choose another path") from error
        self._writer = self._connect()
        try:
            self._count, self._id = self._initialise(partitions)
        except sqlite3.DatabaseError as error:
            self._writer.close()
            raise ConfigError(f"log {self.path}: not a usable SQLite file ({error}); choose another path") from error
        except ConfigError:
            self._writer.close()
            raise
        self._lookup = self._connect()
        self._lookup_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._waiting_lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._appended = threading.Condition()
        self._appends = 0
        self._closed = False

    # -- EventLog -----------------------------------------------------------------------------------------------------

    def log_id(self) -> str:
        """Names this log for good: state that was derived from it is refused for another."""
        return self._id

    def topic_name(self, topic: str) -> str:
        """The topic's full name; the embedded log has no prefix."""
        return topic

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises AdloopError for an unknown topic."""
        check_topic(topic)
        return self._count if topic in PARTITIONED else 1

    def append(self, records: Sequence[Append]) -> list[tuple[int, int]]:
        """Write all or none; returns (partition, offset) of each once they are on disk."""
        return self._append(records, None)

    def start(self, at: TopicPartition) -> int:
        """The smallest offset that can still be read."""
        self._check(at)
        with self._lookup_lock:
            return start_of(self._lookup, at)

    def end(self, at: TopicPartition) -> int:
        """The offset that the next record will get."""
        self._check(at)
        with self._lookup_lock:
            return end_of(self._lookup, at)

    def settle(self, topic: str) -> None:
        """Nothing to wait for: what is in the log can be read."""
        self._check(TopicPartition(topic, 0))

    def reader(self, positions: Mapping[TopicPartition, int]) -> SqliteReader:
        """A reader of these partitions. Raises LogTruncated where a position lies outside of the log."""
        for at, position in positions.items():
            first, end = self.start(at), self.end(at)
            if not first <= position <= end:
                raise truncated(at, position, first, end)
        return SqliteReader(self, self._connect(), dict(positions))

    def publisher(self, partition: int) -> SqlitePublisher:
        """Take the right to publish a partition: its epoch rises by one, and only the newest may append."""
        self._check(TopicPartition("outcomes", partition))
        try:
            epoch = self._next_epoch(partition)
        except sqlite3.OperationalError as error:
            raise OSError(f"log {self.path}: can't be written ({error}); free some space") from error
        return SqlitePublisher(self, partition, epoch)

    def _next_epoch(self, partition: int) -> int:
        with self._commit_lock, _transaction(self._writer):
            # Here and not in `_create`: logs that were made before there were publishers have no such table.
            self._writer.execute(
                "CREATE TABLE IF NOT EXISTS fences (partition INTEGER PRIMARY KEY, epoch INTEGER NOT NULL)"
            )
            self._writer.execute(
                "INSERT INTO fences VALUES (?, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1", (partition,)
            )
            return _epoch(self._writer, partition)

    def append_fenced(self, records: Sequence[Append], partition: int, epoch: int) -> list[tuple[int, int]]:
        """`append`, if `epoch` is still the partition's newest; else Fenced, and nothing is written."""
        return self._append(records, (partition, epoch))

    def close(self) -> None:
        """Close the file; waiting appends finish first."""
        with self._commit_lock:
            self._closed = True
            self._writer.close()
        with self._lookup_lock:
            self._lookup.close()

    def truncate(self, at: TopicPartition, before: int) -> None:
        """Delete the records below offset `before`; readers that still need them get LogTruncated."""
        self._check(at)
        with self._commit_lock, _transaction(self._writer):
            before = min(before, end_of(self._writer, at))
            self._writer.execute(f"DELETE FROM {table(at)} WHERE offset < ?", (before,))
            self._writer.execute(
                "INSERT INTO starts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET first = max(first, excluded.first)",
                (at.topic, at.partition, before),
            )

    # -- waiting for appends (readers) --------------------------------------------------------------------------------

    def appends(self) -> int:
        """Group commits made through this object so far: what a waiting reader compares."""
        return self._appends

    def wait_for_append(self, seen: int, timeout_s: float) -> None:
        """Return when `appends()` differs from `seen`, or after `timeout_s`."""
        with self._appended:
            self._appended.wait_for(lambda: self._appends != seen, timeout_s)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise ConfigError(f"log {self.path}: can't be opened ({error}); choose another path") from error
        try:
            # FULL: in WAL mode each commit is flushed to the disk before it returns.
            connection.execute(f"PRAGMA synchronous={self.synchronous.upper()}")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ConfigError(f"log {self.path}: not a usable SQLite file ({error}); choose another path") from error
        return connection

    def _initialise(self, partitions: int | None) -> tuple[int, str]:
        """Create the tables in a new file, or check those of an old one; returns (partition count, log id)."""
        db = self._writer
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            self._switch_to_wal()
        with _transaction(db):
            application = db.execute("PRAGMA application_id").fetchone()[0]
            if application == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._create(partitions or 1)
            elif application != APPLICATION_ID:
                raise ConfigError(f"log {self.path}: this SQLite file is not an Adloop log; choose another path")
            meta: dict[str, str] = dict(db.execute("SELECT key, value FROM meta").fetchall())
        stored = int(meta["partitions"])
        if partitions is not None and partitions != stored:
            raise ConfigError(
                f"partitions: got {partitions}, expected {stored}, which the log {self.path} was made with; leave "
                f"`partitions` out of its URL, or start a new log (a key's partition never changes)"
            )
        return stored, meta["log_id"]

    def _switch_to_wal(self) -> None:
        """The change of mode needs the file for itself and ignores the busy timeout, so it is tried again here."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_INTERVAL_S)

    def _create(self, partitions: int) -> None:
        db = self._writer
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("CREATE TABLE starts (topic TEXT, partition INTEGER, first INTEGER, PRIMARY KEY (topic, partition))")
        for topic in TOPICS:
            for partition in range(partitions if topic in PARTITIONED else 1):
                db.execute(
                    f"CREATE TABLE {table(TopicPartition(topic, partition))} "
                    "(offset INTEGER PRIMARY KEY, key BLOB, value BLOB, ts INTEGER NOT NULL)"
                )
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("partitions", str(partitions)), ("log_id", uuid.uuid4().hex)]
        )

    def _append(self, records: Sequence[Append], fence: tuple[int, int] | None) -> list[tuple[int, int]]:
        if not records:
            return []
        call = _Call([self._place(record) for record in records], fence)
        with self._waiting_lock:
            self._waiting.append(call)
        with self._commit_lock:
            # Whoever holds the lock before us may have committed our call with its own.
            while call.places is None and call.error is None:
                self._commit(self._take_waiting())
        if call.places is None:
            raise call.error or OSError("the log gave no answer to an append")
        return call.places

    def _place(self, record: Append) -> tuple[TopicPartition, bytes, bytes | None]:
        count = self.partitions(record.topic)
        check_size(record)
        key = record.key.encode()
        return TopicPartition(record.topic, partition_of(key, count)), key, record.value

    def _check(self, at: TopicPartition) -> None:
        check_partition(at, self.partitions(at.topic))

    def _take_waiting(self) -> list[_Call]:
        with self._waiting_lock:
            size, taken = 0, 0
            for call in self._waiting:
                if taken and size + len(call.rows) > GROUP_RECORDS:
                    break
                size, taken = size + len(call.rows), taken + 1
            calls, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return calls

    def _commit(self, calls: list[_Call]) -> None:
        """One transaction for all of `calls`; each gets its places, or all of them the error."""
        if self._closed:
            for call in calls:
                call.error = OSError(f"log {self.path} is closed")
            return
        ts = self._clock.now_ms()
        rows: dict[TopicPartition, list[tuple[int, bytes, bytes | None, int]]] = {}
        ends: dict[TopicPartition, int] = {}
        places: list[list[tuple[int, int]]] = []
        try:
            with _transaction(self._writer):
                calls = [call for call in calls if not self._fenced(call)]
                for call in calls:
                    mine: list[tuple[int, int]] = []
                    for at, key, value in call.rows:
                        # The end is read inside the transaction: another process may have appended since our last one.
                        offset = ends[at] if at in ends else end_of(self._writer, at)
                        ends[at] = offset + 1
                        rows.setdefault(at, []).append((offset, key, value, ts))
                        mine.append((at.partition, offset))
                    places.append(mine)
                for at, new in rows.items():
                    self._writer.executemany(f"INSERT INTO {table(at)} VALUES (?, ?, ?, ?)", new)
        except BaseException as error:
            # Every waiting caller must get an answer, whatever went wrong; what is no ordinary error goes on up.
            for call in calls:
                call.error = OSError(f"log {self.path}: the append was refused ({error}); nothing of it was written")
            if not isinstance(error, Exception):
                raise
            return
        for call, mine in zip(calls, places, strict=True):
            call.places = mine
        with self._appended:
            self._appends += 1
            self._appended.notify_all()

    def _fenced(self, call: _Call) -> bool:
        """Refuse the call where its publisher is no longer the newest. Asked inside the transaction that writes."""
        if call.fence is None or _epoch(self._writer, call.fence[0]) == call.fence[1]:
            return False
        call.error = taken_over(call.fence[0])
        return True


class SqlitePublisher:
    """The right to publish one partition, until another takes it."""

    def __init__(self, log: SqliteLog, partition: int, epoch: int) -> None:
        self._log = log
        self._partition = partition
        self._epoch = epoch
        self._begun: Sequence[Append] = ()

    @property
    def doubtful(self) -> bool:
        """Never: a file has no connection."""
        return False

    def begin(self, records: Sequence[Append]) -> None:
        """Keep them for `commit`: the log has one writer at a time, who must not wait for anyone."""
        self._begun = records

    def flush(self) -> None:
        """Nothing is on its way."""

    def commit(self) -> dict[str, int]:
        """All or none; Fenced where another publisher of this partition was made since."""
        records, self._begun = self._begun, ()
        places = self._log.append_fenced(records, self._partition, self._epoch)
        return {record.topic: offset + 1 for record, (_, offset) in zip(records, places, strict=True)}

    def append(self, records: Sequence[Append]) -> dict[str, int]:
        """`begin` and `commit`."""
        self.begin(records)
        return self.commit()

    def close(self) -> None:
        """Nothing is held: the right ends when another takes it."""


class _transaction:
    """BEGIN IMMEDIATE ... COMMIT, rolled back on any error. IMMEDIATE takes the write lock first, so that two
    processes queue for it instead of one failing half way."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                self._rollback()
                raise
        self._rollback()

    def _rollback(self) -> None:
        # SQLite may have rolled back by itself already (disk full, I/O error); the first error is the one to report.
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")


def _epoch(db: sqlite3.Connection, partition: int) -> int:
    return int(db.execute("SELECT epoch FROM fences WHERE partition = ?", (partition,)).fetchone()[0])
