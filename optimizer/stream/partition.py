"""One partition of the join: its state, its event time, its outbox and the right to publish it.

The order that makes it crash-safe:
1. `judge`: records of one poll are judged, and the content of every new revision is fixed;
2. `stage`: state, positions, counters and those revisions in an outbox go into one transaction of the state; the
   outbox is handed to the log, where nobody can read it yet;
3. `finish`: the state's transaction is committed, then the log's; 4. the outbox is forgotten, with the next one.
A crash before 3 repeats the records from the old state: what the log was handed is void. A crash between the two
commits publishes the outbox again, byte for byte. `finish` only waits, and may run in another thread; nothing else is
called until it is through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from optimizer.maths.attribution import EXTRA_RETENTION_MS, GRACE_MS
from optimizer.stream.catch_up import HOLD, hold_of, take_over
from optimizer.stream.event_time import NONE, EventTime
from optimizer.stream.ledger import Ledger
from optimizer.stream.log import Append, EventLog, Publisher, Record
from optimizer.stream.placement import check_placement
from optimizer.stream.state import Progress, Saved, StateStore
from optimizer.stream.tokens import TokenKeys

TIMERS_PER_STEP: Final = 1_000  # so that a step's transaction stays bounded
MOST_AHEAD: Final = 20_000  # events kept back for their decisions
PUBLISH_BYTES: Final = 8 * 1024 * 1024  # published at once; the rest of an outbox follows
PUBLISH_RECORDS: Final = 4_000
NOWHERE: Final = Progress(0, 0, 0, 0)


class Rules(NamedTuple):
    """What the joiner's options say: how long after its windows an outcome closes, and a decision can be revised."""

    grace_ms: int = GRACE_MS
    extra_retention_ms: int = EXTRA_RETENTION_MS


class Ends(NamedTuple):
    """How far decisions and events have been read (next offsets), and where they end."""

    decisions: int
    decisions_end: int
    events: int
    events_end: int


class PartitionJoiner:
    """Joins one partition. Made when the partition is taken: that ends every earlier owner's right to publish it.

    Raises ConfigError where the state is another log's, LogTruncated where the log lost what the state needs.
    """

    def __init__(
        self,
        log: EventLog,
        partition: int,
        folder: Path,
        identity: Mapping[str, str],
        keys: TokenKeys,
        rules: Rules,
        durable: bool,
    ) -> None:
        self.partition = partition
        self._log = log
        self._keys = keys
        self._rules = rules
        self._sources = {topic: log.topic_name(topic) for topic in ("decisions", "events")}
        self._publisher: Publisher | None = None
        self._unsure = False  # whether the last append reached the log
        self._progress = NOWHERE
        self._published_to = 0  # the row of the outbox
        self._store = StateStore(folder, {**identity, "partition": str(partition)}, durable)
        try:
            if self._store.progress() is None:
                check_placement(log, partition)
            self.restore()
        except BaseException:
            self.close()
            raise

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Mapping[str, int]:
        """Totals since the state began."""
        return self._ledger.counts

    @property
    def open_decisions(self) -> int:
        """How many decisions are held: every one that can still change."""
        return self._ledger.counts["decisions"] - self._ledger.counts["let_go"]

    @property
    def event_time(self) -> int | None:
        """The partition's event time (epoch ms); None before anything was let in."""
        return None if self._time.now == NONE else self._time.now

    @property
    def caught_up(self) -> bool:
        """False while it reads on quietly to where the log ended when it was taken, and compares after that."""
        return self._hold is None and not self._ledger.catching_up

    @property
    def positions(self) -> tuple[int, int]:
        """The offsets of decisions and events to read next, as committed."""
        return self._progress.decisions, self._progress.events

    @property
    def behind(self) -> int:
        """How many records a catch-up still has to read; 0 where there is none."""
        if self._hold is None:
            return 0
        progress = self._progress
        return max(0, self._hold.decisions - progress.decisions) + max(0, self._hold.events - progress.events)

    @property
    def unpublished(self) -> bool:
        """Whether anything is committed that is not in the log yet."""
        return bool(self._outbox) or self._published_to != self._outbox_to

    def take_delays(self, now_ms: int) -> list[int]:
        """From received to published (ms), of the events that made a revision since the last call."""
        # Taken one by one: a thread that finishes may add to them meanwhile.
        published = self._published
        return [max(0, now_ms - published.popleft()) for _ in range(len(published))]

    # -- a step -------------------------------------------------------------------------------------------------------

    @property
    def doubtful(self) -> bool:
        """Whether the log did not answer for a while since the right to publish was taken."""
        return self._publisher is not None and self._publisher.doubtful

    def restore(self) -> None:
        """Everything in memory, from what was last committed: at the start, and after an error.

        A publisher that failed does not know whether its records are in the log: a new one reads it there. What another
        one has published is not published again, however often a full disk makes this happen."""
        self._store.rollback()
        # Kept until the take-over is through: where that fails it is owed.
        self._unsure = self._unsure or self.doubtful
        published = self._publisher is not None and not self._unsure
        if self._publisher is not None and self._unsure:
            self._publisher.close()
            self._publisher = None
        if self._publisher is None:
            self._publisher = self._log.publisher(self.partition)
            take_over(self._log, self.partition, self._store, self._sources)
        self._unsure = False
        self._store.load()
        progress = self._store.progress() or NOWHERE
        if published:
            outcomes, quarantine = self._progress.outcomes, self._progress.quarantine
            progress = msgspec.structs.replace(progress, outcomes=outcomes, quarantine=quarantine)
        else:
            self._published_to = 0
        self._progress = progress
        self._read = self._progress.decisions, self._progress.events
        self._ahead: list[Record] = []
        self._decisions_to = 0  # the log's timestamp of the last decision read
        self._hold = hold_of(self._store)
        self._time = EventTime(
            progress.event_time, progress.largest_decision, progress.largest_event, self._hold is not None
        )
        self._ledger = Ledger(
            self.partition,
            self._store,
            self._keys,
            self._sources,
            self._time,
            self._rules.grace_ms,
            self._rules.extra_retention_ms,
            bool(self._store.published_ids(1)),
        )
        self._outbox: list[Append] = self._store.outbox(self._published_to)
        self._outbox_to = self._store.last_outbox()
        self._begun = 0  # how many records of the outbox the log has been handed
        self._published: deque[int] = deque()
        self._more_timers = True

    def judge(self, decisions: Sequence[Record], events: Sequence[Record], ends: Ends, now_ms: int) -> None:
        """A batch: all its decisions first, so that few events have to wait for theirs, then its events. Events that
        were appended after the last decision read are left for a later step: theirs is still to come."""
        time, ledger = self._time, self._ledger
        decisions_ended = ends.decisions >= ends.decisions_end
        events = self._in_step(decisions, events, decisions_ended)
        read_to = self._ahead[0].offset if self._ahead else ends.events
        events_ended = read_to >= ends.events_end
        # While a topic's records are being judged, it has not been read to its end.
        if decisions or events:
            ledger.load(
                [key for records in (decisions, events) for record in records if (key := record.key) is not None]
            )
            time.ended(decisions_ended and not decisions, events_ended and not events)
            for record in decisions:
                ledger.decision(record)
            ledger.settle()
            time.ended(decisions_ended, events_ended and not events)
            for record in events:
                ledger.event(record)
        time.ended(decisions_ended, events_ended)
        if decisions or events:
            time.busy()
        elif decisions_ended and events_ended:
            time.quiet(now_ms)
        self._read = ends.decisions, read_to
        self._end_hold()

    def stage(self) -> int:
        """Write down what was judged, fire the timers, and hand the log what is to be published; returns how many
        timers fired or decisions were compared. `finish` must follow."""
        progress = self._progress
        moved = self._time.now != progress.event_time
        read = self._read != (progress.decisions, progress.events)
        ledger = self._ledger
        if not (read or moved or self._more_timers or (ledger.catching_up and self._hold is None)):
            return 0
        store = self._store
        store.begin()
        self._write(ledger.take_saved())
        worked = self._reconcile() if self._hold is None and ledger.catching_up else 0
        fired = ledger.expire(TIMERS_PER_STEP)
        self._more_timers = fired >= TIMERS_PER_STEP
        self._write(ledger.take_saved())
        self._progress = Progress(
            *self._read,
            progress.outcomes,
            progress.quarantine,
            self._time.decisions,
            self._time.events,
            self._time.now,
        )
        self._store.advance(self._progress)
        if self._published_to:
            store.drop_outbox(self._published_to)
        self._outbox_to = store.last_outbox()
        ledger.forget()
        self._begin()
        return worked + fired

    def flush(self) -> None:
        """Wait until the log has received what it was handed. May be left out: `finish` waits for it as well."""
        if self._begun and self._publisher is not None:
            self._publisher.flush()

    def finish(self) -> None:
        """Make durable what was staged, then publish it. Raises Fenced where another has taken the partition."""
        self._store.commit()
        if not self._begun:
            self._begin()  # what an earlier run had committed
        publisher = self._publisher
        while self._begun and publisher is not None:
            self._passed(publisher.commit())
            self._unsure = False
            del self._outbox[: self._begun]
            self._begun = 0
            self._begin()
        self._published_to = self._outbox_to
        self._published.extend(self._ledger.revised)
        self._ledger.revised.clear()

    def close(self, clean: bool = False) -> None:
        """Give the state and the right to publish back; nothing is lost without it. `clean`: what was published is
        forgotten now, and not with the next transaction."""
        try:
            if clean and self._published_to:
                self._store.begin()
                self._store.drop_outbox(self._published_to)
                self._store.advance(self._progress)
                self._store.commit()
        finally:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None
            self._store.close()

    def rewind(self) -> None:
        """Reading begins anew at `positions`: forget what has been read beyond them."""
        self._ahead = []

    # -- inside -------------------------------------------------------------------------------------------------------

    def _in_step(
        self, decisions: Sequence[Record], events: Sequence[Record], decisions_ended: bool
    ) -> Sequence[Record]:
        """The events to judge now. What is left is bounded; only the cost depends on the choice, never an outcome."""
        if decisions:
            self._decisions_to = decisions[-1].ts
        if self._ahead:
            events = [*self._ahead, *events]
            self._ahead = []
        if decisions_ended or len(events) > MOST_AHEAD or not events or events[-1].ts <= self._decisions_to:
            return events
        cut = next(i for i, record in enumerate(events) if record.ts > self._decisions_to)
        self._ahead = list(events[cut:])
        return events[:cut]

    def _begin(self) -> None:
        """Hand the log the next piece of the outbox. If that fails, what the log holds is not known."""
        if self._publisher is None or not self._outbox:
            return
        piece = _piece(self._outbox)
        self._unsure = True
        self._publisher.begin(piece)
        self._begun = len(piece)

    def _write(self, saved: Saved) -> None:
        self._store.write(saved)
        self._outbox.extend(saved.outbox)

    def _end_hold(self) -> None:
        """Once everything that stood in the log at the start has been read, let event time run and start comparing."""
        hold = self._hold
        if hold is None or self._read[0] < hold.decisions or self._read[1] < hold.events:
            return
        self._hold = None
        self._time.resume(hold.as_of)
        self._ledger.catching_up = True
        self._ledger.saved.meta[HOLD] = None

    def _reconcile(self) -> int:
        """Publish, for the next decisions, what differs from what others had published."""
        ids = self._store.published_ids(TIMERS_PER_STEP)
        self._ledger.reconcile(ids)
        if not ids:
            self._ledger.catching_up = False
        self._write(self._ledger.take_saved())
        return max(1, len(ids))

    def _passed(self, last: Mapping[str, int]) -> None:
        """Note how far outcomes and quarantine reach that are our own; it is durable with the next transaction."""
        progress = self._progress
        self._progress = Progress(
            progress.decisions,
            progress.events,
            last.get("outcomes", progress.outcomes),
            last.get("quarantine", progress.quarantine),
            progress.largest_decision,
            progress.largest_event,
            progress.event_time,
        )


def _piece(records: Sequence[Append]) -> Sequence[Append]:
    """The first records, of bounded number and size."""
    size = 0
    for i, record in enumerate(records[:PUBLISH_RECORDS]):
        size += len(record.value or b"")
        if i and size > PUBLISH_BYTES:
            return records[:i]
    return records[:PUBLISH_RECORDS]
