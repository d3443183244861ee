"""The selector's probabilities: a distribution, its special cases, and its frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.stats import chisquare

from optimizer.maths.selection import draw, selection_probabilities, without


@given(
    scores=npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-5, 5)),
    permitted=st.data(),
    epsilon=st.floats(0.001, 1.0),
)
def test_it_is_a_distribution_over_what_is_permitted(
    scores: np.ndarray, permitted: st.DataObject, epsilon: float
) -> None:
    n = scores.shape[1]
    mask = np.array(permitted.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    found = selection_probabilities(scores, mask, epsilon)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert (found[mask] >= epsilon / mask.sum() * (1 - 1e-9)).all()
    assert (found[~mask] == 0.0).all()


def test_equal_scores_are_uniform() -> None:
    found = selection_probabilities(np.zeros((3, 4)), np.array([True, False, True, True]), 0.1)
    assert found == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_each_head_votes_and_a_tie_is_split_evenly() -> None:
    scores = np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    assert selection_probabilities(scores, np.ones(3, bool), 0.0) == pytest.approx([0.5, 0.25, 0.25])
    assert selection_probabilities(scores, np.ones(3, bool), 0.3) == pytest.approx([0.45, 0.275, 0.275])


def test_one_head_without_exploration_is_greedy() -> None:
    assert selection_probabilities(np.array([[0.0, 1.0]]), np.ones(2, bool), 0.0).tolist() == [0.0, 1.0]


def test_a_forbidden_best_passes_its_vote_to_the_best_permitted() -> None:
    found = selection_probabilities(np.array([[9.0, 1.0, 2.0]]), np.array([False, True, True]), 0.0)
    assert found.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "permitted", "epsilon"),
    [
        (np.zeros(3), np.ones(3, bool), 0.1),
        (np.zeros((0, 3)), np.ones(3, bool), 0.1),
        (np.zeros((1, 3)), np.ones(2, bool), 0.1),
        (np.zeros((1, 3)), np.zeros(3, bool), 0.1),
        (np.zeros((1, 3)), np.ones(3, bool), 1.1),
        (np.array([[np.nan, 0.0]]), np.ones(2, bool), 0.1),
    ],
)
def test_what_cannot_be_a_distribution_is_refused(scores: np.ndarray, permitted: np.ndarray, epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"expected|permitted"):
        selection_probabilities(scores, permitted, epsilon)


def test_frequencies_match_the_probabilities() -> None:
    """False alarm by chance: 1e-6 (chi-square at that level); seeded besides."""
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(10, 6))
    p = selection_probabilities(scores, np.array([True, True, False, True, True, True]), 0.2)
    counts = np.bincount([draw(p, rng.random()) for _ in range(20_000)], minlength=6)
    assert counts[2] == 0
    drawn = p > 0
    assert chisquare(counts[drawn], p[drawn] * counts.sum()).pvalue > 1e-6


def test_conditional_draws_match_the_law_of_draws_without_replacement() -> None:
    """P(first i, then j) = p_i p_j / (1 - p_i). False alarm by chance: 1e-6; seeded besides."""
    rng = np.random.default_rng(8)
    p = np.array([0.5, 0.3, 0.2])
    counts = np.zeros((3, 3))
    for _ in range(20_000):
        first = draw(p, rng.random())
        counts[first, draw(without(p, first), rng.random())] += 1
    expected = np.array([[p[i] * p[j] / (1 - p[i]) if i != j else 0.0 for j in range(3)] for i in range(3)])
    assert (np.diag(counts) == 0).all()
    off = ~np.eye(3, dtype=bool)
    assert chisquare(counts[off], expected[off] * counts.sum()).pvalue > 1e-6


def test_nothing_is_left_after_the_last() -> None:
    assert without(without(np.array([0.4, 0.6]), 0), 1).tolist() == [0.0, 0.0]


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3]), min_size=1, max_size=6).filter(any), st.floats(0, 1, exclude_max=True)
)
def test_a_draw_never_takes_what_has_no_probability(weights: list[float], uniform: float) -> None:
    p = np.array(weights) / sum(weights)
    assert p[draw(p, uniform)] > 0
    assert p[draw(p, np.nextafter(1.0, 0.0))] > 0
