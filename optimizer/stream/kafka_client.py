"""What the Kafka log needs of a client library: one small interface, which kafka_python and kafka_confluent give.

Names here are full topic names, prefix included; only a Consumer's records carry the names without it. Whatever a
library raises comes out as one of: OffsetGone, Fenced, ConfigError (not allowed in), AdloopError (a record that the
topic refuses), or OSError (a broker that can't be reached or does not answer: worth trying again).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from optimizer.errors import ConfigError
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import Record, TopicPartition

FETCH_BYTES = 32 * 1024 * 1024  # what one reader may hold of fetched records that nobody has polled yet
BATCH_BYTES = 256 * 1024  # largest batch of small records that a producer makes
REQUEST_BYTES = 4 * 1024 * 1024  # room for the largest record
# A connection on which a request has no answer for so long is given up for a new one.
REQUEST_TIMEOUT_S = 3.0
SETUP_TIMEOUT_S = 5.0  # for a connection with its handshakes, of which each takes an answer
# An answer that took so long probably came over a second connection: others may be dead, too.
STALL_S = 5.0
# No more often in so long are others suspected for that: a fault takes two or three times, slow brokers have no end.
MOST_STALLS = 5
CALM_S = 60.0
# What a transaction sends is given up after so long: whoever takes the partition next ends the transaction.
DELIVERY_TIMEOUT_S = 10.0
TRANSACTION_TIMEOUT_S = 20.0  # a publisher that died in a transaction holds its readers up for no longer than this


class Message(NamedTuple):
    """A record on its way out; `ts` is the time it was appended, `partition` None the one that its key belongs to."""

    topic: str
    key: bytes
    value: bytes | None
    ts: int
    partition: int | None = None


class Place(NamedTuple):
    """A partition by its topic's full name."""

    topic: str
    partition: int


class TopicInfo(NamedTuple):
    """A topic that exists; a topic that was deleted and made again has another `topic_id`."""

    topic_id: str
    partitions: int


class NewTopic(NamedTuple):
    """A topic to be made; `replication` None is the brokers' own default."""

    name: str
    partitions: int
    replication: int | None
    settings: Mapping[str, str]


class OffsetGone(Exception):
    """A consumer's position is not, or no longer, in the partition."""

    def __init__(self, at: TopicPartition, position: int) -> None:
        super().__init__(f"{at.topic}[{at.partition}]: position {position}")
        self.at = at
        self.position = position


class Consumer(Protocol):
    """Reads fixed partitions from given positions; never resets one by itself. Not thread-safe."""

    def poll(self, max_records: int, timeout_s: float) -> Mapping[TopicPartition, list[Record]]:
        """What has been fetched, waiting up to `timeout_s` for the first. Empty says nothing about the log's end."""
        ...

    def position(self, at: TopicPartition) -> int:
        """Behind the last polled record, and behind transaction markers that have been passed over."""
        ...

    def known_end(self, at: TopicPartition) -> int:
        """The partition's end as the last answer to a fetch told it; -1 before the first."""
        ...

    def close(self) -> None: ...


class Producer(Protocol):
    """Idempotent, acknowledged by all replicas in sync. Thread-safe. After an OSError it must be closed."""

    def send(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Returns (partition, offset) of each once all are durable. After an OSError some of them may be in the log."""
        ...

    def close(self) -> None: ...


class Transactions(Protocol):
    """A transactional producer, which fenced all earlier ones of its id when it was made. Not thread-safe.

    All of what one `begin` was given is there after `commit`, or none. Each raises Fenced with nothing written, and
    AdloopError with nothing begun for a record that is refused. After an OSError either all are there or none; which of
    the two is known only once a successor was made."""

    def begin(self, messages: Sequence[Message]) -> None:
        """Hand messages over, without waiting for the brokers."""
        ...

    def flush(self) -> None:
        """Wait until all are acknowledged. The thread that calls it serves the acknowledgements."""
        ...

    def commit(self) -> dict[str, int]:
        """Returns the offset behind the last message of each topic, by full name, once all are committed."""
        ...

    def close(self) -> None: ...


class Admin(Protocol):
    """Topics, their settings and their offsets. Thread-safe."""

    def cluster_id(self) -> str: ...

    def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Those of `names` that exist."""
        ...

    def create(self, topics: Sequence[NewTopic]) -> None:
        """Make topics; one that exists already is left as it is."""
        ...

    def settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """The effective settings of topics, by topic and name."""
        ...

    def starts(self, places: Collection[Place]) -> dict[Place, int]:
        """The smallest offsets that can still be read."""
        ...

    def ends(
        self, places: Collection[Place], committed: bool = True, patience_s: float | None = None
    ) -> dict[Place, int]:
        """The ends of what can be read: behind the last record that is in no open transaction. Not `committed`: behind
        the last record there is. It is asked again for `patience_s` (as configured) where nothing answers."""
        ...

    def close(self) -> None: ...


class Client(Protocol):
    """A client library, configured. Raises ConfigError where the brokers refuse us, OSError where none answers."""

    name: str

    def admin(self) -> Admin: ...
    def consumer(self, positions: Mapping[TopicPartition, int], committed: bool = True) -> Consumer:
        """Not `committed`: it reads what is in open and aborted transactions, too."""
        ...

    def producer(self) -> Producer: ...
    def transactions(self, transactional_id: str) -> Transactions: ...


def make_client(config: KafkaConfig) -> Client:
    """The client library that `config.client` names. Raises ConfigError where that one is not installed."""
    # Imported here because each takes a while to load, and confluent-kafka need not be installed.
    if config.client == "kafka-python" or (config.client == "auto" and not confluent_installed()):
        from optimizer.stream.kafka_python import KafkaPython

        return KafkaPython(config)
    if not confluent_installed():
        raise ConfigError(
            "client: got confluent, expected an installed client; run: pip install confluent-kafka, or leave it out"
        )
    from optimizer.stream.kafka_confluent import Confluent

    return Confluent(config)


def confluent_installed() -> bool:
    """True where confluent-kafka, the `fast` extra, can be imported."""
    return importlib.util.find_spec("confluent_kafka") is not None
