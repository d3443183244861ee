"""Producers of confluent-kafka: a plain one, shared by threads, and a transactional one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer

from optimizer.errors import Fenced
from optimizer.stream.kafka_client import (
    DELIVERY_TIMEOUT_S,
    FETCH_BYTES,
    REQUEST_BYTES,
    REQUEST_TIMEOUT_S,
    TRANSACTION_TIMEOUT_S,
    Message,
)
from optimizer.stream.kafka_confluent_common import LOG, connection, ours, translated
from optimizer.stream.kafka_url import KafkaConfig

SERVE_S: Final = 0.1  # how long a producer's thread waits for acknowledgements at a time
FULL_S: Final = 0.01  # before a full buffer is tried again
LINGER_MS: Final = 1  # lets the records of one append share their requests
ABORT_S: Final = 5.0


class _Call:
    """The acknowledgements that one `send` waits for."""

    def __init__(self, count: int) -> None:
        self.places: list[tuple[int, int]] = [(-1, -1)] * count
        self.error: KafkaError | None = None
        self.done = threading.Event()
        self._missing = count

    def acknowledge(self, i: int, error: KafkaError | None, message: Any) -> None:
        """Called by the library, in the thread that serves it."""
        if error is not None:
            self.error = error
        else:
            self.places[i] = message.partition(), message.offset()
        self._missing -= 1
        if not self._missing:
            self.done.set()


class ConfluentProducer:
    """An idempotent Producer, and the thread that serves its acknowledgements. Thread-safe."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        with translated(config):
            self._producer = KafkaProducer(_producing(config), logger=LOG)
        self._closed = False
        self._fatal: KafkaError | None = None  # the library gives up for good: no acknowledgement comes any more
        self._waiting: set[_Call] = set()
        self._lock = threading.Lock()
        self._server = threading.Thread(target=self._serve, name="kafka-acknowledgements", daemon=True)
        self._server.start()

    def send(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        call = _Call(len(messages))
        with self._lock:
            if self._fatal is not None:
                raise ours(self._config, self._fatal)
            self._waiting.add(call)
        try:
            deadline = time.monotonic() + self._config.timeout_s + 1.0
            with translated(self._config):
                for i, message in enumerate(messages):
                    _produce(self._config, self._producer, message, partial(call.acknowledge, i), deadline, time.sleep)
            # The library ends each by its delivery timeout; the second more only guards against its failing to.
            if not call.done.wait(max(0.0, deadline - time.monotonic())):
                raise _unacknowledged(self._config)
        finally:
            with self._lock:
                self._waiting.discard(call)
        if call.error is not None:
            raise ours(self._config, call.error)
        return call.places

    def close(self) -> None:
        # What it still holds must not go out any more; whoever waits for it gets an error at once.
        self._producer.purge()
        self._closed = True
        if threading.current_thread() is not self._server:
            self._server.join()

    def _serve(self) -> None:
        try:
            while not self._closed:
                self._producer.poll(SERVE_S)
            self._producer.poll(0)
        except KafkaException as error:
            with self._lock:
                self._fatal = error.args[0]
                for call in self._waiting:
                    call.error = self._fatal
                    call.done.set()


class ConfluentTransactions:
    """A transactional Producer; making it fences its predecessors.

    It has no thread that serves acknowledgements: each takes the interpreter's lock, and a thread that takes it from a
    busy one waits for a switch (5 ms) every time. So whoever calls `flush` serves them all in one go.
    """

    def __init__(self, config: KafkaConfig, transactional_id: str) -> None:
        self._config = config
        self._failed: Exception | None = None
        self._ends: dict[str, int] = {}
        timeout_s = min(config.timeout_s, DELIVERY_TIMEOUT_S)
        settings = {
            **_producing(config),
            "transactional.id": transactional_id,
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            "delivery.timeout.ms": int(timeout_s * 1000),
        }
        with translated(config):
            self._producer = KafkaProducer(settings, logger=LOG)
            self._producer.init_transactions(config.timeout_s)

    def begin(self, messages: Sequence[Message]) -> None:
        deadline = time.monotonic() + self._config.timeout_s
        # Only the last of a topic needs an answer of its own: an error of any fails the transaction.
        last = {message.topic: i for i, message in enumerate(messages)}
        with self._guarded():
            self._producer.begin_transaction()
            try:
                for i, message in enumerate(messages):
                    told = self._acknowledge if last[message.topic] == i else None
                    _produce(self._config, self._producer, message, told, deadline, self._producer.poll)
            except BaseException:
                self._abort()
                raise

    def flush(self) -> None:
        with self._guarded():
            if self._producer.flush(self._config.timeout_s + 1.0):
                raise _unacknowledged(self._config)

    def commit(self) -> dict[str, int]:
        self.flush()
        with self._guarded():
            try:
                self._producer.commit_transaction(self._config.timeout_s)
            except KafkaException as error:
                if error.args[0].txn_requires_abort():
                    # A fenced producer's records fail for a reason that does not say so; ending the transaction does.
                    self._abort()
                raise
        return self._ends

    def close(self) -> None:
        self._producer.purge()
        with suppress(KafkaException, SystemError):  # one that was fenced says so once more
            self._producer.poll(0)

    def _acknowledge(self, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._ends[message.topic()] = message.offset() + 1

    def _abort(self) -> None:
        self._producer.abort_transaction(ABORT_S)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What went wrong once stays wrong, unless the brokers only refused a record."""
        if self._failed is not None:
            raise self._failed
        try:
            with translated(self._config):
                yield
        except SystemError as error:
            # The library raises a fatal error, and then calls an acknowledgement back with that still set.
            if not isinstance(error.__cause__, KafkaException):
                raise
            self._failed = ours(self._config, error.__cause__.args[0])
            raise self._failed from error
        except (Fenced, OSError) as error:
            self._failed = error
            raise


def _producing(config: KafkaConfig) -> dict[str, Any]:
    """The settings of a producer."""
    return {
        **connection(config),
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2",
        "linger.ms": LINGER_MS,
        "message.max.bytes": REQUEST_BYTES,
        "queue.buffering.max.kbytes": FETCH_BYTES // 1024,
        "compression.type": config.compression,
        "request.timeout.ms": int(min(config.timeout_s, REQUEST_TIMEOUT_S) * 1000),
        "delivery.timeout.ms": int(config.timeout_s * 1000),
        "allow.auto.create.topics": False,
    }


def _produce(
    config: KafkaConfig,
    producer: KafkaProducer,
    message: Message,
    acknowledge: Callable[[KafkaError | None, Any], None] | None,
    deadline: float,
    wait: Callable[[float], object],
) -> None:
    """Hand a message over. The library's buffer is bounded: wait for room until the deadline."""
    topic, key, value, ts, partition = message
    while True:
        try:
            producer.produce(
                topic, value, key, -1 if partition is None else partition, on_delivery=acknowledge, timestamp=ts
            )
            return
        except BufferError as error:
            if time.monotonic() > deadline:
                raise OSError(f"kafka: {config.bootstrap} gives no answer (buffer full)") from error
            wait(FULL_S)


def _unacknowledged(config: KafkaConfig) -> OSError:
    return OSError(f"kafka: {config.bootstrap} acknowledged nothing in {config.timeout_s:.0f} s")
