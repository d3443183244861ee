"""Opening the Kafka log: topics that are set up otherwise or are not there, passwords, certificates."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from deploy.kafka.broker import Broker
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError, ConfigError
from optimizer.stream.joiner import Joiner
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append
from optimizer.stream.open import open_log
from simulators.cli import main as adloop
from tests.contracts.log_suite import read
from tests.kafka_rig import PASSWORD, USER, new_prefix, numbered, opened, url
from tests.stream_rig import KEYS

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
both_clients = pytest.mark.parametrize("client", ["kafka-python", "confluent"])


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def make_topic(broker: Broker, name: str, partitions: int = 1, **configs: str) -> None:
    settings = {key.replace("_", "."): value for key, value in configs.items()}
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.create_topics({name: {"num_partitions": partitions, "configs": settings}}, wait_for_metadata=True)


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
