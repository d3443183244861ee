"""The EventLog: the small interface that the embedded SQLite log and Kafka both implement.

Topics are append-only, split into partitions; offsets in a partition rise by at least one. What `append` returned is
durable. There is one contract suite for every implementation: tests/contracts/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from optimizer.errors import AdloopError, Fenced, LogTruncated

TOPICS = ("campaigns", "candidates", "decisions", "events", "outcomes", "policies", "quarantine")
PARTITIONED = ("decisions", "events", "outcomes")  # into equally many partitions; the other topics have one
MAX_RECORD_BYTES = 2 * 1024 * 1024


class Append(NamedTuple):
    """A record to be written; `value` None is a tombstone."""

    topic: str
    key: str
    value: bytes | None


class TopicPartition(NamedTuple):
    """A partition of a topic, by the topic's name without any prefix."""

    topic: str
    partition: int


class Record(NamedTuple):
    """A record as read; `ts` is the log's own timestamp (epoch ms) of when it was appended."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    ts: int


class LogReader(Protocol):
    """Reads a fixed set of partitions, each in offset order, from given positions. Not thread-safe."""

    def poll(self, max_records: int = 1000, timeout_s: float = 0.0) -> list[Record]:
        """The next records, waiting up to `timeout_s` for the first. Raises LogTruncated where a position is gone."""
        ...

    def position(self, at: TopicPartition) -> int:
        """The offset that the next poll of this partition starts from."""
        ...

    def end(self, at: TopicPartition) -> int:
        """The partition's end as the last poll saw it or newer: what was appended since may be missing, so it costs
        no round trip."""
        ...

    def at_end(self) -> bool:
        """True where, at this moment, every partition has been read to its end."""
        ...

    def close(self) -> None: ...


class Publisher(Protocol):
    """The right to publish the outcomes and the quarantine of one partition of decisions and events. One owner at a
    time: whoever takes it ends the right of all who had it before, also of one that is frozen. Not thread-safe.

    What is published is published in two steps, so that the log can receive it while its owner makes something else
    durable: all of what was begun can be read after `commit`, and none of it before. Each raises Fenced, with nothing
    written, where another has taken the right."""

    def begin(self, records: Sequence[Append]) -> None:
        """Hand records over, without waiting for the log. Raises AdloopError for one that is refused: then nothing has
        begun."""
        ...

    def flush(self) -> None:
        """Wait until the log has received them. May be left out; the thread that calls it does the client's work
        meanwhile, so that `commit`, in another thread, has nothing left to do but wait."""
        ...

    def commit(self) -> dict[str, int]:
        """Wait until all of it is durable; it can be read now, or in a moment. Returns the offset behind the last
        record of each topic."""
        ...

    def append(self, records: Sequence[Append]) -> dict[str, int]:
        """`begin` and `commit`."""
        ...

    @property
    def doubtful(self) -> bool:
        """Whether the log did not answer for a while since this right was taken. Its own connection may be dead as
        well, and would show that only by its timeouts: a new right begins with a new one."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """Durable topics. Thread-safe, but for the readers it hands out."""

    def log_id(self) -> str:
        """Names this log for good: state that was derived from it belongs to no other."""
        ...

    def topic_name(self, topic: str) -> str:
        """The topic's full name, as the log itself calls it (Kafka: prefix + name)."""
        ...

    def partitions(self, topic: str) -> int: ...

    def append(self, records: Sequence[Append]) -> list[tuple[int, int]]:
        """Write all or none; returns (partition, offset) of each once they are durable. Raises AdloopError for a record
        over 2 MiB or an unknown topic, OSError where the disk refuses."""
        ...

    def start(self, at: TopicPartition) -> int:
        """The smallest offset that can still be read."""
        ...

    def end(self, at: TopicPartition) -> int:
        """The offset that the next record will get."""
        ...

    def settle(self, topic: str) -> None:
        """Wait until what is being published to the topic at this moment can be read, or is void."""
        ...

    def reader(self, positions: Mapping[TopicPartition, int]) -> LogReader: ...

    def publisher(self, partition: int) -> Publisher:
        """Take the right to publish this partition. When this returns, what earlier owners published is complete: it
        can all be read, and no more of theirs comes."""
        ...

    def appends(self) -> int:
        """Appends made through this object so far: what `wait_for_append` compares. Others' are not counted."""
        ...

    def wait_for_append(self, seen: int, timeout_s: float) -> None:
        """Return when `appends()` differs from `seen`, or after `timeout_s`."""
        ...

    def close(self) -> None: ...


def whole(log: EventLog, *topics: str) -> dict[TopicPartition, int]:
    """Positions that read `topics` from their first record that still exists."""
    places = (TopicPartition(topic, p) for topic in topics for p in range(log.partitions(topic)))
    return {place: log.start(place) for place in places}


# -- what every log refuses, in the same words ------------------------------------------------------------------------


def check_topic(topic: str) -> None:
    """Raises AdloopError for a topic that no log has."""
    if topic not in TOPICS:
        raise AdloopError(f"topic: got {topic!r}, expected one of {', '.join(TOPICS)}; correct the name")


def check_partition(at: TopicPartition, count: int) -> None:
    """Raises AdloopError for a partition that is none of the topic's `count`."""
    if not 0 <= at.partition < count:
        raise AdloopError(
            f"partition: got {at.partition} of {at.topic}, expected 0 to {count - 1}; read only partitions that exist"
        )


def check_size(record: Append) -> None:
    """Raises AdloopError for a record that is too large."""
    if record.value is not None and len(record.value) > MAX_RECORD_BYTES:
        raise AdloopError(
            f"record: got {len(record.value)} bytes for topic {record.topic}, expected at most {MAX_RECORD_BYTES}; "
            "make the record smaller"
        )


def truncated(at: TopicPartition, position: int, first: int, end: int) -> LogTruncated:
    """The error of a position that the log does not hold."""
    return LogTruncated(
        f"{at.topic}[{at.partition}]: position {position} is not in the log, which holds {first} to {end}; restore the "
        "log, or delete the state that was derived from it and rebuild"
    )


def taken_over(partition: int) -> Fenced:
    """The error of a publisher that is no longer the partition's newest."""
    return Fenced(
        f"outcomes[{partition}]: another joiner has taken this partition over, so this one must not publish; stop one "
        "of the two, or, where the log knows groups, start them in one --group"
    )
