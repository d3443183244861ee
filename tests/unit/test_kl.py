"""The controller of the KL penalty's weight."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.maths.kl import KlController


def test_over_budget_the_weight_rises_and_under_it_it_falls() -> None:
    controller = KlController(budget=8.0, weight=0.1)
    assert controller.updated(12.0).weight == pytest.approx(0.1 * math.exp(0.2 * 0.5))
    assert controller.updated(4.0).weight == pytest.approx(0.1 * math.exp(-0.2 * 0.5))
    assert controller.updated(8.0).weight == pytest.approx(0.1)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_the_weight_moves_by_at_most_the_gain_and_stays_within_its_bounds(measured: list[float]) -> None:
    controller = KlController(budget=2.0, weight=1.0, gain=0.3, floor=0.5, ceiling=3.0)
    for value in measured:
        after = controller.updated(value)
        assert abs(math.log(after.weight / controller.weight)) <= 0.3 + 1e-12
        assert 0.5 <= after.weight <= 3.0
        controller = after


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_counts_as_far_over(broken: float) -> None:
    controller = KlController(budget=2.0, weight=1.0)
    assert controller.updated(broken).weight == pytest.approx(math.exp(0.2))


def test_it_holds_a_plant_at_its_budget() -> None:
    # A policy whose divergence falls with the penalty, as kl = 3 / weight: the weight that gives the budget is found.
    controller = KlController(budget=6.0, weight=0.01)
    for _ in range(200):
        controller = controller.updated(3.0 / controller.weight)
    assert 3.0 / controller.weight == pytest.approx(6.0, rel=1e-3)


@pytest.mark.parametrize("field", ["budget", "weight", "gain", "floor"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_settings_are_refused_by_name(field: str, value: float) -> None:
    settings = {"budget": 1.0, "weight": 1.0, "gain": 0.1, "floor": 0.1, field: value}
    with pytest.raises(ValueError, match=field):
        KlController(**settings)
