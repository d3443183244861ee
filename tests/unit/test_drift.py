"""The watch for abrupt change: it sounds where clicks fall, and not where nothing has changed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimizer.maths.drift import DriftWatch


def test_one_batch_is_the_log_likelihood_ratio_of_two_poisson_rates() -> None:
    watch = DriftWatch(fall=0.5, warm=0.0)
    clicks, expected = 3, 30.0
    ratio = clicks * math.log(0.5 * expected) - 0.5 * expected - (clicks * math.log(expected) - expected)
    assert watch.after(clicks, expected).total == pytest.approx(ratio)


def test_the_sum_never_falls_under_zero() -> None:
    assert DriftWatch().after(50, 30.0).total == 0.0


def test_false_alarms_are_rare_and_a_fall_is_found() -> None:
    """200 runs of 160 batches of 20 expected clicks, then rates of a fifth. Seeded; were what is usual known, a false
    alarm in a run had a probability of at most 160 exp(-10) = 0.7 %."""
    rng = np.random.default_rng(4)
    waits, alarms = [], 0
    for _ in range(200):
        watch = DriftWatch()
        for clicks in rng.poisson(20.0, 160):
            watch = watch.after(float(clicks), 20.0)
            alarms += watch.alarm
            watch = watch.reset() if watch.alarm else watch
        batches = 0
        while not watch.alarm:
            watch = watch.after(float(rng.poisson(4.0)), 20.0)
            batches += 1
        waits.append(batches)
    assert max(waits) <= 6
    assert alarms <= 2


def test_a_fall_does_not_become_usual_while_it_is_looked_at() -> None:
    """Clicks fall to 65 %: the sum grows by as much with every batch, until it is told."""
    watch = DriftWatch(threshold=1e9)
    for _ in range(30):
        watch = watch.after(40.0, 50.0)
    sums = []
    for _ in range(30):
        watch = watch.after(26.0, 50.0)
        sums.append(watch.total)
    assert watch.usual == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(np.diff(sums), sums[1] - sums[0])
    assert sums[0] > 0
    # Where it was chance after all, what came meanwhile counts.
    while watch.total > 0:
        watch = watch.after(60.0, 50.0)
    assert watch.usual != pytest.approx(0.8, abs=0.03)


def test_expecting_too_much_of_what_looks_best_is_no_change() -> None:
    """Observed clicks stay at 60 % of the expectation: that is learnt as usual before it adds up."""
    watch = DriftWatch()
    for _ in range(30):
        watch = watch.after(3.0, 4.0)
    for _ in range(500):
        watch = watch.after(12.0, 20.0)
        assert not watch.alarm


def test_reset_begins_anew_and_impossible_counts_are_refused() -> None:
    watch = DriftWatch(threshold=3.0, warm=0.0).after(0, 30.0)
    assert watch.alarm
    assert watch.reset() == DriftWatch(threshold=3.0, warm=0.0)
    with pytest.raises(ValueError, match="clicks, expected"):
        watch.after(-1, 3.0)
