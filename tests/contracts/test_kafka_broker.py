"""What the Kafka log does when the broker is not as it should be: gone, back again, truncated, set up otherwise."""

from __future__ import annotations

import gc
import logging
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
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError, ConfigError, LogTruncated
from optimizer.stream.dump import dump
from optimizer.stream.joiner import Joiner
from optimizer.stream.kafka_client import make_client
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_reader import KafkaReader
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append, EventLog, LogReader, Publisher, Record, TopicPartition, whole
from optimizer.stream.open import open_log
from simulators.cli import main as adloop
from tests.contracts.log_suite import read
from tests.kafka_rig import PASSWORD, USER, new_prefix, running_broker, url
from tests.stream_rig import KEYS

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
T = TypeVar("T")
CLIENTS = ("kafka-python", "confluent")
both_clients = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def opened(url: str, environment: dict[str, str] | None = None) -> KafkaLog:
    return KafkaLog(parse_kafka_url(url, environment or {}))


def make_topic(broker: Broker, name: str, partitions: int = 1, **configs: str) -> None:
    settings = {key.replace("_", "."): value for key, value in configs.items()}
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.create_topics({name: {"num_partitions": partitions, "configs": settings}}, wait_for_metadata=True)


def delete_records(broker: Broker, name: str, before: int) -> None:
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_records({KafkaPlace(name, 0): before})


def numbered(first: int, end: int) -> list[Append]:
    return [Append("policies", "v", str(i).encode()) for i in range(first, end)]


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


@pytest.mark.parametrize(
    ("topic", "partitions", "settings", "match"),
    [
        ("campaigns", 1, {}, r"cleanup.policy of topic .*campaigns: got delete, expected compact.*kafka-configs"),
        ("outcomes", 4, {"cleanup_policy": "compact"}, "outcomes: got compact, expected delete"),
        ("policies", 2, {"cleanup_policy": "compact"}, "partitions: got 2 of .*policies, expected 1"),
    ],
)
def test_a_topic_that_cannot_serve_is_refused(
    broker: Broker, topic: str, partitions: int, settings: dict[str, str], match: str
) -> None:
    prefix = new_prefix()
    make_topic(broker, prefix + topic, partitions, **settings)
    with pytest.raises(ConfigError, match=match):
        opened(url(broker, prefix))


def test_unequal_partition_counts_are_refused(broker: Broker) -> None:
    prefix = new_prefix()
    make_topic(broker, prefix + "decisions", 2)
    make_topic(broker, prefix + "events", 3)
    with pytest.raises(ConfigError, match=r"decisions 2, .*events 3, expected equal counts"):
        opened(url(broker, prefix))


@both_clients
def test_a_changed_partition_count_refuses_to_start_and_names_the_way_out(broker: Broker, client: str) -> None:
    prefix = new_prefix()
    opened(url(broker, prefix, client, partitions=2)).close()
    with pytest.raises(ConfigError, match=r"partitions: got 4, expected 2.*leave .partitions. out"):
        opened(url(broker, prefix, client, partitions=4))
    log = opened(url(broker, prefix, client))
    assert log.partitions("events") == 2
    log.close()
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.create_partitions({f"{prefix}events": 3})
        while len(admin.describe_topics([f"{prefix}events"])[0]["partitions"]) < 3:
            time.sleep(0.05)
    with pytest.raises(ConfigError, match="expected equal counts"):
        opened(url(broker, prefix, client))


def test_a_partition_count_that_was_changed_before_there_was_any_state_is_seen(broker: Broker, tmp_path: Path) -> None:
    prefix = new_prefix()
    log = opened(url(broker, prefix, partitions=2))
    log.append([Append(topic, f"d{i}", b"{}") for i in range(40) for topic in ("decisions", "events")])
    Joiner(log, tmp_path / "before", KEYS, SystemClock()).close()
    log.close()
    topics = [prefix + topic for topic in ("decisions", "events", "outcomes")]
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.create_partitions(dict.fromkeys(topics, 3))
        while any(len(topic["partitions"]) < 3 for topic in admin.describe_topics(topics)):
            time.sleep(0.05)
    log = opened(url(broker, prefix))
    with pytest.raises(
        ConfigError, match=r"do not belong there .*of 3\): the count was changed .*under another prefix"
    ):
        Joiner(log, tmp_path / "after", KEYS, SystemClock())
    with pytest.raises(ConfigError, match="belongs to another log"):
        Joiner(log, tmp_path / "before", KEYS, SystemClock())
    log.close()


def test_topics_that_producers_made_first_are_taken_as_they_are(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    for topic in ("decisions", "events"):
        make_topic(broker, prefix + topic, 2)
    with caplog.at_level(logging.WARNING, "optimizer.stream.kafka_topics"):
        log = opened(url(broker, prefix))
    assert [log.partitions(topic) for topic in ("decisions", "events", "outcomes", "quarantine")] == [2, 2, 2, 1]
    assert "retention.ms is 604800000" in caplog.text
    with pytest.raises(AdloopError, match=r"max.message.bytes"):
        log.append([Append("events", "k", b"x" * 1_500_000)])
    assert log.append([Append("events", "k", b"x")])[0][1] == 0
    log.close()


def test_a_retention_is_set_where_it_is_wanted(broker: Broker) -> None:
    prefix = new_prefix()
    opened(url(broker, prefix, retention_days=30)).close()
    with pytest.raises(ConfigError, match="expected an existing log"):
        open_log(url(broker, new_prefix()), create=False)
    from optimizer.stream.kafka_python import PythonAdmin

    admin = PythonAdmin(parse_kafka_url(url(broker, prefix), {}))
    settings = admin.settings([prefix + "events", prefix + "candidates"])
    assert settings[prefix + "events"]["retention.ms"] == str(30 * 24 * 3_600_000)
    assert settings[prefix + "candidates"]["retention.ms"] == "-1"
    admin.close()


@both_clients
def test_looking_at_a_log_that_is_not_there_makes_no_topics(
    broker: Broker, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = new_prefix()
    for command in (["log", "dump", url(broker, prefix, client), "events"], ["quarantine", "list", "--log"]):
        assert adloop(command if command[0] == "log" else [*command, url(broker, prefix, client)]) == 1
        assert "expected an existing log; correct the prefix" in capsys.readouterr().err
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        assert not [name for name in admin.list_topics() if name.startswith(prefix)]


@both_clients
def test_an_unreachable_broker_is_named(client: str) -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1 gives no answer"):
        opened(f"kafka://127.0.0.1:1?client={client}&timeout_s=2")


@both_clients
@pytest.mark.parametrize(
    ("listener", "options"),
    [
        ("sasl", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN"),
        ("sasl", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-256"),
        ("sasl", "security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-512"),
        ("ssl", "security_protocol=SSL&ca_file={ca}"),
        ("sasl_ssl", "security_protocol=SASL_SSL&ca_file={ca}"),
    ],
)
def test_passwords_and_encryption_are_passed_through(
    secure_broker: Broker, client: str, listener: str, options: str
) -> None:
    environment = {"ADLOOP_KAFKA_USERNAME": USER, "ADLOOP_KAFKA_PASSWORD": PASSWORD}
    where = f"kafka://{secure_broker.address(listener)}?prefix={new_prefix()}&partitions=1&client={client}"
    log = opened(f"{where}&{options.format(ca=secure_broker.ca_file)}", environment)
    log.append(numbered(0, 3))
    publisher = log.publisher(0)
    publisher.append([Append("quarantine", "k", b"x")])
    assert len(read(log, "policies")) == 3
    assert len(read(log, "quarantine")) == 1
    publisher.close()
    log.close()


@both_clients
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused_and_not_shown(
    secure_broker: Broker, client: str, mechanism: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("not-the-password\n")
    where = (
        f"kafka://{secure_broker.address('sasl')}?client={client}&security_protocol=SASL_PLAINTEXT&timeout_s=5"
        f"&sasl_mechanism={mechanism}&username={USER}&password_file={tmp_path / 'password'}"
    )
    with pytest.raises((ConfigError, OSError), match=f"refuses user '{USER}'") as refusal:
        opened(where)
    assert "not-the-password" not in str(refusal.value)
    assert "not-the-password" not in repr(parse_kafka_url(where, {}))


@both_clients
def test_an_unknown_certificate_is_refused(secure_broker: Broker, client: str) -> None:
    where = f"kafka://{secure_broker.address('ssl')}?client={client}&security_protocol=SSL&timeout_s=3"
    with pytest.raises(OSError, match="gives no answer"):
        opened(where)


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
