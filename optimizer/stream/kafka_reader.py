"""Reading a Kafka log: fair shares of what the consumer has fetched, and a sure answer about where the log ends."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Final, Protocol

from optimizer.errors import AdloopError
from optimizer.stream.kafka_client import Consumer, OffsetGone
from optimizer.stream.log import Record, TopicPartition, truncated

FILL_RECORDS: Final = (
    5_000  # polled of the consumer at once, so that there is something of every partition to share out
)
SHARE_RECORDS: Final = 4 * FILL_RECORDS  # how much more is polled so that all partitions have their share
SHARE_S: Final = 0.02  # how long a partition that is behind is waited for, for the sake of its share
NEVER_LESS: Final = 8  # a partition is dealt this part of its fair share at least, whatever its records' times are
ENOUGH: Final = 2  # a deal by times is made up to fair shares where it is less than this part of what was asked for
LOOK_S: Final = 0.1  # how long a poll waits for a fetch at a time, once it knows that there is something to fetch
# A consumer that brings nothing of a partition from one look to the next, though there is something, is stuck. It is
# given twice the time after each that was not faster: where every answer takes seconds, none would ever get anywhere.
STUCK_S: Final = 5.0
MOST_STUCK_S: Final = 30.0
_ts: Final = attrgetter("ts")


class Offsets(Protocol):
    """What a reader asks of its log: a round trip to the brokers each. Raises OSError where none answers."""

    def starts(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]: ...
    def ends(
        self, places: Collection[TopicPartition], patience_s: float | None = None
    ) -> dict[TopicPartition, int]: ...


class KafkaReader:
    """Reads partitions in offset order. Not thread-safe.

    An empty poll means the same as on the embedded log: all that could be read when it was called has been. The client
    library can't say that by itself, so an empty fetch is checked against the partitions' ends. And a consumer can be
    stuck: one of librdkafka 2.16 brought nothing of a partition any more after a broker's restart, in 1 of 12, where a
    new one read on at once. So it is looked after, and replaced.

    Args:
      consume: makes a consumer that begins at the given positions.
      offsets: asked for the partitions' ends.
      positions: where to begin.
      ends: the partitions' ends when it was made.
      timeout_s: how long there may be nothing though there is something.
    """

    def __init__(
        self,
        consume: Callable[[Mapping[TopicPartition, int]], Consumer],
        offsets: Offsets,
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        timeout_s: float,
    ) -> None:
        self._consume = consume
        self._consumer = consume(positions)
        self._offsets = offsets
        self._timeout_s = timeout_s
        self._buffers: dict[TopicPartition, list[Record]] = {at: [] for at in positions}
        self._buffered = 0
        self._order = list(positions)
        self._ends: dict[TopicPartition, int] = dict(ends)
        self._behind: dict[TopicPartition, int] = {}  # at the last look: of which nothing had come, and where it stood
        self._dry = False  # since then, the consumer had no more to give
        self._looked = time.monotonic()
        self._patience_s = STUCK_S

    def poll(self, max_records: int = 1000, timeout_s: float = 0.0) -> list[Record]:
        """The next records of all partitions, those first that were appended first, waiting up to `timeout_s` for one:
        so a decision and its events tend to come together, however much there is to read. Raises LogTruncated where a
        position is gone, OSError where the brokers don't answer."""
        deadline = time.monotonic() + timeout_s
        give_up = deadline + self._timeout_s
        wait_s = timeout_s
        while True:
            if time.monotonic() - self._looked >= self._patience_s:
                self._look_after()
            if self._buffered < max_records:
                self._fill(max_records, 0.0 if self._buffered else wait_s)
            if self._buffered > max_records:
                self._fill_missing(max_records)
            if self._buffered:
                return self._deal(max_records)
            wait_s = deadline - time.monotonic()
            if wait_s > 0:
                continue
            if self.at_end():
                return []
            if time.monotonic() > give_up:
                raise OSError(f"kafka: no records came within {self._timeout_s:.0f} s, though there are some")
            wait_s = LOOK_S

    def position(self, at: TopicPartition) -> int:
        """The offset that the next poll of this partition starts from."""
        buffer = self._buffers[at]
        return buffer[0].offset if buffer else self._consumer.position(at)

    def end(self, at: TopicPartition) -> int:
        """The partition's end as the last fetch, or the last look at the ends, told it."""
        return max(self._ends[at], self._consumer.known_end(at))

    def at_end(self) -> bool:
        """True where, at this moment, every partition has been read to its end."""
        if self._buffered:
            return False
        self._ends |= self._offsets.ends(self._order)
        return all(self._consumer.position(at) >= self._ends[at] for at in self._order)

    def close(self) -> None:
        self._consumer.close()

    def _fill_missing(self, max_records: int) -> None:
        """Where there is more than may be dealt, everyone with records should have some to deal from: what a partition
        is behind by is mostly on its way already."""
        while self._buffered < max_records + SHARE_RECORDS:
            before = self._buffered
            missing = (at for at, buffer in self._buffers.items() if not buffer)
            if not any(self.end(at) > self._consumer.position(at) for at in missing):
                return
            self._fill(max_records, SHARE_S)
            if self._buffered == before:
                return

    def _fill(self, max_records: int, wait_s: float) -> None:
        try:
            fetched = self._consumer.poll(most := max(FILL_RECORDS, max_records), wait_s)
        except OffsetGone as gone:
            first, end = self._offsets.starts([gone.at])[gone.at], self._offsets.ends([gone.at])[gone.at]
            raise truncated(gone.at, gone.position, first, end) from gone
        self._dry |= sum(map(len, fetched.values())) < most
        for at, records in fetched.items():
            self._buffers[at] += records
            self._buffered += len(records)

    def _look_after(self) -> None:
        """Replace a consumer that is stuck with a partition, whatever it brings of others."""
        nothing = [at for at, buffer in self._buffers.items() if not buffer]
        behind: dict[TopicPartition, int] = {}
        if nothing:
            try:
                self._ends |= self._offsets.ends(nothing, patience_s=0.0)
            except OSError:
                # Not known now; what others bring must not wait for it.
                self._looked = time.monotonic()
                return
            places = {at: self._consumer.position(at) for at in nothing}
            behind = {at: position for at, position in places.items() if position < self._ends[at]}
        if self._dry and any(self._behind.get(at) == position for at, position in behind.items()):
            stuck, positions = self._consumer, {at: self._consumer.position(at) for at in self._buffers}
            self._consumer = self._consume(positions)
            # Whatever it is stuck with, nobody waits for its good-bye.
            threading.Thread(target=_close, args=(stuck,), name="kafka-close", daemon=True).start()
            self._patience_s = min(2 * self._patience_s, MOST_STUCK_S)
        else:
            self._patience_s = STUCK_S
        self._behind, self._dry, self._looked = behind, False, time.monotonic()

    def _deal(self, max_records: int) -> list[Record]:
        dealt: list[Record] = []
        waiting = [at for at in self._order if self._buffers[at]]
        if self._buffered > max_records:
            # What was appended together is dealt together, as far as it goes, but nobody is left out.
            cut, least = self._cut(waiting, max_records), max_records // (NEVER_LESS * len(waiting))
            shares = {at: max(bisect_right(self._buffers[at], cut, key=_ts), least) for at in waiting}
            if sum(shares.values()) <= max_records:
                for at, taken in shares.items():
                    buffer = self._buffers[at]
                    dealt += buffer[:taken]
                    del buffer[:taken]
        if len(dealt) * ENOUGH < max_records:
            self._share_out(dealt, waiting, max_records)
        self._buffered -= len(dealt)
        # The next poll starts with another partition, so that none starves where max_records is below their number.
        self._order = self._order[1:] + self._order[:1]
        return dealt

    def _share_out(self, dealt: list[Record], waiting: list[TopicPartition], max_records: int) -> None:
        """Fair shares; what a quiet partition leaves over goes to those that have more."""
        waiting = [at for at in waiting if self._buffers[at]]
        while waiting and len(dealt) < max_records:
            share = max(1, (max_records - len(dealt)) // len(waiting))
            for at in waiting:
                buffer = self._buffers[at]
                taken = min(share, max_records - len(dealt))
                dealt += buffer[:taken]
                del buffer[:taken]
            waiting = [at for at in waiting if self._buffers[at]]

    def _cut(self, waiting: list[TopicPartition], most: int) -> int:
        """The latest time of appending up to which at most so many records are buffered, and which no partition that
        has more to come would be left behind by. Where times go back, it only cuts elsewhere."""
        buffers = [self._buffers[at] for at in waiting]
        unfinished = [self._buffers[at][-1].ts for at in waiting if self.end(at) > self._consumer.position(at)]
        low = min(buffer[0].ts for buffer in buffers)
        high = min(unfinished) if unfinished else max(buffer[-1].ts for buffer in buffers)
        while low < high:
            middle = (low + high + 1) // 2
            if sum(bisect_right(buffer, middle, key=_ts) for buffer in buffers) <= most:
                low = middle
            else:
                high = middle - 1
        return low


def _close(consumer: Consumer) -> None:
    with suppress(AdloopError, OSError):
        consumer.close()
