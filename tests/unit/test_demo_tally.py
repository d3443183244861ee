"""The demo's figures against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from optimizer.maths.proportions import wilson
from simulators import tally
from simulators.traffic import Shown

PLAIN, GOOD = {"headline": "plain"}, {"headline": "good"}


def shown(number: int, source: str = "pool", rate: float = 0.2, **other: object) -> Shown:
    fields: dict[str, object] = {
        "number": number,
        "campaign_id": "c",
        "segment": "all",
        "context": {"segment": "all"},
        "slots": GOOD if source == "pool" else PLAIN,
        "source": source,
        "policy_version": "v1",
        "rate": rate,
        "control_rate": 0.05,
        "clicked": False,
        "valid": True,
    }
    return Shown(**{**fields, **other})  # type: ignore[arg-type]


def test_last_fifth_is_the_end_of_the_run_rounded_up() -> None:
    assert [one.number for one in tally.last_fifth([shown(i) for i in range(12)])] == [9, 10, 11]


def test_learned_rate_is_pool_traffic_of_the_last_fifth_and_control_every_arrival_there() -> None:
    early = [shown(i, rate=0.9, control_rate=0.9) for i in range(8)]
    late = [shown(8, rate=0.3, control_rate=0.02), shown(9, source="control", rate=0.7, control_rate=0.06)]
    assert tally.rates([*early, *late]) == pytest.approx((0.04, 0.3))


def test_rates_refuse_a_run_that_served_nothing_learned() -> None:
    with pytest.raises(tally.TooLittle, match="raise --impressions"):
        tally.rates([shown(i, source="control") for i in range(10)])


def test_lift_is_realised_clicks_late_over_control_throughout() -> None:
    control = [shown(i, source="control", clicked=i % 20 == 0) for i in range(4000)]
    late = [shown(4000 + i, clicked=i % 4 == 0) for i in range(1000)]
    lift = tally.realised_lift([*control, *late])
    assert lift is not None
    assert lift.value == pytest.approx(0.25 / 0.05 - 1)
    assert 2.9 < lift.low < lift.value < lift.high < 5.5
    assert tally.realised_lift([*control[:50], *late[:12]]) is None


def test_valid_share_leaves_controls_out() -> None:
    run = [shown(0, valid=False), shown(1), shown(2), shown(3), shown(4, source="control", valid=False)]
    assert tally.valid_share(run) == 0.75


def test_curve_bins_cover_the_run_once() -> None:
    run = [shown(i, clicked=i >= 50, source="control" if i % 10 == 0 else "pool") for i in range(100)]
    points = tally.curve(run, bins=2)
    assert [point.impression for point in points] == [50, 100]
    assert [point.learned_ctr for point in points] == [0.0, 1.0]
    band = wilson(0, 45)
    assert band is not None
    assert (points[0].low, points[0].high) == (band.low, band.high)
    assert points[0].control_ctr == pytest.approx(0.05)
    assert sum(sum(part.shares.values()) for part in tally.traffic(run, bins=7)) == 100
    assert tally.traffic(run, bins=1)[0].shares == {"control": 10, "v1": 90}


def test_a_bin_without_pool_traffic_has_no_learned_rate() -> None:
    point = tally.curve([shown(0, source="control")])[0]
    assert (point.learned_ctr, point.low, point.high) == (None, None, None)


def rate_of(slots_rate: dict[str, float]) -> Callable[[str, dict[str, object], dict[str, str]], float]:
    return lambda _campaign_id, _context, slots: slots_rate[slots["headline"]]


def test_before_and_after_take_the_text_drawn_most_in_the_busiest_cells() -> None:
    busy = [shown(i, slots=GOOD if i % 3 else PLAIN) for i in range(6)]
    other = [shown(6 + i, campaign_id="d") for i in range(4)]
    run = [*[shown(0)] * 40, *busy, *other]
    controls = {"c": {"headline": "control"}, "d": {"headline": "control"}}
    pairs = tally.text_pairs(run, controls, rate_of({"control": 0.03, "good": 0.3, "plain": 0.1}), count=1)
    assert [(pair.campaign_id, pair.before, pair.after) for pair in pairs] == [("c", "control", "good")]
    assert (pairs[0].before_ctr, pairs[0].after_ctr) == (0.03, 0.3)


def test_segments_are_the_last_fifth_by_campaign_and_segment() -> None:
    run = [shown(i) for i in range(8)] + [shown(8, segment="b", rate=0.4), shown(9, segment="a", source="control")]
    rows = tally.segments(run)
    assert [(row.segment, row.impressions, row.learned_ctr) for row in rows] == [("a", 1, None), ("b", 1, 0.4)]
