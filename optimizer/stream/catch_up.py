"""What other joiners published while a state was not looking: read before a partition goes to work.

A state may be behind the log in three ways: it was lost, its partition was another process's for a while, or a power
cut set it back. All three are one case: whatever stands in outcomes and quarantine beyond what the state knows of is
noted as published. The partition then reads on quietly to where the log ended at the start, and only then publishes
what differs, going on from the revisions that stand there. So no revision ever gets a second content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from optimizer.errors import AdloopError
from optimizer.maths.attribution import Attributed
from optimizer.stream.guarded import UNREADABLE
from optimizer.stream.log import Append, EventLog, Record, TopicPartition
from optimizer.stream.state import Progress, Published, StateStore
from optimizer.types import Components, Reason

T = TypeVar("T")
HOLD: Final = "hold"  # meta: the ends of decisions and events up to which the partition reads quietly, and an as_of
POLL_RECORDS: Final = 2_000


class Hold(Struct, frozen=True, array_like=True):
    """Up to which offsets a partition reads quietly; `as_of` is the event time that others had come to."""

    decisions: int
    events: int
    as_of: int


class _Outcome(Struct, frozen=True):
    """The part of an outcome that is compared."""

    decision_id: str
    revision: int
    state: str
    as_of: int
    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]


class _Refusal(Struct, frozen=True):
    topic: str
    partition: int
    offset: int
    reason: Reason


_HOLD: Final = msgspec.msgpack.Decoder(Hold)
_OUTCOME: Final = msgspec.json.Decoder(_Outcome)
_REFUSAL: Final = msgspec.json.Decoder(_Refusal)


def hold_of(store: StateStore) -> Hold | None:
    """Up to where the partition has to read quietly; None where it need not."""
    body = store.meta(HOLD)
    return None if body is None else _HOLD.decode(body)


def take_over(log: EventLog, partition: int, store: StateStore, sources: Mapping[str, str]) -> None:
    """Bring the state in step with what stands in outcomes and quarantine. Call once nobody else can publish.

    Raises LogTruncated where the log lost what the state knows of, AdloopError for a record that no joiner wrote.
    """
    before = store.progress() or _beginning(log, partition)
    outbox = store.outbox()
    tail = _Tail(log, partition, before, outbox)
    store.begin()
    try:
        store.remember(tail.outcomes(), tail.refusals(sources))
        # Of the outbox, what stands in the log need not be published again, and what it says about a decision that
        # others went on with has been overtaken.
        left = [r for r in outbox if (r.topic, r.key) not in tail.overtaken and r not in tail.found]
        if len(left) < len(outbox):
            store.replace_outbox(left)
        if tail.foreign:
            decisions, events = (log.end(TopicPartition(topic, partition)) for topic in sources)
            held = hold_of(store)
            as_of = tail.as_of if held is None else max(tail.as_of, held.as_of)
            store.put(HOLD, msgspec.msgpack.encode(Hold(decisions, events, as_of)))
        store.advance(msgspec.structs.replace(before, outcomes=tail.outcomes_end, quarantine=tail.quarantine_end))
        store.commit()
    finally:
        store.rollback()


def _beginning(log: EventLog, partition: int) -> Progress:
    decisions, events, outcomes = (
        log.start(TopicPartition(topic, partition)) for topic in ("decisions", "events", "outcomes")
    )
    return Progress(decisions, events, outcomes, log.start(TopicPartition("quarantine", 0)))


class _Tail:
    """What stands in outcomes and quarantine beyond `since`. `foreign` says whether any of it is not from `outbox`,
    `overtaken` are the (topic, key) in the outbox under which others published something, `found` the records of the
    outbox that are there."""

    def __init__(self, log: EventLog, partition: int, since: Progress, outbox: Sequence[Append]) -> None:
        self.foreign = False
        self.overtaken: set[tuple[str, str]] = set()
        self.found: set[Append] = set()
        self.as_of = since.event_time
        self.outcomes_end = since.outcomes
        self.quarantine_end = since.quarantine
        self._log = log
        self._partition = partition
        self._own = set(outbox)
        self._keys = {(record.topic, record.key) for record in outbox}

    def outcomes(self) -> Iterator[tuple[str, Published]]:
        at = TopicPartition("outcomes", self._partition)
        ours: dict[str, Published] = {}
        for record, foreign in self._read(at, self.outcomes_end):
            last = _decoded(_OUTCOME, record)
            content = Attributed(last.impression_ts, last.click_ts, last.components, last.reward, last.events)
            published = Published(last.revision, last.state == "closed", content)
            if foreign:
                self.as_of = max(self.as_of, last.as_of)
                self._note("outcomes", last.decision_id)
                yield last.decision_id, published
            elif (before := ours.get(last.decision_id)) is None or published.revision > before.revision:
                ours[last.decision_id] = published
        # Another joiner's revision may be the same as ours, byte for byte, where an earlier one of its was not.
        yield from ((key, published) for key, published in ours.items() if ("outcomes", key) in self.overtaken)
        self.outcomes_end = self._log.end(at)

    def refusals(self, sources: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
        names = {name: topic for topic, name in sources.items()}
        at = TopicPartition("quarantine", 0)
        end = self._log.end(at)  # before the reading: joiners of other partitions go on writing here
        for record, foreign in self._read(at, self.quarantine_end):
            refusal = _decoded(_REFUSAL, record)
            if foreign and refusal.topic in names and refusal.partition == self._partition:
                self._note("quarantine", (record.key or b"").decode())
                yield names[refusal.topic], refusal.offset, refusal.reason
        self.quarantine_end = end

    def _note(self, topic: str, key: str) -> None:
        self.foreign = True
        if (topic, key) in self._keys:
            self.overtaken.add((topic, key))

    def _read(self, at: TopicPartition, position: int) -> Iterator[tuple[Record, bool]]:
        """The records from there to the end, and whether each is foreign: not from our own outbox, published just
        before a crash."""
        reader = self._log.reader({at: position})
        try:
            while records := reader.poll(POLL_RECORDS):
                for record in records:
                    said = Append(at.topic, (record.key or b"").decode("utf-8", "replace"), record.value)
                    if said in self._own:
                        self.found.add(said)
                    yield record, said not in self._own
        finally:
            reader.close()


def _decoded(decoder: msgspec.json.Decoder[T], record: Record) -> T:
    try:
        return decoder.decode(record.value or b"")
    except UNREADABLE as error:
        raise AdloopError(
            f"{record.topic}: a record is not as a joiner writes it (offset {record.offset}: {error}), so state "
            "can't be rebuilt from it; restore the state folder, or start a new log"
        ) from error
