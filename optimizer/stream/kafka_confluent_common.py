"""What all parts of the confluent-kafka client share: how it connects, and what its errors mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from optimizer.errors import AdloopError, ConfigError, Fenced
from optimizer.stream.kafka_client import REQUEST_TIMEOUT_S, SETUP_TIMEOUT_S
from optimizer.stream.kafka_url import KafkaConfig

LOG: Final = logging.getLogger("optimizer.stream.kafka_confluent")  # where the library's own messages go
FENCED: Final = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
REFUSED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


def connection(config: KafkaConfig) -> dict[str, Any]:
    """The settings that all of the library's clients share."""
    request_ms = int(min(config.timeout_s, REQUEST_TIMEOUT_S) * 1000)
    settings: dict[str, Any] = {
        "bootstrap.servers": config.bootstrap,
        "socket.timeout.ms": request_ms,
        "socket.connection.setup.timeout.ms": int(min(config.timeout_s, SETUP_TIMEOUT_S) * 1000),
        "api.version.request.timeout.ms": request_ms,
        "client.id": "adloop",
        "security.protocol": config.security_protocol,
        "reconnect.backoff.max.ms": 1_000,
        "socket.keepalive.enable": True,
    }
    if config.sasl_mechanism is not None:
        settings["sasl.mechanism"] = config.sasl_mechanism
        settings["sasl.username"] = config.username
        settings["sasl.password"] = config.password
    for ours, theirs in (
        ("ca_file", "ssl.ca.location"),
        ("cert_file", "ssl.certificate.location"),
        ("key_file", "ssl.key.location"),
    ):
        if (path := getattr(config, ours)) is not None:
            settings[theirs] = path
    return settings


@contextmanager
def translated(config: KafkaConfig) -> Iterator[None]:
    """The library's errors as ours."""
    try:
        yield
    except KafkaException as error:
        raise ours(config, error.args[0]) from error


def ours(config: KafkaConfig, error: KafkaError) -> Exception:
    """A library's error as ours; OSError is what may pass by itself."""
    if error.code() in FENCED:
        return Fenced(f"kafka: another producer has taken this one's place ({error.str()})")
    if error.code() in TOO_LARGE:
        return AdloopError(
            f"record: got one that the topic refuses ({error.str()}), expected at most its max.message.bytes; raise "
            "that setting"
        )
    if error.code() in REFUSED:
        return ConfigError(
            f"log: {config.bootstrap} refuses user {config.username!r} ({error.str()}); correct its name, password, "
            "mechanism or rights"
        )
    return OSError(f"kafka: {config.bootstrap} gives no answer ({error.name()}: {error.str()})")
