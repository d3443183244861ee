"""The joiner's state machine: what one record, or the passing of event time, does to the open decisions of a partition.

It reads neither logs nor clocks. What it changes it collects in `Saved`, for the joiner to commit and publish. The
order in which records of different decisions come never matters; for one decision they are judged in log order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from optimizer.maths.attribution import Attributed, attribute
from optimizer.stream.admission import Arrived, Refused, check_against, read_decision, read_event
from optimizer.stream.event_time import EventTime
from optimizer.stream.log import MAX_RECORD_BYTES, Append, Record
from optimizer.stream.open_decision import OpenDecision
from optimizer.stream.quarantine import quarantined
from optimizer.stream.state import DecisionBody, Held, Published, Saved, StateStore, Waiting, hash_of
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Decision, Reason

PAYLOAD_BYTES: Final = 64 * 1024  # how much of a refused record is kept
CACHED_DECISIONS: Final = 8_000  # of a partition, kept in memory between steps; all others are read from the state


class Ledger:
    """The open decisions of one partition.

    Args:
      store: where decisions and waiting events are looked up; written only through `saved`.
      keys: verify the events' tokens.
      sources: the full names of the topics `decisions` and `events`, for quarantine records.
      time: the partition's event time.
      catching_up: something is known of what other joiners published or refused; it is consulted.
    """

    def __init__(
        self,
        partition: int,
        store: StateStore,
        keys: TokenKeys,
        sources: Mapping[str, str],
        time: EventTime,
        grace_ms: int,
        extra_retention_ms: int,
        catching_up: bool,
    ) -> None:
        self.saved = Saved()
        self.counts: Counter[str] = Counter(store.counts())
        self.catching_up = catching_up
        self.revised: list[int] = []  # received_ts of the events that made a revision, since it was last emptied
        self._store = store
        self._keys = keys
        self._partition = partition
        self._sources = sources
        self._time = time
        self._grace_ms = grace_ms
        self._extra_ms = extra_retention_ms
        self._open: OrderedDict[bytes, OpenDecision] = OrderedDict()
        self._dirty: dict[int, OpenDecision] = {}
        self._new: list[OpenDecision] = []
        self._next_seq = store.next_seq()
        self._knows_refused = store.has_refused()

    # -- one step -----------------------------------------------------------------------------------------------------

    def load(self, keys: Iterable[bytes]) -> None:
        """Bring the open decisions with these keys into memory: once a batch instead of once a record."""
        absent = {hash_of(key) for key in keys if key not in self._open}
        for seq, hash_, body in self._store.decisions(list(absent)):
            decision = _DECISION.decode(body.record)
            key = decision.decision_id.encode()
            if key not in self._open:
                self._open[key] = OpenDecision(seq, hash_, decision, body, self._extra_ms, stored=True)

    def take_saved(self) -> Saved:
        """What has changed since the last call."""
        saved, self.saved = self.saved, Saved()
        for held in self._dirty.values():
            (saved.changed if held.stored else saved.created).append(held.row(self._grace_ms))
            held.stored = True
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
            key = record.key or b""
            held = self._open.get(key)
            if held is not None:
                if not _same_json(held.record, value):
                    raise Refused("conflict", f"decision_id: {decision.decision_id!r} stands already, otherwise")
                self.counts["duplicate_decisions"] += 1
                return
        except Refused as refused:
            self._quarantine(record, refused)
            return
        hash_ = hash_of(key)
        held = OpenDecision(self._next_seq, hash_, decision, DecisionBody(value, 0, False, []), self._extra_ms, False)
        self._next_seq += 1
        self._open[key] = self._dirty[held.seq] = held
        if self._store.may_be_waited_for(hash_):
            self._new.append(held)
        self.counts["decisions"] += 1
        self._time.decision(decision.ts)

    def settle(self) -> None:
        """Judge the events that were waiting for the decisions let in since the last call, in log order."""
        new, self._new = self._new, []
        for held in new:
            if self._time.now > held.expires:
                continue  # its state is to be let go: whoever waits for it becomes an orphan
            for event in self._store.waiting_for(held.decision.decision_id):
                self.saved.arrived.append(event.offset)
                try:
                    if self._time.now > event.arrived.expires_ms():
                        raise _orphan(event)
                    self._check_refused("events", event.offset)
                    self._admit(held, event.arrived, late=False)
                except Refused as refused:
                    self._refuse("events", event.offset, refused, event.size, event.payload)

    def event(self, record: Record) -> None:
        """A record of the topic `events`, whose decision was loaded if there is one."""
        if (value := record.value) is None:
            self.counts["tombstones"] += 1
            return
        key = record.key or b""
        held = self._open.get(key)
        try:
            arrived = read_event(record, value, self._keys, None if held is None else held.verified)
            now = self._time.now
            late = now > arrived.expires_ms()
            self._check_refused("events", record.offset)
            if held is not None and now <= held.expires:
                self._open.move_to_end(key)
                self._admit(held, arrived, late)
            elif late:
                raise self._late(arrived)
            else:
                self.saved.waiting.append(Waiting(record.offset, arrived, len(value), value[:PAYLOAD_BYTES]))
                self.counts["waited"] += 1
        except Refused as refused:
            self._quarantine(record, refused)

    # -- the passing of event time ------------------------------------------------------------------------------------

    def expire(self, limit: int) -> int:
        """Close, let go and orphan what is due, at most `limit` of each; returns how much that was. What was saved
        before must have been written to the store."""
        now = self._time.now
        if self._time.held:
            return 0
        due = self._store.decisions_due(now, limit)
        for seq, body in due:
            decision = _DECISION.decode(body.record)
            key = decision.decision_id.encode()
            held = self._open.get(key)
            if held is None:
                held = OpenDecision(seq, hash_of(key), decision, body, self._extra_ms, stored=True)
            if self.catching_up and not held.settled:
                # What others said of it comes first. Where they said nothing, or that was gone through, the log has
                # what the state has.
                if self._store.published(decision.decision_id) is None:
                    held.settled = True
                else:
                    self._revise(held, held.current, held.closed)
            self._close_if_due(held)
            if held.due(self._grace_ms) < now:
                self._let_go(held)
            else:
                self._dirty[held.seq] = held
        orphans = self._store.waiting_due(now, limit)
        for event in orphans:
            self.saved.arrived.append(event.offset)
            self._refuse("events", event.offset, _orphan(event), event.size, event.payload)
        return len(due) + len(orphans)

    def reconcile(self, ids: Sequence[str]) -> None:
        """After a catch-up: publish of these decisions what differs from what stands last in the log."""
        self.load([decision_id.encode() for decision_id in ids])
        for decision_id in ids:
            held = self._open.get(decision_id.encode())
            if held is None:
                self.saved.settled.append(decision_id)
            elif not held.settled:
                self._revise(held, held.current, held.closed)

    def _close_if_due(self, held: OpenDecision) -> None:
        closes = held.closes(self._grace_ms)
        if closes is not None and closes < self._time.now:
            held.closed = True
            self.counts["closed"] += 1
            self._revise(held, held.current, False)

    def _let_go(self, held: OpenDecision) -> None:
        kinds = {event.event_id for event in held.events.values()}
        unmatched = {e.retracts for e in held.events.values() if e.type == "retraction"} - kinds
        self.counts["void_retractions"] += len(unmatched)
        self.counts["let_go"] += 1
        if held.current is None:
            self.counts["never_shown"] += 1
            self.counts["never_shown_clicks"] += sum(event.type == "click" for event in held.events.values())
        self.saved.gone.append((held.hash, held.seq))
        self._open.pop(held.decision.decision_id.encode(), None)
        self._dirty.pop(held.seq, None)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _admit(self, held: OpenDecision, arrived: Arrived, late: bool) -> None:
        """The checks that need the decision, then what the event changes. Raises Refused."""
        check_against(held.decision, arrived, held.expires)
        event = arrived.event
        held.verified = event.token, arrived.claims
        if late:
            raise self._late(arrived)
        value = 0.0 if event.value is None and event.type == "conversion" else event.value
        new = Held(event.event_id, event.type, event.ts, value, event.retracts, event.ts_defaulted)
        first = held.events.get(new.event_id)
        if first is not None:
            if not _copy(first, new):
                raise Refused("conflict", f"event_id: {new.event_id!r} stands already, with other content")
            self.counts["duplicates"] += 1
            return
        self._time.event(arrived.received_ts)
        if held.current is not None and not held.closed:
            # What was due before this event came happens before it, whether or not the timers have run yet.
            self._close_if_due(held)
        self.counts["events"] += 1
        if held.events:
            self.counts["void_retractions"] += _void(held, new)
        elif new.retracts == new.event_id:
            self.counts["void_retractions"] += new.type == "retraction"
        held.events[new.event_id] = new
        self._dirty[held.seq] = held
        current = attribute(held.decision, held.events.values())
        if current != held.current:
            before, held.current = held.current, current
            if self._revise(held, before, held.closed):
                self.revised.append(arrived.received_ts)

    def _revise(self, held: OpenDecision, before: Attributed | None, closed_before: bool) -> bool:
        """Fix the next revision; False where there is none: the partition is catching up, or the same stands in the
        log. `before` and `closed_before` say what the last revision is about."""
        self._dirty[held.seq] = held
        if self._time.held:
            if not held.noted:
                held.noted = True
                content = before if held.revision else None
                self.saved.noted.append((held.decision.decision_id, Published(held.revision, closed_before, content)))
            return False
        if self.catching_up and not held.settled and self._settle_published(held):
            return False
        current = held.current
        if current is None:
            return False
        value = held.outcome(current, self._time.now)
        if len(value) > MAX_RECORD_BYTES:
            # Tens of thousands of events on one decision: the log can't hold it, and one decision must not stop all.
            self.counts["unpublishable"] += 1
            return False
        self.counts["outcomes"] += held.revision == 0
        self.counts["revisions"] += 1
        held.revision += 1
        self.saved.outbox.append(Append("outcomes", held.decision.decision_id, value))
        return True

    def _settle_published(self, held: OpenDecision) -> bool:
        """Go on from what stands last in the log about a decision; True where that says all there is to say."""
        held.settled = True
        last = self._store.published(held.decision.decision_id)
        if last is None:
            return False
        self.saved.settled.append(held.decision.decision_id)
        self.counts["outcomes"] += held.revision == 0 and last.revision > 0
        held.revision = last.revision
        if last.closed and not held.closed:
            held.closed = True
            self.counts["closed"] += 1
        return held.current is None or (last.content == held.current and last.closed == held.closed)

    def _check_refused(self, topic: str, offset: int) -> None:
        """While catching up, late and orphan stay so where another joiner had found so: what depends on event time is
        not judged again."""
        if not (self._knows_refused and self._time.held):
            return
        reason: Reason
        for reason in ("late", "orphan"):
            if self._store.refused(topic, offset) == reason:
                raise Refused(reason, "another joiner had refused it")

    def _quarantine(self, record: Record, refused: Refused) -> None:
        value = record.value or b""
        self._refuse(record.topic, record.offset, refused, len(value), value[:PAYLOAD_BYTES])

    def _refuse(self, topic: str, offset: int, refused: Refused, size: int, payload: bytes) -> None:
        self.counts[f"quarantined.{refused.reason}"] += 1
        if self._knows_refused and self._store.refused(topic, offset) is not None:
            return
        name = self._sources[topic]
        self.saved.outbox.append(
            quarantined(name, self._partition, offset, refused.reason, str(refused), size, payload)
        )

    def _late(self, arrived: Arrived) -> Refused:
        now = self._time.now
        return Refused("late", f"token: expired at {arrived.claims.exp} s, event time was {now} ms when it was read")


_DECISION: Final = msgspec.json.Decoder(Decision)
_ANY: Final = msgspec.json.Decoder()


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
    try:
        first: Any = _ANY.decode(one)
        return bool(first == _ANY.decode(other))
    except RecursionError:  # nested so deep that it can be read, but not compared
        return False


def _void(held: OpenDecision, new: Held) -> int:
    """How many retractions turn out to change nothing as `new` comes (docs/api.md, rule 1). One whose event
    never comes is counted when the decision is let go."""
    naming = [event.retracts for event in held.events.values() if event.type == "retraction"]
    if new.type == "retraction":
        target = held.events.get(new.retracts or "")
        own = new.retracts in naming or new.retracts == new.event_id
        own = own or (target is not None and target.type in ("impression", "retraction"))
        return int(own) + int(new.event_id in naming)
    return int(new.type == "impression" and new.event_id in naming)
