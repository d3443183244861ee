"""Topics that are there already, as somebody else made them: what is refused at start, without a broker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from optimizer.errors import ConfigError
from optimizer.stream.kafka_client import NewTopic, Place, TopicInfo
from optimizer.stream.kafka_topics import SINGLE, ensure_topics
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import TOPICS

CONFIG = parse_kafka_url("kafka://nowhere:9092?prefix=x.", {})


class Brokers:
    """All topics of a log with these partition counts, and settings that need no word."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def cluster_id(self) -> str:
        return "cluster"

    def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        return {name: TopicInfo(name, self._counts[name.removeprefix("x.")]) for name in names}

    def create(self, topics: Sequence[NewTopic]) -> None:
        raise AssertionError("all are there")

    def settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        kept = {"cleanup.policy": "delete", "retention.ms": "-1"}
        return dict.fromkeys(names, kept)

    def starts(self, places: Collection[Place]) -> dict[Place, int]:
        raise AssertionError("a check of topics reads none")

    def ends(
        self, places: Collection[Place], committed: bool = True, patience_s: float | None = None
    ) -> dict[Place, int]:
        raise AssertionError("a check of topics reads none")

    def close(self) -> None:
        """Nothing to close."""


def test_one_partition_of_all_but_those_of_a_join_is_taken() -> None:
    counts = {topic: 1 if topic in SINGLE else 3 for topic in TOPICS}
    assert ensure_topics(Brokers(counts), CONFIG).partitions == counts


@pytest.mark.parametrize("topic", ["campaigns", "candidates", "policies", "quarantine"])
def test_several_partitions_of_a_topic_that_is_one_sequence_are_refused(topic: str) -> None:
    with pytest.raises(ConfigError, match=rf"partitions: got 3 of x\.{topic}, expected 1 .*; delete the topic"):
        ensure_topics(Brokers({**dict.fromkeys(TOPICS, 1), topic: 3}), CONFIG)
