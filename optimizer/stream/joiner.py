"""The reward joiner: decisions and events in, outcomes out, in event time, each event counted exactly once.

It reads the partitions that are assigned to it and hands each one's records to its `PartitionJoiner`, which says how a
crash is survived. While a partition waits for its commits, the others' records are judged, and where more is waiting in
the log, the next batch's. A partition that is taken away stops at its last commit; one that is given continues from its
own state, or catches up from the log.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple

from optimizer.clock import Clock
from optimizer.errors import ConfigError, Fenced
from optimizer.files import lock_alone
from optimizer.maths.attribution import EXTRA_RETENTION_MS, GRACE_MS
from optimizer.stream.assignment import Assigned, Assignment, Fixed
from optimizer.stream.finisher import Finisher
from optimizer.stream.log import EventLog, LogReader, Record, TopicPartition
from optimizer.stream.partition import Ends, PartitionJoiner, Rules
from optimizer.stream.state import refused
from optimizer.stream.tokens import TokenKeys

SOURCES: Final = ("decisions", "events")
MOST_RECORDS: Final = 8_000  # of one step: what a commit costs is shared by as many records
TAKE_AGAIN_MS: Final = 5_000  # what a newer owner took is taken back only where the group still calls it ours by then
_NAMES: Final = (
    *("decisions", "events", "outcomes", "closed", "revisions", "duplicates", "duplicate_decisions", "tombstones"),
    *("waited", "let_go", "never_shown", "never_shown_clicks", "void_retractions", "unpublishable"),
)
_QUARANTINED: Final = "quarantined."


class PartitionFigures(NamedTuple):
    """One partition at a glance: records not read yet, event time (epoch ms, None before anything was let in), whether
    it has caught up, and how many records its catch-up has yet to read."""

    decisions_lag: int
    events_lag: int
    event_time: int | None
    caught_up: bool
    behind: int


class Joiner:
    """A role: `step()` does a bounded piece of work. Not thread-safe; one per state folder.

    Args:
      log: read (decisions, events) and written (outcomes, quarantine).
      state_dir: this joiner's own folder, which belongs to this log. Lost with outcomes in the log, it is rebuilt.
      keys: verify the events' tokens.
      clock: moves event time on when nothing comes for a minute; nothing else depends on it.
      grace_ms: how long after its windows an outcome closes.
      extra_retention_ms: how long after its windows a decision can still be revised.
      partitions: those to own, an Assignment where that changes; None is all.
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
        partitions: Collection[int] | Assignment | None = None,
        durable: bool = True,
    ) -> None:
        self._log = log
        self._keys = keys
        self._clock = clock
        self._rules = Rules(grace_ms, extra_retention_ms)
        self._durable = durable
        count = log.partitions("decisions")
        if any(log.partitions(topic) != count for topic in ("events", "outcomes")):
            raise ConfigError("log: decisions, events and outcomes have different partition counts; make them equal")
        self._identity = {"log_id": log.log_id(), "partitions": str(count)}
        self._assignment = _assignment(partitions, count)
        self._assigned = Assigned(-1, frozenset())
        self._parts: dict[int, PartitionJoiner] = {}
        self._lost: dict[int, int] = {}  # in this generation, to a newer owner; and when that was
        self._stale = False  # an error left what is in memory half done
        self._reader: LogReader | None = None
        self._finisher = Finisher()
        self._dir = Path(state_dir)
        self._lock = _lock(self._dir)
        try:
            self._reassign(clean=True)
            self._read_on()
        except BaseException:
            self._close(clean=False)
            raise

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int | dict[str, int]]:
        """Totals of what the state knows: decisions and events let in, outcomes, revisions, closed, duplicates, let_go,
        ... and `quarantined` by reason."""
        totals: Counter[str] = Counter()
        for part in self._parts.values():
            totals.update(part.counts)
        found: dict[str, int | dict[str, int]] = {name: totals[name] for name in _NAMES}
        reasons = sorted(name for name in totals if name.startswith(_QUARANTINED))
        found["quarantined"] = {name.removeprefix(_QUARANTINED): totals[name] for name in reasons}
        return found

    @property
    def open_decisions(self) -> int:
        """How many decisions are held: every one that can still change."""
        return sum(part.open_decisions for part in self._parts.values())

    @property
    def caught_up(self) -> bool:
        """Whether every partition works on what is new; False while one still catches up with the log or could not be
        taken, and before the group has said for the first time which are ours."""
        if self._assigned == Assigned(0, frozenset()) or self._assigned.partitions != self._parts.keys():
            return False
        return all(part.caught_up for part in self._parts.values())

    def event_time(self, partition: int) -> int | None:
        """The partition's event time (epoch ms); None before anything was let in."""
        return self._parts[partition].event_time

    def lag(self) -> int:
        """How many records of decisions and events have not been read yet."""
        return sum(self._lag(at) for at in _sources(self._parts))

    def figures(self) -> dict[int, PartitionFigures]:
        """Each partition at a glance, as of the last step: no round trip to the log."""
        found: dict[int, PartitionFigures] = {}
        if (reader := self._reader) is None:
            return found
        for p, part in self._parts.items():
            decisions, events = (max(0, reader.end(at) - reader.position(at)) for at in _sources([p]))
            found[p] = PartitionFigures(decisions, events, part.event_time, part.caught_up, part.behind)
        return found

    def take_delays(self) -> list[int]:
        """Since the last call: from received to published (ms), of every event that made a revision."""
        now = self._clock.now_ms()
        return [delay for part in self._parts.values() for delay in part.take_delays(now)]

    # -- work ---------------------------------------------------------------------------------------------------------

    def step(self, max_records: int = MOST_RECORDS, timeout_s: float = 0.0) -> int:
        """Read up to `max_records`, waiting up to `timeout_s` for the first; returns how many records were read and
        timers fired, 0 where there was nothing to do. All of it is published when this returns, unless more is known
        to be waiting in the log: the next step goes on with that meanwhile. After an error, which may be of the step
        before, the next step starts from the last commit; OSError is one that may pass by itself (brokers that are
        away, a full disk)."""
        try:
            return self._step(max_records, timeout_s)
        except sqlite3.OperationalError as error:
            raise refused(self._dir, error) from error

    def close(self) -> None:
        """Give the state folder back. Nothing is lost without it."""
        self._close(clean=not self._stale)

    def __enter__(self) -> Joiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _step(self, max_records: int, timeout_s: float) -> int:
        stale, self._stale = self._stale, True
        if stale:
            self._finisher.settle()  # whatever it was, it is met again or was told
        before = list(self._parts.values())
        self._reassign(clean=not stale)
        if stale:
            for part in before:
                # Each may wait for the brokers; what the group has given to others meanwhile stays theirs.
                if self._assignment.current() != self._assigned:
                    self._reassign(clean=False)
                if part in self._parts.values():
                    part.restore()
            self._close_reader()
        self._read_on()
        self._publish_rest()
        worked = self._join(max_records, timeout_s)
        self._stale = False
        return worked

    def _join(self, max_records: int, timeout_s: float) -> int:
        reader = self._reader
        if reader is None:
            time.sleep(timeout_s)
            return 0
        records = reader.poll(max_records, timeout_s)
        batches: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            place = record[0], record[1]
            batch = batches.get(place)
            if batch is None:
                batches[place] = batch = []
            batch.append(record)
        now_ms = self._clock.now_ms()
        worked = len(records)
        staged: PartitionJoiner | None = None
        more = False
        for partition, part in self._parts.items():
            if not self._finisher.wait(partition):
                break
            if part.doubtful:
                # All at once with new connections: the timeouts of the old ones would come one after the other.
                self._settle()
                raise OSError("log: its brokers did not answer for a while; all connections are made anew")
            decisions, events = _sources([partition])
            # Asked after the poll: where more has been appended since, the topic counts as not yet read to its end.
            ends = Ends(reader.position(decisions), reader.end(decisions), reader.position(events), reader.end(events))
            part.judge(batches.get(decisions, ()), batches.get(events, ()), ends, now_ms)
            try:
                worked += part.stage()
            except Fenced as error:
                self._finisher.failed(partition, error)
                break
            # One behind: the log has had the time of a partition to receive what it was handed.
            if staged is not None:
                self._finisher.start(staged)
            staged = part
            more |= ends.decisions < ends.decisions_end or ends.events < ends.events_end
        else:
            if records and more and staged is not None:
                self._finisher.start(staged)
                return worked
        if staged is not None:
            self._finisher.start(staged)
        self._settle()
        return worked

    def _publish_rest(self) -> None:
        """Publish what was committed before a crash or an error came in between."""
        rest = [p for p in self._parts.values() if p.unpublished and not self._finisher.running(p.partition)]
        for part in rest:
            self._finisher.start(part)
        if rest:
            self._settle()

    def _settle(self) -> None:
        """Wait until all that was staged is durable and published. A partition that another owner has taken ends here.
        Raises what else went wrong, once all are through."""
        errors = self._finisher.settle()
        if not isinstance(self._assignment, Fixed):
            fenced = [partition for partition, error in errors.items() if isinstance(error, Fenced)]
            for partition in fenced:
                del errors[partition]
                self._lost[partition] = self._clock.now_ms()
                self._drop(partition, clean=False)
            if fenced:
                self._close_reader()
                self._read_on()
        if errors:
            raise next(iter(errors.values()))

    def _reassign(self, clean: bool) -> None:
        """Give up what is no longer ours and take up what is new; `clean`: what is in memory is what was committed.

        What can't be taken now (a broker that is away, a full disk) raises, and is tried again at the next step."""
        assigned = self._assignment.current()
        if assigned.partitions != self._parts.keys():
            self._settle()
        if assigned != self._assigned:
            self._assigned = assigned
            self._lost.clear()
        before = set(self._parts)
        for partition in before - assigned.partitions:
            self._drop(partition, clean)
        try:
            for partition in sorted(assigned.partitions - before):
                if self._may_take(partition):
                    self._parts[partition] = self._taken(partition)
        finally:
            if before != set(self._parts):
                self._parts = dict(sorted(self._parts.items()))
                self._close_reader()

    def _may_take(self, partition: int) -> bool:
        """Two joiners may both believe that a partition is theirs, one of them from an answer of the group that has
        been overtaken: whoever lost it waits until the other must have heard, lest nobody has it in the end."""
        lost = self._lost.get(partition)
        return lost is None or self._clock.now_ms() - lost >= TAKE_AGAIN_MS

    def _taken(self, partition: int) -> PartitionJoiner:
        if partition >= (count := self._log.partitions("decisions")):
            raise ConfigError(
                f"partitions: the group gives out partition {partition}, expected 0 to {count - 1}: their number was "
                "changed, so keys and what belongs to them no longer meet; start a new log under another prefix, and "
                "copy the records over"
            )
        folder = self._dir / f"partition-{partition}"
        return PartitionJoiner(self._log, partition, folder, self._identity, self._keys, self._rules, self._durable)

    def _drop(self, partition: int, clean: bool) -> None:
        self._parts.pop(partition).close(clean)

    def _read_on(self) -> None:
        """A reader of what is ours, from where its state stands, if there is none."""
        if self._reader is not None:
            return
        for part in self._parts.values():
            part.rewind()
        positions = {
            TopicPartition(topic, p): position
            for p, part in self._parts.items()
            for topic, position in zip(SOURCES, part.positions, strict=True)
        }
        if positions:
            self._reader = self._log.reader(positions)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _lag(self, at: TopicPartition) -> int:
        return 0 if self._reader is None else max(0, self._log.end(at) - self._reader.position(at))

    def _close(self, clean: bool) -> None:
        clean = not self._finisher.settle() and clean
        with ExitStack() as stack:  # all of it, whatever goes wrong on the way
            stack.callback(self._lock.close)
            stack.callback(self._assignment.close)
            stack.callback(self._finisher.close)
            stack.callback(self._close_reader)
            for partition in self._parts:
                stack.callback(self._drop, partition, clean)


def _assignment(partitions: Collection[int] | Assignment | None, count: int) -> Assignment:
    if partitions is None:
        return Fixed(range(count))
    return Fixed(partitions) if isinstance(partitions, Collection) else partitions


def _sources(partitions: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in partitions for topic in SOURCES]


def _lock(folder: Path) -> IO[bytes]:
    """Keep every other joiner out of a state folder. Raises ConfigError."""
    taken = "another joiner is using it; stop that one, or give this one its own --state"
    return lock_alone(folder / "lock", f"state {folder}", taken, "--state")
