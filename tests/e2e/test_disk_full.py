"""A disk that is full: the joiner stands still, unready, says why, and goes on by itself once there is room."""

from __future__ import annotations

import random
import re
import resource
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.kafka.broker import Broker
from optimizer.stream.log import EventLog
from optimizer.stream.open import open_log
from tests.faults.check import judge
from tests.faults.processes import Joiners
from tests.faults.traffic import Told, expected, history, records
from tests.kafka_rig import new_prefix, url
from tests.stream_rig import values

WITHIN_S = 120.0


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def ready(joiners: Joiners) -> bool:
    port = re.search(r"http://127.0.0.1:(\d+)/metrics", joiners.messages("j").read_text())
    if port is None:
        return False
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def put(log: EventLog, told: list[Told]) -> None:
    log.append(list(records(random.Random(2), told)))


@pytest.mark.parametrize("kind", ["sqlite", "kafka"])
def test_a_full_disk_stops_the_joiner_unready_until_there_is_room(kind: str, broker: Broker, tmp_path: Path) -> None:
    # The kernel refuses every write beyond the limit, as a full disk does: of the state, and of an embedded log, too.
    where = f"sqlite:///{tmp_path}/log.db" if kind == "sqlite" else url(broker, new_prefix(), "confluent", partitions=1)
    told = history(random.Random(1), 300)
    joiners = Joiners(tmp_path)
    log = open_log(where)
    try:
        process = joiners.start("j", where, "--metrics-port", "0")
        put(log, told[:100])
        until(lambda: ready(joiners) and len(values(log, "outcomes")) >= 100, "it works while there is room")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
        put(log, told[100:])
        until(lambda: not ready(joiners), "unready")
        until(lambda: "free some space" in joiners.messages("j").read_text(), "it says why")
        assert re.search(
            r"adloop: state \S+: can't be written \(disk I/O error\); nothing is lost", joiners.last_words("j")
        )
        published = len(values(log, "outcomes"))
        time.sleep(2.5)  # some more tries
        assert process.poll() is None
        assert not ready(joiners)
        assert len(values(log, "outcomes")) == published
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: ready(joiners), "ready again by itself")
        until(lambda: len({o["decision_id"] for o in values(log, "outcomes")}) == 300, "it goes on")
        assert joiners.stop("j") == 0
        assert joiners.start("j", where, "--until-idle", "0.5").wait(WITHIN_S) == 0
        assert judge(log, expected(told)).right()
    finally:
        joiners.close()
        log.close()


def test_a_joiner_that_finds_the_disk_full_at_its_start_says_so(tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path}/log.db"
    log = open_log(where)
    put(log, history(random.Random(1), 50))
    joiners = Joiners(tmp_path)
    try:
        assert joiners.start("j", where, "--until-idle", "0.2").wait(WITHIN_S) == 0
        before, limit = joiners.messages("j").read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limit[1]))
        try:
            process = joiners.start("j", where, "--until-idle", "0.2")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert process.wait(WITHIN_S) == 1
        said = joiners.messages("j").read_text().removeprefix(before)
        assert re.search(r"^adloop: .*can't be written \(disk I/O error\).*free some space", said)
        assert "delete it" not in said
    finally:
        joiners.close()
        log.close()
