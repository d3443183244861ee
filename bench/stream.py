"""The joiner on a real broker beside bare loops of the client libraries: `python -m bench.stream [--decisions N]`.

One broker, the same data for all: decisions and events in four partitions, one click in ten impressions, tokens real.
A bare loop polls every record, decodes it with `json.loads` and sends one record on: no state, no tokens, no join. The
joiner verifies, joins, keeps its state durable and publishes in fenced transactions. Each runs in a process of its own;
the broker shares the machine, so its work is part of every figure.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient

from bench.stream_rig import KEYS, traffic
from deploy.kafka.broker import Broker
from optimizer.__main__ import COLLECT
from optimizer.clock import SystemClock
from optimizer.stream.joiner import Joiner
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url

PARTITIONS = 4
POLL = 8_000
FILL = 2_000  # records appended at once, with one timestamp
TOPICS = ("decisions", "events")
SINK = "sink"


def log_url(bootstrap: str, client: str) -> str:
    """The log with the data for the joiner on a client: one of its own, since it is to start from nothing."""
    return f"kafka://{bootstrap}?prefix={client}.&partitions={PARTITIONS}&client={client}"


def fill(bootstrap: str, decisions: int, client: str) -> tuple[int, float]:
    """Append the data for the joiner on `client`; returns how many records and their mean size in bytes."""
    log = KafkaLog(parse_kafka_url(log_url(bootstrap, client), {}))
    rest = traffic(decisions)
    count = size = 0
    while chunk := list(islice(rest, FILL)):
        log.append(chunk)
        count += len(chunk)
        size += sum(len(record.value or b"") for record in chunk)
    log.close()
    return count, size / count


def run_joiner(bootstrap: str, client: str, records: int) -> None:
    """Our joiner, from an empty state to the end of the log."""
    gc.set_threshold(*COLLECT)
    log = KafkaLog(parse_kafka_url(log_url(bootstrap, client), {}))
    with tempfile.TemporaryDirectory() as folder, Joiner(log, Path(folder), KEYS, SystemClock()) as joiner:
        seen = 0
        while seen < records:
            seen += joiner.step(POLL, timeout_s=1.0)
        quarantined = joiner.counts["quarantined"]
        assert not quarantined, quarantined
    log.close()


def bare_python(bootstrap: str, records: int) -> None:
    """kafka-python alone."""
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.structs import TopicPartition as Place

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", metrics_enabled=False)
    consumer.assign([Place(f"kafka-python.{topic}", p) for topic in TOPICS for p in range(PARTITIONS)])
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5, metrics_enabled=False)
    seen = 0
    while seen < records:
        for found in consumer.poll(1_000, max_records=POLL).values():
            for record in found:
                json.loads(record.value)
                producer.send(SINK, record.value, key=record.key)
            seen += len(found)
    producer.flush()
    consumer.close()
    producer.close()


def bare_confluent(bootstrap: str, records: int) -> None:
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
    consumer.assign([Place(f"kafka-python.{topic}", p, 0) for topic in TOPICS for p in range(PARTITIONS)])
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 5, "queue.buffering.max.messages": 1_000_000}
    )
    seen = 0
    while seen < records:
        found = consumer.consume(POLL, 1.0)
        for record in found:
            value = record.value()
            json.loads(value)
            producer.produce(SINK, value, record.key())
        producer.poll(0)
        seen += len(found)
    producer.flush()
    consumer.close()


PARTS: dict[str, tuple[str, Callable[[str, int], None]]] = {
    "kafka-python, bare": ("kafka", bare_python),
    "confluent-kafka, bare": ("confluent_kafka", bare_confluent),
    "joiner on kafka-python": ("kafka", lambda b, n: run_joiner(b, "kafka-python", n)),
    "joiner on confluent-kafka": ("confluent_kafka", lambda b, n: run_joiner(b, "confluent", n)),
}


def measured(name: str, bootstrap: str, records: int) -> dict[str, Any]:
    """Run one part here and now."""
    cpu, started = time.process_time(), time.perf_counter()
    PARTS[name][1](bootstrap, records)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "peak_mib": peak}


def main() -> None:
    """Start a broker, fill it, and print a line for each part."""
    parser = argparse.ArgumentParser(description="The joiner on a real broker beside bare loops of the clients.")
    parser.add_argument("--decisions", type=int, default=200_000)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options.part, options.bootstrap, options.records)))
        return
    root = Path(__file__).parents[1]
    subprocess.run([root / "scripts/kafka", "fetch"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
                admin.create_topics({SINK: {"num_partitions": PARTITIONS}}, wait_for_metadata=True)
            records, size = fill(broker.bootstrap, options.decisions, "kafka-python")
            if importlib.util.find_spec("confluent_kafka"):
                fill(broker.bootstrap, options.decisions, "confluent")
            print(f"{records:,} records of {size:.0f} bytes, {PARTITIONS} partitions; records/s, CPU s, peak MiB")
            for name, (module, _) in PARTS.items():
                if importlib.util.find_spec(module) is None:
                    print(f"{name:<28} not installed")
                    continue
                command = [sys.executable, "-m", "bench.stream", "--part", name, "--records", str(records)]
                made = subprocess.run(
                    [*command, "--bootstrap", broker.bootstrap], check=True, stdout=subprocess.PIPE, cwd=root
                )
                figures = json.loads(made.stdout.splitlines()[-1])
                rate = records / figures["seconds"]
                print(f"{name:<28}{rate:>10,.0f}{figures['cpu']:>8.1f}{figures['peak_mib']:>8.0f}", flush=True)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
