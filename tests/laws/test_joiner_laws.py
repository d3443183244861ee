"""Laws of the joiner, against the batch oracle: order, copies, restarts, failed appends, lost state change nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.dump import dump
from optimizer.types import Attribution, Decision, RewardWeights
from tests.laws import oracle
from tests.stream_rig import HOUR, MINUTE, T0, Rig, content, decision, event, last_revisions, spread

SECRETS = {"test": b"0123456789abcdef0123456789abcdef"}
# `make test-faults` asks for 10,000.
EXAMPLES = int(os.environ.get("ADLOOP_LAW_EXAMPLES", "300"))
LAW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Offsets from the decision around every edge the rules know (click window 10 min, conversion window 1 h, view 30 min).
EDGES = (0, 10 * MINUTE, 30 * MINUTE, HOUR, HOUR + 10 * MINUTE)
OFFSETS = [edge + near for edge in EDGES for near in (-5_001, -5_000, -1, 0, 1, 7)] + [20 * MINUTE, -6_000]

Record = Decision | dict[str, Any]


class Unwritable(OSError):
    """The disk or the broker refuses for now."""


@st.composite
def decisions(draw: st.DrawFn, decision_id: str) -> Decision:
    rule = Attribution(
        10 * MINUTE, HOUR, draw(st.sampled_from([0, 30 * MINUTE])), draw(st.sampled_from(["first", "last", "all"]))
    )
    weights = RewardWeights(*(draw(st.sampled_from([0.0, 0.1, 1.0, -2.5])) for _ in range(4)))
    return decision(decision_id, ts=T0 + draw(st.integers(0, 3_000)), attribution=rule, reward=weights)


@st.composite
def events(draw: st.DrawFn, of: Decision, index: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["impression", "click", "conversion", "conversion", "rating", "retraction"]))
    more: dict[str, Any] = {"received_ts": T0 + draw(st.integers(0, 20_000))}
    if kind == "conversion":
        more["value"] = draw(st.sampled_from([None, 0, 0.1, 0.2, 0.3, 1e12, 1e-9]))
    if kind == "rating":
        more["value"] = draw(st.sampled_from([0, 0.1, 0.2, 0.7, 1]))
    if kind == "retraction":
        more["retracts"] = f"e{draw(st.integers(0, 9))}"
    return event(of, f"e{index}", kind, of.ts + draw(st.sampled_from(OFFSETS)), **more)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Two decisions and up to ten events of each."""
    made = [draw(decisions("d1")), draw(decisions("d2"))]
    told = [draw(events(of, i)) for of in made for i in range(draw(st.integers(0, 10)))]
    return made, told


@contextmanager
def rigs(partitions: int = 1) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), partitions)
        try:
            yield rig
        finally:
            rig.close()


def expected(made: list[Decision], told: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return oracle.outcomes([msgspec.to_builtins(d) for d in made], told, SECRETS, EXTRA_RETENTION_MS)


def contents(last: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {decision_id: content(outcome) for decision_id, outcome in last.items()}


@pytest.mark.timeout(3_600)
@given(histories(), st.data())
@settings(LAW, max_examples=EXAMPLES)
def test_any_order_with_any_duplicates_gives_the_last_revisions_of_the_batch(
    history: tuple[list[Decision], list[dict[str, Any]]], data: st.DataObject
) -> None:
    made, told = history
    records: list[Record] = [*made, *told]
    copies = data.draw(st.lists(st.sampled_from(records), max_size=6))
    arrival = data.draw(st.permutations(records + copies))
    pieces = spread(arrival, data.draw(st.lists(st.integers(0, 6), max_size=5)))
    with rigs(data.draw(st.sampled_from([1, 3]))) as rig:
        for piece in pieces:
            rig.put(*piece)
            rig.joiner.step(max_records=data.draw(st.sampled_from([1, 2, 50])))
            if data.draw(st.booleans()):
                rig.restart()
        assert contents(rig.join()) == expected(made, told)
        counts = rig.joiner.counts
        refused = sum(counts["quarantined"].values())  # type: ignore[union-attr]
        assert counts["duplicate_decisions"] == sum(isinstance(copy, Decision) for copy in copies)
        total = counts["events"] + counts["duplicates"] + refused  # type: ignore[operator]
        assert total == len(told) + sum(not isinstance(copy, Decision) for copy in copies)


@given(histories(), st.data())
@LAW
def test_lost_state_is_rebuilt_without_a_second_content_under_any_revision(
    history: tuple[list[Decision], list[dict[str, Any]]], data: st.DataObject
) -> None:
    made, told = history
    arrival: list[Record] = data.draw(st.permutations([*made, *told]))
    cut = data.draw(st.integers(0, len(arrival)))
    with rigs(data.draw(st.sampled_from([1, 3]))) as rig:
        for piece in spread(arrival[:cut], data.draw(st.lists(st.integers(0, 6), max_size=3))):
            rig.join(*piece)
        if data.draw(st.booleans()):
            rig.pass_time(T0 + 2 * HOUR + 30 * MINUTE)  # some outcomes are closed by now
        before = last_revisions(rig.log)
        rig.joiner.close()
        shutil.rmtree(rig.folder / "state")
        rig.joiner = rig._open()
        assert contents(rig.join()) == contents(before), "a rebuild alone changes nothing"
        # The markers that moved event time are decisions as well, but never shown.
        assert contents(rig.join(*arrival[cut:])) == expected(made, told)


@given(histories(), st.data())
@LAW
def test_a_log_that_refuses_appends_now_and_then_loses_and_doubles_nothing(
    history: tuple[list[Decision], list[dict[str, Any]]], data: st.DataObject
) -> None:
    made, told = history
    with rigs() as rig:
        append = rig.log.append
        rig.put(*made, *told)

        def fails(records: Any) -> Any:
            match data.draw(st.sampled_from(["works", "refuses", "writes, then fails"])):
                case "refuses":
                    raise Unwritable
                case "writes, then fails":
                    append(records)
                    raise Unwritable
            return append(records)

        rig.log.append = fails  # type: ignore[method-assign]
        for _ in range(6):
            with suppress(Unwritable):
                rig.joiner.step(max_records=3)
        rig.log.append = append  # type: ignore[method-assign]
        assert contents(rig.join()) == expected(made, told)


def test_the_same_log_gives_the_same_outcomes_bit_for_bit(tmp_path: Path) -> None:
    made = [decision(f"d{i}", ts=T0 + i) for i in range(50)]
    told = [
        event(d, f"e{i}", kind, d.ts + i, received_ts=T0 + i)
        for d in made
        for i, kind in enumerate(("impression", "click"))
    ]
    written = []
    for name in ("a", "b"):
        rig = Rig(tmp_path / name, partitions=2)
        rig.join(*made, *told)
        written.append([json.dumps(outcome) for outcome in dump(rig.log, "outcomes")])
        rig.close()
    assert len(written[0]) == 100
    assert written[0] == written[1]


def test_the_oracle_is_not_the_joiner() -> None:
    source = Path(oracle.__file__).read_text()
    assert "import optimizer" not in source
    assert "from optimizer" not in source
