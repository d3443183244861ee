"""A real Kafka broker for the tests: the one of deploy/kafka, on free ports, in a temporary folder."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.kafka.broker import Broker
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append

ROOT = Path(__file__).parents[1]
USER, PASSWORD = "ada", "lovelace-1843"
_numbers = itertools.count()


@contextmanager
def running_broker(
    folder: Path, secure: bool = False, behind: Mapping[str, int] | None = None, quick_start: bool = True
) -> Iterator[Broker]:
    """A broker that ends with the block; `secure` adds its SASL and TLS listeners, for USER with PASSWORD, `behind`
    listeners whose clients come through a proxy (name -> the proxy's port)."""
    # Never skipped in silence: where Java, Maven or the jars are missing this fetches them, or says what to run.
    fetched = subprocess.run([ROOT / "scripts/kafka", "fetch"], capture_output=True, text=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    users = {USER: PASSWORD} if secure else None
    broker = Broker(folder, users=users, tls=secure, behind=behind, quick_start=quick_start)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def new_prefix() -> str:
    """A prefix that no other test uses: topics, and so a log, of its own on the shared broker."""
    return f"t{next(_numbers)}."


def url(broker: Broker, prefix: str, client: str = "kafka-python", **options: object) -> str:
    """The URL of a log on `broker`."""
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return f"kafka://{broker.bootstrap}?prefix={prefix}&client={client}{more}"


def opened(url: str, environment: dict[str, str] | None = None) -> KafkaLog:
    """The log at `url`; `environment` may hold its user and password."""
    return KafkaLog(parse_kafka_url(url, environment or {}))


def numbered(first: int, end: int) -> list[Append]:
    """Records of one partition whose values are `first`, `first` + 1 and so on, without `end`."""
    return [Append("policies", "v", str(i).encode()) for i in range(first, end)]
