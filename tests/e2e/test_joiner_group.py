"""Joiner processes that share a log's partitions: one is added, one is frozen past its session, one is killed."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.kafka.broker import Broker
from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.types import Decision
from tests.kafka_rig import new_prefix, url
from tests.laws import oracle
from tests.stream_rig import T0, appended, content, decision, event, last_revisions, values

SECRET = b"0123456789abcdef0123456789abcdef"
WITHIN_S = 120.0  # generous: a slow machine, and a session timeout to wait for


def start(folder: Path, log: str, name: str) -> subprocess.Popen[bytes]:
    keys = {"ADLOOP_TOKEN_KEYS": f"test:{base64.b64encode(SECRET).decode()}"}
    command = [sys.executable, "-m", "optimizer", "join", "--log", log, "--state", str(folder / name), "--group", "g"]
    return subprocess.Popen(command, env={**os.environ, **keys})


def wave(log: KafkaLog, number: int) -> tuple[list[Decision], list[dict[str, Any]]]:
    """40 decisions with their impressions, half of them with a click."""
    made = [decision(f"w{number}-{i}", ts=T0 + i) for i in range(40)]
    told = [event(d, "i", received_ts=d.ts + 10) for d in made]
    told += [event(d, "c", "click", d.ts + 5, received_ts=d.ts + 20) for d in made[::2]]
    log.append([*map(appended, made), *map(appended, told)])
    return made, told


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_a_group_through_joining_freezing_and_dying(broker: Broker, tmp_path: Path) -> None:
    address = url(broker, new_prefix(), partitions=4)
    log = KafkaLog(parse_kafka_url(address, {}))
    made: list[Decision] = []
    told: list[dict[str, Any]] = []

    def tell(number: int) -> None:
        decisions, events = wave(log, number)
        made.extend(decisions)
        told.extend(events)

    def joined() -> bool:
        return {o["decision_id"]: o["components"]["click"] for o in values(log, "outcomes")} == {
            d.decision_id: i % 2 == 0
            for start_ in range(0, len(made), 40)
            for i, d in enumerate(made[start_ : start_ + 40])
        }

    running = {"a": start(tmp_path, address, "a")}
    try:
        tell(0)
        until(joined, "one joiner alone")
        running["b"] = start(tmp_path, address, "b")
        until(lambda: len(list((tmp_path / "b").glob("partition-*"))) == 2, "the second one gets its half")
        tell(1)
        until(joined, "two joiners")
        running["a"].send_signal(signal.SIGSTOP)
        tell(2)
        until(joined, "the other one takes over from the frozen one")
        running["a"].send_signal(signal.SIGCONT)
        tell(3)
        until(joined, "the frozen one is back")
        running["b"].kill()
        running["b"].wait()
        tell(4)
        until(joined, "the other one takes over from the dead one")
        running["a"].send_signal(signal.SIGTERM)
        assert running["a"].wait(60) == 0
    finally:
        for process in running.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
    expected = oracle.outcomes([msgspec.to_builtins(d) for d in made], told, {"test": SECRET}, EXTRA_RETENTION_MS)
    assert {decision_id: content(outcome) for decision_id, outcome in last_revisions(log).items()} == expected
    log.close()
