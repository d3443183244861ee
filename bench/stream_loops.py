"""What bench.stream measures, each in a process of its own: bare loops of the two client libraries, and the joiner.

A bare loop polls every record and decodes it with `json.loads`; one kind of it sends each record on as well. No state,
no tokens, no join. The joiner verifies, joins, keeps its state durable and publishes in fenced transactions. The clock
runs from the first poll to the last acknowledgement: neither imports nor connecting count.
"""

from __future__ import annotations

import gc
import json
import resource
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.stream_rig import KEYS
from optimizer.__main__ import COLLECT
from optimizer.clock import SystemClock
from optimizer.stream.joiner import Joiner
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url

PARTITIONS = 4
POLL = 8_000  # records a bare loop polls at once
TOPICS = ("decisions", "events")
SINK = "sink"
DATA = "kafka-python."  # the prefix whose records the bare loops read


class Figures(NamedTuple):
    """What a part took: when it began and ended (the machine's monotonic clock, s), CPU seconds, peak memory."""

    began: float
    ended: float
    cpu: float
    peak_mib: float


class _Watch:
    """Started at the first poll."""

    def __init__(self) -> None:
        self._began, self._cpu = time.monotonic(), time.process_time()

    def stop(self) -> Figures:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Figures(self._began, time.monotonic(), time.process_time() - self._cpu, peak)


def log_url(bootstrap: str, client: str) -> str:
    """The log with the data for the joiner on a client: one of its own, since it is to start from nothing."""
    name = client.removesuffix("-pair")
    return f"kafka://{bootstrap}?prefix={client}.&partitions={PARTITIONS}&client={name}"


def joiner(bootstrap: str, records: int, client: str, partitions: Collection[int] = range(PARTITIONS)) -> Figures:
    """Our joiner with its default settings, from an empty state to the end of the log."""
    gc.set_threshold(*COLLECT)
    with (
        closing(KafkaLog(parse_kafka_url(log_url(bootstrap, client), {}))) as log,
        tempfile.TemporaryDirectory() as folder,
        Joiner(log, Path(folder), KEYS, SystemClock(), partitions=partitions) as made,
    ):
        watch = _Watch()
        while made.step(timeout_s=0.2) or made.lag():
            pass
        figures = watch.stop()
        counts = made.counts
    assert not counts["quarantined"], counts
    assert len(partitions) < PARTITIONS or counts["decisions"] + counts["events"] == records, counts  # type: ignore[operator]
    return figures


def bare_python(bootstrap: str, records: int, send: bool) -> Figures:
    """kafka-python alone."""
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.structs import TopicPartition as Place

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", metrics_enabled=False)
    consumer.assign([Place(DATA + topic, p) for topic in TOPICS for p in range(PARTITIONS)])
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5, metrics_enabled=False)
    seen = 0
    watch = _Watch()
    while seen < records:
        for found in consumer.poll(1_000, max_records=POLL).values():
            for record in found:
                json.loads(record.value)
                if send:
                    producer.send(SINK, record.value, key=record.key)
            seen += len(found)
    producer.flush()
    figures = watch.stop()
    consumer.close()
    producer.close()
    return figures


def bare_confluent(bootstrap: str, records: int, send: bool) -> Figures:
    """confluent-kafka alone."""
    from confluent_kafka import Consumer, Producer
    from confluent_kafka import TopicPartition as Place

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bare",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([Place(DATA + topic, p, 0) for topic in TOPICS for p in range(PARTITIONS)])
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 5, "queue.buffering.max.messages": 1_000_000}
    )
    seen = 0
    watch = _Watch()
    while seen < records:
        found = consumer.consume(POLL, 1.0)
        for record in found:
            value = record.value()
            json.loads(value)
            if send:
                producer.produce(SINK, value, record.key())
        producer.poll(0)
        seen += len(found)
    producer.flush()
    figures = watch.stop()
    consumer.close()
    return figures


PARTS: dict[str, Callable[[str, int], Figures]] = {
    "kafka-python: poll, loads": lambda b, n: bare_python(b, n, send=False),
    "kafka-python: poll, loads, send": lambda b, n: bare_python(b, n, send=True),
    "confluent: poll, loads": lambda b, n: bare_confluent(b, n, send=False),
    "confluent: poll, loads, send": lambda b, n: bare_confluent(b, n, send=True),
    "joiner on kafka-python": lambda b, n: joiner(b, n, "kafka-python"),
    "joiner on confluent": lambda b, n: joiner(b, n, "confluent"),
    "first of two joiners on confluent": lambda b, n: joiner(b, n, "confluent-pair", (0, 1)),
    "second of two joiners on confluent": lambda b, n: joiner(b, n, "confluent-pair", (2, 3)),
}
