"""The Kafka log's fast client: confluent-kafka, the `fast` extra. It does in C what kafka-python does in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError
from confluent_kafka import TopicPartition as KafkaPlace

from optimizer.stream.kafka_client import FETCH_BYTES, OffsetGone
from optimizer.stream.kafka_confluent_admin import ConfluentAdmin
from optimizer.stream.kafka_confluent_common import LOG, REFUSED, connection, ours, translated
from optimizer.stream.kafka_confluent_producer import ConfluentProducer, ConfluentTransactions
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import MAX_RECORD_BYTES, Record, TopicPartition

GONE: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})


class Confluent:
    """A Client of confluent-kafka."""

    name = "confluent"

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    def admin(self) -> ConfluentAdmin:
        return ConfluentAdmin(self._config)

    def consumer(self, positions: Mapping[TopicPartition, int], committed: bool = True) -> ConfluentConsumer:
        return ConfluentConsumer(self._config, positions, committed)

    def producer(self) -> ConfluentProducer:
        return ConfluentProducer(self._config)

    def transactions(self, transactional_id: str) -> ConfluentTransactions:
        return ConfluentTransactions(self._config, transactional_id)


class ConfluentConsumer:
    """A Consumer with its partitions assigned by hand; it commits to no group."""

    def __init__(self, config: KafkaConfig, positions: Mapping[TopicPartition, int], committed: bool) -> None:
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
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,  # tells the position behind markers, too
            "allow.auto.create.topics": False,
            "fetch.message.max.bytes": MAX_RECORD_BYTES,
            "queued.max.messages.kbytes": FETCH_BYTES // 1024,
            "fetch.queue.backoff.ms": 10,  # how soon a full queue is looked at again: 1 s starves a fast reader
        }
        with translated(config):
            self._consumer = KafkaConsumer(settings, logger=LOG)
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
        with translated(self._config):
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
