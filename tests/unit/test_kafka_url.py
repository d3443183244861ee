"""What a kafka:// URL says, and what is refused of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import ConfigError
from optimizer.stream import kafka_client
from optimizer.stream.kafka_client import make_client
from optimizer.stream.kafka_url import KafkaConfig, parse_kafka_url

ACCOUNT = {"ADLOOP_KAFKA_USERNAME": "ada", "ADLOOP_KAFKA_PASSWORD": "secret"}


def test_a_bare_url_takes_the_defaults() -> None:
    assert parse_kafka_url("kafka://one:9092,two:9093", {}) == KafkaConfig(("one:9092", "two:9093"), prefix="adloop.")
    assert parse_kafka_url("kafka://one:9092/?prefix=", {}).prefix == ""


def test_every_option_is_taken(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    config = parse_kafka_url(
        "kafka://one:9092?prefix=a-&partitions=8&replication=3&retention_days=90&client=kafka-python&compression=lz4"
        f"&timeout_s=5&security_protocol=SASL_SSL&sasl_mechanism=PLAIN&username=eve&ca_file={ca}",
        ACCOUNT,
    )
    assert config == KafkaConfig(
        servers=("one:9092",),
        prefix="a-",
        partitions=8,
        replication=3,
        retention_days=90,
        client="kafka-python",
        compression="lz4",
        timeout_s=5.0,
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        username="eve",
        password="secret",
        ca_file=str(ca),
    )
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("kafka://", "broker '', expected kafka://HOST:PORT"),
        ("kafka://host", "broker 'host'"),
        ("kafka://host:0", "broker 'host:0'"),
        ("kafka://host:9092,", "broker ''"),
        ("kafka://host:9092/adloop", "path 'adloop', expected .prefix=NAME"),
        ("kafka://ada:secret@host:9092", "username=NAME as an option and ADLOOP_KAFKA_PASSWORD"),
        ("kafka://host:1?password=x", "option 'password'"),
        ("kafka://host:1?prefix=a/b", "prefix: got 'a/b'"),
        ("kafka://host:1?partitions=0", "partitions: got '0', expected a whole number from 1 to 256"),
        ("kafka://host:1?partitions=" + "9" * 5_000, "partitions: got '999"),
        ("kafka://host:" + "9" * 5_000, "broker 'host:999"),
        ("kafka://host:1?timeout_s=nan", "timeout_s: got 'nan'"),
        ("kafka://host:1?client=java", "client: got 'java'"),
        ("kafka://host:1?compression=7z", "compression: got '7z'"),
        ("kafka://host:1?security_protocol=TLS", "security_protocol: got 'TLS'"),
        ("kafka://host:1?username=ada", "SASL_SSL or SASL_PLAINTEXT where username is given"),
        ("kafka://host:1?security_protocol=SASL_SSL", "username: got none"),
        ("kafka://host:1?security_protocol=SASL_SSL&username=ada", "password: got none"),
        ("kafka://host:1?security_protocol=SSL&ca_file=/nowhere", "ca_file: got '/nowhere'"),
    ],
)
def test_a_wrong_url_is_refused_by_name(url: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refusal:
        parse_kafka_url(url, {})
    assert "secret" not in str(refusal.value)


def test_a_certificate_needs_encryption(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    with pytest.raises(ConfigError, match="SSL or SASL_SSL where ca_file is given"):
        parse_kafka_url(f"kafka://host:1?ca_file={tmp_path / 'ca.pem'}", {})


def test_the_environment_chooses_the_client_where_the_url_does_not() -> None:
    environment = {"ADLOOP_KAFKA_CLIENT": "kafka-python"}
    assert parse_kafka_url("kafka://host:1", environment).client == "kafka-python"
    assert parse_kafka_url("kafka://host:1?client=confluent", environment).client == "confluent"


def test_the_fast_client_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_client(KafkaConfig(("host:1",))).name == "confluent"
    assert make_client(KafkaConfig(("host:1",), client="kafka-python")).name == "kafka-python"
    monkeypatch.setattr(kafka_client, "confluent_installed", lambda: False)
    assert make_client(KafkaConfig(("host:1",))).name == "kafka-python"
    with pytest.raises(ConfigError, match="pip install confluent-kafka"):
        make_client(KafkaConfig(("host:1",), client="confluent"))
