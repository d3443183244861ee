"""Dumping a topic, listing what was refused, and sending it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import AdloopError
from optimizer.stream.dump import dump
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append, TopicPartition
from optimizer.stream.quarantine import Place, list_, replay
from optimizer.stream.tokens import TokenKeys
from tests.stream_rig import Rig, decision, event, token

D = decision()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_dump_shows_every_kind_of_value(rig: Rig) -> None:
    rig.put(
        Append("events", "k", b'{"a": [1, "\xc3\xbc"]}'), Append("events", "k", b"\xff"), Append("events", "k", None)
    )
    lines = [json.loads(json.dumps(entry)) for entry in dump(rig.log, "events")]
    assert lines == [
        {"partition": 0, "offset": 0, "key": "k", "value": {"a": [1, "ü"]}},
        {"partition": 0, "offset": 1, "key": "k", "value": {"base64": "/w=="}},
        {"partition": 0, "offset": 2, "key": "k", "value": None},
    ]


def test_an_unknown_topic_is_named(rig: Rig) -> None:
    with pytest.raises(AdloopError, match="nonsense"):
        list(dump(rig.log, "nonsense"))


def test_what_is_replayed_is_judged_anew(rig: Rig) -> None:
    told = event(D, "i", ts=D.ts - 6_000)
    rig.join(D, told, event(D, "v", "conversion", value=-1))
    assert [(q.reason, q.offset) for q in list_(rig.log)] == [("clock", 0), ("value", 1)]
    assert [q.reason for q in list_(rig.log, reasons=["value"])] == ["value"]

    done = replay(rig.log, reasons=["clock"])
    assert done.replayed == [Place("events", 0, 0)]
    rig.join()
    assert rig.reasons() == ["clock", "value", "clock"], "nothing has changed, so it is refused again"

    (again,) = replay(rig.log, places=[Place("events", 0, 2)]).replayed
    assert again.offset == 2


def test_an_event_refused_for_a_key_that_was_unknown_counts_once_the_key_is_known(tmp_path: Path) -> None:
    new = TokenKeys({"new": b"n" * 32})
    rig = Rig(tmp_path)
    rig.join(D, event(D, "i", token=token(D, new)))
    assert rig.reasons() == ["unknown_key"]
    rig.joiner.close()
    rig.joiner = Joiner(rig.log, rig.folder / "state", new, rig.clock, durable=False)
    assert len(replay(rig.log, reasons=["unknown_key"]).replayed) == 1
    assert rig.join()["d1"]["events"] == ["i"]
    rig.close()


def test_what_cannot_be_replayed_is_skipped_with_the_reason(rig: Rig) -> None:
    rig.join(
        Append("events", "d1", b"{"),
        Append("events", "d1", b"[]"),
        Append("events", "d1", json.dumps({**event(D, "i"), "schema": 2, "more": "x" * 70_000}).encode()),
    )
    before = rig.log.end(TopicPartition("events", 0))
    done = replay(rig.log)
    assert done.replayed == []
    assert [why.split()[0] for _, why in done.skipped] == ["it", "it", "only"]
    assert rig.log.end(TopicPartition("events", 0)) == before


def test_a_place_that_stands_twice_is_listed_once(rig: Rig) -> None:
    rig.join(Append("events", "d1", b"{"))
    (entry,) = dump(rig.log, "quarantine")
    rig.put(Append("quarantine", entry["key"], json.dumps(entry["value"]).encode()))
    assert len(list(list_(rig.log))) == 1
