"""A joiner killed at any moment and started again: nothing lost, nothing twice, no revision with two contents."""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.log import TopicPartition
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.types import Decision
from tests.laws import oracle
from tests.stream_rig import T0, appended, content, decision, event, last_revisions, values

SECRET = b"0123456789abcdef0123456789abcdef"
KILLS = 10
LOST = 6  # at this kill the state folder is lost as well


def history(rng: random.Random) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Decisions and their events, some of them twice; clicks of two thirds."""
    made = [decision(f"d{i:04d}", ts=T0 + i) for i in range(1_500)]
    told = []
    for d in made:
        told.append(event(d, "i", received_ts=d.ts + 10))
        clicks = [d.ts + rng.randrange(1_000) for _ in range(rng.randrange(3))]
        told += [event(d, f"c{name}", "click", ts, received_ts=d.ts + 20) for name, ts in enumerate(clicks)]
        if rng.random() < 0.3:
            told.append(event(d, "v", "conversion", d.ts + 2_000, value=rng.random(), received_ts=d.ts + 30))
        if rng.random() < 0.1:
            told.append(event(d, "x", "retraction", retracts="c0", received_ts=d.ts + 40))
    return made, told + rng.sample(told, 200)


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    keys = {"ADLOOP_TOKEN_KEYS": f"test:{base64.b64encode(SECRET).decode()}"}
    command = [sys.executable, "-m", "optimizer", "join", "--log", f"sqlite:///{folder}/log.db", "--state"]
    return subprocess.Popen([*command, f"{folder}/state", *more], stdout=subprocess.DEVNULL, env={**os.environ, **keys})


def test_ten_kills_and_a_lost_state(tmp_path: Path) -> None:
    rng = random.Random(7)
    made, told = history(rng)
    records = [*map(appended, made), *map(appended, told)]
    rng.shuffle(records)
    log = SqliteLog(tmp_path / "log.db", partitions=2)
    piece = -(-len(records) // KILLS)
    published = 0
    killed_at_work = 0
    for kill in range(KILLS):
        for first in range(kill * piece, min((kill + 1) * piece, len(records)), 100):
            log.append(records[first : min(first + 100, (kill + 1) * piece)])
        joiner = start(tmp_path)
        # Killed soon after its first new outcome is in the log: between commits, and before and after publishing.
        deadline = time.monotonic() + 120
        while (count := _published(log)) == published and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        joiner.send_signal(signal.SIGKILL)
        joiner.wait(120)
        killed_at_work += count > published
        published = _published(log)
        if kill == LOST:
            shutil.rmtree(tmp_path / "state")
    assert killed_at_work >= KILLS - 1

    assert start(tmp_path, "--until-idle", "0.3").wait(120) == 0
    expected = oracle.outcomes(
        [msgspec.to_builtins(d) for d in made], values(log, "events"), {"test": SECRET}, EXTRA_RETENTION_MS
    )
    last = last_revisions(log)
    assert len(expected) == len(made)
    assert {decision_id: content(outcome) for decision_id, outcome in last.items()} == expected
    log.close()


def _published(log: SqliteLog) -> int:
    return sum(log.end(TopicPartition("outcomes", partition)) for partition in range(2))
