"""A reader whose consumer gets stuck, as librdkafka's can after a broker's restart; the rest is in tests/contracts."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

import pytest

from optimizer.stream import kafka_reader
from optimizer.stream.kafka_reader import FILL_RECORDS, KafkaReader
from optimizer.stream.log import Record, TopicPartition

BUSY, STUCK = TopicPartition("events", 0), TopicPartition("events", 1)


class Log:
    """Partitions of so many records each, of which consumers bring up to `speed` each at once."""

    def __init__(self, ends: Mapping[TopicPartition, int], speed: int) -> None:
        self.sizes = dict(ends)
        self.speed = speed
        self.consumers: list[Consumer] = []
        self.stuck: set[TopicPartition] = set()
        self.unanswered = False

    def starts(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def ends(self, places: Collection[TopicPartition], patience_s: float | None = None) -> dict[TopicPartition, int]:
        if patience_s is not None and self.unanswered:
            raise OSError("no leader")
        return {at: self.sizes[at] for at in places}

    def consume(self, positions: Mapping[TopicPartition, int]) -> Consumer:
        self.consumers.append(Consumer(self, positions))
        return self.consumers[-1]

    def reader(self) -> KafkaReader:
        return KafkaReader(self.consume, self, dict.fromkeys(self.sizes, 0), self.sizes, 1.0)


class Consumer:
    """The first one made brings nothing of what is stuck."""

    def __init__(self, log: Log, positions: Mapping[TopicPartition, int]) -> None:
        self.began = dict(positions)
        self.closed = False
        self._log = log
        self._positions = dict(positions)

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        found: dict[TopicPartition, list[Record]] = {}
        left = max_records
        for at, first in self._positions.items():
            if at in self._log.stuck and self._log.consumers[0] is self:
                continue
            last = min(self._log.sizes[at], first + min(left, self._log.speed))
            if last > first:
                found[at] = [Record(*at, offset, b"k", b"v", 0) for offset in range(first, last)]
                self._positions[at] = last
                left -= last - first
        return found

    def position(self, at: TopicPartition) -> int:
        return self._positions[at]

    def known_end(self, at: TopicPartition) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _at_every_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_reader, "STUCK_S", 0.0)


def offsets(reader: KafkaReader, at: TopicPartition, most: int = 1_000) -> Iterator[int]:
    while records := reader.poll(most):
        yield from (record.offset for record in records if record[:2] == at)


@pytest.mark.parametrize("others", [0, 1, 500])
def test_a_consumer_that_is_stuck_with_a_partition_is_replaced_and_nothing_is_lost_or_doubled(others: int) -> None:
    log = Log({BUSY: others, STUCK: 7}, speed=10)
    log.stuck = {STUCK}
    assert list(offsets(log.reader(), STUCK)) == list(range(7))
    first, second = log.consumers
    assert first.closed
    assert not second.closed
    assert second.began[STUCK] == 0
    log = Log({BUSY: others, STUCK: 7}, speed=10)
    log.stuck = {STUCK}
    assert list(offsets(log.reader(), BUSY)) == list(range(others))


def test_it_is_replaced_while_others_go_on() -> None:
    log = Log({BUSY: 500, STUCK: 7}, speed=10)
    log.stuck = {STUCK}
    reader = log.reader()
    read = [record for _ in range(20) for record in reader.poll(10)]
    assert reader.position(STUCK) == 7
    assert 0 < reader.position(BUSY) < 500
    assert [record.offset for record in read if record[:2] == STUCK] == list(range(7))


def test_one_that_is_only_busy_is_kept() -> None:
    """As long as it always has more to give, what it brings nothing of yet waits behind that."""
    log = Log({BUSY: 5 * FILL_RECORDS, STUCK: 7}, speed=10 * FILL_RECORDS)
    reader = log.reader()
    assert list(offsets(reader, STUCK, FILL_RECORDS)) == list(range(7))
    assert len(log.consumers) == 1


def test_one_that_brings_a_little_at_a_time_is_kept() -> None:
    log = Log({BUSY: 0, STUCK: 50}, speed=1)
    assert list(offsets(log.reader(), STUCK)) == list(range(50))
    assert len(log.consumers) == 1


def test_it_is_given_more_time_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(kafka_reader, "STUCK_S", 5.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log({BUSY: 10_000, STUCK: 7}, speed=1)
    monkeypatch.setattr(Consumer, "poll", _only_busy)
    reader = log.reader()
    made: list[int] = []
    for second in range(100):
        now[0] = float(second)
        reader.poll(1)
        made += [second] * (len(log.consumers) - 1 - len(made))
    assert made == [10, 20, 40, 70]


def _only_busy(consumer: Consumer, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
    offset = consumer._positions[BUSY]
    consumer._positions[BUSY] += 1
    return {BUSY: [Record(*BUSY, offset, b"k", b"v", 0)]}


def test_others_go_on_where_nobody_tells_a_partitions_end() -> None:
    log = Log({BUSY: 500, STUCK: 7}, speed=10)
    log.stuck, log.unanswered = {STUCK}, True
    reader = log.reader()
    read = [record for _ in range(20) for record in reader.poll(10)]
    assert [record.offset for record in read] == list(range(200))
