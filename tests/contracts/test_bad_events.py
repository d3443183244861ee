"""Bad events, on the embedded log and on Kafka."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition as KafkaPlace

from deploy.kafka.broker import Broker
from optimizer.clock import Clock
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import EventLog, TopicPartition
from optimizer.stream.sqlite_log import SqliteLog
from tests.contracts.bad_events import BadEvents
from tests.kafka_rig import new_prefix, url


class TestSqliteLog(BadEvents):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.files = (tmp_path / f"log{i}.db" for i in itertools.count())

    def open(self, partitions: int, clock: Clock) -> EventLog:
        return SqliteLog(next(self.files), clock, partitions, synchronous="off")

    def truncate(self, log: EventLog, at: TopicPartition, before: int) -> None:
        assert isinstance(log, SqliteLog)
        log.truncate(at, before)


class TestKafkaLog(BadEvents):
    @pytest.fixture(autouse=True)
    def _broker(self, broker: Broker) -> None:
        self.broker = broker

    def open(self, partitions: int, clock: Clock) -> EventLog:
        return KafkaLog(parse_kafka_url(url(self.broker, new_prefix(), partitions=partitions), {}), clock)

    def truncate(self, log: EventLog, at: TopicPartition, before: int) -> None:
        with KafkaAdminClient(bootstrap_servers=self.broker.bootstrap) as admin:
            admin.delete_records({KafkaPlace(log.topic_name(at.topic), at.partition): before})
