"""The joiner's state on disk: one SQLite file that moves from one consistent point of the log to the next.

What a step changes (open decisions, waiting events, positions in the log, counters and the outbox of records still to
be published) is committed in one transaction, so that a crash at any moment repeats or loses nothing. Times: epoch ms.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

from optimizer.errors import ConfigError
from optimizer.maths.attribution import Attributed
from optimizer.stream.admission import Arrived
from optimizer.stream.log import Append, TopicPartition
from optimizer.types import EventType

FORMAT: Final = "1"
CHUNK: Final = 500  # ids in one query, below SQLite's limit on parameters
NEVER: Final = 2**62

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (topic TEXT, partition INTEGER, next INTEGER NOT NULL, largest INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE event_times (partition INTEGER PRIMARY KEY, event_time INTEGER NOT NULL);
CREATE TABLE counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE decisions (decision_id TEXT PRIMARY KEY, partition INTEGER NOT NULL, due INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX decisions_due ON decisions (partition, due);
CREATE TABLE waiting (partition INTEGER, offset INTEGER, decision_id TEXT NOT NULL, due INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (partition, offset));
CREATE INDEX waiting_for ON waiting (decision_id);
CREATE INDEX waiting_due ON waiting (partition, due);
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL);
CREATE TABLE published (decision_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, closed INTEGER NOT NULL,
    content BLOB NOT NULL);
CREATE TABLE refused (topic TEXT, partition INTEGER, offset INTEGER, reason TEXT NOT NULL,
    PRIMARY KEY (topic, partition, offset)) WITHOUT ROWID;
"""


class Held(Struct, frozen=True, array_like=True):
    """An event that was let in, as attribution needs it. `defaulted`: its sender gave no `ts`."""

    event_id: str
    type: EventType
    ts: int
    value: float | None
    retracts: str | None
    defaulted: bool


class DecisionBody(Struct, frozen=True, array_like=True):
    """A decision that can still change: its record as read, its last revision (0: none) and the events let in, in the
    order in which they were."""

    record: bytes
    revision: int
    closed: bool
    events: list[Held]


class Waiting(Struct, frozen=True, array_like=True):
    """An event whose decision has not been read; `payload` is its first 64 KiB, in case it is quarantined after all."""

    partition: int
    offset: int
    arrived: Arrived
    size: int
    payload: bytes


class Published(Struct, frozen=True):
    """What stands last in the log about an outcome; read when lost state is rebuilt."""

    revision: int
    closed: bool
    content: Attributed


class Saved(Struct):
    """What a step adds to its transaction. `decisions` are rows made by `decision_row`, `gone` the ids let go,
    `arrived` the places of events that wait no more; in `meta` None deletes."""

    positions: dict[TopicPartition, tuple[int, int]] = msgspec.field(default_factory=dict)
    event_times: dict[int, int] = msgspec.field(default_factory=dict)
    decisions: list[tuple[str, int, int, bytes]] = msgspec.field(default_factory=list)
    gone: list[str] = msgspec.field(default_factory=list)
    waiting: list[Waiting] = msgspec.field(default_factory=list)
    arrived: list[tuple[int, int]] = msgspec.field(default_factory=list)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    outbox: list[Append] = msgspec.field(default_factory=list)
    meta: dict[str, str | None] = msgspec.field(default_factory=dict)


_encode = msgspec.msgpack.encode
_decision: Final = msgspec.msgpack.Decoder(DecisionBody)
_waiting: Final = msgspec.msgpack.Decoder(Waiting)
_content: Final = msgspec.msgpack.Decoder(Attributed)


class StateStore:
    """The state of one joiner, locked against a second one.

    Raises ConfigError where the folder is in use, or its state belongs to another log or partition count. `durable`
    False leaves flushing to the operating system: for simulations whose log does so too.
    """

    def __init__(self, folder: Path, log_id: str, partitions: int, durable: bool = True) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = (folder / "lock").open("ab")
        except OSError as error:
            raise ConfigError(f"state {folder}: the folder can't be used ({error}); choose another --state") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(
                f"state {folder}: another joiner is using it; stop that one, or give this one its own --state"
            ) from None
        try:
            self._db = sqlite3.connect(folder / "joiner.db", isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: what has been published must never be ahead of a state that a power cut set back.
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            self._db.execute("PRAGMA cache_size=-65536")
            self._open(log_id, partitions)
        except sqlite3.DatabaseError as error:
            self._lock.close()
            raise ConfigError(f"state {folder}: joiner.db is unusable ({error}); delete it to rebuild") from error
        except ConfigError:
            self._db.close()
            self._lock.close()
            raise

    def _open(self, log_id: str, partitions: int) -> None:
        """Create the tables, or check whose they are."""
        mine = {"format": FORMAT, "log_id": log_id, "partitions": str(partitions)}
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", mine.items())
            self._db.execute("COMMIT")
            return
        for key, expected in mine.items():
            got = self.meta(key)
            if got != expected:
                raise ConfigError(
                    f"state {self.folder}: its {key} is {got}, expected {expected}; it belongs to another log: give "
                    "another --state, or delete this one to rebuild it from the log"
                )

    # -- reading ------------------------------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def positions(self) -> dict[TopicPartition, tuple[int, int]]:
        """The next offset of each partition, and the largest ts (decisions) or received_ts (events) let in, or -1."""
        rows = self._db.execute("SELECT topic, partition, next, largest FROM positions").fetchall()
        return {TopicPartition(topic, partition): (start, largest) for topic, partition, start, largest in rows}

    def event_times(self) -> dict[int, int]:
        return dict(self._db.execute("SELECT partition, event_time FROM event_times").fetchall())

    def counts(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, n FROM counts").fetchall())

    def decisions(self, ids: Sequence[str]) -> Iterator[tuple[str, int, DecisionBody]]:
        """Those of `ids` that are held, with their partition."""
        for some in _chunks(ids):
            query = f"SELECT decision_id, partition, body FROM decisions WHERE decision_id IN ({_marks(some)})"
            for decision_id, partition, body in self._db.execute(query, some):
                yield decision_id, partition, _decision.decode(body)

    def decisions_due(self, partition: int, before: int, limit: int) -> list[str]:
        """Ids of decisions whose next timer lies before `before`, earliest first."""
        query = "SELECT decision_id FROM decisions WHERE partition = ? AND due < ? ORDER BY due, decision_id LIMIT ?"
        return [row[0] for row in self._db.execute(query, (partition, before, limit))]

    def decisions_after(self, decision_id: str, limit: int) -> list[str]:
        """The next ids in their own order: a pass over all of them, in bounded pieces."""
        query = "SELECT decision_id FROM decisions WHERE decision_id > ? ORDER BY decision_id LIMIT ?"
        return [row[0] for row in self._db.execute(query, (decision_id, limit))]

    def open_decisions(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM decisions").fetchone()[0])

    def waited_for(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that events wait for."""
        found: set[str] = set()
        for some in _chunks(ids):
            query = f"SELECT DISTINCT decision_id FROM waiting WHERE decision_id IN ({_marks(some)})"
            found.update(row[0] for row in self._db.execute(query, some))
        return found

    def waiting_for(self, decision_id: str) -> Iterator[Waiting]:
        """The events that wait for a decision, in log order; read as they are asked for."""
        query = "SELECT body FROM waiting WHERE decision_id = ? ORDER BY offset"
        for (body,) in self._db.execute(query, (decision_id,)):
            yield _waiting.decode(body)

    def waiting_due(self, partition: int, before: int, limit: int) -> list[Waiting]:
        """Waiting events whose token's expiry lies before `before`, earliest first."""
        query = "SELECT body FROM waiting WHERE partition = ? AND due < ? ORDER BY due, offset LIMIT ?"
        return [_waiting.decode(body) for (body,) in self._db.execute(query, (partition, before, limit))]

    def has_waiting(self) -> bool:
        return self._db.execute("SELECT 1 FROM waiting LIMIT 1").fetchone() is not None

    def outbox(self) -> list[Append]:
        """Records that may not have been published yet, oldest first: what one step made, or a little more."""
        return [Append(*row) for row in self._db.execute("SELECT topic, key, value FROM outbox ORDER BY seq")]

    def published(self, decision_id: str) -> Published | None:
        """What an earlier joiner, whose state was lost, published last about a decision."""
        query = "SELECT revision, closed, content FROM published WHERE decision_id = ?"
        row = self._db.execute(query, (decision_id,)).fetchone()
        return None if row is None else Published(row[0], bool(row[1]), _content.decode(row[2]))

    def refused(self, at: TopicPartition, offset: int) -> str | None:
        """The reason for which an earlier joiner, whose state was lost, quarantined a record."""
        query = "SELECT reason FROM refused WHERE topic = ? AND partition = ? AND offset = ?"
        row = self._db.execute(query, (*at, offset)).fetchone()
        return None if row is None else str(row[0])

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the one transaction of a step; `write` may then be called several times, and reads see what it wrote."""
        self._db.execute("BEGIN IMMEDIATE")

    def write(self, saved: Saved) -> None:
        """Put `saved` into the open transaction."""
        db = self._db
        db.executemany("DELETE FROM decisions WHERE decision_id = ?", ((i,) for i in saved.gone))
        db.executemany("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?)", saved.decisions)
        db.executemany("DELETE FROM waiting WHERE partition = ? AND offset = ?", saved.arrived)
        db.executemany("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?)", map(_waiting_row, saved.waiting))
        db.executemany(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)",
            ((*at, start, largest) for at, (start, largest) in saved.positions.items()),
        )
        db.executemany("INSERT OR REPLACE INTO event_times VALUES (?, ?)", saved.event_times.items())
        db.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?)", saved.counts.items())
        db.executemany("INSERT INTO outbox (topic, key, value) VALUES (?, ?, ?)", saved.outbox)
        self._save_meta(saved.meta)

    def commit(self) -> None:
        """Make the open transaction durable."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Give the open transaction up, if there is one."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def last_outbox(self) -> int:
        """The `seq` of the newest outbox record so far."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return 0 if row is None else int(row[0])

    def drop_outbox(self, to: int) -> None:
        """Forget the outbox up to `to`, which has been published."""
        self._db.execute("DELETE FROM outbox WHERE seq <= ?", (to,))

    def remember(
        self,
        published: Iterable[tuple[str, Published]],
        refused: Iterable[tuple[TopicPartition, int, str]],
        meta: Mapping[str, str | None],
    ) -> None:
        """Note what an earlier joiner published (the largest revision stands) and refused: the start of a rebuild."""
        db = self._db
        self.begin()
        try:
            db.executemany(
                "INSERT INTO published VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET revision = excluded.revision, "
                "closed = excluded.closed, content = excluded.content WHERE excluded.revision >= published.revision",
                ((i, last.revision, last.closed, _encode(last.content)) for i, last in published),
            )
            rows = ((*at, offset, reason) for at, offset, reason in refused)
            db.executemany("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", rows)
            self._save_meta(meta)
            self.commit()
        finally:
            self.rollback()

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    def _save_meta(self, meta: Mapping[str, str | None]) -> None:
        for key, value in meta.items():
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _waiting_row(event: Waiting) -> tuple[int, int, str, int, bytes]:
    due = min(event.arrived.expires_ms(), NEVER)
    return event.partition, event.offset, event.arrived.event.decision_id, due, _encode(event)


def decision_row(decision_id: str, partition: int, due: int, body: DecisionBody) -> tuple[str, int, int, bytes]:
    """A row for `Saved.decisions`."""
    return decision_id, partition, min(due, NEVER), _encode(body)


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _marks(ids: Sequence[str]) -> str:
    return ",".join("?" * len(ids))
