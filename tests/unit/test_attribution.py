"""Attribution, rule by rule and edge by edge (contracts section 4)."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from optimizer.maths.attribution import Attributed, attribute, expiry_s, retention_ms, reward
from optimizer.types import Attribution, Components, Event, RewardWeights
from tests.stream_rig import DAY, HOUR, MINUTE, RULE, T0, decision

WINDOW = RULE.click_window_ms


def ev(event_id: str, type_: str, after: int = 0, **more: Any) -> Event:
    return Event(event_id, type_, "d1", "", T0 + after, 1, **more)  # type: ignore[arg-type]


SHOWN = ev("i", "impression")


def outcome(*events: Event, **changed: Any) -> Attributed:
    found = attribute(decision(**changed), events)
    assert found is not None
    return found


def test_without_an_impression_there_is_no_outcome() -> None:
    assert attribute(decision(), []) is None
    assert (
        attribute(decision(), [ev("c", "click"), ev("v", "conversion", value=3.0), ev("r", "rating", value=1.0)])
        is None
    )


def test_an_impression_alone_is_a_zero() -> None:
    assert outcome(SHOWN) == Attributed(T0, None, Components(), 0.0, ["i"])


def test_the_impression_is_the_earliest_and_ties_go_to_the_smallest_id() -> None:
    assert outcome(ev("z", "impression", 5), ev("y", "impression", 3)).events == ["y"]
    assert outcome(ev("b", "impression"), ev("a", "impression")).events == ["a"]


@pytest.mark.parametrize(
    ("after", "counts", "clicked"),
    [(-5_001, 0, None), (-5_000, 1, 0), (-1, 1, 0), (0, 1, 0), (1, 1, 1), (WINDOW, 1, WINDOW), (WINDOW + 1, 0, None)],
)
def test_the_click_window_includes_its_edges(after: int, counts: int, clicked: int | None) -> None:
    found = outcome(SHOWN, ev("c", "click", after))
    assert found.components.click == counts
    assert found.click_ts == (None if clicked is None else T0 + clicked)


def test_the_earliest_click_in_the_window_counts() -> None:
    found = outcome(SHOWN, ev("late", "click", 9), ev("early", "click", 2), ev("before", "click", -6_000))
    assert (found.click_ts, found.events) == (T0 + 2, ["i", "early"])
    assert outcome(SHOWN, ev("b", "click", 2), ev("a", "click", 2)).events == ["i", "a"]


@pytest.mark.parametrize(("after", "counts"), [(-5_001, 0), (-5_000, 1), (HOUR, 1), (HOUR + 1, 0)])
def test_the_conversion_window_runs_from_the_click(after: int, counts: int) -> None:
    found = outcome(SHOWN, ev("c", "click", MINUTE), ev("v", "conversion", MINUTE + after, value=2.0))
    assert (found.components.conversion, found.components.value) == (counts, 2.0 * counts)


def test_the_conversion_window_of_a_click_before_the_impression_runs_from_the_impression() -> None:
    early = ev("c", "click", -4_000)
    assert outcome(SHOWN, early, ev("v", "conversion", HOUR)).components.conversion == 1
    assert outcome(SHOWN, early, ev("v", "conversion", HOUR + 1)).components.conversion == 0
    assert outcome(SHOWN, early, ev("v", "conversion", -5_001)).components.conversion == 0


@pytest.mark.parametrize(("after", "counts"), [(-5_001, 0), (-5_000, 1), (MINUTE, 1), (MINUTE + 1, 0)])
def test_a_view_through_needs_no_click(after: int, counts: int) -> None:
    rule = Attribution(WINDOW, HOUR, MINUTE, "all")
    assert outcome(SHOWN, ev("v", "conversion", after), attribution=rule).components.conversion == counts


def test_without_view_through_a_conversion_needs_a_click() -> None:
    assert outcome(SHOWN, ev("v", "conversion")).components.conversion == 0


def test_a_window_of_nothing_still_has_its_edge() -> None:
    rule = Attribution(1, 0, 0, "all")
    found = outcome(SHOWN, ev("c", "click", 1), ev("v", "conversion", 1), ev("w", "conversion", 2), attribution=rule)
    assert found.events == ["i", "c", "v"]


@pytest.mark.parametrize(
    ("count", "ids", "value"), [("first", ["x"], 1.0), ("last", ["y"], 2.0), ("all", ["x", "z", "y"], 7.0)]
)
def test_which_conversions_count(count: str, ids: list[str], value: float) -> None:
    rule = Attribution(WINDOW, HOUR, 0, count)  # type: ignore[arg-type]
    told = [
        ev("y", "conversion", 9, value=2.0),
        ev("z", "conversion", 8, value=4.0),
        ev("x", "conversion", 8, value=1.0),
    ]
    found = outcome(SHOWN, ev("c", "click", 1), *told, attribution=rule)
    assert (found.events, found.components.value, found.components.conversion) == (["i", "c", *ids], value, len(ids))


def test_ratings_count_whenever_they_come_and_are_averaged() -> None:
    found = outcome(SHOWN, ev("r", "rating", 8 * DAY, value=1.0), ev("q", "rating", -4_000, value=0.5))
    assert found.components.rating == 0.75
    assert found.events == ["q", "i", "r"]
    assert outcome(SHOWN, ev("r", "rating", value=0.0)).components.rating == 0.0


def test_the_reward_is_the_weighted_sum() -> None:
    found = outcome(SHOWN, ev("c", "click", 1), ev("v", "conversion", 2, value=30.0), ev("r", "rating", 3, value=0.5))
    assert found.reward == 1.0 * 1 + 2.0 * 1 + 0.1 * 30.0 + 0.5 * 0.5
    assert outcome(SHOWN, ev("c", "click", 1), reward=RewardWeights(value=3.0)).reward == 0.0


def test_sums_are_added_by_ts_whatever_the_order_of_arrival() -> None:
    rule = Attribution(WINDOW, HOUR, 0, "all")
    told = [ev(f"v{i}", "conversion", i, value=value) for i, value in enumerate((0.1, 0.2, 0.3, 1e12, 1e-9))]
    click = ev("c", "click")
    one, other = (outcome(SHOWN, click, *order, attribution=rule) for order in (told, told[::-1]))
    assert one == other
    assert one.components.value == (((0.1 + 0.2) + 0.3) + 1e12) + 1e-9


def test_a_retraction_takes_its_event_out() -> None:
    told = [SHOWN, ev("c", "click", 1), ev("d", "click", 2), ev("v", "conversion", 3, value=5.0)]
    assert outcome(*told, ev("x", "retraction", 4, retracts="c")).click_ts == T0 + 2
    assert outcome(ev("x", "retraction", retracts="v"), *told).components.conversion == 0
    gone = outcome(*told, ev("x", "retraction", retracts="c"), ev("y", "retraction", retracts="d"))
    assert gone.events == ["i"], "without its click the conversion goes too"


def test_void_retractions_change_nothing() -> None:
    click, back = ev("c", "click", 1), ev("x", "retraction", 2, retracts="c")
    assert outcome(SHOWN, ev("x", "retraction", retracts="i")) == outcome(SHOWN)
    assert outcome(SHOWN, click, ev("x", "retraction", retracts="never")) == outcome(SHOWN, click)
    assert outcome(SHOWN, click, back, ev("y", "retraction", retracts="c")) == outcome(SHOWN)
    assert outcome(SHOWN, click, back, ev("y", "retraction", retracts="x")) == outcome(SHOWN), "no retraction of one"
    assert outcome(SHOWN, click, ev("x", "retraction", retracts="x")) == outcome(SHOWN, click)


def test_absurd_weights_stay_finite() -> None:
    most = sys.float_info.max
    assert reward(RewardWeights(click=most, value=most), Components(1, 1, 1e12)) == most
    assert reward(RewardWeights(click=-most, value=most), Components(1, 1, 1e12)) == 0.0
    assert json.loads(json.dumps(reward(RewardWeights(value=-most), Components(1, 1, 1e12)))) == -most


def test_retention_and_expiry() -> None:
    assert retention_ms(RULE) == HOUR + 10 * MINUTE + 7 * DAY
    assert retention_ms(Attribution(1, 2, DAY, "all"), 5) == DAY + 5
    assert expiry_s(1_000, Attribution(1, 0, 0), 0) == 2
    assert expiry_s(1_999, Attribution(1, 0, 0), 0) == 2
    assert expiry_s(2_000, Attribution(1, 0, 0), 0) == 3
