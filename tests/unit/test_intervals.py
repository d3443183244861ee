"""Intervals of a ratio of means: coverage, reduction to simpler cases, and when nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from optimizer.maths.intervals import Z_95, Moments, fieller, lift


def moments(rewards: np.ndarray) -> Moments:
    return Moments(len(rewards), float(rewards.sum()), float((rewards**2).sum()), int((rewards != 0).sum()))


def test_moments_equal_the_batch_values() -> None:
    rewards = np.random.default_rng(1).exponential(size=50)
    found = moments(rewards)
    assert found.mean() == pytest.approx(rewards.mean())
    assert found.variance_of_mean() == pytest.approx(rewards.var(ddof=1) / 50)


def test_a_known_denominator_reduces_to_the_normal_interval() -> None:
    found = fieller(3.0, 0.04, 2.0, 0.0)
    assert found is not None
    assert found == pytest.approx((1.5, (3 - Z_95 * 0.2) / 2, (3 + Z_95 * 0.2) / 2))


def test_close_to_the_delta_method_where_the_denominator_is_precise() -> None:
    a, var_a, b, var_b = 0.06, 1e-6, 0.04, 1e-8
    found = fieller(a, var_a, b, var_b)
    spread = Z_95 * (a / b) * np.sqrt(var_a / a**2 + var_b / b**2)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((a / b - spread, a / b + spread), rel=1e-3)


@pytest.mark.parametrize("denominator", [-1.0, 0.0, 0.1])
def test_no_interval_where_the_denominator_may_be_zero(denominator: float) -> None:
    assert fieller(1.0, 0.1, denominator, 0.1) is None


def test_lift_waits_for_enough_of_both() -> None:
    enough, few, none = Moments(1000, 50.0, 50.0, 50), Moments(99, 50.0, 50.0, 50), Moments(1000, 4.0, 4.0, 4)
    assert lift(enough, few) is None
    assert lift(few, enough) is None
    assert lift(none, enough) is None
    found = lift(enough, enough)
    assert found is not None
    assert found.low < found.value == 0.0 < found.high


def test_the_interval_covers_the_truth_in_about_95_percent() -> None:
    """2,000 simulated experiments. By chance fewer than 92.5 % or more than 97.5 % of a true 95 %: below 1e-5."""
    assert binom.cdf(1850, 2000, 0.95) + binom.sf(1950, 2000, 0.95) < 1e-5
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(2000):
        learned, control = rng.binomial(4000, 0.06), rng.binomial(1000, 0.04)
        found = lift(Moments(4000, learned, learned, learned), Moments(1000, control, control, control))
        covered += found is not None and found.low <= 0.5 <= found.high
    assert 1850 <= covered <= 1950
