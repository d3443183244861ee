"""The learner's shelf of pools."""

from __future__ import annotations

from pathlib import Path

from optimizer.clock import ManualClock
from optimizer.learning.pools import PoolShelf
from optimizer.stream.log import Append
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.types import Candidate, Decode, Pool, to_json


def pool(name: str, version: str = "v1") -> Pool:
    text = Candidate(variant_id=f"{name}-text", slots={"headline": name}, log_probs=((-1.0,),))
    return Pool(name, "t", "c1", "all", version, "hash", (text,), Decode(), 0)


def test_the_newest_pools_with_news_come_first_whichever_was_touched_last(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", ManualClock(0))
    pools = [pool("old"), pool("middle"), pool("left behind", "v0"), pool("new"), pool("untouched")]
    log.append([Append("candidates", one.pool_id, to_json(one)) for one in pools])
    shelf = PoolShelf(log)
    shelf.refresh()
    touched = ["new", "left behind", "middle", "gone", "old"]
    assert [one.pool_id for one in shelf.for_training(touched, {"v1"}, 2)] == ["new", "middle"]
    assert [one.pool_id for one in shelf.for_training(touched, {"v1"}, 9)] == ["new", "middle", "old", "untouched"]
    log.close()
