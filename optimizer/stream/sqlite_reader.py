"""Reading the embedded log: range scans over its partitions, on a connection of their own."""

from __future__ import annotations

import sqlite3
import time
from typing import Final, Protocol

from optimizer.stream.log import Record, TopicPartition, truncated

POLL_INTERVAL_S: Final = 0.02  # how soon a reader sees what another process appended
POLL_BYTES: Final = 32 * 1024 * 1024  # a poll stops at this much, so that large records can't fill the memory


class Appends(Protocol):
    """What a reader waits on: the log it reads from."""

    def appends(self) -> int: ...
    def wait_for_append(self, seen: int, timeout_s: float) -> None: ...


class SqliteReader:
    """Reads partitions in offset order on a connection of its own. Not thread-safe."""

    def __init__(self, log: Appends, db: sqlite3.Connection, positions: dict[TopicPartition, int]) -> None:
        self._log = log
        self._db = db
        self._positions = positions
        self._order = list(positions)
        self._empty_at: int | None = None  # the file's version at which there was nothing to read

    def poll(self, max_records: int = 1000, timeout_s: float = 0.0) -> list[Record]:
        """The next records, a fair share of each partition, waiting up to `timeout_s` for the first."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._log.appends()
            version = self._version()
            if version != self._empty_at:
                # Until the file changes an empty look need not be repeated: a role that idles asks often.
                if records := self._fetch(max_records):
                    return records
                self._empty_at = version
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

    def end(self, at: TopicPartition) -> int:
        """The offset that the next record will get."""
        return end_of(self._db, at)

    def at_end(self) -> bool:
        """True where, at this moment, every partition has been read to its end."""
        return all(position >= end_of(self._db, at) for at, position in self._positions.items())

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
            f"SELECT offset, key, value, ts FROM {table(at)} WHERE offset >= ? ORDER BY offset LIMIT ?",
            (position, limit),
        )
        for offset, key, value, ts in rows:
            records.append(Record(topic, partition, offset, key, value, ts))
            budget -= len(value or b"")
            if budget <= 0:
                break
        rows.close()
        if (records and records[0].offset != position) or (not records and start_of(self._db, at) > position):
            raise truncated(at, position, start_of(self._db, at), end_of(self._db, at))
        if records:
            self._positions[at] = records[-1].offset + 1
        return records


def table(at: TopicPartition) -> str:
    """The table of a partition; its rowid is the offset."""
    return f"{at.topic}_{at.partition}"


def start_of(db: sqlite3.Connection, at: TopicPartition) -> int:
    """The smallest offset that can still be read."""
    row = db.execute("SELECT first FROM starts WHERE topic = ? AND partition = ?", at).fetchone()
    return int(row[0]) if row else 0


def end_of(db: sqlite3.Connection, at: TopicPartition) -> int:
    """The offset that the next record will get."""
    last = db.execute(f"SELECT max(offset) FROM {table(at)}").fetchone()[0]
    return start_of(db, at) if last is None else int(last) + 1
