"""What can't be read in the log is skipped, counted and told once with its place; what stands beside it is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.clock import ManualClock
from optimizer.learning.pools import PoolShelf
from optimizer.stream.guarded import GuardedDecode
from optimizer.stream.log import Append, EventLog
from optimizer.stream.quarantine import list_, quarantined, replay
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.stream.views import campaign_table, policy_table
from optimizer.types import Candidate, Decode, Pool, to_json
from tests.learning_rig import campaign
from tests.serving_rig import make_policy

UNREADABLE = (
    b"{nonsense",
    b"{}",
    b"[" * 100_000 + b"]" * 100_000,
    b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"schema": "\xff"}',
    b'{"ts": 1e400}',
)
POOL = Pool("k", "t", "c1", "all", "v", "h", (Candidate("v1", {"headline": "x"}),), Decode(), 0)


def _campaigns(log: EventLog, guarded: GuardedDecode) -> list[str]:
    table = campaign_table(log, guarded)
    table.refresh()
    return list(table.rows)


def _policies(log: EventLog, guarded: GuardedDecode) -> list[str]:
    table = policy_table(log, guarded)
    table.refresh()
    return list(table.rows)


def _pools(log: EventLog, guarded: GuardedDecode) -> list[str]:
    noted: list[str] = []
    PoolShelf(log, noted=lambda pool: noted.append(pool.pool_id), guarded=guarded).refresh()
    return noted


@pytest.mark.parametrize(
    ("topic", "good", "read"),
    [
        ("campaigns", to_json(campaign()), _campaigns),
        ("policies", to_json(make_policy("k")), _policies),
        ("candidates", to_json(POOL), _pools),
    ],
)
def test_a_table_skips_what_it_cannot_read(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    topic: str,
    good: bytes,
    read: Callable[[EventLog, GuardedDecode], list[str]],
) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(0), 1, synchronous="off")
    # The same key: what can't be read does not take away what stands there.
    log.append([Append(topic, "k", good), *(Append(topic, "k", bad) for bad in UNREADABLE)])
    guarded = GuardedDecode()
    with caplog.at_level(logging.WARNING):
        assert read(log, guarded) == ["k"]
    assert guarded.skipped == len(UNREADABLE)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"skipped {topic}[0]@{offset}" for offset in range(1, 1 + len(UNREADABLE))
    ]
    log.close()


def test_quarantine_lists_and_replays_past_what_no_joiner_wrote(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(0), 1, synchronous="off")
    good = quarantined("events", 0, 1, "value", "no", 21, b'{"decision_id": "d1"}')
    no_base64 = b'{"topic":"events","partition":0,"offset":2,"reason":"value","detail":"","size":3,"payload":"a"}'
    log.append([*(Append("quarantine", "k", bad) for bad in UNREADABLE), Append("quarantine", "k", no_base64), good])
    assert [refused.offset for refused in list_(log)] == [2, 1]
    done = replay(log)
    assert [place.offset for place in done.replayed] == [1]
    assert [skipped.why for skipped in done.skipped] == ["its payload is not base64"]
    log.close()
