"""A joiner's connections on a real broker: its membership in a group, and those found dead."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException
from confluent_kafka.admin import ListOffsetsResultInfo
from kafka import KafkaAdminClient
from kafka.net.manager import KafkaConnectionManager
from kafka.protocol.consumer import JoinGroupRequest

from deploy.kafka.broker import Broker
from optimizer.stream import kafka_confluent_admin, kafka_group, kafka_log, kafka_python
from optimizer.stream.kafka_client import Place
from optimizer.stream.kafka_group import KafkaGroup
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append, TopicPartition
from tests.faults.proxy import Proxy
from tests.kafka_rig import new_prefix, running_broker, url

# kafka-python leaves the sockets of closed connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def until(true: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_rebalance_left_behind_by_a_polls_end_is_taken_up(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls so short that one of them ends in the midst of every rebalance; one that the topic's metadata brings about
    is forgotten by kafka-python then."""
    monkeypatch.setattr(kafka_group, "POLL_MS", 1)
    log = KafkaLog(parse_kafka_url(url(broker, new_prefix()), {}))
    topic, partitions = log.topic_name("decisions"), log.partitions("decisions")
    group = KafkaGroup(log.config, "joiner")

    def knows_of(count: int) -> bool:
        # Asked again until it does: for a moment the broker tells of as many as before.
        cluster = group._consumer._client.cluster
        known = cluster.partitions_for_topic(topic) or ()
        if len(known) < count:
            cluster.request_update()
            group.current()
        return len(known) >= count

    try:
        assert until(lambda: group.current().partitions == frozenset(range(partitions)), 30.0)
        for more in range(partitions + 1, partitions + 6):
            with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
                admin.create_partitions({topic: more})
            wanted = frozenset(range(more))
            assert until(lambda more=more: knows_of(more), 20.0), more  # type: ignore[misc]
            assert until(lambda wanted=wanted: group.current().partitions == wanted, 20.0), more  # type: ignore[misc]
    finally:
        group.close()
        log.close()


def test_an_answer_that_takes_long_makes_what_was_there_before_doubtful(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KafkaLog(parse_kafka_url(url(broker, new_prefix()), {}))
    quick, ends = log.publisher(0), log._admin.ends

    def slowly(places: Collection[Place], **options: Any) -> dict[Place, int]:
        time.sleep(0.1)
        return ends(places, **options)

    log.end(TopicPartition("events", 0))
    assert not quick.doubtful
    with monkeypatch.context() as slow:
        slow.setattr(kafka_log, "STALL_S", 0.05)
        slow.setattr(log._admin, "ends", slowly)
        log.end(TopicPartition("events", 0))
    assert quick.doubtful
    with closing(log.publisher(0)) as new:
        assert not new.doubtful
    monkeypatch.setattr(kafka_log, "STALL_S", 0.05)
    monkeypatch.setattr(log._admin, "ends", slowly)
    # Where the brokers are slow for good, new connections do not help: work goes on over those there are.
    for _ in range(kafka_log.MOST_STALLS + 2):
        log.end(TopicPartition("events", 0))
    assert log.stalls == kafka_log.MOST_STALLS
    # A minute later it may be a dead connection again.
    monkeypatch.setattr(kafka_log, "CALM_S", 0.0)
    log.end(TopicPartition("events", 0))
    assert log.stalls == kafka_log.MOST_STALLS + 1
    quick.close()
    log.close()


def test_an_offset_that_the_library_does_not_tell_is_asked_for_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """confluent-kafka answers "invalid", -1001, and raises nothing where a half-open connection dies under it: taken
    for the log's end it ended a joiner, as if the log had been truncated."""
    log = KafkaLog(parse_kafka_url(url(broker, new_prefix(), "confluent"), {}))
    log.append([Append("campaigns", "c", b"{}")])
    library = log._admin._admin  # type: ignore[attr-defined]
    asked: list[int] = []

    class Untold:
        """A future's answer, as the library gives it then."""

        def result(self, timeout: float) -> ListOffsetsResultInfo:
            return ListOffsetsResultInfo(OFFSET_INVALID, -1, -1)

    class Library:
        def list_offsets(self, places: Collection[object], **options: object) -> dict[object, object]:
            asked.append(len(places))
            return dict.fromkeys(places, Untold()) if len(asked) < 3 else library.list_offsets(places, **options)

        def list_topics(self, timeout: float) -> object:
            return library.list_topics(timeout=timeout)

    monkeypatch.setattr(log._admin, "_admin", Library())
    assert log.end(TopicPartition("campaigns", 0)) == 1
    assert asked == [1, 1, 1]
    log.close()


def test_offsets_that_stay_refused_are_asked_for_through_a_new_client(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """confluent-kafka went on asking with a leader's epoch of before the broker's restart."""
    log = KafkaLog(parse_kafka_url(url(broker, new_prefix(), "confluent"), {}))
    asked: list[object] = []

    class Refused:
        """A client that learns nothing."""

        def list_offsets(self, places: object, **options: object) -> dict[object, object]:
            asked.append(places)
            raise KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))

        def list_topics(self, timeout: float) -> None:
            """Nor this way."""

    monkeypatch.setattr(kafka_confluent_admin, "RENEW_S", 0.5)
    monkeypatch.setattr(log._admin, "_admin", Refused())
    assert log.end(TopicPartition("campaigns", 0)) == 0
    assert len(asked) > 1
    log.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Proxy]]:
    """A broker whose clients come through a proxy."""
    with Proxy() as proxy, running_broker(tmp_path_factory.mktemp("far"), behind={"far": proxy.port}) as running:
        proxy.target = int(running.address("far").rpartition(":")[2])
        yield running, proxy


def far_url(proxy: Proxy, prefix: str) -> str:
    return f"kafka://127.0.0.1:{proxy.port}?prefix={prefix}&client=kafka-python"


def test_a_first_connection_that_is_swallowed_does_not_take_all_of_the_time(
    far: tuple[Broker, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python waits for the first connection it opens as long as it may wait for a broker: a publisher that was
    taken while a link was half-open came 30 s later."""
    monkeypatch.setattr(kafka_python, "SETUP_TIMEOUT_S", 0.5)
    _, proxy = far
    proxy.swallow()
    mended = threading.Timer(0.2, proxy.mend)
    mended.start()
    begun = time.monotonic()
    with closing(KafkaLog(parse_kafka_url(far_url(proxy, new_prefix()), {}))) as log:
        took_s = time.monotonic() - begun
        log.append([Append("campaigns", "c", b"{}")])
    mended.join()
    # 30 s without this; half a second, the next attempt and what a busy machine adds.
    assert took_s < 15


def test_a_request_to_join_that_is_swallowed_is_made_again(
    far: tuple[Broker, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python waits for its answer as long as the brokers may wait for members: five minutes by default."""
    running, proxy = far
    prefix = new_prefix()
    KafkaLog(parse_kafka_url(url(running, prefix), {})).close()  # makes the topics
    send, joins = KafkaConnectionManager.send, []

    def sent(self: Any, request: Any, *places: Any, **options: Any) -> Any:
        if isinstance(request, JoinGroupRequest):
            joins.append(request)
            if len(joins) == 2:  # the first is told its member's id
                proxy.swallow()
                threading.Timer(0.2, proxy.mend).start()
        return send(self, request, *places, **options)

    monkeypatch.setattr(KafkaConnectionManager, "send", sent)
    group = KafkaGroup(parse_kafka_url(far_url(proxy, prefix), {}), "g", session_timeout_ms=6_000)
    assert until(lambda: len(group.current().partitions) == 4, 30.0)
    assert len(joins) > 2
    group.close()
