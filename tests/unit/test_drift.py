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
    for clicks, expected in ((2.4, 4.0), (12.0, 20.0), (120.0, 200.0)):
        watch = DriftWatch()
        for _ in range(500):
            watch = watch.after(clicks, expected)
            assert not watch.alarm
        assert watch.usual == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("expected", [0.4, 1.6, 3.0])
def test_a_fall_is_found_where_a_batch_expects_hardly_a_click(expected: float) -> None:
    rng = np.random.default_rng(7)
    watch = DriftWatch()
    for clicks in rng.poisson(expected, 2_000):
        watch = watch.after(float(clicks), expected)
        assert not watch.alarm
    batches = 0
    while not watch.alarm:
        watch = watch.after(float(rng.poisson(0.3 * expected)), expected)
        batches += 1
        assert batches * expected < 200


def test_after_an_alarm_what_is_usual_stays_and_those_who_predict_have_time_to_follow() -> None:
    watch = DriftWatch()
    for _ in range(200):
        watch = watch.after(15.0, 20.0)
    while not watch.alarm:
        watch = watch.after(3.0, 20.0)
    calm = watch.reset()
    assert calm.usual == watch.usual == pytest.approx(0.75, abs=0.01)
    for _ in range(5):  # 100 expected clicks
        calm = calm.after(3.0, 20.0)
        assert calm.total == 0.0
    assert calm.after(3.0, 20.0).total > 0.0


def test_impossible_counts_are_refused() -> None:
    watch = DriftWatch()
    with pytest.raises(ValueError, match="clicks, expected"):
        watch.after(-1, 3.0)
