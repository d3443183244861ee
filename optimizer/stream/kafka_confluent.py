"""The Kafka log's fast client: confluent-kafka, the `fast` extra. It does in C what kafka-python does in Python."""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka import TopicPartition as KafkaPlace
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec
from confluent_kafka.admin import NewTopic as KafkaTopic

from optimizer.errors import AdloopError, Fenced
from optimizer.stream.kafka_client import (
    FETCH_BYTES,
    REQUEST_BYTES,
    TRANSACTION_TIMEOUT_S,
    Message,
    NewTopic,
    OffsetGone,
    Place,
    TopicInfo,
)
from optimizer.stream.kafka_confluent_common import REFUSED, connection, ours, translated
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import MAX_RECORD_BYTES, Record, TopicPartition

SERVE_S: Final = 0.1  # how long a producer's thread waits for acknowledgements at a time
FULL_S: Final = 0.01  # before a full buffer is tried again
LINGER_MS: Final = 1  # lets the records of one append share their requests
ABORT_S: Final = 5.0
RETRY_S: Final = 0.2

GONE: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})

_log = logging.getLogger(__name__)


class Confluent:
    """A Client of confluent-kafka."""

    name = "confluent"

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    def admin(self) -> ConfluentAdmin:
        return ConfluentAdmin(self._config)

    def consumer(self, positions: Mapping[TopicPartition, int]) -> ConfluentConsumer:
        return ConfluentConsumer(self._config, positions)

    def producer(self) -> ConfluentProducer:
        return ConfluentProducer(self._config)

    def transactions(self, transactional_id: str) -> ConfluentTransactions:
        return ConfluentTransactions(self._config, transactional_id)


class ConfluentConsumer:
    """A Consumer with its partitions assigned by hand; it commits to no group."""

    def __init__(self, config: KafkaConfig, positions: Mapping[TopicPartition, int]) -> None:
        self._config = config
        self._positions = dict(positions)
        self._names = {at: KafkaPlace(config.prefix + at.topic, at.partition) for at in positions}
        self._places = {(config.prefix + at.topic, at.partition): at for at in positions}
        settings = {
            **connection(config),
            "group.id": config.prefix + "reader",  # the library wants one; nothing is committed under it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,  # tells the position behind markers, too
            "allow.auto.create.topics": False,
            "fetch.message.max.bytes": MAX_RECORD_BYTES,
            "queued.max.messages.kbytes": FETCH_BYTES // 1024,
            "fetch.queue.backoff.ms": 10,  # how soon a full queue is looked at again: 1 s starves a fast reader
        }
        with translated(config):
            self._consumer = KafkaConsumer(settings, logger=_log)
            self._consumer.assign(
                [KafkaPlace(config.prefix + at.topic, at.partition, position) for at, position in positions.items()]
            )

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        with translated(self._config):
            # `consume` waits until it has as many as it may: so wait for the first, then take what is there.
            first = self._consumer.poll(timeout_s)
            if first is None:
                return {}
            messages = [first, *self._consumer.consume(max_records - 1, 0.0)] if max_records > 1 else [first]
        found: dict[TopicPartition, list[Record]] = {}
        for message in messages:
            at = self._places.get((message.topic(), message.partition()))
            error = message.error()
            if error is not None:
                self._notice(error, at, message.offset())
            elif at is not None:
                offset = message.offset()
                record = Record(at.topic, at.partition, offset, message.key(), message.value(), message.timestamp()[1])
                found.setdefault(at, []).append(record)
                self._positions[at] = offset + 1
        return found

    def position(self, at: TopicPartition) -> int:
        return self._positions[at]

    def known_end(self, at: TopicPartition) -> int:
        # Without a round trip: what the last answer to a fetch said; negative before the first.
        end: int = self._consumer.get_watermark_offsets(self._names[at], cached=True)[1]
        return max(-1, end)

    def close(self) -> None:
        self._consumer.close()

    def _notice(self, error: KafkaError, at: TopicPartition | None, offset: int | None) -> None:
        if error.code() == KafkaError._PARTITION_EOF and at is not None and offset is not None:
            self._positions[at] = max(self._positions[at], offset)
        elif error.code() in GONE:
            place = next(iter(self._positions)) if at is None else at
            raise OffsetGone(place, self._positions[place])
        elif error.code() in REFUSED or error.fatal():
            raise ours(self._config, error)
        # The rest (a broker that is away for a while) the library tries again by itself.


class _Call:
    """The acknowledgements that one `send` waits for."""

    def __init__(self, count: int) -> None:
        self.places: list[tuple[int, int]] = [(-1, -1)] * count
        self.error: KafkaError | None = None
        self.done = threading.Event()
        self._missing = count

    def acknowledge(self, i: int, error: KafkaError | None, message: Any) -> None:
        """Called by the library, in the thread that serves it."""
        if error is not None:
            self.error = error
        else:
            self.places[i] = message.partition(), message.offset()
        self._missing -= 1
        if not self._missing:
            self.done.set()


class ConfluentProducer:
    """An idempotent Producer, and the thread that serves its acknowledgements. Thread-safe."""

    def __init__(self, config: KafkaConfig, transactional_id: str | None = None) -> None:
        self._config = config
        settings: dict[str, Any] = {
            **connection(config),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2",
            "linger.ms": LINGER_MS,
            "message.max.bytes": REQUEST_BYTES,
            "queue.buffering.max.kbytes": FETCH_BYTES // 1024,
            "compression.type": config.compression,
            "delivery.timeout.ms": int(config.timeout_s * 1000),
            "allow.auto.create.topics": False,
        }
        if transactional_id is not None:
            settings["transactional.id"] = transactional_id
            settings["transaction.timeout.ms"] = int(TRANSACTION_TIMEOUT_S * 1000)
            settings["delivery.timeout.ms"] = int(min(config.timeout_s, TRANSACTION_TIMEOUT_S) * 1000)
        with translated(config):
            self.producer = KafkaProducer(settings, logger=_log)
        self._closed = False
        self._fatal: KafkaError | None = None  # the library gives up for good: no acknowledgement comes any more
        self._waiting: set[_Call] = set()
        self._lock = threading.Lock()
        self._server = threading.Thread(target=self._serve, name="kafka-acknowledgements", daemon=True)
        self._server.start()

    def send(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        call = _Call(len(messages))
        with self._lock:
            if self._fatal is not None:
                raise ours(self._config, self._fatal)
            self._waiting.add(call)
        try:
            self._produce(call, messages)
        finally:
            with self._lock:
                self._waiting.discard(call)
        if call.error is not None:
            raise ours(self._config, call.error)
        return call.places

    def close(self) -> None:
        # What it still holds must not go out any more; whoever waits for it gets an error at once.
        self.producer.purge()
        self._closed = True
        if threading.current_thread() is not self._server:
            self._server.join()

    def _produce(self, call: _Call, messages: Sequence[Message]) -> None:
        """Hand the messages over, and wait for their acknowledgements."""
        deadline = time.monotonic() + self._config.timeout_s + 1.0
        produce: Callable[..., None] = self.producer.produce
        with translated(self._config):
            for i, (topic, key, value, ts) in enumerate(messages):
                while True:
                    try:
                        produce(topic, value, key, on_delivery=partial(call.acknowledge, i), timestamp=ts)
                        break
                    except BufferError as error:  # its buffer is bounded: wait for room
                        if time.monotonic() > deadline:
                            raise OSError(f"kafka: {self._config.bootstrap} gives no answer (buffer full)") from error
                        time.sleep(FULL_S)
        # The library ends each by its delivery timeout; the second more only guards against its failing to.
        if not call.done.wait(max(0.0, deadline - time.monotonic())):
            raise OSError(f"kafka: {self._config.bootstrap} acknowledged nothing in {self._config.timeout_s:.0f} s")

    def _serve(self) -> None:
        try:
            while not self._closed:
                self.producer.poll(SERVE_S)
            self.producer.poll(0)
        except KafkaException as error:
            with self._lock:
                self._fatal = error.args[0]
                for call in self._waiting:
                    call.error = self._fatal
                    call.done.set()


class ConfluentTransactions:
    """A transactional Producer; making it fences its predecessors."""

    def __init__(self, config: KafkaConfig, transactional_id: str) -> None:
        self._config = config
        self._sender = ConfluentProducer(config, transactional_id)
        self._producer = self._sender.producer
        self._failed: Exception | None = None
        try:
            with translated(config):
                self._producer.init_transactions(config.timeout_s)
        except BaseException:
            self.close()
            raise

    def send(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        if self._failed is not None:
            raise self._failed
        try:
            with translated(self._config):
                self._producer.begin_transaction()
            try:
                places = self._sender.send(messages)
            except (AdloopError, OSError):
                # A fenced producer's records fail for a reason that does not say so; ending the transaction does.
                self._abort()
                raise
            with translated(self._config):
                self._producer.commit_transaction(self._config.timeout_s)
        except (Fenced, OSError) as error:
            self._failed = error
            raise
        return places

    def close(self) -> None:
        self._sender.close()

    def _abort(self) -> None:
        with translated(self._config):
            self._producer.abort_transaction(ABORT_S)


class ConfluentAdmin:
    """An AdminClient. Thread-safe."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._refused: list[KafkaError] = []
        with translated(config):
            self._admin = AdminClient({**connection(config), "error_cb": self._notice}, logger=_log)
            self._cluster_id = self._connect()

    def cluster_id(self) -> str:
        return self._cluster_id

    def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        found: dict[str, TopicInfo] = {}
        with translated(self._config):
            asked = TopicCollection(list(names))
            for name, future in self._admin.describe_topics(asked, request_timeout=self._config.timeout_s).items():
                try:
                    topic = future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
                # Without a leader a new topic's partition can neither be read nor written yet.
                if topic.partitions and all(partition.leader is not None for partition in topic.partitions):
                    found[name] = TopicInfo(_uuid(str(topic.topic_id)), len(topic.partitions))
        return found

    def create(self, topics: Sequence[NewTopic]) -> None:
        wanted = [
            KafkaTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=-1 if topic.replication is None else topic.replication,
                config=dict(topic.settings),
            )
            for topic in topics
        ]
        with translated(self._config):
            for future in self._admin.create_topics(wanted, request_timeout=self._config.timeout_s).values():
                try:
                    future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise

    def settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        with translated(self._config):
            described = self._admin.describe_configs(resources, request_timeout=self._config.timeout_s)
            entries = {resource.name: future.result() for resource, future in described.items()}
        return {name: {key: str(entry.value) for key, entry in found.items()} for name, found in entries.items()}

    def starts(self, places: Collection[Place]) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.earliest())

    def ends(self, places: Collection[Place]) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.latest())

    def close(self) -> None:
        """The library closes it when the last reference goes."""

    def _connect(self) -> str:
        """Wait for the first broker; a refusal is told only by the callback, while the library tries on."""
        deadline = time.monotonic() + self._config.timeout_s
        while True:
            try:
                metadata = self._admin.list_topics(timeout=1.0)
            except KafkaException:
                self._admin.poll(0)  # serves the callback
                if self._refused:
                    raise ours(self._config, self._refused[0]) from None
                if time.monotonic() > deadline:
                    raise
            else:
                return str(metadata.cluster_id)

    def _notice(self, error: KafkaError) -> None:
        if error.code() in REFUSED:
            self._refused.append(error)

    def _offsets(self, places: Collection[Place], spec: OffsetSpec) -> dict[Place, int]:
        deadline = time.monotonic() + self._config.timeout_s
        while True:
            try:
                with translated(self._config):
                    asked = self._admin.list_offsets(
                        {KafkaPlace(*place): spec for place in places},
                        isolation_level=IsolationLevel.READ_COMMITTED,
                        request_timeout=self._config.timeout_s,
                    )
                    return {Place(at.topic, at.partition): future.result().offset for at, future in asked.items()}
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
                # After a restart the library asks with the leader's old epoch until it is told of the new one.
                with suppress(KafkaException):
                    self._admin.list_topics(timeout=1.0)


def _uuid(text: str) -> str:
    """A topic's id as everyone else writes it; the library gives its bytes in base64, unpadded."""
    return str(uuid.UUID(bytes=base64.b64decode(text + "==")))
