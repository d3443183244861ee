"""The joiner's state machine: what one record, or the passing of event time, does to the open decisions.

It reads neither logs nor clocks. What it changes it collects in `Saved`, for the joiner to commit and publish. The
order in which records of different decisions come never matters; for one decision they are judged in log order.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from optimizer.maths.attribution import Attributed, attribute, retention_ms
from optimizer.stream.admission import Arrived, Refused, check_against, read_decision, read_event
from optimizer.stream.event_time import EventTime
from optimizer.stream.log import MAX_RECORD_BYTES, Append, Record, TopicPartition
from optimizer.stream.state import DecisionBody, Held, Saved, StateStore, Waiting, decision_row
from optimizer.stream.tokens import TokenKeys
from optimizer.types import SCHEMA, Components, Decision, Quarantined, Reason, to_json

PAYLOAD_BYTES: Final = 64 * 1024  # how much of a refused record is kept
DETAIL_CHARS: Final = 500
CACHED_DECISIONS: Final = 20_000  # kept in memory between steps; all others are read from the state when needed


class _OutcomeRecord(Struct, frozen=True):
    """An outcome as written: `types.Outcome` with the decision's own bytes, unknown fields and all."""

    schema: int
    decision_id: str
    revision: int
    state: Literal["open", "closed"]
    as_of: int
    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]
    decision: msgspec.Raw


class OpenDecision:
    """A decision that can still change, in memory."""

    __slots__ = ("closed", "current", "decision", "events", "expires", "id", "partition", "record", "revision")

    def __init__(self, partition: int, decision: Decision, body: DecisionBody, extra_ms: int) -> None:
        self.id = decision.decision_id
        self.partition = partition
        self.decision = decision
        self.record = body.record
        self.revision = body.revision
        self.closed = body.closed
        self.events = {event.event_id: event for event in body.events}
        self.expires = decision.ts + retention_ms(decision.attribution, extra_ms)
        self.current: Attributed | None = attribute(decision, body.events)

    def closes(self, grace_ms: int) -> int | None:
        """When event time passes this, the outcome closes; None where there is none, or it is closed already."""
        if self.current is None or self.closed:
            return None
        return self.current.impression_ts + self.decision.attribution.window_ms() + grace_ms

    def body(self) -> DecisionBody:
        return DecisionBody(self.record, self.revision, self.closed, list(self.events.values()))


class Ledger:
    """The open decisions of one joiner.

    Args:
      store: where decisions and waiting events are looked up; written only through `saved`.
      keys: verify the events' tokens.
      topic_name: a topic's full name, for quarantine records.
      times: event time by partition.
      counts: running totals, as stored.
      rebuilt: an earlier joiner has published to this log; what it said is consulted.
    """

    def __init__(
        self,
        store: StateStore,
        keys: TokenKeys,
        topic_name: Callable[[str], str],
        times: dict[int, EventTime],
        grace_ms: int,
        extra_retention_ms: int,
        rebuilt: bool,
    ) -> None:
        self.saved = Saved()
        self.counts: Counter[str] = Counter(store.counts())
        self.rebuilt = rebuilt
        self._store = store
        self._keys = keys
        self._topic_name = topic_name
        self._times = times
        self._grace_ms = grace_ms
        self._extra_ms = extra_retention_ms
        self._open: OrderedDict[str, OpenDecision] = OrderedDict()
        self._dirty: dict[str, OpenDecision] = {}
        self._new: list[OpenDecision] = []
        self._anyone_waits = store.has_waiting()

    # -- one step -----------------------------------------------------------------------------------------------------

    def load(self, ids: Sequence[str]) -> None:
        """Bring the open decisions among `ids` into memory: once a batch instead of once a record."""
        absent = [i for i in dict.fromkeys(ids) if i not in self._open]
        for _, partition, body in self._store.decisions(absent):
            decision = _DECISION.decode(body.record)
            self._open[decision.decision_id] = OpenDecision(partition, decision, body, self._extra_ms)

    def take_saved(self) -> Saved:
        """What has changed since the last call."""
        saved, self.saved = self.saved, Saved()
        saved.decisions = [decision_row(d.id, d.partition, self._due(d), d.body()) for d in self._dirty.values()]
        saved.counts = dict(self.counts)
        self._dirty.clear()
        return saved

    def forget(self) -> None:
        """Keep the memory bounded: drop the decisions that were used least recently. Call after a commit."""
        while len(self._open) > CACHED_DECISIONS:
            self._open.popitem(last=False)

    # -- records ------------------------------------------------------------------------------------------------------

    def decision(self, record: Record) -> None:
        """A record of the topic `decisions`, which was loaded."""
        if (value := record.value) is None:
            self.counts["tombstones"] += 1
            return
        try:
            decision = read_decision(record, value)
            held = self._use(decision.decision_id)
            if held is not None:
                if not _same_json(held.record, value):
                    raise Refused("conflict", f"decision_id: {held.id!r} stands already, with other content")
                self.counts["duplicate_decisions"] += 1
                return
        except Refused as refused:
            self._quarantine(record, refused)
            return
        body = DecisionBody(value, 0, False, [])
        held = OpenDecision(record.partition, decision, body, self._extra_ms)
        self._open[held.id] = self._dirty[held.id] = held
        self._new.append(held)
        self.counts["decisions"] += 1
        self._times[record.partition].decision(decision.ts)

    def settle(self) -> None:
        """Judge the events that were waiting for the decisions let in since the last call, in log order."""
        new, self._new = self._new, []
        if not new or not self._anyone_waits:
            return
        waited = self._store.waited_for([held.id for held in new])
        for held in new:
            if held.id not in waited:
                continue
            for event in self._store.waiting_for(held.id):
                time = self._times[event.partition]
                self.saved.arrived.append((event.partition, event.offset))
                try:
                    if time.now > event.arrived.expires_ms():
                        raise _orphan(event)
                    self._admit(held, event.arrived, time, late=False)
                except Refused as refused:
                    self._quarantine_waiting(event, refused)
        self._anyone_waits = bool(self.saved.waiting) or self._store.has_waiting()

    def event(self, record: Record) -> None:
        """A record of the topic `events`, whose decision was loaded if there is one."""
        if (value := record.value) is None:
            self.counts["tombstones"] += 1
            return
        try:
            arrived = read_event(record, value, self._keys)
            time = self._times[record.partition]
            late = time.now > arrived.expires_ms()
            if time.held and (reason := self._refused_before(record)) is not None:
                raise Refused(reason, "refused before the state was lost")
            held = self._use(arrived.event.decision_id)
            if held is not None and time.now <= held.expires:
                self._admit(held, arrived, time, late)
            elif late:
                raise _late(arrived, time)
            else:
                kept = value[:PAYLOAD_BYTES]
                self.saved.waiting.append(Waiting(record.partition, record.offset, arrived, len(value), kept))
                self.counts["waited"] += 1
                self._anyone_waits = True
        except Refused as refused:
            self._quarantine(record, refused)

    # -- the passing of event time ------------------------------------------------------------------------------------

    def expire(self, partition: int, limit: int) -> int:
        """Close, let go and orphan what is due in a partition, at most `limit` of each; returns how much that was.
        What was saved before must have been written to the store."""
        time = self._times[partition]
        if time.held:
            return 0
        due = self._store.decisions_due(partition, time.now, limit)
        self.load(due)
        for decision_id in due:
            held = self._open[decision_id]
            self._close_if_due(held, time)
            if self._due(held) < time.now:
                self._let_go(held)
            else:
                self._dirty[held.id] = held
        orphans = self._store.waiting_due(partition, time.now, limit)
        for event in orphans:
            self.saved.arrived.append((event.partition, event.offset))
            self._quarantine_waiting(event, _orphan(event))
        return len(due) + len(orphans)

    def reconcile(self, ids: Sequence[str]) -> None:
        """After a rebuild: publish of these decisions what differs from what the lost state had published."""
        self.load(ids)
        for decision_id in ids:
            held = self._open[decision_id]
            if held.current is not None and held.revision == 0:
                self._revise(held, self._times[held.partition])

    def _due(self, held: OpenDecision) -> int:
        """The next timer of a decision: closing, or being let go. What is open is kept until it has closed."""
        closes = held.closes(self._grace_ms)
        return held.expires if closes is None else closes

    def _close_if_due(self, held: OpenDecision, time: EventTime) -> None:
        closes = held.closes(self._grace_ms)
        if closes is not None and closes < time.now:
            held.closed = True
            self.counts["closed"] += 1
            self._revise(held, time)

    def _let_go(self, held: OpenDecision) -> None:
        kinds = {event.event_id for event in held.events.values()}
        unmatched = {e.retracts for e in held.events.values() if e.type == "retraction"} - kinds
        self.counts["void_retractions"] += len(unmatched)
        self.counts["let_go"] += 1
        if held.current is None:
            self.counts["never_shown"] += 1
            self.counts["never_shown_clicks"] += sum(event.type == "click" for event in held.events.values())
        self.saved.gone.append(held.id)
        del self._open[held.id]
        self._dirty.pop(held.id, None)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _use(self, decision_id: str) -> OpenDecision | None:
        held = self._open.get(decision_id)
        if held is not None:
            self._open.move_to_end(decision_id)
        return held

    def _admit(self, held: OpenDecision, arrived: Arrived, time: EventTime, late: bool) -> None:
        """The checks that need the decision, then what the event changes. Raises Refused."""
        check_against(held.decision, arrived, self._extra_ms)
        if late:
            raise _late(arrived, time)
        event = arrived.event
        value = 0.0 if event.type == "conversion" and event.value is None else event.value
        new = Held(event.event_id, event.type, event.ts, value, event.retracts, event.ts_defaulted)
        first = held.events.get(new.event_id)
        if first is not None:
            if not _copy(first, new):
                raise Refused("conflict", f"event_id: {new.event_id!r} stands already, with other content")
            self.counts["duplicates"] += 1
            return
        time.event(arrived.received_ts)
        # What was due before this event came happens before it, whether or not the timers have run yet.
        self._close_if_due(held, time)
        self.counts["events"] += 1
        self.counts["void_retractions"] += _void(held, new)
        held.events[new.event_id] = new
        self._dirty[held.id] = held
        current = attribute(held.decision, held.events.values())
        if current != held.current:
            held.current = current
            self._revise(held, time)

    def _revise(self, held: OpenDecision, time: EventTime) -> None:
        """Fix the next revision, unless the state is being rebuilt or the same is published already."""
        self._dirty[held.id] = held
        current = held.current
        if time.held or current is None:
            return
        first = held.revision == 0
        if first:
            before = self._store.published(held.id) if self.rebuilt else None
            if before is not None:
                held.revision = before.revision
                if before.closed and not held.closed:
                    held.closed = True
                    self.counts["closed"] += 1
                if before.content == current and before.closed == held.closed:
                    self.counts["outcomes"] += 1
                    return
        outcome = _OutcomeRecord(
            SCHEMA,
            held.id,
            held.revision + 1,
            "closed" if held.closed else "open",
            time.now,
            current.impression_ts,
            current.click_ts,
            current.components,
            current.reward,
            current.events,
            msgspec.Raw(held.record),
        )
        value = to_json(outcome)
        if len(value) > MAX_RECORD_BYTES:
            # Tens of thousands of events on one decision: the log can't hold it, and one decision must not stop all.
            self.counts["unpublishable"] += 1
            return
        self.counts["outcomes"] += first
        self.counts["revisions"] += 1
        held.revision += 1
        self.saved.outbox.append(Append("outcomes", held.id, value))

    def _refused_before(self, record: Record) -> Reason | None:
        """late or orphan, where the lost state had found so: what depends on event time is not judged again."""
        match self._store.refused(TopicPartition(record.topic, record.partition), record.offset):
            case "late":
                return "late"
            case "orphan":
                return "orphan"
            case _:
                return None

    def _quarantine(self, record: Record, refused: Refused) -> None:
        value = record.value or b""
        self._refuse(record.topic, record.partition, record.offset, refused, len(value), value[:PAYLOAD_BYTES])

    def _quarantine_waiting(self, event: Waiting, refused: Refused) -> None:
        self._refuse("events", event.partition, event.offset, refused, event.size, event.payload)

    def _refuse(self, topic: str, partition: int, offset: int, refused: Refused, size: int, payload: bytes) -> None:
        self.counts[f"quarantined.{refused.reason}"] += 1
        if self.rebuilt and self._store.refused(TopicPartition(topic, partition), offset) is not None:
            return
        # Text of the record may stand in the detail: made encodable, and kept short.
        detail = str(refused).encode("utf-8", "replace").decode()[:DETAIL_CHARS]
        encoded = base64.b64encode(payload).decode()
        name = self._topic_name(topic)
        record = Quarantined(name, partition, offset, refused.reason, detail, size, encoded)
        self.saved.outbox.append(Append("quarantine", f"{name}:{partition}:{offset}", to_json(record)))


_DECISION: Final = msgspec.json.Decoder(Decision)


def _late(arrived: Arrived, time: EventTime) -> Refused:
    return Refused("late", f"token: expired at {arrived.claims.exp} s, event time was {time.now} ms when it was read")


def _orphan(event: Waiting) -> Refused:
    expiry = event.arrived.claims.exp
    return Refused(
        "orphan", f"decision_id: no such decision came before event time passed the token's expiry, {expiry} s"
    )


def _copy(first: Held, new: Held) -> bool:
    same_ts = first.ts == new.ts or first.defaulted or new.defaulted
    return same_ts and (first.type, first.value, first.retracts) == (new.type, new.value, new.retracts)


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether two records say the same, whatever the order of their names and their spaces."""
    if one == other:
        return True
    first: Any = json.loads(one)
    return bool(first == json.loads(other))


def _void(held: OpenDecision, new: Held) -> int:
    """How many retractions turn out to change nothing as `new` comes (contracts section 4, rule 1). One whose event
    never comes is counted when the decision is let go."""
    naming = [event.retracts for event in held.events.values() if event.type == "retraction"]
    if new.type == "retraction":
        target = held.events.get(new.retracts or "")
        repeated = new.retracts in naming
        own = repeated or (target is not None and target.type in ("impression", "retraction"))
        return int(own) + int(new.event_id in naming)
    return int(new.type == "impression" and new.event_id in naming)
