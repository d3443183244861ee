"""The reward joiner: decisions and events in, outcomes out, in event time, each event counted exactly once.

One step, and the order that makes it crash-safe:
1. read a batch of decisions and events from the log;
2. let the ledger work on it, and fix the content of every new revision;
3. commit in one transaction: state, positions in the log, counters, and those revisions in an outbox;
4. append the outbox to the log; 5. forget the outbox, with the next transaction.
A crash before 3 repeats the batch from the old state. A crash after 3 publishes the outbox again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from optimizer.clock import Clock
from optimizer.errors import AdloopError, ConfigError
from optimizer.maths.attribution import EXTRA_RETENTION_MS, GRACE_MS, Attributed
from optimizer.stream.event_time import NONE, EventTime
from optimizer.stream.ledger import Ledger
from optimizer.stream.log import Append, EventLog, LogReader, Record, TopicPartition, whole
from optimizer.stream.state import Published, Saved, StateStore
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Components, Reason

T = TypeVar("T")
SOURCES: Final = ("decisions", "events")
TIMERS_PER_STEP: Final = 1_000  # of each partition, so that a step's transaction stays bounded
PUBLISH_BYTES: Final = 4 * 1024 * 1024
PUBLISH_RECORDS: Final = 1_000
_REBUILD: Final = "rebuild"  # meta: the ends up to which a rebuild reads quietly, as JSON
_RECONCILE: Final = "reconcile"  # meta: the last decision_id that was compared with what had been published
_REBUILT: Final = "rebuilt"  # meta: there is something in `published` or `refused`


class _PublishedOutcome(Struct, frozen=True):
    """The part of an outcome that a rebuild compares."""

    decision_id: str
    revision: int
    state: str
    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]


class _PublishedRefusal(Struct, frozen=True):
    topic: str
    partition: int
    offset: int
    reason: Reason


class Joiner:
    """A role: `step()` does a bounded piece of work. Not thread-safe; one per state folder.

    Args:
      log: read (decisions, events) and written (outcomes, quarantine).
      state_dir: this joiner's own folder, which belongs to this log. Lost with outcomes in the log, it is rebuilt.
      keys: verify the events' tokens.
      clock: moves event time on when nothing comes for a minute; nothing else depends on it.
      grace_ms: how long after its windows an outcome closes.
      extra_retention_ms: how long after its windows a decision can still be revised.
      partitions: those to own; None is all.
      durable: False leaves flushing the state to the operating system, for logs that do so too.

    Raises ConfigError where the state is in use or another log's, LogTruncated where the log lost what is needed.
    """

    def __init__(
        self,
        log: EventLog,
        state_dir: Path,
        keys: TokenKeys,
        clock: Clock,
        grace_ms: int = GRACE_MS,
        extra_retention_ms: int = EXTRA_RETENTION_MS,
        partitions: Collection[int] | None = None,
        durable: bool = True,
    ) -> None:
        self._log = log
        self._keys = keys
        self._clock = clock
        self._grace_ms = grace_ms
        self._extra_ms = extra_retention_ms
        count = log.partitions("decisions")
        if any(log.partitions(topic) != count for topic in ("events", "outcomes")):
            raise ConfigError("log: decisions, events and outcomes have different partition counts; make them equal")
        self._owned = sorted(range(count) if partitions is None else partitions)
        self._stale = False  # an error left what is in memory half done
        self._more_timers = True
        self._published_to = 0  # the outbox up to here is in the log
        self._store = StateStore(Path(state_dir), log.log_id(), count, durable)
        try:
            if self._store.meta("begun") is None:
                self._begin()
            self._restore()
            self._publish_outbox()
        except BaseException:
            self._store.close()
            raise

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int | dict[str, int]]:
        """Totals since the state began: decisions and events let in, outcomes, revisions, closed, duplicates, let_go,
        ... and `quarantined` by reason."""
        names = ("decisions", "events", "outcomes", "closed", "revisions", "duplicates", "duplicate_decisions")
        more = ("tombstones", "waited", "let_go", "never_shown", "never_shown_clicks", "void_retractions")
        counts = self._ledger.counts
        found: dict[str, int | dict[str, int]] = {name: counts[name] for name in (*names, *more, "unpublishable")}
        prefix = "quarantined."
        found["quarantined"] = {k.removeprefix(prefix): n for k, n in sorted(counts.items()) if k.startswith(prefix)}
        return found

    @property
    def open_decisions(self) -> int:
        """How many decisions are held: every one that can still change."""
        return self._store.open_decisions()

    def event_time(self, partition: int) -> int | None:
        """The partition's event time (epoch ms); None before anything was let in."""
        now = self._times[partition].now
        return None if now == NONE else now

    def lag(self) -> int:
        """How many records of decisions and events have not been read yet."""
        return sum(self._log.end(at) - self._reader.position(at) for at in self._positions)

    # -- work ---------------------------------------------------------------------------------------------------------

    def step(self, max_records: int = 2000, timeout_s: float = 0.0) -> int:
        """Read up to `max_records`, waiting up to `timeout_s` for the first; returns how many records were read and
        timers fired, 0 where there was nothing to do. After an error the next step starts from the last commit."""
        if self._stale:
            self._reader.close()
            self._restore()
        self._stale = True
        try:
            self._publish_outbox()
            worked = (
                self._reconcile() if self._store.meta(_RECONCILE) is not None else self._join(max_records, timeout_s)
            )
            self._publish_outbox()
            self._stale = False
        finally:
            self._store.rollback()
        return worked

    def close(self) -> None:
        """Give the state folder back. Nothing is lost without it."""
        if not self._stale and self._published_to:
            self._store.begin()
            self._store.drop_outbox(self._published_to)
            self._store.commit()
        self._reader.close()
        self._store.close()

    def __enter__(self) -> Joiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- a step -------------------------------------------------------------------------------------------------------

    def _join(self, max_records: int, timeout_s: float) -> int:
        records = self._reader.poll(max_records, timeout_s)
        self._ledger.load([record.key.decode("utf-8", "replace") for record in records if record.key is not None])
        batches: dict[TopicPartition, list[Record]] = {}
        for record in records:
            batches.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        self._judge(batches)
        self._end_rebuild()
        return self._commit(len(records))

    def _judge(self, batches: dict[TopicPartition, list[Record]]) -> None:
        """A batch: all its decisions first, so that few events have to wait for theirs, then its events."""
        # Asked after the poll: where more has been appended since, the topic counts as not yet read to its end.
        ended = {at: self._reader.position(at) >= self._log.end(at) for at in self._positions}
        # While a topic's records are being judged, it has not been read to its end.
        for partition, time in self._times.items():
            decisions, events = (TopicPartition(topic, partition) for topic in SOURCES)
            time.ended(ended[decisions] and decisions not in batches, ended[events] and events not in batches)
            for record in batches.get(decisions, ()):
                self._ledger.decision(record)
        self._ledger.settle()
        for partition, time in self._times.items():
            decisions, events = (TopicPartition(topic, partition) for topic in SOURCES)
            time.ended(ended[decisions], ended[events] and events not in batches)
            for record in batches.get(events, ()):
                self._ledger.event(record)
            time.ended(ended[decisions], ended[events])
            if decisions in batches or events in batches:
                time.busy()
            elif ended[decisions] and ended[events]:
                time.quiet(self._clock.now_ms())

    def _commit(self, read: int) -> int:
        """Fire the timers and make the step durable; returns records read and timers fired."""
        moved = any(self._times[p].now != self._saved_times[p] for p in self._owned)
        if not read and not moved and not self._more_timers:
            return 0
        self._store.begin()
        self._write(self._ledger.take_saved())
        fired = {partition: self._ledger.expire(partition, TIMERS_PER_STEP) for partition in self._owned}
        self._more_timers = any(n >= TIMERS_PER_STEP for n in fired.values())
        saved = self._ledger.take_saved()
        times = {partition: time.now for partition, time in self._times.items() if time.now != NONE}
        saved.event_times = times
        saved.positions = {at: (self._reader.position(at), self._largest(at)) for at in self._positions}
        self._write(saved)
        self._finish()
        self._saved_times.update(times)
        return read + sum(fired.values())

    def _write(self, saved: Saved) -> None:
        self._store.write(saved)
        self._outbox.extend(saved.outbox)

    def _finish(self) -> None:
        """End the transaction. What was published before it goes out of the outbox with it."""
        if self._published_to:
            self._store.drop_outbox(self._published_to)
        self._outbox_to = self._store.last_outbox()
        self._store.commit()
        self._ledger.forget()

    def _publish_outbox(self) -> None:
        """Append what is committed but not yet in the log. Repeating it is harmless: the bytes are the same."""
        for chunk in _chunks(self._outbox):
            self._log.append(chunk)
        self._outbox.clear()
        self._published_to = self._outbox_to

    # -- start and rebuild --------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Everything in memory, from what was last committed."""
        saved, times = self._store.positions(), self._store.event_times()
        held = self._store.meta(_REBUILD) is not None
        self._positions = {TopicPartition(topic, p): 0 for p in self._owned for topic in SOURCES}
        for at in self._positions:
            self._positions[at] = saved[at][0] if at in saved else self._log.start(at)
        largest = {at: largest for at, (_, largest) in saved.items()}
        self._times = {
            p: EventTime(
                times.get(p, NONE),
                largest.get(TopicPartition("decisions", p), NONE),
                largest.get(TopicPartition("events", p), NONE),
                held,
            )
            for p in self._owned
        }
        self._saved_times = {p: time.now for p, time in self._times.items()}
        self._ledger = Ledger(
            self._store,
            self._keys,
            self._log.topic_name,
            self._times,
            self._grace_ms,
            self._extra_ms,
            self._store.meta(_REBUILT) is not None,
        )
        self._reader: LogReader = self._log.reader(self._positions)
        self._outbox: list[Append] = self._store.outbox()
        self._outbox_to = self._store.last_outbox()
        self._published_to = 0
        self._more_timers = True
        self._stale = False

    def _begin(self) -> None:
        """A new state. Where the log has outcomes already, an earlier state was lost: note what it published, so that
        no revision is ever published with a second content, and read quietly up to here."""
        published, refused = self._read_outcomes(), self._read_quarantine()
        written = any(self._log.end(at) > self._log.start(at) for at in whole(self._log, "outcomes", "quarantine"))
        meta: dict[str, str | None] = {"begun": "yes"}
        if written:
            ends = [(topic, p, self._log.end(TopicPartition(topic, p))) for topic in SOURCES for p in self._owned]
            meta |= {_REBUILT: "yes", _REBUILD: msgspec.json.encode(ends).decode()}
        self._store.remember(published, refused, meta)

    def _read_outcomes(self) -> Iterator[tuple[str, Published]]:
        for last in _read_all(self._log, "outcomes", _PublishedOutcome):
            content = Attributed(last.impression_ts, last.click_ts, last.components, last.reward, last.events)
            yield last.decision_id, Published(last.revision, last.state == "closed", content)

    def _read_quarantine(self) -> Iterator[tuple[TopicPartition, int, str]]:
        names = {self._log.topic_name(topic): topic for topic in SOURCES}
        for refusal in _read_all(self._log, "quarantine", _PublishedRefusal):
            if refusal.topic in names:
                yield TopicPartition(names[refusal.topic], refusal.partition), refusal.offset, refusal.reason

    def _end_rebuild(self) -> None:
        """Once everything that stood in the log at the start has been read, let event time run and start comparing."""
        text = self._store.meta(_REBUILD) if any(time.held for time in self._times.values()) else None
        if text is None:
            return
        ends = msgspec.json.decode(text, type=list[tuple[str, int, int]])
        if all(self._reader.position(TopicPartition(topic, p)) >= end for topic, p, end in ends):
            for time in self._times.values():
                time.held = False
                time.advance()
            self._ledger.saved.meta = {_REBUILD: None, _RECONCILE: ""}

    def _reconcile(self) -> int:
        """Publish, for the next decisions, what differs from what the lost state had published."""
        ids = self._store.decisions_after(self._store.meta(_RECONCILE) or "", TIMERS_PER_STEP)
        self._ledger.reconcile(ids)
        saved = self._ledger.take_saved()
        saved.meta = {_RECONCILE: ids[-1] if ids else None}
        self._store.begin()
        self._write(saved)
        self._finish()
        return max(1, len(ids))

    def _largest(self, at: TopicPartition) -> int:
        time = self._times[at.partition]
        return time.decisions if at.topic == "decisions" else time.events


def _read_all(log: EventLog, topic: str, kind: type[T]) -> Iterator[T]:
    """Every record of a topic up to its end. Raises AdloopError for one that a joiner can't have written."""
    decoder = msgspec.json.Decoder(kind)
    reader = log.reader(whole(log, topic))
    try:
        while records := reader.poll():
            for record in records:
                yield decoder.decode(record.value or b"")
    except msgspec.DecodeError as error:
        raise AdloopError(
            f"{topic}: a record is not as a joiner writes it ({error}), so lost state can't be rebuilt; restore the "
            "state folder, or start a new log"
        ) from error
    finally:
        reader.close()


def _chunks(records: list[Append]) -> Iterator[list[Append]]:
    """In order, in pieces of bounded number and size."""
    chunk: list[Append] = []
    size = 0
    for record in records:
        length = len(record.value or b"")
        if chunk and (len(chunk) >= PUBLISH_RECORDS or size + length > PUBLISH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += length
    if chunk:
        yield chunk
