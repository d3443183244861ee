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
from optimizer.errors import AdloopError, ConfigError, LogTruncated
from optimizer.stream.log import MAX_RECORD_BYTES, TOPICS, Append, Record, TopicPartition
from optimizer.stream.partitioner import partition_of

PARTITIONED: Final = frozenset({"decisions", "events", "outcomes"})
MAX_PARTITIONS: Final = 64
APPLICATION_ID: Final = 0x41644C70  # "AdLp": what marks a SQLite file as an Adloop log
BUSY_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.02  # how soon a reader sees what another process appended
POLL_BYTES: Final = 32 * 1024 * 1024  # a poll stops at this much, so that large records can't fill the memory
GROUP_RECORDS: Final = 20_000  # largest group commit; keeps one transaction's memory bounded


class _Call:
    """One waiting `append`: what to write, and afterwards either its places or its error."""

    __slots__ = ("error", "places", "rows")

    def __init__(self, rows: list[tuple[TopicPartition, bytes, bytes | None]]) -> None:
        self.rows = rows
        self.places: list[tuple[int, int]] | None = None
        self.error: OSError | None = None


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
        if topic not in TOPICS:
            raise AdloopError(f"topic: got {topic!r}, expected one of {', '.join(TOPICS)}; correct the name")
        return self._count if topic in PARTITIONED else 1

    def append(self, records: Sequence[Append]) -> list[tuple[int, int]]:
        """Write all or none; returns (partition, offset) of each once they are on disk."""
        if not records:
            return []
        call = _Call([self._place(record) for record in records])
        with self._waiting_lock:
            self._waiting.append(call)
        with self._commit_lock:
            # Whoever holds the lock before us may have committed our call with its own.
            while call.places is None and call.error is None:
                self._commit(self._take_waiting())
        if call.places is None:
            raise call.error or OSError("the log gave no answer to an append")
        return call.places

    def start(self, at: TopicPartition) -> int:
        """The smallest offset that can still be read."""
        self._check(at)
        with self._lookup_lock:
            return _start(self._lookup, at)

    def end(self, at: TopicPartition) -> int:
        """The offset that the next record will get."""
        self._check(at)
        with self._lookup_lock:
            return _end(self._lookup, at)

    def reader(self, positions: Mapping[TopicPartition, int]) -> SqliteReader:
        """A reader of these partitions. Raises LogTruncated where a position lies outside of the log."""
        for at, position in positions.items():
            first, end = self.start(at), self.end(at)
            if not first <= position <= end:
                raise _truncated(at, position, first, end)
        return SqliteReader(self, self._connect(), dict(positions))

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
            before = min(before, _end(self._writer, at))
            self._writer.execute(f"DELETE FROM {_table(at)} WHERE offset < ?", (before,))
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
                    f"CREATE TABLE {_table(TopicPartition(topic, partition))} "
                    "(offset INTEGER PRIMARY KEY, key BLOB, value BLOB, ts INTEGER NOT NULL)"
                )
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("partitions", str(partitions)), ("log_id", uuid.uuid4().hex)]
        )

    def _place(self, record: Append) -> tuple[TopicPartition, bytes, bytes | None]:
        count = self.partitions(record.topic)
        if record.value is not None and len(record.value) > MAX_RECORD_BYTES:
            raise AdloopError(
                f"record: got {len(record.value)} bytes for topic {record.topic}, expected at most {MAX_RECORD_BYTES}; "
                "make the record smaller"
            )
        key = record.key.encode()
        return TopicPartition(record.topic, partition_of(key, count)), key, record.value

    def _check(self, at: TopicPartition) -> None:
        if not 0 <= at.partition < self.partitions(at.topic):
            raise AdloopError(
                f"partition: got {at.partition} of {at.topic}, expected 0 to {self.partitions(at.topic) - 1}; "
                "read only partitions that exist"
            )

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
                for call in calls:
                    mine: list[tuple[int, int]] = []
                    for at, key, value in call.rows:
                        # The end is read inside the transaction: another process may have appended since our last one.
                        offset = ends[at] if at in ends else _end(self._writer, at)
                        ends[at] = offset + 1
                        rows.setdefault(at, []).append((offset, key, value, ts))
                        mine.append((at.partition, offset))
                    places.append(mine)
                for at, new in rows.items():
                    self._writer.executemany(f"INSERT INTO {_table(at)} VALUES (?, ?, ?, ?)", new)
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


class SqliteReader:
    """Reads partitions in offset order on a connection of its own. Not thread-safe."""

    def __init__(self, log: SqliteLog, db: sqlite3.Connection, positions: dict[TopicPartition, int]) -> None:
        self._log = log
        self._db = db
        self._positions = positions
        self._order = list(positions)

    def poll(self, max_records: int = 1000, timeout_s: float = 0.0) -> list[Record]:
        """The next records, a fair share of each partition, waiting up to `timeout_s` for the first."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._log.appends()
            version = self._version()
            if records := self._fetch(max_records):
                return records
            # Appends of this process wake us at once; those of others show in data_version at the next look.
            while (left := deadline - time.monotonic()) > 0:
                self._log.wait_for_append(seen, min(left, POLL_INTERVAL_S))
                if self._log.appends() != seen or self._version() != version:
                    break
            else:
                return []

    def position(self, at: TopicPartition) -> int:
        """The offset that the next poll of this partition starts from."""
        return self._positions[at]

    def at_end(self) -> bool:
        """True where, at this moment, every partition has been read to its end."""
        return all(position >= _end(self._db, at) for at, position in self._positions.items())

    def close(self) -> None:
        self._db.close()

    def _version(self) -> int:
        """Changes whenever another connection, in this process or another, has committed to the file."""
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _fetch(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        share = max(1, max_records // max(1, len(self._order)))
        open_ends = self._order
        budget = POLL_BYTES
        # Fair shares first; what a quiet partition leaves over goes to those that have more.
        while open_ends and len(records) < max_records and budget > 0:
            more: list[TopicPartition] = []
            for at in open_ends:
                limit = min(share, max_records - len(records))
                if limit <= 0 or budget <= 0:
                    break
                new = self._range(at, limit, budget)
                budget -= sum(len(record.value or b"") for record in new)
                records.extend(new)
                if len(new) == limit:
                    more.append(at)
            open_ends = more
        # The next poll starts with another partition, so that none starves where max_records is below their number.
        self._order = self._order[1:] + self._order[:1]
        return records

    def _range(self, at: TopicPartition, limit: int, budget: int) -> list[Record]:
        """The next records of a partition: at most `limit`, and no more once they have `budget` bytes."""
        position = self._positions[at]
        topic, partition = at
        records: list[Record] = []
        rows = self._db.execute(
            f"SELECT offset, key, value, ts FROM {_table(at)} WHERE offset >= ? ORDER BY offset LIMIT ?",
            (position, limit),
        )
        for offset, key, value, ts in rows:
            records.append(Record(topic, partition, offset, key, value, ts))
            budget -= len(value or b"")
            if budget <= 0:
                break
        rows.close()
        if (records and records[0].offset != position) or (not records and _start(self._db, at) > position):
            raise _truncated(at, position, _start(self._db, at), _end(self._db, at))
        if records:
            self._positions[at] = records[-1].offset + 1
        return records


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


def _table(at: TopicPartition) -> str:
    return f"{at.topic}_{at.partition}"


def _start(db: sqlite3.Connection, at: TopicPartition) -> int:
    row = db.execute("SELECT first FROM starts WHERE topic = ? AND partition = ?", at).fetchone()
    return int(row[0]) if row else 0


def _end(db: sqlite3.Connection, at: TopicPartition) -> int:
    last = db.execute(f"SELECT max(offset) FROM {_table(at)}").fetchone()[0]
    return _start(db, at) if last is None else int(last) + 1


def _truncated(at: TopicPartition, position: int, first: int, end: int) -> LogTruncated:
    return LogTruncated(
        f"{at.topic}[{at.partition}]: position {position} is not in the log, which holds {first} to {end}; restore the "
        "log, or delete the state that was derived from it and rebuild"
    )
