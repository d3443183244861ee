"""A transaction that the brokers forgot to end: what was committed stays, and what follows can be read again."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
from kafka import KafkaProducer

from deploy.kafka.broker import Broker
from optimizer.errors import LogTruncated
from optimizer.stream import kafka_log
from optimizer.stream.kafka_log import KafkaLog, KafkaPublisher
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append, TopicPartition
from tests.contracts.log_suite import read
from tests.kafka_rig import new_prefix, url

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
both_clients = pytest.mark.parametrize("client", ["kafka-python", "confluent"])
AT = TopicPartition("outcomes", 0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kafka_log, "HANGING_S", 0.3)
    yield
    gc.collect()


@pytest.fixture
def hanging(broker: Broker, client: str) -> Iterator[tuple[KafkaLog, KafkaProducer]]:
    """A log with one outcome that can be read and one in another producer's transaction, which stays open."""
    with closing(KafkaLog(parse_kafka_url(url(broker, new_prefix(), client), {}))) as log:
        with closing(log.publisher(0)) as first:
            first.append([Append("outcomes", "k", b"1")])
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=log.topic_name("someone"))
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(log.topic_name("outcomes"), b"2", b"k", partition=0).get(timeout=30)
        yield log, producer
        producer.close(timeout=5)


@both_clients
def test_whoever_takes_the_partition_ends_it(
    hanging: tuple[KafkaLog, KafkaProducer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is published once more, as it stands; the marker of that ends both. A broker that forgets a marker
    can't be had at will: here the other producer commits as ours does."""
    log, other = hanging
    append = KafkaPublisher.append
    sent: list[Append] = []

    def marked(self: KafkaPublisher, records: Sequence[Append]) -> dict[str, int]:
        sent.extend(records)
        other.commit_transaction()
        return append(self, records)

    monkeypatch.setattr(KafkaPublisher, "append", marked)
    with closing(log.publisher(0)):
        assert sent == [Append("outcomes", "k", b"2")]
        assert [record.value for record in read(log, "outcomes")] == [b"1", b"2", b"2"]
    assert "a transaction hangs at offset 2" in caplog.text
    # Nothing hangs any more: nothing is published.
    with closing(log.publisher(0)):
        assert len(sent) == 1


@both_clients
def test_one_that_stays_open_is_named_with_the_way_out(hanging: tuple[KafkaLog, KafkaProducer]) -> None:
    log, _ = hanging
    with pytest.raises(
        OSError, match=r"another producer hangs in .*outcomes\[0\] at offset 2, .*kafka-transactions.sh"
    ):
        log.publisher(0)


@both_clients
def test_a_position_behind_it_is_in_the_log(hanging: tuple[KafkaLog, KafkaProducer]) -> None:
    """A joiner was told that its commit had gone through: its log is not truncated."""
    log, other = hanging
    assert log.end(AT) == 2
    with closing(log.reader({AT: 3})) as reader:
        assert reader.poll() == []
    other.commit_transaction()
    log.settle("outcomes")
    with pytest.raises(LogTruncated, match="position 9 is not in the log, which holds 0 to 4"):
        log.reader({AT: 9})
