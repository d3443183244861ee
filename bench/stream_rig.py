"""Records and an in-memory log for the measurements of the joiner: everything but the broker.

One click in ten impressions, four partitions, every token real. An event's bytes are mostly its token (about 250).
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from optimizer.maths.attribution import expiry_s
from optimizer.stream.log import Append, Record, TopicPartition
from optimizer.stream.partitioner import partition_of
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Attribution, Decision, Event, RewardWeights, to_json

T0 = 1_795_448_713_000
KEYS = TokenKeys({"bench": b"0123456789abcdef0123456789abcdef"})
RULE = Attribution(click_window_ms=1_800_000, conversion_window_ms=604_800_000)
PER_CLICK = 10  # impressions


def decision(decision_id: str, ts: int) -> Decision:
    """A decision as serving makes it, over a small pool."""
    return Decision(
        decision_id=decision_id,
        request_id="r",
        position=0,
        tenant="default",
        campaign_id="c1",
        context={"segment": "all"},
        pool_id="p1",
        candidate=1,
        variant_id="v1",
        propensity=0.137,
        probabilities=[0.863, 0.137],
        source="pool",
        policy_version="pv1",
        critic_version="cv1",
        ts=ts,
        reward=RewardWeights(click=1.0),
        attribution=RULE,
    )


def traffic(count: int, seed: int = 1, first_ts: int = T0, interval_ms: int = 1) -> Iterator[Append]:
    """`count` decisions with random ids, each with its impression and every tenth with a click, in the order in which
    they would be appended."""
    rng = random.Random(seed)
    for i in range(count):
        made = decision(uuid.UUID(int=rng.getrandbits(128)).hex, first_ts + i * interval_ms)
        yield Append("decisions", made.decision_id, to_json(made))
        token = KEYS.sign(made, expiry_s(made.ts, made.attribution))
        yield _event(made, "impression", token, 50)
        if i % PER_CLICK == 0:
            yield _event(made, "click", token, 900)


def _event(made: Decision, kind: str, token: str, after_ms: int) -> Append:
    event = Event(
        event_id=f"{made.decision_id[:8]}-{kind[0]}",
        type=kind,  # type: ignore[arg-type]
        decision_id=made.decision_id,
        token=token,
        ts=made.ts + after_ms,
        schema=1,
        received_ts=made.ts + after_ms + 5,
    )
    return Append("events", made.decision_id, msgspec.json.encode(event))


class MemoryLog:
    """An EventLog whose decisions and events are lists, and which counts what is published and throws it away."""

    def __init__(self, partitions: int) -> None:
        self.records: dict[TopicPartition, list[Record]] = {}
        self.published = 0
        self.published_bytes = 0
        self._partitions = partitions
        self._ends: dict[TopicPartition, int] = {}

    def log_id(self) -> str:
        return "memory"

    def topic_name(self, topic: str) -> str:
        return topic

    def partitions(self, topic: str) -> int:
        return self._partitions if topic in ("decisions", "events", "outcomes") else 1

    def append(self, records: Sequence[Append]) -> list[tuple[int, int]]:
        places = []
        for topic, key, value in records:
            at = TopicPartition(topic, partition_of(key.encode(), self.partitions(topic)))
            offset = self._ends.get(at, 0)
            self._ends[at] = offset + 1
            if topic in ("decisions", "events"):
                self.records.setdefault(at, []).append(Record(*at, offset, key.encode(), value, T0))
            places.append((at.partition, offset))
        return places

    def start(self, at: TopicPartition) -> int:
        return self._ends.get(at, 0) - len(self.records.get(at, ()))

    def end(self, at: TopicPartition) -> int:
        return self._ends.get(at, 0)

    def settle(self, topic: str) -> None:
        """Nothing to wait for."""

    def forget(self) -> None:
        """Drop the records that were read, so that a long run does not fill the memory with its own input."""
        for records in self.records.values():
            records.clear()

    def reader(self, positions: Mapping[TopicPartition, int]) -> MemoryReader:
        return MemoryReader(self, dict(positions))

    def appends(self) -> int:
        """Nobody waits for them here."""
        return self.published

    def wait_for_append(self, seen: int, timeout_s: float) -> None:
        """As `appends`."""

    def publisher(self, partition: int) -> MemoryPublisher:
        return MemoryPublisher(self)

    def close(self) -> None:
        """Nothing is open."""


class MemoryReader:
    """Slices of the lists: as much of each partition as was appended together, as the Kafka log deals it."""

    def __init__(self, log: MemoryLog, positions: dict[TopicPartition, int]) -> None:
        self._log = log
        self._positions = positions

    def poll(self, max_records: int = 1000, timeout_s: float = 0.0) -> list[Record]:
        found: list[Record] = []
        left = sum(self._log.end(at) - position for at, position in self._positions.items())
        part = min(1.0, max_records / left) if left else 0.0
        for at, position in self._positions.items():
            first = position - self._log.start(at)
            share = math.ceil((self._log.end(at) - position) * part)
            new = self._log.records.get(at, [])[first : first + share]
            self._positions[at] = position + len(new)
            found += new
        return found

    def position(self, at: TopicPartition) -> int:
        return self._positions[at]

    def end(self, at: TopicPartition) -> int:
        return self._log.end(at)

    def at_end(self) -> bool:
        return all(position >= self._log.end(at) for at, position in self._positions.items())

    def close(self) -> None:
        """Nothing is open."""


class MemoryPublisher:
    """Counts what is published."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._end = 0

    @property
    def doubtful(self) -> bool:
        """Never: there is no connection."""
        return False

    def begin(self, records: Sequence[Append]) -> None:
        self._log.published += len(records)
        self._log.published_bytes += sum(len(record.value or b"") for record in records)
        self._end += len(records)

    def flush(self) -> None:
        """Nothing is on its way."""

    def commit(self) -> dict[str, int]:
        return {"outcomes": self._end}

    def append(self, records: Sequence[Append]) -> dict[str, int]:
        self.begin(records)
        return self.commit()

    def close(self) -> None:
        """Nothing is held."""
