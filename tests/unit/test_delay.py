"""Delayed feedback: the arrival distribution of right-truncated data, and what is still to come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.maths.delay import age_edges, arrival_distribution, still_to_come

CLASSES = 8


def truncated_arrivals(rng: np.random.Generator, subjects: int, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Delays by class from `truth`; each subject is watched up to a random class, and seen if it came by then."""
    delays = rng.choice(CLASSES, subjects, p=np.diff(truth, prepend=0.0))
    watched = rng.integers(0, CLASSES, subjects)
    seen = delays <= watched
    return delays[seen], watched[seen]


def test_right_truncation_is_corrected_and_beats_the_plain_distribution_function() -> None:
    # 20,000 subjects, half of them seen: the largest error of a class is below 0.02. The hazards' standard
    # errors put that at more than 4 standard deviations: a false alarm is rarer than 1e-3 a seed; the seeds are fixed.
    truth = np.cumsum(np.array([0.05, 0.1, 0.1, 0.15, 0.2, 0.2, 0.1, 0.1]))
    truth[-1] = 1.0
    for seed in range(3):
        delays, watched = truncated_arrivals(np.random.default_rng(seed), 20_000, truth)
        got = arrival_distribution(delays, watched, CLASSES)
        naive = np.cumsum(np.bincount(delays, minlength=CLASSES)) / len(delays)
        assert np.abs(got - truth).max() < 0.02
        assert np.abs(naive - truth).max() > 5 * np.abs(got - truth).max()


def test_watched_to_the_end_it_is_the_plain_distribution_function() -> None:
    delays = np.random.default_rng(0).integers(0, CLASSES, 5_000)
    got = arrival_distribution(delays, np.full(5_000, CLASSES - 1), CLASSES, prior=1e-9)
    np.testing.assert_allclose(got, np.cumsum(np.bincount(delays, minlength=CLASSES)) / 5_000, atol=1e-9)


def test_before_any_data_arrivals_are_spread_evenly_over_the_classes() -> None:
    empty = np.zeros(0, np.intp)
    np.testing.assert_allclose(arrival_distribution(empty, empty, 4), [0.25, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), max_size=40))
def test_it_is_a_distribution_function_whatever_came(pairs: list[tuple[int, int]]) -> None:
    delays = np.array([min(pair) for pair in pairs], np.intp)
    watched = np.array([max(pair) for pair in pairs], np.intp)
    got = arrival_distribution(delays, watched, CLASSES)
    assert got.shape == (CLASSES,)
    assert got[-1] == 1.0
    assert (np.diff(got) >= -1e-12).all()
    assert got.min() >= 0.0


def test_a_delay_longer_than_the_time_watched_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        arrival_distribution(np.array([3]), np.array([2]), CLASSES)
    with pytest.raises(ValueError, match="shapes"):
        arrival_distribution(np.array([3]), np.array([3, 4]), CLASSES)


@pytest.mark.parametrize("window", [1, 500, 1_000, 1_800_000, 604_800_000])
def test_age_edges_rise_to_the_window(window: int) -> None:
    edges = age_edges(window, 12)
    assert edges.shape == (12,)
    assert (np.diff(edges) > 0).all()
    assert edges[-1] == pytest.approx(max(window, min(1_000, window) * 1.001))


@given(p=st.floats(0, 1), arrived=st.floats(0, 1))
def test_still_to_come_is_bayes_rule(p: float, arrived: float) -> None:
    got = float(still_to_come(np.array(p), np.array(arrived)))
    assert 0.0 <= got <= 1.0 + 1e-12
    # The target of what is open averages, with what has come, to the truth: pF + (1 - pF) x = p.
    assert p * arrived + (1 - p * arrived) * got == pytest.approx(p, abs=1e-9)
