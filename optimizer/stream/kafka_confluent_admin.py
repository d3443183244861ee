"""Topics, their settings and their offsets, by confluent-kafka."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as KafkaPlace
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec
from confluent_kafka.admin import NewTopic as KafkaTopic

from optimizer.stream.kafka_client import REQUEST_TIMEOUT_S, NewTopic, Place, TopicInfo
from optimizer.stream.kafka_confluent_common import LOG, REFUSED, connection, ours, translated
from optimizer.stream.kafka_url import KafkaConfig

RETRY_S: Final = 0.2
RENEW_S: Final = 5.0  # what fails for so long is asked through a new client


class ConfluentAdmin:
    """An AdminClient. Thread-safe."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._refused: list[KafkaError] = []
        with translated(config):
            self._admin = self._client()
            self._cluster_id = self._connect()

    def cluster_id(self) -> str:
        return self._cluster_id

    def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        found: dict[str, TopicInfo] = {}
        with translated(self._config):
            asked = TopicCollection(list(names))
            for name, future in self._admin.describe_topics(asked, request_timeout=self._config.timeout_s).items():
                try:
                    topic = future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
                # Without a leader a new topic's partition can neither be read nor written yet.
                if topic.partitions and all(partition.leader is not None for partition in topic.partitions):
                    found[name] = TopicInfo(_uuid(str(topic.topic_id)), len(topic.partitions))
        return found

    def create(self, topics: Sequence[NewTopic]) -> None:
        wanted = [
            KafkaTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=-1 if topic.replication is None else topic.replication,
                config=dict(topic.settings),
            )
            for topic in topics
        ]
        with translated(self._config):
            for future in self._admin.create_topics(wanted, request_timeout=self._config.timeout_s).values():
                try:
                    future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise

    def settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        with translated(self._config):
            described = self._admin.describe_configs(resources, request_timeout=self._config.timeout_s)
            entries = {resource.name: future.result() for resource, future in described.items()}
        return {name: {key: str(entry.value) for key, entry in found.items()} for name, found in entries.items()}

    def starts(self, places: Collection[Place]) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.earliest(), committed=True)

    def ends(
        self, places: Collection[Place], committed: bool = True, patience_s: float | None = None
    ) -> dict[Place, int]:
        return self._offsets(places, OffsetSpec.latest(), committed, patience_s)

    def close(self) -> None:
        """The library closes it when the last reference goes."""

    def _client(self) -> AdminClient:
        return AdminClient({**connection(self._config), "error_cb": self._notice}, logger=LOG)

    def _connect(self) -> str:
        """Wait for the first broker; a refusal is told only by the callback, while the library tries on."""
        deadline = time.monotonic() + self._config.timeout_s
        while True:
            try:
                metadata = self._admin.list_topics(timeout=1.0)
            except KafkaException:
                self._admin.poll(0)  # serves the callback
                if self._refused:
                    raise ours(self._config, self._refused[0]) from None
                if time.monotonic() > deadline:
                    raise
            else:
                return str(metadata.cluster_id)

    def _notice(self, error: KafkaError) -> None:
        if error.code() in REFUSED:
            self._refused.append(error)

    def _offsets(
        self, places: Collection[Place], spec: OffsetSpec, committed: bool, patience_s: float | None = None
    ) -> dict[Place, int]:
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        deadline = time.monotonic() + (self._config.timeout_s if patience_s is None else patience_s)
        renew_at = time.monotonic() + RENEW_S
        request_s = min(self._config.timeout_s, REQUEST_TIMEOUT_S)
        while True:
            # Held on to until it has answered: what is asked of a client that nobody holds is never answered.
            admin = self._admin
            try:
                with translated(self._config):
                    asked = admin.list_offsets(
                        {KafkaPlace(*place): spec for place in places},
                        isolation_level=level,
                        request_timeout=request_s,
                    )
                    found = {
                        Place(at.topic, at.partition): future.result(request_s + 1.0).offset
                        for at, future in asked.items()
                    }
                if unknown := [f"{topic}[{partition}]" for (topic, partition), end in found.items() if end < 0]:
                    # Where a connection dies under the question, the library may answer "invalid" and raise nothing.
                    raise OSError(f"kafka: {self._config.bootstrap} did not tell the offsets of {', '.join(unknown)}")
                return found
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
                # After a restart the library asks with the leader's old epoch until it is told of the new one, which
                # may be never: three of six clients still failed 30 s after a slow restart.
                if time.monotonic() > renew_at:
                    renew_at += RENEW_S
                    if self._admin is admin:
                        with translated(self._config):
                            self._admin = self._client()
                with suppress(KafkaException):
                    self._admin.list_topics(timeout=1.0)


def _uuid(text: str) -> str:
    """A topic's id as everyone else writes it; the library gives its bytes in base64, unpadded."""
    return str(uuid.UUID(bytes=base64.b64decode(text + "==")))
