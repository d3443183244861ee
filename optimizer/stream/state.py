"""The joiner's state on disk: one SQLite file a partition, that moves from one consistent point of the log to the next.

What a step changes (open decisions, waiting events, positions in the log, counters and the outbox of records still to
be published) is committed in one transaction, so that a crash at any moment repeats or loses nothing. Times: epoch ms.

Rows of decisions are numbered in the order of arrival (`seq`), so that inserts go to the end of the B-tree. Their ids
are found by (generation, hash), a generation being 65,536 rows: random ids dirty the newest generation's few pages, not
the whole index, and a filter in memory says which generations to ask. So a step costs the same whatever is open.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from optimizer.errors import ConfigError
from optimizer.maths.attribution import Attributed
from optimizer.stream.admission import Arrived
from optimizer.stream.id_filter import GENERATION_BITS, IdFilter
from optimizer.stream.log import Append
from optimizer.types import EventType

FORMAT: Final = "2"
NEVER: Final = 2**62
NONE: Final = -1
CACHE_KIB: Final = 16 * 1024  # of SQLite's page cache: the newest generations, whatever is open
CHECKPOINT_PAGES: Final = 4 * 1024  # of the write-ahead log (32 MiB): a page written many times is copied once
_DISK: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_WAIT_BITS: Final = 22
_FEW_WAITS: Final = 1 << 19  # so many waiting events later, the bits of those that wait no more are cleared

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE decisions (seq INTEGER PRIMARY KEY, due INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX decisions_due ON decisions (due);
CREATE TABLE ids (generation INTEGER, hash INTEGER, seq INTEGER, PRIMARY KEY (generation, hash, seq)) WITHOUT ROWID;
CREATE TABLE waiting (offset INTEGER PRIMARY KEY, hash INTEGER NOT NULL, due INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX waiting_for ON waiting (hash);
CREATE INDEX waiting_due ON waiting (due);
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
CREATE TABLE published (decision_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, closed INTEGER NOT NULL,
    content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE refused (topic TEXT, offset INTEGER, reason TEXT NOT NULL, PRIMARY KEY (topic, offset)) WITHOUT ROWID;
"""


def refused(folder: Path, error: sqlite3.Error) -> OSError:
    """The error of a state that the disk does not take for now: a full disk, as a rule."""
    return OSError(f"state {folder}: can't be written ({error}); nothing is lost: free some space, and work goes on")


class Held(Struct, frozen=True, array_like=True, gc=False):
    """An event that was let in, as attribution needs it. `defaulted`: its sender gave no `ts`."""

    event_id: str
    type: EventType
    ts: int
    value: float | None
    retracts: str | None
    defaulted: bool


class DecisionBody(Struct, frozen=True, array_like=True, gc=False):
    """A decision that can still change: its record as read, its last revision (0: none) and the events let in, in the
    order in which they were."""

    record: bytes
    revision: int
    closed: bool
    events: list[Held]


class Waiting(Struct, frozen=True, array_like=True, gc=False):
    """An event whose decision has not been read; `payload` is its first 64 KiB, in case it is quarantined after all."""

    offset: int
    arrived: Arrived
    size: int
    payload: bytes


class Published(Struct, frozen=True, array_like=True, gc=False):
    """What stands last in the log about an outcome; `content` is None where nothing has been published."""

    revision: int
    closed: bool
    content: Attributed | None


class Progress(Struct, frozen=True, array_like=True):
    """How far this state has come: the next offset of each topic (of outcomes and quarantine: the first that it did
    not write itself or has not looked at), the largest decision `ts` and event `received_ts` let in, event time."""

    decisions: int
    events: int
    outcomes: int
    quarantine: int
    largest_decision: int = NONE
    largest_event: int = NONE
    event_time: int = NONE


class Row(NamedTuple):
    """A decision to be written: `hash` and `due` index it, `body` is a DecisionBody in msgpack."""

    seq: int
    hash: int
    due: int
    body: bytes


class Saved(Struct):
    """What a step adds to its transaction. `created` and `changed` are decisions, `gone` those let go (hash, seq),
    `arrived` the offsets of events that wait no more, `noted` what had been published about decisions that a catch-up
    changes, `settled` those it is done with; in `meta` None deletes."""

    created: list[Row] = msgspec.field(default_factory=list)
    changed: list[Row] = msgspec.field(default_factory=list)
    gone: list[tuple[int, int]] = msgspec.field(default_factory=list)
    waiting: list[Waiting] = msgspec.field(default_factory=list)
    arrived: list[int] = msgspec.field(default_factory=list)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    outbox: list[Append] = msgspec.field(default_factory=list)
    noted: list[tuple[str, Published]] = msgspec.field(default_factory=list)
    settled: list[str] = msgspec.field(default_factory=list)
    meta: dict[str, bytes | None] = msgspec.field(default_factory=dict)


_encode = msgspec.msgpack.encode
_body: Final = msgspec.msgpack.Decoder(DecisionBody)
_waiting: Final = msgspec.msgpack.Decoder(Waiting)
_content: Final = msgspec.msgpack.Decoder(Attributed | None)
_outbox: Final = msgspec.msgpack.Decoder(list[tuple[str, str, bytes | None]])
_progress: Final = msgspec.msgpack.Decoder(Progress)


class StateStore:
    """The state of one partition, in `folder`. `identity` says whose it is (the log's id, the partition and their
    number). `durable` False leaves flushing to the operating system: for simulations whose log does so too.

    Raises ConfigError where the state belongs to another log or partition count, or can't be used; OSError where the
    disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], durable: bool = True) -> None:
        self.folder = folder
        self._filter = IdFilter()
        self._waits = bytearray()
        self._waits_added = 0
        self._waits_limit = _FEW_WAITS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / "joiner.db", isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigError(f"state {folder}: the folder can't be used ({error}); choose another --state") from error
        try:
            self._db.execute("PRAGMA page_size=8192")
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a step is on the disk before anything of it is published.
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            self._db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            self._open({"format": FORMAT, **identity})
        except sqlite3.DatabaseError as error:
            self._db.close()
            if error.sqlite_errorcode & 0xFF in _DISK:
                raise refused(folder, error) from error
            raise ConfigError(f"state {folder}: joiner.db is unusable ({error}); delete it to rebuild") from error
        except ConfigError:
            self._db.close()
            raise

    def _open(self, mine: Mapping[str, str]) -> None:
        """Create the tables, or check whose they are."""
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", ((k, v.encode()) for k, v in mine.items()))
            self._db.execute("COMMIT")
            return
        for key, expected in mine.items():
            got = (self.meta(key) or b"none").decode()
            if got != expected:
                raise ConfigError(
                    f"state {self.folder}: its {key} is {got}, expected {expected}; it belongs to another log: give "
                    "another --state, or delete this one to rebuild it from the log"
                )

    def load(self) -> None:
        """Fill the filters in memory from what was last committed."""
        self._filter = IdFilter()
        rows = self._db.execute("SELECT hash, seq FROM ids")
        while some := rows.fetchmany(100_000):
            self._filter.add(some)
        self._load_waits()

    def _load_waits(self) -> None:
        """One bit for each hash that is waited for, among those of hashes that were."""
        self._waits = bytearray(1 << _WAIT_BITS >> 3)
        self._waits_added = 0
        for (hash_,) in self._db.execute("SELECT hash FROM waiting"):
            self._wait(hash_)
        self._waits_limit = max(_FEW_WAITS, 2 * self._waits_added)

    # -- reading ------------------------------------------------------------------------------------------------------

    def meta(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def progress(self) -> Progress | None:
        """Where the state stands; None before anything was committed."""
        body = self.meta("progress")
        return None if body is None else _progress.decode(body)

    def counts(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, n FROM counts").fetchall())

    def next_seq(self) -> int:
        """The number of the next decision: above all that are held."""
        return int(self._db.execute("SELECT ifnull(max(seq), -1) + 1 FROM decisions").fetchone()[0])

    def decisions(self, hashes: Sequence[int]) -> Iterator[tuple[int, int, DecisionBody]]:
        """(seq, hash, body) of every decision held whose id has one of these hashes, and now and then another's."""
        query = "SELECT seq, body FROM decisions WHERE seq IN (SELECT seq FROM ids WHERE generation = ? AND hash = ?)"
        for index, generation in self._filter.find(hashes):
            for seq, body in self._db.execute(query, (generation, hashes[index])).fetchall():
                yield seq, hashes[index], _body.decode(body)

    def decisions_due(self, before: int, limit: int) -> list[tuple[int, DecisionBody]]:
        """Decisions whose next timer lies before `before`, earliest first."""
        query = "SELECT seq, body FROM decisions WHERE due < ? ORDER BY due, seq LIMIT ?"
        return [(seq, _body.decode(body)) for seq, body in self._db.execute(query, (before, limit))]

    def may_be_waited_for(self, hash_: int) -> bool:
        """False where no event waits for a decision with this hash of its id."""
        place = hash_ & ((1 << _WAIT_BITS) - 1)
        return bool(self._waits[place >> 3] >> (place & 7) & 1)

    def waiting_for(self, decision_id: str) -> Iterator[Waiting]:
        """The events that wait for a decision, in log order; read as they are asked for."""
        query = "SELECT body FROM waiting WHERE hash = ? ORDER BY offset"
        for (body,) in self._db.execute(query, (hash_of(decision_id.encode()),)):
            event = _waiting.decode(body)
            if event.arrived.event.decision_id == decision_id:
                yield event

    def waiting_due(self, before: int, limit: int) -> list[Waiting]:
        """Waiting events whose token's expiry lies before `before`, earliest first."""
        query = "SELECT body FROM waiting WHERE due < ? ORDER BY due, offset LIMIT ?"
        return [_waiting.decode(body) for (body,) in self._db.execute(query, (before, limit))]

    def waiting_count(self) -> int:
        """How many events wait for their decision."""
        return int(self._db.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def outbox(self, after: int = 0) -> list[Append]:
        """Records that may not have been published yet, oldest first: what one step made, or a little more; only those
        of rows behind `after`."""
        rows = self._db.execute("SELECT body FROM outbox WHERE seq > ? ORDER BY seq", (after,)).fetchall()
        return [Append(*record) for (body,) in rows for record in _outbox.decode(body)]

    def published(self, decision_id: str) -> Published | None:
        """What stands last in the log about a decision that a catch-up is not done with."""
        query = "SELECT revision, closed, content FROM published WHERE decision_id = ?"
        row = self._db.execute(query, (decision_id,)).fetchone()
        return None if row is None else Published(row[0], bool(row[1]), _content.decode(row[2]))

    def published_ids(self, limit: int) -> list[str]:
        """Some decisions that a catch-up is not done with, smallest ids first."""
        query = "SELECT decision_id FROM published ORDER BY decision_id LIMIT ?"
        return [row[0] for row in self._db.execute(query, (limit,))]

    def refused(self, topic: str, offset: int) -> str | None:
        """The reason for which an earlier joiner quarantined a record."""
        query = "SELECT reason FROM refused WHERE topic = ? AND offset = ?"
        row = self._db.execute(query, (topic, offset)).fetchone()
        return None if row is None else str(row[0])

    def has_refused(self) -> bool:
        """Whether anything is known of what earlier joiners refused."""
        return self._db.execute("SELECT 1 FROM refused LIMIT 1").fetchone() is not None

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the one transaction of a step; `write` may then be called several times, and reads see what it wrote."""
        self._db.execute("BEGIN IMMEDIATE")

    def write(self, saved: Saved) -> None:
        """Put `saved` into the open transaction."""
        many = self._db.executemany
        if saved.gone:
            ids = [(seq >> GENERATION_BITS, hash_, seq) for hash_, seq in saved.gone]
            many("DELETE FROM decisions WHERE seq = ?", ((seq,) for _, seq in saved.gone))
            many("DELETE FROM ids WHERE generation = ? AND hash = ? AND seq = ?", ids)
            for _, seq in saved.gone:
                self._filter.remove(seq)
        if saved.created:
            many("INSERT INTO decisions VALUES (?, ?, ?)", ((row.seq, row.due, row.body) for row in saved.created))
            ids = sorted((row.seq >> GENERATION_BITS, row.hash, row.seq) for row in saved.created)
            many("INSERT INTO ids VALUES (?, ?, ?)", ids)
            self._filter.add([(row.hash, row.seq) for row in saved.created])
        if saved.changed:
            rows = ((row.due, row.body, row.seq) for row in saved.changed)
            many("UPDATE decisions SET due = ?, body = ? WHERE seq = ?", rows)
        if saved.arrived:
            many("DELETE FROM waiting WHERE offset = ?", ((offset,) for offset in saved.arrived))
        if saved.waiting:
            many("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?)", map(self._waiting_row, saved.waiting))
        many("INSERT OR REPLACE INTO counts VALUES (?, ?)", saved.counts.items())
        if saved.outbox:
            self._db.execute("INSERT INTO outbox (body) VALUES (?)", (_encode(saved.outbox),))
        if saved.noted:
            many("INSERT OR IGNORE INTO published VALUES (?, ?, ?, ?)", map(_published_row, saved.noted))
        if saved.settled:
            many("DELETE FROM published WHERE decision_id = ?", ((i,) for i in saved.settled))
        for key, value in saved.meta.items():
            self.put(key, value)

    def put(self, key: str, value: bytes | None) -> None:
        """Set a meta value in the open transaction; None deletes it."""
        if value is None:
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def advance(self, progress: Progress) -> None:
        """Note, in the open transaction, where the state stands with it."""
        self.put("progress", _encode(progress))

    def commit(self) -> None:
        """Make the open transaction durable, if there is one."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        if self._waits_added > self._waits_limit:
            self._load_waits()

    def rollback(self) -> None:
        """Give the open transaction up, if there is one. If it had been written to, `load` must follow."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def last_outbox(self) -> int:
        """The `seq` of the newest outbox row so far."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return 0 if row is None else int(row[0])

    def drop_outbox(self, to: int) -> None:
        """Forget the outbox up to `to`, which has been published."""
        self._db.execute("DELETE FROM outbox WHERE seq <= ?", (to,))

    def replace_outbox(self, records: Sequence[Append]) -> None:
        """Put these records in place of all that the outbox holds, in the open transaction."""
        self._db.execute("DELETE FROM outbox")
        if records:
            self._db.execute("INSERT INTO outbox (body) VALUES (?)", (_encode(records),))

    def remember(self, published: Iterable[tuple[str, Published]], refused: Iterable[tuple[str, int, str]]) -> None:
        """Note, in the open transaction, what other joiners published (the largest revision stands) and refused."""
        self._db.executemany(
            "INSERT INTO published VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET revision = excluded.revision, "
            "closed = excluded.closed, content = excluded.content WHERE excluded.revision >= published.revision",
            map(_published_row, published),
        )
        self._db.executemany("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", refused)

    def close(self) -> None:
        self._db.close()

    def _waiting_row(self, event: Waiting) -> tuple[int, int, int, bytes]:
        hash_ = hash_of(event.arrived.event.decision_id.encode())
        self._wait(hash_)
        return event.offset, hash_, min(event.arrived.expires_ms(), NEVER), _encode(event)

    def _wait(self, hash_: int) -> None:
        place = hash_ & ((1 << _WAIT_BITS) - 1)
        self._waits[place >> 3] |= 1 << (place & 7)
        self._waits_added += 1


def hash_of(key: bytes) -> int:
    """The 32-bit hash under which a decision is indexed: stable, and cheap. Equal hashes are told apart by the id."""
    return zlib.crc32(key)


def _published_row(published: tuple[str, Published]) -> tuple[str, int, bool, bytes]:
    decision_id, last = published
    return decision_id, last.revision, last.closed, _encode(last.content)
