"""The Kafka log: the topics of docs/api.md, The log on a Kafka cluster, behind the same interface as the embedded log.

What `append` writes is acknowledged by all replicas in sync, by an idempotent producer: nothing is doubled or put out
of order by a retry. It takes no transaction, as that costs 20 ms a call (docs/decisions.md): a refused record means
that nothing was written, but after an OSError (a broker that does not answer) some of the records may be in the log.
Every caller has ids by which a repeat is dropped, or writes records that stand alone. Publishers write in transactions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from optimizer.clock import Clock, SystemClock
from optimizer.errors import AdloopError, Fenced
from optimizer.stream.kafka_client import (
    CALM_S,
    MOST_STALLS,
    STALL_S,
    Client,
    Message,
    Place,
    Producer,
    Transactions,
    make_client,
)
from optimizer.stream.kafka_reader import KafkaReader
from optimizer.stream.kafka_topics import ensure_topics
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import (
    Append,
    Record,
    TopicPartition,
    check_partition,
    check_size,
    check_topic,
    taken_over,
    truncated,
)

logger = logging.getLogger(__name__)
SETTLE_S: Final = 0.01  # between two looks at whether transactions have ended
HANGING_S: Final = 2.0  # a transaction that ended so long ago and is still open has been forgotten
LOOK_S: Final = 0.1
PUBLISHER_ID: Final = "publisher-"  # with the prefix before and the partition behind it: a transactional id


class KafkaLog:
    """An EventLog on Kafka; makes the topics that are missing, unless `create` is False.

    Raises ConfigError where the brokers refuse us or the topics can't serve, OSError where no broker answers.
    """

    def __init__(self, config: KafkaConfig, clock: Clock | None = None, create: bool = True) -> None:
        self.config = config
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._client: Client = make_client(config)
        self._admin = self._client.admin()
        try:
            self._layout = ensure_topics(self._admin, config, create)
        except BaseException:
            self._admin.close()
            raise
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._closed = False
        self._appended = threading.Condition()
        self._appends = 0
        self._stalls = 0
        self._stalled: deque[float] = deque(maxlen=MOST_STALLS)

    @property
    def client(self) -> str:
        """The name of the client library in use."""
        return self._client.name

    # -- EventLog -----------------------------------------------------------------------------------------------------

    def log_id(self) -> str:
        """Names this log for good: made of the ids of the cluster and of the topics."""
        return self._layout.log_id

    def topic_name(self, topic: str) -> str:
        """The topic's full name: prefix + name."""
        return self.config.prefix + topic

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has. Raises AdloopError for an unknown topic."""
        check_topic(topic)
        return self._layout.partitions[topic]

    def append(self, records: Sequence[Append]) -> list[tuple[int, int]]:
        """Write records; returns (partition, offset) of each once they are durable. Raises AdloopError, with nothing
        written, for a record that is refused; OSError where the brokers don't answer: then some may be written."""
        messages = self.messages(records)
        if not messages:
            return []
        producer = self._current_producer()
        try:
            places = producer.send(messages)
        except (AdloopError, OSError):
            # What it still holds must not go out later on its own, in between what is appended by then.
            self._discard(producer)
            raise
        self.tell_append()
        return places

    def start(self, at: TopicPartition) -> int:
        """The smallest offset that can still be read."""
        return self.starts([at])[at]

    def end(self, at: TopicPartition) -> int:
        """The end of what can be read; behind it there may be records of an open transaction."""
        return self.ends([at])[at]

    def starts(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """`start` of many partitions in one round trip."""
        found = self._admin.starts(named := self._named(places))
        return {at: found[name] for at, name in zip(places, named, strict=True)}

    def ends(self, places: Collection[TopicPartition], patience_s: float | None = None) -> dict[TopicPartition, int]:
        """`end` of many partitions in one round trip. Raises OSError where nothing answers in `patience_s` (as
        configured)."""
        with self.watched():
            found = self._admin.ends(named := self._named(places), patience_s=patience_s)
        return {at: found[name] for at, name in zip(places, named, strict=True)}

    def settle(self, topic: str, partitions: Collection[int] | None = None, patience_s: float | None = None) -> None:
        """Wait until the transactions that are open in the topic (in `partitions`: all) at this moment have ended:
        after a commit the brokers still need a moment to make it readable. One whose owner died they end themselves;
        where that takes longer than `patience_s` (what the configuration waits for an answer), it is left alone."""
        some = range(self.partitions(topic)) if partitions is None else partitions
        named = self._named([TopicPartition(topic, p) for p in some])
        ends = self._admin.ends(named, committed=False)
        deadline = time.monotonic() + (self.config.timeout_s if patience_s is None else patience_s)
        while any(end < ends[at] for at, end in self._admin.ends(named).items()) and time.monotonic() < deadline:
            time.sleep(SETTLE_S)

    def reader(self, positions: Mapping[TopicPartition, int]) -> KafkaReader:
        """A reader of these partitions. Raises LogTruncated where a position lies outside of the log."""
        starts, ends = self.starts(positions), self.ends(positions)
        # What was committed just before the brokers stopped may not be readable yet; it is there.
        beyond = [at for at, position in positions.items() if position > ends[at]]
        there = {**ends, **(self._there(beyond) if beyond else {})}
        for at, position in positions.items():
            if not starts[at] <= position <= there[at]:
                raise truncated(at, position, starts[at], there[at])
        return KafkaReader(self._client.consumer, self, positions, ends, self.config.timeout_s)

    def publisher(self, partition: int) -> KafkaPublisher:
        """Take the right to publish a partition: the brokers fence whoever had its transactional id before, and end
        what that one had begun."""
        self._named([TopicPartition("outcomes", partition)])
        transactions = self._client.transactions(f"{self.config.prefix}{PUBLISHER_ID}{partition}")
        publisher = KafkaPublisher(self, transactions, partition)
        try:
            self._end_hanging(publisher, TopicPartition("outcomes", partition))
        except BaseException:
            publisher.close()
            raise
        return publisher

    def _end_hanging(self, publisher: KafkaPublisher, at: TopicPartition) -> None:
        """End a transaction that the brokers have forgotten to end in this partition, which hides all that follows it.

        Seen with Kafka 4.3.1: the broker was shut down just after a commit; to its coordinator the transaction is
        complete, and the partition never got the marker. The marker of the next transaction of the same id ends it, so
        an outcome that stands there is published once more, as it stands."""
        deadline = time.monotonic() + HANGING_S
        while (first := self.end(at)) < self._there([at])[at]:
            # Nobody else can have one open here: what was has ended, and its marker may be a moment late.
            if time.monotonic() < deadline:
                time.sleep(SETTLE_S)
                continue
            record = self._record(at, first)
            logger.warning(
                "%s[%s]: a transaction hangs at offset %d: its outcome is published again to end it", *at, first
            )
            publisher.append([Append(at.topic, (record.key or b"").decode(), record.value)])
            self.settle(at.topic, [at.partition], HANGING_S)
            if self.end(at) <= first:
                raise OSError(
                    f"kafka: a transaction of another producer hangs in {self.topic_name(at.topic)}[{at.partition}] at "
                    f"offset {first}, and nothing behind it can be read; end it with: kafka-transactions.sh abort"
                )

    def _there(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The ends of what there is, in open transactions as well."""
        found = self._admin.ends(named := self._named(places), committed=False)
        return {at: found[name] for at, name in zip(places, named, strict=True)}

    def _record(self, at: TopicPartition, offset: int) -> Record:
        """The record at an offset, whether its transaction has ended or not. Raises OSError where none comes."""
        deadline = time.monotonic() + self.config.timeout_s
        consumer = self._client.consumer({at: offset}, committed=False)
        try:
            while time.monotonic() < deadline:
                if records := consumer.poll(1, LOOK_S).get(at):
                    return records[0]
        finally:
            consumer.close()
        raise OSError(f"kafka: {self.topic_name(at.topic)}[{at.partition}] did not give its record at {offset}")

    @property
    def stalls(self) -> int:
        """How often so far an answer took so long that a dead connection was probably in between; not more often than
        `MOST_STALLS` in `CALM_S`, for new connections cost, and where the brokers are only slow they don't help."""
        return self._stalls

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what waits for brokers."""
        started = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            calm = len(self._stalled) < MOST_STALLS or now - self._stalled[0] >= CALM_S
            if now - started >= STALL_S and calm:
                self._stalled.append(now)
                self._stalls += 1

    def appends(self) -> int:
        """Appends made through this object so far."""
        return self._appends

    def wait_for_append(self, seen: int, timeout_s: float) -> None:
        """Return when `appends()` differs from `seen`, or after `timeout_s`."""
        with self._appended:
            self._appended.wait_for(lambda: self._appends != seen, timeout_s)

    def tell_append(self) -> None:
        """Something was appended: wake up who waits for that."""
        with self._appended:
            self._appends += 1
            self._appended.notify_all()

    def close(self) -> None:
        """Close the connections; appends that wait get an OSError."""
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()
        self._admin.close()

    def messages(self, records: Sequence[Append], outcomes: int | None = None) -> list[Message]:
        """The records as they are sent, those of outcomes to the given partition. Raises AdloopError for one that is
        refused."""
        ts = self._clock.now_ms()
        names = {topic: self.topic_name(topic) for topic in {record.topic for record in records}}
        messages: list[Message] = []
        for topic in names:
            self.partitions(topic)
        for record in records:
            check_size(record)
            topic, key, value = record
            messages.append(Message(names[topic], key.encode(), value, ts, outcomes if topic == "outcomes" else None))
        return messages

    # -- inside -------------------------------------------------------------------------------------------------------

    def _named(self, places: Collection[TopicPartition]) -> list[Place]:
        for at in places:
            check_partition(at, self.partitions(at.topic))
        return [Place(self.config.prefix + topic, partition) for topic, partition in places]

    def _current_producer(self) -> Producer:
        with self._lock:
            if self._closed:
                raise OSError(f"log {self.config.bootstrap} is closed")
            if self._producer is None:
                self._producer = self._client.producer()
            return self._producer

    def _discard(self, producer: Producer) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None
        producer.close()


class KafkaPublisher:
    """The right to publish one partition, until another takes it. Not thread-safe.

    After an OSError it is of no more use: whether the transaction was committed is not known here, and taking the right
    again might take it from a rightful successor. Whoever still owns the partition takes a new one; what it then reads
    is complete.
    """

    def __init__(self, log: KafkaLog, transactions: Transactions, partition: int) -> None:
        self._log = log
        self._transactions = transactions
        self._partition = partition
        self._begun: set[str] = set()  # the topics of what was begun
        self._stalls = log.stalls

    def begin(self, records: Sequence[Append]) -> None:
        """Hand records over in a transaction. Outcomes go to the partition that this right is for, which is where
        their keys belong: nothing else would be fenced."""
        messages = self._log.messages(records, self._partition)
        if not messages:
            return
        with self._fenced():
            self._transactions.begin(messages)
        self._begun = {record.topic for record in records}

    def flush(self) -> None:
        """Wait until the brokers have received them."""
        if self._begun:
            with self._fenced(), self._log.watched():
                self._transactions.flush()

    def commit(self) -> dict[str, int]:
        """All or none; Fenced where another publisher of this partition was made since."""
        if not self._begun:
            return {}
        topics, self._begun = self._begun, set()
        with self._fenced(), self._log.watched():
            ends = self._transactions.commit()
        self._log.tell_append()
        return {topic: ends[self._log.topic_name(topic)] for topic in topics}

    def append(self, records: Sequence[Append]) -> dict[str, int]:
        """`begin` and `commit`."""
        self.begin(records)
        return self.commit()

    @property
    def doubtful(self) -> bool:
        """Whether a connection was found dead since it was made: half-open ones carry nothing, and each is found out by
        timeouts of its own."""
        return self._log.stalls != self._stalls

    def close(self) -> None:
        """Give up the connection; the right itself ends when another takes it."""
        self._transactions.close()

    @contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except Fenced as error:
            raise taken_over(self._partition) from error
