"""What the Kafka log does when the broker is not as it should be, gone, back again, truncated; and what is read of
open transactions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition as KafkaPlace

from deploy.kafka.broker import Broker
from optimizer.errors import LogTruncated
from optimizer.stream.dump import dump
from optimizer.stream.kafka_client import make_client
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_reader import KafkaReader
from optimizer.stream.log import Append, EventLog, LogReader, Publisher, Record, TopicPartition, whole
from tests.contracts.log_suite import read
from tests.kafka_rig import new_prefix, numbered, opened, running_broker, url

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
T = TypeVar("T")
CLIENTS = ("kafka-python", "confluent")
both_clients = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def delete_records(broker: Broker, name: str, before: int) -> None:
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_records({KafkaPlace(name, 0): before})


def read_until(reader: LogReader, count: int, within_s: float = 60.0) -> list[Record]:
    """Poll until there are `count` records, as a role does: a broker that is away is asked again."""
    found: list[Record] = []
    deadline = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < deadline:
        found += reader.poll(timeout_s=0.5)
    return found


@both_clients
def test_deleted_records_stop_a_reader_that_needs_them(broker: Broker, client: str) -> None:
    log = opened(url(broker, new_prefix(), client))
    at = TopicPartition("candidates", 0)  # Kafka deletes no records of a compacted topic
    log.append([Append("candidates", "p", str(i).encode()) for i in range(10)])
    delete_records(broker, log.topic_name("candidates"), 6)
    # As if they had been deleted after the reader was made: what it has fetched by then it may still give out.
    config = log.config
    behind = KafkaReader(make_client(config).consumer, log, {at: 0}, log.ends([at]), config.timeout_s)
    assert (log.start(at), log.end(at)) == (6, 10)
    with pytest.raises(LogTruncated, match=r"candidates\[0\]: position 0 .* holds 6 to 10"):
        behind.poll(timeout_s=5)
    with pytest.raises(LogTruncated):
        log.reader({at: 5})
    assert [record.value for record in read(log, "candidates")] == [b"6", b"7", b"8", b"9"]
    delete_records(broker, log.topic_name("candidates"), 10)
    assert (log.start(at), log.end(at)) == (10, 10), "an empty partition keeps its place"
    assert log.append([Append("candidates", "p", b"more")]) == [(0, 10)]
    behind.close()
    log.close()


@both_clients
def test_a_topic_that_was_made_anew_is_another_log(broker: Broker, client: str) -> None:
    where = url(broker, new_prefix(), client)
    log = opened(where)
    before = log.log_id()
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_topics([log.topic_name("decisions")])
        while log.topic_name("decisions") in admin.list_topics():
            time.sleep(0.05)
    log.close()
    again = opened(where)
    assert again.log_id() != before
    assert again.partitions("decisions") == 4
    again.close()


def test_both_clients_see_one_log(broker: Broker) -> None:
    prefix = new_prefix()
    python, confluent = opened(url(broker, prefix)), opened(url(broker, prefix, "confluent"))
    assert python.log_id() == confluent.log_id()
    keys = [f"decision-{i}" for i in range(20)]
    ours = python.append([Append("decisions", key, b"python") for key in keys])
    theirs = confluent.append([Append("decisions", key, b"confluent") for key in keys])
    assert [partition for partition, _ in ours] == [partition for partition, _ in theirs]
    for log in (python, confluent):
        assert {record.value for record in read(log, "decisions")} == {b"confluent", b"python"}
        log.close()


@both_clients
def test_open_transactions_are_not_read_and_aborted_ones_are_passed_over(broker: Broker, client: str) -> None:
    from kafka import KafkaProducer

    log = opened(url(broker, new_prefix(), client))
    quarantine = TopicPartition("quarantine", 0)
    reader = log.reader({quarantine: 0})
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=log.topic_name("someone"))
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(log.topic_name("quarantine"), b"never", b"k").get(timeout=30)
    log.append([Append("quarantine", "k", b"behind it")])
    assert log.end(quarantine) == 0
    assert reader.poll() == []
    assert reader.at_end()
    producer.abort_transaction()
    assert [record.value for record in read_until(reader, 1)] == [b"behind it"]
    assert reader.poll() == []
    assert reader.position(quarantine) == log.end(quarantine) == 3, "the record, the other, and the marker"
    producer.close(timeout=5)
    reader.close()
    log.close()


@both_clients
def test_a_dump_waits_for_what_is_being_published(broker: Broker, client: str) -> None:
    log = opened(url(broker, new_prefix(), client))
    publisher = log.publisher(0)
    publisher.begin([Append("outcomes", "k", b"1")])
    publisher.flush()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: [entry["value"] for entry in dump(log, "outcomes")])
        with pytest.raises(TimeoutError):
            found.result(timeout=0.5)
        publisher.commit()
        assert found.result(timeout=20) == [1]
    publisher.close()
    log.close()


def on_both_clients(broker: Broker, timeout_s: float) -> dict[str, KafkaLog]:
    """A log of its own for each client, so that one outage of the broker tries both."""
    return {client: opened(url(broker, new_prefix(), client, timeout_s=timeout_s)) for client in CLIENTS}


def test_a_broker_that_restarts_is_survived(tmp_path: Path) -> None:
    with running_broker(tmp_path / "kafka") as broker, ThreadPoolExecutor(len(CLIENTS)) as side:
        logs = on_both_clients(broker, timeout_s=60)
        readers = {client: log.reader(whole(log, "policies")) for client, log in logs.items()}
        publishers = {client: log.publisher(0) for client, log in logs.items()}
        for client, log in logs.items():
            log.append(numbered(0, 5))
            publishers[client].append([Append("quarantine", "k", b"before")])
            assert len(read_until(readers[client], 5)) == 5, client
        broker.kill()
        # All wait for the broker to come back, and go on by themselves.
        waiting = {client: side.submit(log.append, numbered(5, 8)) for client, log in logs.items()}
        broker.start()
        for client, reader in readers.items():
            assert waiting[client].result(60) == [(0, 5), (0, 6), (0, 7)], client
            assert [record.offset for record in read_until(reader, 3)] == [5, 6, 7], client
        broker.stop()
        broker.start()
        for client, log in logs.items():
            assert log.append(numbered(8, 9)) == [(0, 8)], client
            publishers[client].append([Append("quarantine", "k", b"after")])
            assert [record.offset for record in read_until(readers[client], 1)] == [8], client
            assert [record.value for record in read(log, "quarantine")] == [b"before", b"after"], client
            for part in (readers[client], publishers[client], log):
                part.close()


def test_a_broker_that_stays_away_is_an_error_in_bounded_time(tmp_path: Path) -> None:
    with running_broker(tmp_path / "kafka") as broker, ThreadPoolExecutor(len(CLIENTS)) as side:
        logs = on_both_clients(broker, timeout_s=3)
        readers = {client: log.reader(whole(log, "policies")) for client, log in logs.items()}
        publishers = {client: log.publisher(0) for client, log in logs.items()}
        for log in logs.values():
            log.append(numbered(0, 1))

        def away(client: str) -> None:
            with pytest.raises(OSError, match="kafka"):
                logs[client].append(numbered(1, 2))
            with pytest.raises(OSError, match="kafka"):
                publishers[client].append([Append("quarantine", "k", b"x")])
            with pytest.raises(OSError, match="kafka"):
                _drain(readers[client])
            with pytest.raises(OSError, match="kafka"):
                publishers[client].append([Append("quarantine", "k", b"x")])
            publishers[client].close()

        broker.stop()
        for tried in [side.submit(away, client) for client in CLIENTS]:
            tried.result(60)
        broker.start()
        for client, log in logs.items():
            again = persist(partial(taken, log, Append("quarantine", "k", b"y")))
            persist(partial(log.append, numbered(2, 3)))
            # Whether the refused append's record came after all is not known; here it can only have come before.
            assert read_until(readers[client], 1), client
            assert read(log, "policies")[-1].value == b"2", client
            assert read(log, "quarantine")[-1].value == b"y", client
            for part in (readers[client], again, log):
                part.close()


def taken(log: KafkaLog, record: Append) -> Publisher:
    """A publisher that has published `record`."""
    publisher = log.publisher(0)
    try:
        publisher.append([record])
    except OSError:
        publisher.close()
        raise
    return publisher


def persist(ask: Callable[[], T], within_s: float = 60.0) -> T:
    """Ask until there is an answer, as a role does: on a slow machine a broker that has just started takes its time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except OSError:
            if time.monotonic() > deadline:
                raise


def _drain(reader: LogReader) -> None:
    while reader.poll():
        pass


def test_a_closed_log_refuses(broker: Broker) -> None:
    log: EventLog = opened(url(broker, new_prefix()))
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.append(numbered(0, 1))
