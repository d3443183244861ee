"""`kafka://HOST:PORT[,HOST:PORT]?prefix=adloop.` and its options: how to reach a Kafka log. URLs hold no secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl

from optimizer.errors import ConfigError

KAFKA_PREFIX: Final = "kafka://"
DEFAULT_PREFIX: Final = "adloop."
TIMEOUT_S: Final = 30.0
USERNAME_VARIABLE: Final = "ADLOOP_KAFKA_USERNAME"
PASSWORD_VARIABLE: Final = "ADLOOP_KAFKA_PASSWORD"
CLIENT_VARIABLE: Final = "ADLOOP_KAFKA_CLIENT"
MOST_DIGITS: Final = 9  # of a number in a URL: Python refuses to read thousands of them
MAX_PARTITIONS: Final = 256
MAX_TIMEOUT_S: Final = 3600.0
# What is left of Kafka's 249 characters for a topic's name, less our longest name.
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{0,200}")

ClientName = Literal["auto", "kafka-python", "confluent"]
CLIENTS: Final = ("auto", "kafka-python", "confluent")
PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
COMPRESSIONS: Final = ("none", "lz4", "zstd", "gzip")
OPTIONS: Final = (
    *("prefix", "partitions", "replication", "retention_days", "client", "compression", "timeout_s"),
    *("security_protocol", "sasl_mechanism", "username", "password_file", "ca_file", "cert_file", "key_file"),
)


@dataclass(frozen=True)
class KafkaConfig:
    """How to reach the brokers, and how topics are made that are not there yet.

    Attributes:
      servers: HOST:PORT of at least one broker.
      prefix: what every topic's full name begins with.
      partitions: of decisions, events and outcomes; None takes what they have (4 for new ones).
      replication: of new topics; None leaves it to the brokers' own default.
      retention_days: of new decisions, events, outcomes and quarantine; None keeps them for ever.
      client: which client library; auto takes confluent-kafka where it is installed.
      compression: of what is written; the readers take any.
      timeout_s: how long a call waits for a broker that does not answer before it raises OSError.
      password: never shown.
    """

    servers: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    partitions: int | None = None
    replication: int | None = None
    retention_days: int | None = None
    client: ClientName = "auto"
    compression: str = "none"
    timeout_s: float = TIMEOUT_S
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def bootstrap(self) -> str:
        """The brokers, as both client libraries take them."""
        return ",".join(self.servers)


def parse_kafka_url(url: str, environment: Mapping[str, str]) -> KafkaConfig:
    """The configuration in a `kafka://` URL; user name and password may come from `environment`, which gives the client
    library too where the URL does not. Raises ConfigError, naming the part of the URL that is wrong."""
    authority, _, query = url.removeprefix(KAFKA_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise _wrong("log", f"option {unknown[0]!r}", f"one of {', '.join(OPTIONS)}")
    prefix = options.get("prefix", DEFAULT_PREFIX)
    if not _PREFIX.fullmatch(prefix):
        raise _wrong("prefix", repr(prefix), "at most 200 of A-Z, a-z, 0-9, '.', '_' and '-'")
    protocol = _one_of(options, "security_protocol", PROTOCOLS, "PLAINTEXT")
    username, password, mechanism = _credentials(options, environment, protocol)
    chosen = options.get("client") or environment.get(CLIENT_VARIABLE) or "auto"
    files = {name: _file(options, name) for name in ("ca_file", "cert_file", "key_file")}
    if "SSL" not in protocol and (given := [name for name, path in files.items() if path is not None]):
        raise _wrong("security_protocol", protocol, f"SSL or SASL_SSL where {given[0]} is given")
    return KafkaConfig(
        servers=_servers(authority),
        prefix=prefix,
        partitions=_whole(options, "partitions", MAX_PARTITIONS),
        replication=_whole(options, "replication", 32),
        retention_days=_whole(options, "retention_days", 36_500),
        client=_client(chosen),
        compression=_one_of(options, "compression", COMPRESSIONS, "none"),
        timeout_s=_seconds(options),
        security_protocol=protocol,
        sasl_mechanism=mechanism,
        username=username,
        password=password,
        **files,
    )


def _servers(authority: str) -> tuple[str, ...]:
    if "@" in authority:
        # Not repeated in the message: it may hold a password.
        raise _wrong("log", "a user name before @", f"username=NAME as an option and {PASSWORD_VARIABLE} set")
    hosts, slash, path = authority.partition("/")
    if slash and path:
        raise _wrong("log", f"the path {path!r}", "?prefix=NAME instead of a path")
    servers = tuple(hosts.split(","))
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and len(port) <= 5) or not 0 < int(port) < 65_536:
            raise _wrong("log", f"broker {server!r}", "kafka://HOST:PORT[,HOST:PORT]")
    return servers


def _credentials(
    options: Mapping[str, str], environment: Mapping[str, str], protocol: str
) -> tuple[str | None, str | None, str | None]:
    """User name, password and mechanism; all None where the protocol has no SASL."""
    if not protocol.startswith("SASL_"):
        for name in ("sasl_mechanism", "username", "password_file"):
            if name in options:
                raise _wrong("security_protocol", protocol, f"SASL_SSL or SASL_PLAINTEXT where {name} is given")
        return None, None, None
    mechanism = _one_of(options, "sasl_mechanism", MECHANISMS, "SCRAM-SHA-512")
    username = options.get("username") or environment.get(USERNAME_VARIABLE)
    if not username:
        raise _wrong("username", "none", f"the option username or {USERNAME_VARIABLE}")
    path = _file(options, "password_file")
    password = environment.get(PASSWORD_VARIABLE) if path is None else Path(path).read_text(encoding="utf-8").strip()
    if not password:
        raise _wrong("password", "none", f"{PASSWORD_VARIABLE} or the option password_file")
    return username, password, mechanism


def _client(text: str) -> ClientName:
    match text:
        case "auto" | "kafka-python" | "confluent":
            return text
        case _:
            raise _wrong("client", repr(text), " or ".join(CLIENTS))


def _one_of(options: Mapping[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in known:
        raise _wrong(name, repr(value), ", ".join(known))
    return value


def _whole(options: Mapping[str, str], name: str, largest: int) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and 1 <= int(text) <= largest):
        raise _wrong(name, repr(text[:80]), f"a whole number from 1 to {largest}")
    return int(text)


def _seconds(options: Mapping[str, str]) -> float:
    text = options.get("timeout_s", str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= MAX_TIMEOUT_S:
        raise _wrong("timeout_s", repr(text), f"seconds from 1 to {MAX_TIMEOUT_S:.0f}")
    return seconds


def _file(options: Mapping[str, str], name: str) -> str | None:
    path = options.get(name)
    if path is not None and not Path(path).is_file():
        raise _wrong(name, repr(path), "a file that is there")
    return path


def _wrong(what: str, got: str, expected: str) -> ConfigError:
    return ConfigError(f"{what}: got {got}, expected {expected}; correct the log's URL")
