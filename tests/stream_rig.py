"""Decisions, events and a joiner on an embedded log, made in one line each, for the tests of the stream."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optimizer.clock import Clock, ManualClock
from optimizer.maths.attribution import expiry_s
from optimizer.stream.dump import dump
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append, EventLog
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Attribution, Decision, RewardWeights, to_json

T0 = 1_795_448_713_000  # a whole second, so that a token's expiry is the decision's ts + its retention exactly
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
RULE = Attribution(click_window_ms=10 * MINUTE, conversion_window_ms=HOUR, view_through_ms=0, count="first")
KEYS = TokenKeys({"test": b"0123456789abcdef0123456789abcdef"})
RETENTION = RULE.window_ms() + 7 * DAY


def decision(decision_id: str = "d1", **changed: Any) -> Decision:
    fields: dict[str, Any] = {
        "decision_id": decision_id,
        "request_id": "r1",
        "position": 0,
        "tenant": "default",
        "campaign_id": "c1",
        "context": {"segment": "all", "device": "mobile"},
        "pool_id": "p1",
        "candidate": 1,
        "variant_id": "v1",
        "propensity": 0.137,
        "probabilities": [0.863, 0.137],
        "source": "pool",
        "policy_version": "pv1",
        "critic_version": "cv1",
        "ts": T0,
        "reward": RewardWeights(click=1.0, conversion=2.0, value=0.1, rating=0.5),
        "attribution": RULE,
    }
    return Decision(**{**fields, **changed})


def token(made_for: Decision, keys: TokenKeys = KEYS, exp_s: int | None = None) -> str:
    return keys.sign(made_for, expiry_s(made_for.ts, made_for.attribution) if exp_s is None else exp_s)


def event(of: Decision, event_id: str, type_: str = "impression", ts: int | None = None, **more: Any) -> dict[str, Any]:
    """An event as it stands in the log; None in `more` leaves a field out."""
    fields = {
        "schema": 1,
        "event_id": event_id,
        "type": type_,
        "decision_id": of.decision_id,
        "token": token(of),
        "ts": of.ts if ts is None else ts,
        "received_ts": of.ts + 1_000,
        **more,
    }
    return {name: value for name, value in fields.items() if value is not None}


def appended(record: Decision | dict[str, Any], topic: str | None = None) -> Append:
    """The record as serving appends it."""
    if isinstance(record, Decision):
        return Append(topic or "decisions", record.decision_id, to_json(record))
    return Append(topic or "events", record["decision_id"], json.dumps(record).encode())


def raw(record: Decision | dict[str, Any], **changed: Any) -> Append:
    """A record of the log with fields changed after it was made; None takes one out."""
    made = appended(record)
    fields = {**json.loads(made.value or b""), **changed}
    return made._replace(value=json.dumps({k: v for k, v in fields.items() if v is not None}).encode())


def values(log: EventLog, topic: str) -> list[dict[str, Any]]:
    return [entry["value"] for entry in dump(log, topic)]


def last_revisions(log: EventLog) -> dict[str, dict[str, Any]]:
    """By decision; asserts on the way that no revision has two contents, and that they count from 1 without a hole."""
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    for outcome in values(log, "outcomes"):
        place = outcome["decision_id"], outcome["revision"]
        assert seen.setdefault(place, outcome) == outcome, f"two contents under {place}"
    last: dict[str, dict[str, Any]] = {}
    for (decision_id, revision), outcome in sorted(seen.items()):
        before = last.get(decision_id)
        assert revision == (1 if before is None else before["revision"] + 1), f"a hole before {decision_id} {revision}"
        if before is not None:
            assert content(before) != content(outcome) or before["state"] != outcome["state"], "a revision of nothing"
            assert (before["state"], outcome["state"]) != ("closed", "open"), "a closed outcome was opened again"
        last[decision_id] = outcome
    return last


def content(outcome: dict[str, Any]) -> dict[str, Any]:
    """What attribution alone determines."""
    return {name: outcome[name] for name in outcome if name not in ("revision", "state", "as_of")}


class Rig:
    """A log and a joiner in one folder, on a clock that stands still."""

    def __init__(
        self, folder: Path, partitions: int = 1, log: Callable[[Clock], EventLog] | None = None, **options: Any
    ) -> None:
        self.folder = folder
        self.clock = ManualClock(T0)
        self.options = options
        self.log: EventLog = (
            SqliteLog(folder / "log.db", self.clock, partitions, synchronous="off") if log is None else log(self.clock)
        )
        self.joiner = self._open()

    def _open(self) -> Joiner:
        return Joiner(self.log, self.folder / "state", KEYS, self.clock, durable=False, **self.options)

    def lose_state(self) -> None:
        """The joiner ends, and its folder is gone."""
        self.joiner.close()
        shutil.rmtree(self.folder / "state")

    def restart(self) -> None:
        self.joiner.close()
        self.joiner = self._open()

    def put(self, *records: Decision | dict[str, Any] | Append) -> None:
        if records:
            self.log.append([record if isinstance(record, Append) else appended(record) for record in records])

    def join(self, *records: Decision | dict[str, Any] | Append) -> dict[str, dict[str, Any]]:
        """Append `records`, read to the end, and give the last revisions."""
        self.put(*records)
        while self.joiner.step():
            pass
        return last_revisions(self.log)

    def quarantined(self) -> dict[tuple[str, int, int], str]:
        found = {(q["topic"], q["partition"], q["offset"]): q["reason"] for q in values(self.log, "quarantine")}
        counted = self.joiner.counts["quarantined"]
        assert isinstance(counted, dict)
        assert sum(counted.values()) == len(found)
        return found

    def reasons(self) -> list[str]:
        return [reason for _, reason in sorted(self.quarantined().items())]

    def pass_time(self, to: int) -> None:
        """Bring event time to `to` by a decision and an event of no further interest."""
        marker = decision(f"marker-{to}", ts=to)
        self.join(marker, event(marker, "m", "click", ts=to, received_ts=to))

    def close(self) -> None:
        self.joiner.close()
        self.log.close()


def spread(records: Iterable[Any], sizes: Iterable[int]) -> list[list[Any]]:
    """`records` cut into pieces of these sizes, the rest in a last one."""
    rest = list(records)
    pieces: list[list[Any]] = []
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    return [*pieces, rest]
