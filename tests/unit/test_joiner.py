"""The joiner, record by record: outcomes as written, and what is let in (bad inputs 22 to 36)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer.errors import ConfigError, LogTruncated
from optimizer.stream.admission import MOST_AHEAD_MS, Refused, read_decision
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append, Record, TopicPartition
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.stream.state import hash_of
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Outcome
from tests.stream_rig import HOUR, KEYS, RETENTION, RULE, T0, Rig, appended, decision, event, raw, token, values

D = decision()
CLOSES = T0 + RULE.window_ms() + HOUR


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


# -- outcomes as records -------------------------------------------------------------------------------------------


def test_an_outcome_carries_the_decision_as_read_and_parses_as_ours(rig: Rig) -> None:
    record = raw(D, future={"field": [1, 2.5, "ü"]}, context={"segment": "all", "deep": True})
    last = rig.join(record, event(D, "i"), event(D, "c", "click", T0 + 5))
    assert last["d1"]["decision"] == json.loads(record.value or b"")
    assert last["d1"]["revision"] == 2
    assert last["d1"]["state"] == "open"
    assert last["d1"]["as_of"] == T0 + 1_000
    assert list(last["d1"])[:3] == ["schema", "decision_id", "revision"]
    parsed = msgspec.convert(last["d1"], Outcome)
    assert (parsed.reward, parsed.decision.decision_id) == (1.0, "d1")


def test_each_change_is_a_revision_and_what_changes_nothing_is_none(rig: Rig) -> None:
    rig.join(D, event(D, "i"), event(D, "c", "click", T0 + 5), event(D, "c2", "click", T0 + 9))
    rig.join(event(D, "x", "retraction", retracts="c"))
    revisions = [(o["revision"], o["events"]) for o in values(rig.log, "outcomes")]
    assert revisions == [(1, ["i"]), (2, ["i", "c"]), (3, ["i", "c2"])]
    assert rig.joiner.counts["revisions"] == 3
    assert rig.joiner.counts["outcomes"] == 1


# -- bad inputs 22 to 36 -------------------------------------------------------------------------------------------


def test_22_a_null_value_is_counted_and_skipped(rig: Rig) -> None:
    rig.join(Append("decisions", "d1", None), Append("events", "d1", None), D, event(D, "i"))
    assert rig.joiner.counts["tombstones"] == 2
    assert rig.reasons() == []
    assert rig.joiner.counts["outcomes"] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "undecodable"),
        (b"{", "undecodable"),
        (b"\x00\xff", "undecodable"),
        (b'{"schema": 1, "x": "\xff"}', "undecodable"),
        (b'{"schema": 1, "x": "\\ud800"}', "undecodable"),
        (b'{"schema": 1, "x": NaN}', "undecodable"),
        (b'{"schema": 1, "x": -Infinity}', "undecodable"),
        (b'{"schema": 1, "x": 1e400}', "undecodable"),
        (b'{"schema": 1, "ts": ' + b"9" * 400 + b"}", "undecodable"),
        (b'{"schema": 1, "type": "bogus", ', "undecodable"),
        (b"[" * 100_000 + b"]" * 100_000, "undecodable"),
        (b'\xef\xbb\xbf{"schema": 1}', "undecodable"),
        (b"[]", "schema"),
        (b"null", "schema"),
        (b'"text"', "schema"),
        (b"7", "schema"),
        (b"{}", "schema"),
        (b" " * (1024 * 1024) + b"{", "too_large"),
    ],
)
@pytest.mark.parametrize("topic", ["decisions", "events"])
def test_23_what_is_no_record_is_quarantined(rig: Rig, topic: str, value: bytes, reason: str) -> None:
    last = rig.join(Append(topic, "d1", value), decision("d2"), event(decision("d2"), "i"))
    assert rig.quarantined() == {(topic, 0, 0): reason}
    assert list(last) == ["d2"], "the stream goes on"
    (record,) = values(rig.log, "quarantine")
    assert record["size"] == len(value)
    assert base64.b64decode(record["payload"]) == value[: 64 * 1024]
    assert record["detail"]


def test_23_a_record_of_exactly_1_mib_is_let_in(rig: Rig) -> None:
    small = appended(D).value or b""
    assert rig.join(Append("decisions", "d1", small + b" " * (1024 * 1024 - len(small))), event(D, "i"))
    assert rig.reasons() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2},
        {"schema": "1"},
        {"schema": 1.0},
        {"schema": None},
        {"type": "view"},
        {"ts": float(T0)},
        {"ts": str(T0)},
        {"ts": True},
        {"ts": None},
        {"event_id": None},
        {"event_id": ""},
        {"event_id": "x" * 65},
        {"event_id": "a b"},
        {"event_id": "new\n"},
        {"token": None},
        {"token": 5},
        {"decision_id": "d2"},
        {"value": "3"},
        {"value": True},
        {"received_ts": "now"},
        {"type": "rating"},
        {"type": "retraction"},
        {"ts": 2**63},
    ],
)
def test_23_an_event_of_another_shape_is_quarantined(rig: Rig, changed: dict[str, Any]) -> None:
    rig.join(D, raw(event(D, "c", "click"), **changed))
    assert rig.reasons() == ["schema"]


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2},
        {"position": 0.0},
        {"propensity": "0.1"},
        {"propensity": True},
        {"propensity": None},
        {"probabilities": [0.5, None]},
        {"source": "elsewhere"},
        {"context": {"segment": ["all"]}},
        {"attribution": {"click_window_ms": 1, "conversion_window_ms": 1, "view_through_ms": 0}},
        {"attribution": {"click_window_ms": 0, "conversion_window_ms": 1, "view_through_ms": 0, "count": "first"}},
        {"attribution": {"click_window_ms": 1, "conversion_window_ms": -1, "view_through_ms": 0, "count": "first"}},
        {"attribution": {"click_window_ms": 1, "conversion_window_ms": 1, "view_through_ms": 0, "count": "some"}},
        {"reward": {"click": "1"}},
        {"reward": None},
        {"decision_id": "d2"},
        {"ts": 2**63},
        *(
            {name: None}
            for name in ("tenant", "request_id", "policy_version", "critic_version", "candidate", "pool_id")
        ),
    ],
)
def test_23_a_decision_of_another_shape_is_quarantined(rig: Rig, changed: dict[str, Any]) -> None:
    rig.join(raw(D, **changed))
    assert rig.reasons() == ["schema"]


def test_24_tokens_that_are_not_for_this_decision(rig: Rig) -> None:
    stranger = TokenKeys({"stranger": b"x" * 32})
    forged = TokenKeys({"test": b"x" * 32})
    tokens = {
        "bad_token": ["", "a.b.c", token(D) + "x", token(D, forged)],
        "unknown_key": [token(D, stranger)],
        "expired_token": [token(D, exp_s=T0 // 1000), token(D, exp_s=T0 // 1000 + 1)],
        "token_mismatch": [
            token(decision("d2")),
            token(decision(variant_id="v2")),
            token(decision(propensity=0.2)),
            token(decision(tenant="other")),  # 32: another tenant's decision
            token(decision(policy_version="pv2")),
        ],
    }
    told = [(reason, text) for reason, texts in tokens.items() for text in texts]
    rig.join(D, *(event(D, f"e{i}", token=text) for i, (_, text) in enumerate(told)))
    assert rig.reasons() == [reason for reason, _ in told]
    assert rig.joiner.counts["outcomes"] == 0


def test_24_a_token_is_good_until_its_last_millisecond(rig: Rig) -> None:
    early = token(D, exp_s=T0 // 1000 + 1)
    rig.join(
        D, event(D, "i", token=early, received_ts=T0 + 999), event(D, "c", "click", token=early, received_ts=T0 + 1000)
    )
    assert rig.reasons() == ["expired_token"]
    assert rig.joiner.counts["events"] == 1


def test_24_without_received_ts_the_logs_own_time_stands(rig: Rig) -> None:
    late = token(D, exp_s=T0 // 1000)
    rig.join(D, event(D, "i", received_ts=None), event(D, "c", token=late, received_ts=None))
    assert rig.reasons() == ["expired_token"]
    assert rig.joiner.event_time(0) == T0


def test_25_a_copy_counts_once_and_another_content_is_a_conflict(rig: Rig) -> None:
    click = event(D, "c", "conversion", T0 + 5, value=1.0)
    rig.join(D, event(D, "i"), click, click, {**click, "received_ts": T0 + 2_000}, {**click, "unknown": 1})
    assert rig.joiner.counts["duplicates"] == 3
    rig.join({**click, "value": 2.0}, {**click, "ts": T0 + 6}, {**click, "type": "impression"})
    assert rig.reasons() == ["conflict"] * 3
    assert rig.join()["d1"]["events"] == ["i"]


def test_25_a_defaulted_ts_and_a_default_value_are_no_other_content(rig: Rig) -> None:
    bought = event(D, "v", "conversion", T0 + 5)
    rig.join(D, event(D, "i"), event(D, "c", "click"), bought, {**bought, "value": 0})
    told = event(D, "t", "click", T0 + 5, ts_defaulted=True)
    rig.join(told, {**told, "ts": T0 + 6})
    assert rig.joiner.counts["duplicates"] == 2
    assert rig.reasons() == []


def test_25_decisions_are_unique_by_their_whole_content(rig: Rig) -> None:
    spaced = Append("decisions", "d1", json.dumps(msgspec.to_builtins(D), indent=1, sort_keys=True).encode())
    rig.join(D, D, spaced, raw(D, unknown=1), raw(D, propensity=0.2), event(D, "i"))
    assert rig.joiner.counts["duplicate_decisions"] == 2
    assert rig.reasons() == ["conflict", "conflict"]
    assert rig.join()["d1"]["decision"]["propensity"] == 0.137


def test_26_events_wait_for_their_impression_and_their_decision(rig: Rig) -> None:
    assert rig.join(event(D, "c", "click", T0 + 5)) == {}
    assert rig.joiner.counts["waited"] == 1
    assert rig.join(D) == {}
    assert rig.join(event(D, "i"))["d1"]["components"]["click"] == 1


def test_26_what_waited_is_judged_in_log_order_when_the_decision_comes(rig: Rig) -> None:
    first = event(D, "c", "click", T0 + 5)
    rig.join(first, first, {**first, "ts": T0 + 9}, event(D, "m", token=token(decision(propensity=0.5))))
    rig.join(event(D, "late", "click", T0 + RETENTION + 1))
    last = rig.join(D, event(D, "i"))
    assert last["d1"]["click_ts"] == T0 + 5
    assert rig.reasons() == ["conflict", "token_mismatch", "clock"]
    assert rig.joiner.counts["duplicates"] == 1


def test_26_a_decision_that_is_never_shown_is_let_go_and_counted_with_its_clicks(rig: Rig) -> None:
    rig.join(D, event(D, "c", "click", T0 + 5), event(D, "c2", "click", T0 + 6))
    rig.pass_time(T0 + RETENTION + 1)
    counts = rig.joiner.counts
    assert (counts["let_go"], counts["never_shown"], counts["never_shown_clicks"]) == (1, 1, 2)
    assert values(rig.log, "outcomes") == []


@pytest.mark.parametrize(
    ("after", "let_in"), [(-5_001, False), (-5_000, True), (RETENTION, True), (RETENTION + 1, False)]
)
def test_27_28_the_clock_has_inclusive_edges(rig: Rig, after: int, let_in: bool) -> None:
    rig.join(D, event(D, "i", ts=T0 + after))
    assert rig.reasons() == ([] if let_in else ["clock"])


@pytest.mark.parametrize("ts", [0, T0 // 1000, 4_102_444_800_000, -1])
def test_28_times_of_another_age_or_unit(rig: Rig, ts: int) -> None:
    rig.join(D, event(D, "i", ts=ts))
    assert rig.reasons() == ["clock"]


@pytest.mark.parametrize(
    ("ts", "reasons"), [(1_577_836_799_999, ["clock"]), (1_577_836_800_000, []), (T0 // 1000, ["clock"])]
)
def test_28_a_decision_is_from_2020_on(rig: Rig, ts: int, reasons: list[str]) -> None:
    rig.join(decision(ts=ts))
    assert rig.reasons() == reasons


@pytest.mark.parametrize("ts", [4_102_444_800_000, T0 * 1000, T0 + MOST_AHEAD_MS + 1])
def test_28_a_decision_from_the_far_future_is_refused_and_moves_no_event_time(rig: Rig, ts: int) -> None:
    rig.join(D, event(D, "i"))
    last = rig.join(decision("ahead", ts=ts), event(D, "c", "click", T0 + 5))
    assert rig.reasons() == ["clock"]
    assert (last["d1"]["state"], last["d1"]["reward"]) == ("open", 1.0)
    assert rig.joiner.event_time(0) == T0 + 1_000


@pytest.mark.parametrize("ts", [4_102_444_800_000, T0 * 1000])
def test_28_a_producer_that_is_as_wrong_about_its_records_is_refused_too(ts: int) -> None:
    made = appended(decision(ts=ts))
    record = Record("decisions", 0, 0, made.key.encode(), made.value, ts)
    with pytest.raises(Refused, match="up to 4102444799999") as refusal:
        read_decision(record, made.value or b"")
    assert refusal.value.reason == "clock"


def test_28_a_decision_may_be_years_ahead_of_the_log_as_simulated_time_is(rig: Rig) -> None:
    rig.join(decision(ts=T0 + MOST_AHEAD_MS))
    assert rig.reasons() == []


@pytest.mark.parametrize("stamped", [-1, 0, T0 // 1000])
def test_28_a_log_without_times_of_its_own_refuses_no_decision_of_today(stamped: int) -> None:
    made = appended(D)
    record = Record("decisions", 0, 0, made.key.encode(), made.value, stamped)
    assert read_decision(record, made.value or b"").ts == T0


@pytest.mark.parametrize(
    ("type_", "value", "let_in"),
    [
        ("conversion", -0.01, False),
        ("conversion", 0, True),
        ("conversion", 1e12, True),
        ("conversion", 1e12 + 1, False),
        ("rating", -1e-9, False),
        ("rating", 0, True),
        ("rating", 1, True),
        ("rating", 1.0000001, False),
    ],
)
def test_29_values_have_a_range(rig: Rig, type_: str, value: float, let_in: bool) -> None:
    rig.join(D, event(D, "v", type_, value=value))
    assert rig.reasons() == ([] if let_in else ["value"])


@pytest.mark.parametrize(
    ("propensity", "let_in"), [(0, False), (-0.1, False), (1.0000001, False), (1, True), (5e-324, True)]
)
def test_30_a_propensity_is_a_probability_above_zero(rig: Rig, propensity: float, let_in: bool) -> None:
    rig.join(raw(D, propensity=propensity))
    assert rig.reasons() == ([] if let_in else ["value"])


def test_30_a_propensity_that_is_not_a_number_is_not_json(rig: Rig) -> None:
    rig.join(Append("decisions", "d1", (appended(D).value or b"").replace(b"0.137,", b"NaN,", 1)))
    assert rig.reasons() == ["undecodable"]


def test_33_the_same_event_many_times_is_one_reward_and_one_row(rig: Rig) -> None:
    click = appended(event(D, "c", "click", T0 + 5))
    rig.put(D, event(D, "i"))
    for _ in range(20):
        rig.put(*[click] * 500)
    last = rig.join()
    assert (last["d1"]["reward"], last["d1"]["revision"]) == (1.0, 2)
    assert rig.joiner.counts["duplicates"] == 9_999
    store = rig.joiner._parts[0]._store
    assert rig.joiner._parts[0].positions == (1, 10_001)
    ((_, _, body),) = store.decisions([hash_of(b"d1")])
    assert len(body.events) == 2


def test_34_a_truncated_log_stops_the_joiner(rig: Rig) -> None:
    rig.join(D)
    rig.put(event(D, "i"), event(D, "c"))
    assert isinstance(rig.log, SqliteLog)
    rig.log.truncate(TopicPartition("events", 0), 1)
    with pytest.raises(LogTruncated, match=r"events\[0\]: position 0"):
        rig.joiner.step()
    with pytest.raises(LogTruncated):
        rig.joiner.step()


def test_35_state_of_another_log_or_partition_count_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "a")
    rig.join(D)
    rig.close()
    for count in (1, 2):
        other = SqliteLog(tmp_path / f"other{count}.db", rig.clock, count)
        with pytest.raises(ConfigError, match="belongs to another log"):
            Joiner(other, tmp_path / "a" / "state", KEYS, rig.clock)
        other.close()


def test_35_joins_are_right_over_many_partitions(tmp_path: Path) -> None:
    rig = Rig(tmp_path, partitions=7)
    made = [decision(f"d{i}") for i in range(60)]
    last = rig.join(*(event(d, "c", "click", T0 + 5) for d in made), *made, *(event(d, "i") for d in made))
    assert len(last) == 60
    assert all(outcome["reward"] == 1.0 for outcome in last.values())
    rig.close()


def test_36_void_retractions_are_counted_and_early_ones_held(rig: Rig) -> None:
    rig.join(D, event(D, "i"), event(D, "x", "retraction", retracts="v"), event(D, "x2", "retraction", retracts="v"))
    assert rig.joiner.counts["void_retractions"] == 1, "the second one names the same event"
    rig.join(event(D, "c", "click"), event(D, "v", "conversion"))
    assert rig.join()["d1"]["components"]["conversion"] == 0
    rig.join(event(D, "y", "retraction", retracts="i"), event(D, "z", "retraction", retracts="y"))
    rig.join(event(D, "w", "retraction", retracts="never"))
    assert rig.joiner.counts["void_retractions"] == 3
    rig.pass_time(T0 + RETENTION + 1)
    assert rig.joiner.counts["void_retractions"] == 4, "what never came is known when the decision is let go"
