"""The topics of a Kafka log: made as they must be where they are missing, checked where they are there.

What would make results wrong is refused: partition counts that split a key's records, or a clean-up that deletes what
is still needed. What only limits (a shorter retention, smaller records) is warned of.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from optimizer.errors import ConfigError
from optimizer.stream.kafka_client import Admin, NewTopic, TopicInfo
from optimizer.stream.kafka_url import KafkaConfig
from optimizer.stream.log import MAX_RECORD_BYTES, PARTITIONED, TOPICS

# Of the first three the order matters; a joiner notes how far it knows the quarantine by one offset.
SINGLE: Final = ("campaigns", "candidates", "policies", "quarantine")
COMPACTED: Final = frozenset({"campaigns", "policies"})
EXPIRING: Final = frozenset({*PARTITIONED, "quarantine"})
DEFAULT_PARTITIONS: Final = 4
DAY_MS: Final = 24 * 3_600_000
FOREVER: Final = "-1"
MESSAGE_BYTES: Final = MAX_RECORD_BYTES + 64 * 1024  # the largest record with its key and its batch's header
VISIBLE_S: Final = 0.1  # between looks for a topic that was just made

_log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """What a log object needs to know of its topics."""

    log_id: str
    partitions: dict[str, int]


def ensure_topics(admin: Admin, config: KafkaConfig, create: bool = True) -> Layout:
    """Make the missing topics and check all. Raises ConfigError for topics that can't serve, or, where `create` is
    False, that are not there; OSError where new ones don't come up in time."""
    names = {config.prefix + topic: topic for topic in TOPICS}
    found = admin.topics(names)
    counts = {names[name]: info.partitions for name, info in found.items()}
    count = _partitions(config, counts)
    if missing := [name for name in names if name not in found]:
        if not create:
            raise ConfigError(
                f"log: got no topic {missing[0]} at {config.bootstrap}, expected an existing log; correct the prefix"
            )
        admin.create([_new_topic(config, name, names[name], count) for name in missing])
        found = _wait_for(admin, names, config.timeout_s)
        counts = {names[name]: info.partitions for name, info in found.items()}
        # Another process may have made them first, with another count.
        _partitions(config, counts)
    _check_settings(config, admin.settings(names), names)
    return Layout(_log_id(admin.cluster_id(), found), counts)


def _partitions(config: KafkaConfig, counts: Mapping[str, int]) -> int:
    """The partition count of decisions, events and outcomes, after what is there has been checked."""
    there = {topic: counts[topic] for topic in PARTITIONED if topic in counts}
    if len(set(there.values())) > 1:
        told = ", ".join(f"{config.prefix}{topic} {n}" for topic, n in there.items())
        raise ConfigError(
            f"partitions: got {told}, expected equal counts (a key's records must meet in one joiner); start a new log "
            "under another prefix, and copy the records over"
        )
    for topic in SINGLE:
        if counts.get(topic, 1) != 1:
            raise ConfigError(
                f"partitions: got {counts[topic]} of {config.prefix}{topic}, expected 1 (it is read as one sequence); "
                "delete the topic while it is empty, or use another prefix"
            )
    count = next(iter(there.values()), config.partitions or DEFAULT_PARTITIONS)
    if config.partitions is not None and config.partitions != count:
        raise ConfigError(
            f"partitions: got {config.partitions}, expected {count}, which the topics under {config.prefix!r} have; "
            "leave `partitions` out of the log's URL, or start a new log under another prefix (a key's partition never "
            "changes)"
        )
    return count


def _new_topic(config: KafkaConfig, name: str, topic: str, count: int) -> NewTopic:
    settings = {
        "cleanup.policy": "compact" if topic in COMPACTED else "delete",
        "retention.ms": str(_retention_ms(config, topic)),
        "retention.bytes": FOREVER,
        "max.message.bytes": str(MESSAGE_BYTES),
        # The timestamp is the writer's clock; one that runs ahead must not make its records refused.
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }
    if (config.replication or 0) >= 3:
        settings["min.insync.replicas"] = "2"
    return NewTopic(name, count if topic in PARTITIONED else 1, config.replication, settings)


def _retention_ms(config: KafkaConfig, topic: str) -> int:
    """How long a topic's records are kept, in milliseconds; -1 for ever."""
    return config.retention_days * DAY_MS if config.retention_days is not None and topic in EXPIRING else -1


def _wait_for(admin: Admin, names: Mapping[str, str], timeout_s: float) -> dict[str, TopicInfo]:
    deadline = time.monotonic() + timeout_s
    while len(found := admin.topics(names)) < len(names):
        if time.monotonic() > deadline:
            raise OSError(f"topic {min(set(names) - set(found))}: not there {timeout_s:.0f} s after it was made")
        time.sleep(VISIBLE_S)
    return found


def _check_settings(config: KafkaConfig, settings: Mapping[str, Mapping[str, str]], names: Mapping[str, str]) -> None:
    for name, topic in names.items():
        have = settings[name]
        policy, kept = have.get("cleanup.policy", "delete"), int(have.get("retention.ms", FOREVER))
        if topic in COMPACTED and policy != "compact" and not (policy == "delete" and kept < 0):
            raise _mismatch(name, policy, "compact", "its newest record of a key must never be deleted")
        if topic not in COMPACTED and policy != "delete":
            raise _mismatch(name, policy, "delete", "every record of a key counts")
        wanted = _retention_ms(config, topic)
        if policy == "delete" and kept >= 0 and (wanted < 0 or kept < wanted):
            _warn(name, "retention.ms", str(kept), str(wanted), "records older than that can't be replayed")
        if int(have.get("max.message.bytes", MESSAGE_BYTES)) < MESSAGE_BYTES:
            _warn(
                name, "max.message.bytes", have["max.message.bytes"], str(MESSAGE_BYTES), "larger records are refused"
            )


def _mismatch(name: str, got: str, expected: str, why: str) -> ConfigError:
    return ConfigError(
        f"cleanup.policy of topic {name}: got {got}, expected {expected} ({why}); run: kafka-configs.sh --alter "
        f"--entity-type topics --entity-name {name} --add-config cleanup.policy={expected}"
    )


def _warn(name: str, setting: str, got: str, wanted: str, means: str) -> None:
    _log.warning("topic %s: %s is %s, not %s: %s", name, setting, got, wanted, means)


def _log_id(cluster_id: str, topics: Mapping[str, TopicInfo]) -> str:
    """Names these very topics on this very cluster: a topic that was made anew is another log."""
    text = "\n".join([cluster_id, *(f"{name}={topics[name].topic_id}" for name in sorted(topics))])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
