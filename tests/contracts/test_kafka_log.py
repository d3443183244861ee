"""The Kafka log: the common contract with each client library, and what is its own."""

from __future__ import annotations

import pytest

from deploy.kafka.broker import Broker
from optimizer.clock import Clock
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import EventLog
from tests.contracts.log_suite import LogContract
from tests.kafka_rig import new_prefix, url

CLIENTS = ("kafka-python", "confluent")


@pytest.mark.parametrize("client", CLIENTS)
class TestKafkaLog(LogContract):
    @pytest.fixture(autouse=True)
    def _broker(self, broker: Broker, client: str) -> None:
        self.url = url(broker, new_prefix(), client, partitions=3)

    def open(self, partitions: int, clock: Clock) -> EventLog:
        return KafkaLog(parse_kafka_url(self.url, {}), clock)
