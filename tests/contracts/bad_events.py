"""What bad events must get (bad inputs 22 to 36), as one suite for every log: subclass `BadEvents`, give `open`.

One test a line; every variant of each line is in tests/unit/test_joiner.py, on the embedded log alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.clock import Clock, ManualClock
from optimizer.errors import ConfigError, LogTruncated
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append, EventLog, TopicPartition
from optimizer.stream.tokens import TokenKeys
from tests.stream_rig import KEYS, MINUTE, RETENTION, RULE, T0, Rig, decision, event, raw, token, values

D = decision()
SHOWN = event(D, "i")


class BadEvents(ABC):
    """Each bad record is refused with its one reason, and the good ones around it count."""

    @abstractmethod
    def open(self, partitions: int, clock: Clock) -> EventLog:
        """A new log for this test."""

    @abstractmethod
    def truncate(self, log: EventLog, at: TopicPartition, before: int) -> None:
        """Take the records below an offset out of the log, as its retention would."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        rig = Rig(tmp_path, log=lambda clock: self.open(1, clock))
        yield rig
        rig.close()

    def test_22_a_tombstone_is_counted_and_skipped(self, rig: Rig) -> None:
        last = rig.join(Append("decisions", "d1", None), Append("events", "d1", None), D, SHOWN)
        assert (rig.joiner.counts["tombstones"], rig.reasons()) == (2, [])
        assert last["d1"]["events"] == ["i"]

    def test_23_what_is_no_record_is_quarantined(self, rig: Rig) -> None:
        too_large = Append("events", "d1", b" " * (1024 * 1024) + b"{")
        last = rig.join(D, Append("events", "d1", b"\x00\xff"), raw(SHOWN, schema=2), too_large, SHOWN)
        assert rig.reasons() == ["undecodable", "schema", "too_large"]
        assert next((q["offset"], q["size"]) for q in values(rig.log, "quarantine")) == (0, 2)
        assert last["d1"]["events"] == ["i"]

    def test_24_tokens_that_are_not_for_this_decision_are_rejected(self, rig: Rig) -> None:
        tokens = [
            "a.b.c",
            token(D, TokenKeys({"stranger": b"x" * 32})),
            token(D, exp_s=T0 // 1000),
            token(decision(variant_id="v2")),
            token(decision(propensity=0.2)),
        ]
        missing = raw(SHOWN, token=None)
        rig.join(D, *(event(D, f"e{i}", token=text) for i, text in enumerate(tokens)), missing)
        assert rig.reasons() == [
            *("bad_token", "unknown_key", "expired_token", "token_mismatch", "token_mismatch", "schema")
        ]
        assert rig.joiner.counts["outcomes"] == 0

    def test_25_a_copy_has_no_effect_and_other_content_is_a_conflict(self, rig: Rig) -> None:
        last = rig.join(D, SHOWN, SHOWN, {**SHOWN, "ts": T0 + 1})
        assert (rig.joiner.counts["duplicates"], rig.reasons()) == (1, ["conflict"])
        assert (last["d1"]["revision"], last["d1"]["impression_ts"]) == (1, T0)

    def test_26_a_click_waits_for_its_impression_and_expires_without_one(self, rig: Rig) -> None:
        other = decision("d2")
        assert rig.join(D, other, event(D, "c", "click", T0 + 5), event(other, "c", "click", T0 + 5)) == {}
        assert rig.join(SHOWN)["d1"]["components"]["click"] == 1
        rig.pass_time(T0 + RETENTION + 1)
        assert (rig.joiner.counts["never_shown"], rig.joiner.counts["never_shown_clicks"]) == (1, 1)

    def test_27_a_click_at_the_edge_of_its_window(self, rig: Rig) -> None:
        made = [decision(f"d{i}") for i in range(3)]
        edge = T0 + RULE.click_window_ms
        clicks = [event(d, "c", "click", edge + after) for d, after in zip(made, (-1, 0, 1), strict=True)]
        last = rig.join(*made, *(event(d, "i") for d in made), *clicks)
        assert [last[d.decision_id]["components"]["click"] for d in made] == [1, 1, 0]
        assert rig.reasons() == []

    def test_28_times_of_another_age_or_unit_are_quarantined(self, rig: Rig) -> None:
        rig.join(D, *(event(D, f"e{i}", ts=ts) for i, ts in enumerate((0, 4_102_444_800_000, T0 // 1000))))
        assert rig.reasons() == ["clock"] * 3
        rig.join(*(decision(f"d{ts}", ts=ts) for ts in (0, 4_102_444_800_000, T0 // 1000, T0 * 1000)))
        assert rig.reasons() == ["clock"] * 7
        assert rig.joiner.event_time(0) == T0

    def test_29_values_out_of_range_are_rejected(self, rig: Rig) -> None:
        told = [("conversion", -1), ("conversion", 1e12 + 1), ("rating", 1.01), ("rating", -0.01)]
        rig.join(D, *(event(D, f"e{i}", kind, value=value) for i, (kind, value) in enumerate(told)))
        assert rig.reasons() == ["value"] * 4

    def test_30_a_propensity_that_is_none_is_rejected(self, rig: Rig) -> None:
        nan = Append("decisions", "d1", (raw(D).value or b"").replace(b"0.137", b"NaN", 1))
        rig.join(raw(D, propensity=0), raw(D, propensity=1.01), nan)
        assert rig.reasons() == ["value", "value", "undecodable"]

    def test_31_an_event_for_a_retired_version_counts_and_names_it(self, rig: Rig) -> None:
        # How stale a version may be is the learner's to say: the joiner hands on which one it was.
        retired = decision(policy_version="pv-retired")
        last = rig.join(retired, event(retired, "i"), event(retired, "c", "click", T0 + MINUTE))
        assert last["d1"]["decision"]["policy_version"] == "pv-retired"
        assert (last["d1"]["reward"], rig.reasons()) == (1.0, [])

    def test_32_another_tenants_decision_is_rejected(self, rig: Rig) -> None:
        rig.join(D, event(D, "i", token=token(decision(tenant="other"))))
        assert rig.reasons() == ["token_mismatch"]

    def test_33_the_same_event_many_times_is_one_reward(self, rig: Rig) -> None:
        click = event(D, "c", "click", T0 + 5)
        rig.put(D, SHOWN)
        for _ in range(4):
            rig.put(*[click] * 500)
        last = rig.join()
        assert last["d1"]["reward"] == 1.0
        # One revision where the events were read before the decision, as a broker may have it.
        assert last["d1"]["revision"] <= 2
        assert rig.joiner.counts["duplicates"] == 1_999

    def test_34_a_truncated_log_stops_the_joiner(self, rig: Rig) -> None:
        rig.join(D)
        rig.put(SHOWN, event(D, "c", "click"))
        rig.joiner.close()
        self.truncate(rig.log, TopicPartition("events", 0), 1)
        with pytest.raises(LogTruncated, match=r"events\[0\]: position 0"):
            rig.restart()
        assert values(rig.log, "outcomes") == []

    def test_35_a_changed_partition_count_is_refused(self, rig: Rig) -> None:
        rig.join(D, SHOWN)
        rig.joiner.close()
        other = self.open(2, ManualClock(T0))
        with pytest.raises(ConfigError, match="belongs to another log"):
            Joiner(other, rig.folder / "state", KEYS, rig.clock)
        other.close()

    def test_36_a_retraction_of_what_never_came_or_comes_twice(self, rig: Rig) -> None:
        early = event(D, "x", "retraction", retracts="v")
        last = rig.join(D, SHOWN, early, event(D, "y", "retraction", retracts="v"), event(D, "v", "conversion"))
        assert last["d1"]["components"]["conversion"] == 0
        rig.join(event(D, "z", "retraction", retracts="never"))
        rig.pass_time(T0 + RETENTION + 1)
        assert rig.joiner.counts["void_retractions"] == 2
