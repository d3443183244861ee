"""Sharing partitions out among joiners: the membership of a Kafka consumer group, and nothing else of it.

No records are fetched and no offsets are committed through the group: a joiner's positions stand in its own state. The
group only says who should work on what. Where a member does not notice in time that it lost a partition (frozen, cut
off), the fence of the log's publisher keeps it from publishing; so a late answer costs time, and no outcome.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from functools import partial
from typing import Final

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.structs import TopicPartition as KafkaPlace

from optimizer.errors import AdloopError
from optimizer.stream.assignment import Assigned
from optimizer.stream.kafka_python import connected, translated
from optimizer.stream.kafka_url import KafkaConfig

SESSION_TIMEOUT_MS: Final = 10_000  # after so long without a heartbeat, a member's partitions go to the others
HEARTBEAT_MS: Final = 2_000
POLL_MS: Final = 200
RETRY_S: Final = 1.0
CLOSE_S: Final = 5.0


class KafkaGroup:
    """An Assignment from a consumer group over the topic `decisions`, kept up in a thread of its own.

    Partitions stay where they are as far as can be (sticky assignment), since that is where their state is. The brokers
    know the group as PREFIX + `group`: joiners of different logs would wait for each other in one group. Raises
    ConfigError or OSError where the brokers can't be reached or refuse us.
    """

    def __init__(self, config: KafkaConfig, group: str, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> None:
        self._config = config
        self._assigned = Assigned(0, frozenset())
        self._stopping = threading.Event()
        self._fault: AdloopError | None = None
        self._consumer = connected(
            config,
            partial(
                KafkaConsumer,
                group_id=config.prefix + group,
                enable_auto_commit=False,
                auto_offset_reset="latest",  # never read from: every partition is paused
                allow_auto_create_topics=False,
                partition_assignment_strategy=[StickyPartitionAssignor],
                session_timeout_ms=session_timeout_ms,
                heartbeat_interval_ms=min(HEARTBEAT_MS, session_timeout_ms // 3),
                # The thread polls all the time. This is also how long the brokers wait for members to come back to a
                # rebalance, and with 5 s more how long an answer to joining is waited for: by default five minutes, in
                # which a connection that is half-open keeps a member out.
                max_poll_interval_ms=session_timeout_ms,
                metrics_enabled=False,
            ),
        )
        self._consumer.subscribe([config.prefix + "decisions"], listener=_Listener(self))
        self._thread = threading.Thread(target=self._run, name="kafka-group", daemon=True)
        self._thread.start()

    def current(self) -> Assigned:
        """What is ours at this moment. Raises what stopped the membership for good."""
        if self._fault is not None:
            raise self._fault
        return self._assigned

    def given(self, places: Collection[KafkaPlace]) -> None:
        """The group has given us these partitions, and no others."""
        self._consumer.pause(*places)
        partitions = frozenset(place.partition for place in places)
        self._assigned = Assigned(self._assigned.generation + 1, partitions)

    def close(self) -> None:
        """Leave the group, so that others get our partitions at once."""
        self._stopping.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with translated(self._config):
                    self._consumer.poll(timeout_ms=POLL_MS)
                    self._consumer.pause(*self._consumer.assignment())
                self._take_up_lost_rebalance()
            except OSError as error:
                print(f"group: {error}; trying again", file=sys.stderr, flush=True)
                self._stopping.wait(RETRY_S)
            except AdloopError as error:
                self._fault = error
                break
        self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))

    def _take_up_lost_rebalance(self) -> None:
        """Begin a rebalance again that kafka-python has forgotten.

        Seen in 3.0.12: the group's leader rebalances because the topic's metadata changed, and forgets that reason as
        soon as it has dealt the partitions out. A poll that ends between that and the broker's answer leaves a member
        that waits for nothing: without heartbeats and without partitions for good. Such a member is in the midst of
        joining and sees no need to join."""
        coordinator = self._consumer._coordinator
        if coordinator.rejoining and not coordinator.need_rejoin():
            coordinator.request_rejoin()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called in the group's thread."""

    def __init__(self, group: KafkaGroup) -> None:
        self._group = group

    def on_partitions_revoked(self, revoked: Collection[KafkaPlace]) -> None:
        """A rebalance begins. Work goes on until it says who owns what: most partitions stay where they are."""

    def on_partitions_lost(self, lost: Collection[KafkaPlace]) -> None:
        """We were away too long, and our partitions are others' by now."""
        self._group.given([])

    def on_partitions_assigned(self, assigned: Collection[KafkaPlace]) -> None:
        """The end of a rebalance."""
        self._group.given(assigned)
