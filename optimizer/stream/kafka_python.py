"""The Kafka log's default client: kafka-python."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import IsolationLevel, OffsetSpec
from kafka.structs import TopicPartition as KafkaPlace

from optimizer.errors import AdloopError, ConfigError, Fenced
from optimizer.stream.kafka_client import (
    BATCH_BYTES,
    DELIVERY_TIMEOUT_S,
    FETCH_BYTES,
    REQUEST_BYTES,
    REQUEST_TIMEOUT_S,
    SETUP_TIMEOUT_S,
    TRANSACTION_TIMEOUT_S,
    Message,
    NewTopic,
    OffsetGone,
    Place,
    TopicInfo,
)
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import MAX_RECORD_BYTES, Record, TopicPartition
from optimizer.stream.partitioner import partition_of

RETRY_S: Final = 0.2
CLOSE_S: Final = 1.0
# A broker that comes back should be found soon: the library's own back-off grows to 30 s.
RECONNECT_MS: Final = 1_000
REFUSED: Final = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)
FENCED: Final = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class KafkaPython:
    """A Client of kafka-python."""

    name = "kafka-python"

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    def admin(self) -> PythonAdmin:
        return PythonAdmin(self._config)

    def consumer(self, positions: Mapping[TopicPartition, int], committed: bool = True) -> PythonConsumer:
        return PythonConsumer(self._config, positions, committed)

    def producer(self) -> PythonProducer:
        return PythonProducer(self._config)

    def transactions(self, transactional_id: str) -> PythonTransactions:
        return PythonTransactions(self._config, transactional_id)


class PythonConsumer:
    """A KafkaConsumer with its partitions assigned by hand, in no group."""

    def __init__(self, config: KafkaConfig, positions: Mapping[TopicPartition, int], committed: bool) -> None:
        self._names = {at: KafkaPlace(config.prefix + at.topic, at.partition) for at in positions}
        self._places = {name: at for at, name in self._names.items()}
        self._positions = dict(positions)
        self._consumer = connected(
            config,
            partial(
                KafkaConsumer,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed" if committed else "read_uncommitted",
                allow_auto_create_topics=False,
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=MAX_RECORD_BYTES,
                metrics_enabled=False,
            ),
        )
        self._config = config
        self._consumer.assign(list(self._places))
        for at, position in positions.items():
            self._consumer.seek(self._names[at], position)

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        try:
            with translated(self._config):
                fetched = self._consumer.poll(int(timeout_s * 1000), max_records)
        except kafka_errors.OffsetOutOfRangeError as error:
            raise self._gone(error.args[0] if error.args else {}) from error
        except kafka_errors.LogTruncationError as error:
            raise self._gone(error.divergent_offsets) from error
        found: dict[TopicPartition, list[Record]] = {}
        for name, records in fetched.items():
            at = self._places[name]
            topic, partition = at
            found[at] = [Record(topic, partition, r.offset, r.key, r.value, r.timestamp) for r in records]
            self._positions[at] = found[at][-1].offset + 1
        return found

    def position(self, at: TopicPartition) -> int:
        # The library's own position is asked without a round trip; it is ahead of ours by the markers it has passed.
        with translated(self._config):
            position = self._consumer.position(self._names[at], timeout_ms=0)
        if position is not None and position > self._positions[at]:
            self._positions[at] = position
        return self._positions[at]

    def known_end(self, at: TopicPartition) -> int:
        end = self._consumer.highwater(self._names[at])
        return -1 if end is None else int(end)

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1_000)

    def _gone(self, partitions: Mapping[KafkaPlace, object]) -> OffsetGone:
        at = next((self._places[name] for name in partitions if name in self._places), next(iter(self._positions)))
        return OffsetGone(at, self.position(at))


class PythonProducer:
    """An idempotent KafkaProducer. Thread-safe."""

    def __init__(self, config: KafkaConfig, transactional_id: str | None = None) -> None:
        self._config = config
        more: dict[str, Any] = {}
        self._delivery_s = config.timeout_s
        if transactional_id is not None:
            self._delivery_s = min(config.timeout_s, DELIVERY_TIMEOUT_S)
            more = {
                "transactional_id": transactional_id,
                "transaction_timeout_ms": int(TRANSACTION_TIMEOUT_S * 1000),
            }
        self.producer = connected(
            config,
            partial(
                KafkaProducer,
                acks="all",
                enable_idempotence=True,
                delivery_timeout_ms=int(self._delivery_s * 1000),
                max_block_ms=int(config.timeout_s * 1000),
                batch_size=BATCH_BYTES,
                max_request_size=REQUEST_BYTES,
                compression_type=None if config.compression == "none" else config.compression,
                allow_auto_create_topics=False,
                metrics_enabled=False,
                **more,
            ),
        )
        self._partitions: dict[str, int] = {}

    def send(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        with translated(self._config):
            return self.acknowledged(self.hand_over(messages))

    def hand_over(self, messages: Sequence[Message]) -> list[Any]:
        """Buffer them; returns the library's futures. Its errors come untranslated, here and in `acknowledged`."""
        send, partition_of_key = self.producer.send, self._partition
        return [
            send(
                topic,
                value,
                key,
                partition=partition_of_key(topic, key) if partition is None else partition,
                timestamp_ms=ts,
            )
            for topic, key, value, ts, partition in messages
        ]

    def acknowledged(self, futures: Sequence[Any]) -> list[tuple[int, int]]:
        """Wait for the brokers; returns (partition, offset) of each."""
        # The library ends each by its delivery timeout; the second more only guards against its failing to.
        deadline = time.monotonic() + self._delivery_s + 1.0
        found = [future.get(timeout=max(0.0, deadline - time.monotonic())) for future in futures]
        return [(metadata.partition, metadata.offset) for metadata in found]

    def close(self) -> None:
        try:
            self.producer.close(timeout=CLOSE_S)
        except kafka_errors.KafkaTimeoutError:
            # The library flushes first, and gives up closing where that fails: let it drop what it holds, then close.
            self.producer._sender.force_close()
            with suppress(kafka_errors.KafkaTimeoutError):
                self.producer.close(timeout=CLOSE_S)

    def _partition(self, topic: str, key: bytes) -> int:
        count = self._partitions.get(topic)
        if count is None:
            count = self._partitions[topic] = len(self.producer.partitions_for(topic))
        return partition_of(key, count)


class PythonTransactions:
    """A transactional KafkaProducer; making it fences its predecessors."""

    def __init__(self, config: KafkaConfig, transactional_id: str) -> None:
        self._config = config
        self._sender = PythonProducer(config, transactional_id)
        self._producer = self._sender.producer
        self._failed: Exception | None = None
        self._topics: list[str] = []
        self._futures: list[Any] = []
        try:
            with translated(config):
                self._producer.init_transactions()
        except BaseException:
            self.close()
            raise

    def begin(self, messages: Sequence[Message]) -> None:
        with self._guarded():
            self._producer.begin_transaction()
            self._futures = self._sender.hand_over(messages)
        self._topics = [message.topic for message in messages]

    def flush(self) -> None:
        with self._guarded():
            self._sender.acknowledged(self._futures)

    def commit(self) -> dict[str, int]:
        with self._guarded():
            places = self._sender.acknowledged(self._futures)
            self._commit()
        return {topic: offset + 1 for topic, (_, offset) in zip(self._topics, places, strict=True)}

    def close(self) -> None:
        self._sender.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What went wrong once stays wrong; but where the brokers only refused a record, the transaction is ended."""
        if self._failed is not None:
            raise self._failed
        try:
            with translated(self._config):
                yield
        except (Fenced, OSError) as error:
            self._failed = error
            raise
        except BaseException:
            self._abort()
            raise

    def _commit(self) -> None:
        """Commit, waiting no longer than the configuration says: the library itself would wait for ever."""
        failed: list[BaseException] = []
        done = threading.Event()

        def commit() -> None:
            try:
                self._producer.commit_transaction()
            except Exception as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
                failed.append(error)
            finally:
                done.set()

        threading.Thread(target=commit, name="kafka-commit", daemon=True).start()
        if not done.wait(self._config.timeout_s):
            raise kafka_errors.KafkaTimeoutError("the transaction was not committed in time")
        if failed:
            raise failed[0]

    def _abort(self) -> None:
        """Nothing of a refused append may stay; where even that fails, the brokers end it by its timeout."""
        try:
            self._producer.abort_transaction()
        except kafka_errors.KafkaError as error:
            self._failed = OSError(f"kafka: a transaction could not be ended ({error}); take the partition again")


class PythonAdmin:
    """A KafkaAdminClient; it hands its calls to one thread of its own, so it may be shared."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._admin = connected(config, KafkaAdminClient)

    def cluster_id(self) -> str:
        return str(self._answer(self._admin.describe_cluster)["cluster_id"])

    def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        described = self._answer(lambda: self._admin.describe_topics(list(names)))
        found: dict[str, TopicInfo] = {}
        for topic in described:
            leaders = [partition["leader_id"] for partition in topic["partitions"]]
            # Without a leader a new topic's partition can neither be read nor written yet.
            if topic["error_code"] == 0 and leaders and min(leaders) >= 0:
                found[topic["name"]] = TopicInfo(str(topic["topic_id"]), len(leaders))
        return found

    def create(self, topics: Sequence[NewTopic]) -> None:
        wanted = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": -1 if topic.replication is None else topic.replication,
                "configs": dict(topic.settings),
            }
            for topic in topics
        }

        def make(name: str, options: dict[str, Any]) -> None:
            with suppress(kafka_errors.TopicAlreadyExistsError):
                self._admin.create_topics({name: options})

        # One by one: where another process has made one of them, the others still have to be made.
        for name, options in wanted.items():
            self._answer(partial(make, name, options))

    def settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        described = self._answer(lambda: self._admin.describe_configs(resources, config_filter="all"))["topic"]
        return {
            name: {key: str(entry["value"]) for key, entry in entries.items()} for name, entries in described.items()
        }

    def starts(self, places: Collection[Place]) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.EARLIEST, committed=True)

    def ends(
        self, places: Collection[Place], committed: bool = True, patience_s: float | None = None
    ) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.LATEST, committed, patience_s)

    def close(self) -> None:
        self._admin.close()

    def _offsets(
        self, places: Collection[Place], spec: OffsetSpec, committed: bool, patience_s: float | None = None
    ) -> dict[Place, int]:
        wanted = {KafkaPlace(*place): spec for place in places}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        found = self._answer(lambda: self._admin.list_partition_offsets(wanted, isolation_level=level), patience_s)
        return {Place(name.topic, name.partition): at.offset for name, at in found.items()}

    def _answer(self, ask: Callable[[], Any], patience_s: float | None = None) -> Any:
        """What the brokers answer. One that restarts is gone for seconds, and the library gives up at the first
        connection that is refused or dead: it is asked again until its time, or the configuration's, is over."""
        deadline = time.monotonic() + (self._config.timeout_s if patience_s is None else patience_s)
        while True:
            try:
                with translated(self._config):
                    return ask()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)


def connected(config: KafkaConfig, make: Callable[..., Any]) -> Any:
    """A client, made of the options that all of them share.

    The library waits for the first connection it opens as long as it may wait for the first broker: one that a
    half-open link swallows would take all of the configuration's time. So it gets a part of it, the next one more: slow
    handshakes have their time in the end."""
    deadline = time.monotonic() + config.timeout_s
    wait_s = SETUP_TIMEOUT_S
    while True:
        left_s = deadline - time.monotonic()
        try:
            with _options(config, max(0.1, min(wait_s, left_s))) as options:
                return make(**options)
        except OSError:
            if time.monotonic() >= deadline:
                raise
        wait_s *= 2


@contextmanager
def _options(config: KafkaConfig, wait_s: float) -> Iterator[dict[str, Any]]:
    """The options to make a client with, which waits so long for the first broker. Where that fails, what the library
    has opened is closed, which it does not do by itself."""
    networks: list[KafkaNetClient] = []
    setup_ms = int(min(config.timeout_s, SETUP_TIMEOUT_S) * 1000)

    def network(**options: Any) -> KafkaNetClient:
        # The network layer knows these two, the clients do not; by default they are 10 s, growing to 30 s.
        setup = ("socket_connection_setup_timeout_ms", "socket_connection_setup_timeout_max_ms")
        networks.append(KafkaNetClient(**options, **dict.fromkeys(setup, setup_ms)))
        return networks[-1]

    try:
        with translated(config):
            yield {
                **_connection(config),
                "bootstrap_timeout_ms": int(wait_s * 1000),
                "kafka_client": network,
            }
    except BaseException as error:
        for made in networks:
            made.close()
        if isinstance(error, OSError) and config.security_protocol != "PLAINTEXT":
            # The library does not tell a broker that hangs up on a wrong password from one that is not there.
            raise OSError(
                f"{error}, or refuses user {config.username!r}; check that it is there, and the user's name, password "
                "and mechanism, or the certificates"
            ) from error
        raise


def _connection(config: KafkaConfig) -> dict[str, Any]:
    """The options that all of the library's clients share."""
    timeout_ms = int(config.timeout_s * 1000)
    request_ms = min(timeout_ms, int(REQUEST_TIMEOUT_S * 1000))
    options: dict[str, Any] = {
        "bootstrap_servers": list(config.servers),
        "client_id": "adloop",
        "security_protocol": config.security_protocol,
        "request_timeout_ms": request_ms,
        "reconnect_backoff_max_ms": RECONNECT_MS,
    }
    if config.sasl_mechanism is not None:
        options["sasl_mechanism"] = config.sasl_mechanism
        options["sasl_plain_username"] = config.username
        options["sasl_plain_password"] = config.password
    for ours, theirs in (("ca_file", "ssl_cafile"), ("cert_file", "ssl_certfile"), ("key_file", "ssl_keyfile")):
        if (path := getattr(config, ours)) is not None:
            options[theirs] = path
    return options


@contextmanager
def translated(config: KafkaConfig) -> Iterator[None]:
    """The library's errors as ours; positions that are gone pass through."""
    try:
        yield
    except (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError):
        raise
    except FENCED as error:
        raise Fenced(f"kafka: another producer has taken this one's place ({error})") from error
    except TOO_LARGE as error:
        raise AdloopError(
            f"record: got one that the topic refuses ({error}), expected at most its max.message.bytes; raise that "
            "setting"
        ) from error
    except REFUSED as error:
        raise ConfigError(
            f"log: {config.bootstrap} refuses user {config.username!r} ({error}); correct its name, password, "
            "mechanism or rights"
        ) from error
    except kafka_errors.KafkaError as error:
        raise OSError(f"kafka: {config.bootstrap} gives no answer ({error})") from error
