"""The contract of an EventLog, as one suite that every implementation passes: subclass `LogContract`, give `open`."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from optimizer.clock import Clock, ManualClock
from optimizer.errors import AdloopError, Fenced, LogTruncated
from optimizer.stream.log import MAX_RECORD_BYTES, TOPICS, Append, EventLog, Record, TopicPartition, whole
from optimizer.stream.partitioner import partition_of

NOW = 1_795_448_713_123


def read(log: EventLog, topic: str) -> list[Record]:
    reader = log.reader(whole(log, topic))
    try:
        found: list[Record] = []
        while records := reader.poll():
            found += records
        return found
    finally:
        reader.close()


def published(log: EventLog, topic: str, count: int) -> list[bytes | None]:
    """What a topic holds, once there are `count` records: what was committed may take a moment until it can be read."""
    deadline = time.monotonic() + 30
    while len(found := read(log, topic)) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return [record.value for record in found]


class LogContract(ABC):
    """What the rest of Adloop relies on."""

    @abstractmethod
    def open(self, partitions: int, clock: Clock) -> EventLog:
        """The log of this test; a second call opens the same one again, as another process would."""

    @pytest.fixture
    def log(self) -> Iterator[EventLog]:
        log = self.open(3, ManualClock(NOW))
        yield log
        log.close()

    def test_what_is_appended_is_read_back_in_order(self, log: EventLog) -> None:
        wrote = [Append("events", f"key-{i}", f"value-{i}".encode()) for i in range(50)]
        places = log.append(wrote)
        found = {(r.partition, r.offset): r for r in read(log, "events")}
        assert len(found) == len(set(places)) == 50
        for append, place in zip(wrote, places, strict=True):
            record = found[place]
            assert (record.topic, record.key, record.value) == ("events", append.key.encode(), append.value)
        for p in range(3):
            mine = [place for place in places if place[0] == p]
            assert mine == sorted(mine), "offsets follow the order of the call"

    def test_partitions_are_those_of_kafkas_default_partitioner(self, log: EventLog) -> None:
        keys = [f"decision-{i}" for i in range(40)]
        places = log.append([Append("decisions", key, b"{}") for key in keys])
        assert [partition for partition, _ in places] == [partition_of(key.encode(), 3) for key in keys]

    def test_decisions_events_and_outcomes_are_partitioned_alike_and_the_others_not(self, log: EventLog) -> None:
        counts = {topic: log.partitions(topic) for topic in TOPICS}
        assert {counts[topic] for topic in ("decisions", "events", "outcomes")} == {3}
        assert {counts[topic] for topic in set(TOPICS) - {"decisions", "events", "outcomes"}} == {1}

    def test_a_tombstone_is_read_as_none(self, log: EventLog) -> None:
        log.append([Append("campaigns", "default/c1", None)])
        assert [(r.key, r.value) for r in read(log, "campaigns")] == [(b"default/c1", None)]

    def test_any_bytes_and_any_key_survive(self, log: EventLog) -> None:
        value = bytes(range(256)) * 10
        log.append([Append("events", "ключ-鍵", value), Append("events", "", b"")])
        assert {(r.key, r.value) for r in read(log, "events")} == {("ключ-鍵".encode(), value), (b"", b"")}

    def test_the_logs_own_timestamp_comes_from_the_clock(self, log: EventLog) -> None:
        log.append([Append("policies", "v1", b"{}")])
        assert read(log, "policies")[0].ts == NOW

    def test_start_and_end_tell_what_can_be_read(self, log: EventLog) -> None:
        at = TopicPartition("policies", 0)
        assert log.start(at) == log.end(at) == 0
        log.append([Append("policies", "v", b"1"), Append("policies", "v", b"2")])
        assert (log.start(at), log.end(at)) == (0, 2)

    def test_a_reader_goes_on_where_its_position_says(self, log: EventLog) -> None:
        at = TopicPartition("policies", 0)
        log.append([Append("policies", "v", bytes([i])) for i in range(10)])
        reader = log.reader({at: 4})
        first = reader.poll(max_records=3)
        assert [r.value for r in first] == [b"\x04", b"\x05", b"\x06"]
        assert reader.position(at) == 7
        assert not reader.at_end()
        assert [r.value for r in reader.poll()] == [b"\x07", b"\x08", b"\x09"]
        assert reader.at_end()
        assert reader.poll() == []
        reader.close()

    def test_a_poll_shares_its_limit_among_partitions(self, log: EventLog) -> None:
        log.append([Append("events", f"k{i}", b"x") for i in range(300)])
        reader = log.reader(whole(log, "events"))
        polled = reader.poll(max_records=30)
        assert len(polled) == 30
        assert {r.partition for r in polled} == {0, 1, 2}
        reader.close()

    def test_no_partition_starves_under_a_small_limit(self, log: EventLog) -> None:
        log.append([Append("events", f"k{i}", b"x") for i in range(300)])
        reader = log.reader(whole(log, "events"))
        assert {r.partition for _ in range(6) for r in reader.poll(max_records=1)} == {0, 1, 2}
        reader.close()

    def test_one_readers_pace_does_not_touch_another(self, log: EventLog) -> None:
        log.append([Append("policies", "v", b"1")])
        one, other = (log.reader(whole(log, "policies")) for _ in range(2))
        assert len(one.poll()) == 1
        assert len(other.poll()) == 1
        one.close()
        other.close()

    def test_all_or_none(self, log: EventLog) -> None:
        told = f"record: got {MAX_RECORD_BYTES + 1} bytes for topic events, expected at most {MAX_RECORD_BYTES}; make"
        with pytest.raises(AdloopError, match=told):
            log.append([Append("events", "a", b"fine"), Append("events", "b", b"x" * (MAX_RECORD_BYTES + 1))])
        with pytest.raises(AdloopError, match="topic: got 'nonsense', expected one of campaigns, candidates"):
            log.append([Append("events", "a", b"fine"), Append("nonsense", "b", b"x")])
        assert read(log, "events") == []

    def test_the_largest_record_fits(self, log: EventLog) -> None:
        log.append([Append("candidates", "p", b"x" * MAX_RECORD_BYTES)])
        assert len(read(log, "candidates")[0].value or b"") == MAX_RECORD_BYTES

    def test_nothing_appended_is_nothing_written(self, log: EventLog) -> None:
        assert log.append([]) == []
        assert read(log, "events") == []

    def test_a_position_beyond_the_end_is_refused_not_reset(self, log: EventLog) -> None:
        with pytest.raises(LogTruncated, match=r"events\[1\]: position 5 is not in the log, which holds 0 to 0"):
            log.reader({TopicPartition("events", 1): 5}).poll()

    def test_a_partition_that_is_not_there_is_refused(self, log: EventLog) -> None:
        with pytest.raises(AdloopError, match="partition: got 3 of events, expected 0 to 2; read only partitions"):
            log.end(TopicPartition("events", 3))

    def test_many_threads_append_at_once(self, log: EventLog) -> None:
        places: list[tuple[int, int]] = []

        def work(name: int) -> None:
            for i in range(25):
                places.extend(log.append([Append("events", f"{name}-{i}-{part}", b"x") for part in range(2)]))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(places) == len(set(places)) == 400
        assert {(r.partition, r.offset) for r in read(log, "events")} == set(places)

    def test_a_waiting_reader_wakes_up_for_an_append(self, log: EventLog) -> None:
        reader = log.reader(whole(log, "events"))
        timer = threading.Timer(0.1, lambda: log.append([Append("events", "k", b"x")]))
        timer.start()
        started = time.monotonic()
        assert [r.value for r in reader.poll(timeout_s=120)] == [b"x"]
        assert time.monotonic() - started < 60
        timer.join()
        reader.close()

    def test_who_waits_for_an_append_wakes_up_for_one(self, log: EventLog) -> None:
        seen = log.appends()
        began = time.monotonic()
        log.wait_for_append(seen, 0.05)
        assert time.monotonic() - began >= 0.05
        assert log.appends() == seen
        waker = threading.Timer(0.1, log.append, ([Append("events", "k", b"v")],))
        waker.start()
        log.wait_for_append(seen, 60.0)
        waker.join(60)
        assert log.appends() != seen
        seen = log.appends()
        log.publisher(0).append([Append("outcomes", "k", b"v")])
        assert log.appends() != seen, "what is published counts too"

    def test_a_waiting_reader_gives_up_in_time(self, log: EventLog) -> None:
        reader = log.reader(whole(log, "events"))
        started = time.monotonic()
        assert reader.poll(timeout_s=0.05) == []
        assert 0.04 < time.monotonic() - started < 60
        reader.close()

    def test_what_was_appended_is_there_after_opening_again(self, log: EventLog) -> None:
        places = log.append([Append("decisions", f"k{i}", b"x") for i in range(7)])
        again = self.open(3, ManualClock(NOW))
        assert {(r.partition, r.offset) for r in read(again, "decisions")} == set(places)
        assert again.log_id() == log.log_id()
        more = again.append([Append("decisions", "k0", b"y")])
        assert more[0][1] == max(offset for partition, offset in places if partition == more[0][0]) + 1
        assert (b"k0", b"y") in {(r.key, r.value) for r in read(log, "decisions")}
        again.close()

    def test_a_reader_knows_how_far_its_partitions_go(self, log: EventLog) -> None:
        at = TopicPartition("policies", 0)
        log.append([Append("policies", "v", bytes([i])) for i in range(10)])
        reader = log.reader({at: 0})
        first = reader.poll(max_records=3)
        assert len(first) <= reader.end(at) <= 10
        while not reader.at_end():
            reader.poll()
        assert reader.position(at) == reader.end(at) == 10
        reader.close()

    def test_who_takes_a_partition_over_fences_all_who_had_it(self, log: EventLog) -> None:
        mine = next(key for key in (f"k{i}" for i in range(100)) if partition_of(key.encode(), 3) == 1)
        other = self.open(3, ManualClock(NOW))
        first, neighbour = log.publisher(1), log.publisher(2)
        assert first.append([Append("outcomes", mine, b"1"), Append("quarantine", "q", b"2")]) == {
            "outcomes": 1,
            "quarantine": 1,
        }
        second = other.publisher(1)
        with pytest.raises(Fenced, match=r"outcomes\[1\]: another joiner has taken this partition over"):
            first.append([Append("outcomes", mine, b"too late")])
        with pytest.raises(Fenced):
            first.append([Append("outcomes", mine, b"too late again")])
        second.append([Append("outcomes", mine, b"3")])
        neighbour.append([Append("quarantine", "q", b"4")])
        assert published(log, "outcomes", 2) == [b"1", b"3"]
        assert published(log, "quarantine", 2) == [b"2", b"4"]
        for publisher in (first, neighbour, second):
            publisher.close()
        other.close()

    def test_a_publishers_append_is_all_or_none(self, log: EventLog) -> None:
        publisher = log.publisher(0)
        with pytest.raises(AdloopError, match="bytes"):
            publisher.append([Append("quarantine", "a", b"fine"), Append("quarantine", "b", b"x" * 2**22)])
        assert read(log, "quarantine") == []
        assert publisher.append([]) == {}
        publisher.append([Append("quarantine", "a", b"it goes on")])
        assert published(log, "quarantine", 1) == [b"it goes on"]
        publisher.close()

    def test_what_a_publisher_begins_can_be_read_once_it_commits(self, log: EventLog) -> None:
        publisher = log.publisher(0)
        publisher.begin([Append("quarantine", "a", b"1"), Append("quarantine", "b", b"2")])
        publisher.flush()
        assert read(log, "quarantine") == []
        end = publisher.commit()["quarantine"]
        assert published(log, "quarantine", 2) == [b"1", b"2"]
        assert all(record.offset < end for record in read(log, "quarantine"))
        assert publisher.commit() == {}, "nothing was begun"
        publisher.begin([Append("quarantine", "c", b"never committed")])
        publisher.flush()
        successor = log.publisher(0)
        with pytest.raises(Fenced):
            publisher.commit()
        successor.append([Append("quarantine", "d", b"3")])
        assert published(log, "quarantine", 3) == [b"1", b"2", b"3"]
        publisher.close()
        successor.close()

    def test_a_topics_full_name_ends_in_its_name(self, log: EventLog) -> None:
        assert all(log.topic_name(topic).endswith(topic) for topic in TOPICS)
