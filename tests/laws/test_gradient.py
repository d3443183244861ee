"""The doubly robust policy gradient: what it reduces to, and that its expectation is the expected reward's gradient.

Nothing is sampled here: expectations run over every pool, shown candidate and reward of a small action space.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.maths.gradient import Array, doubly_robust_factors, leave_one_out, residuals
from optimizer.maths.selection import selection_probabilities
from optimizer.maths.weights import truncated_ratios

ACTIONS = 5
REJECTED = 4
"""The gate refuses this action: it is never shown and its reward is known to be 0."""
MEAN_REWARD = np.array([0.1, 0.4, 0.8, 0.25, 0.0])
LOGITS = np.array([0.3, -0.8, -1.5, 0.9, 0.1])
CRITICS = {
    "none": np.zeros(ACTIONS),
    "exact": MEAN_REWARD,
    "bad": np.array([0.5, 0.5, 0.1, 0.9, 0.0]),
    "adversarial": np.array([7.0, -30.0, -50.0, 20.0, 0.0]),
}


def softmax(logits: Array) -> Array:
    mass = np.exp(logits - logits.max())
    return np.asarray(mass / mass.sum())


def expected_gradient(
    target: Array, behaviour: Array, critic: Array, samples: int, ceiling: float = np.inf, cap: float = np.inf
) -> Array:
    """E[g] by enumeration over pools of `samples` draws from `behaviour`, the index shown and a Bernoulli reward."""
    score = np.eye(ACTIONS) - target  # row a: grad of log pi(a) in the logits
    every_rho = truncated_ratios(np.log(target), np.log(behaviour), ceiling)
    total = np.zeros(ACTIONS)
    for pool in itertools.product(range(ACTIONS), repeat=samples):
        actions, counts = np.unique(pool, return_counts=True)
        likelihood = float(np.prod(behaviour[list(pool)]))
        q, rho = critic[actions], every_rho[actions]
        permitted = actions != REJECTED

        def gradient(
            shown: list[int],
            rewards: list[float],
            selection: list[float],
            actions: np.ndarray = actions,
            counts: np.ndarray = counts,
            q: Array = q,
            rho: Array = rho,
        ) -> Array:
            at, r, s = np.array(shown, np.intp), np.array(rewards), np.array(selection)
            factors = doubly_robust_factors(q, counts.astype(float), rho, at, r, s, cap)
            return np.asarray(factors @ score[actions])

        if not permitted.any():
            total += likelihood * gradient([], [], [])
            continue
        # A selector that leans on the critic and on the pool, as the real one does.
        s = selection_probabilities(np.stack([q, -q, q * [(-1) ** i for i in range(len(q))]]), permitted, 0.3)
        for at in np.flatnonzero(permitted):
            mean = MEAN_REWARD[actions[at]]
            for reward, chance in ((1.0, mean), (0.0, 1.0 - mean)):
                total += likelihood * s[at] * chance * gradient([int(at)], [reward], [float(s[at])])
    return total


def true_gradient(target: Array) -> Array:
    """Gradient of sum_a pi(a) mu(a) in the logits of a softmax policy."""
    return np.asarray(target * (MEAN_REWARD - target @ MEAN_REWARD))


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_on_policy_it_is_unbiased_whatever_the_critic(critic: Array, samples: int) -> None:
    target = softmax(LOGITS)
    np.testing.assert_allclose(expected_gradient(target, target, critic, samples), true_gradient(target), atol=1e-12)


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_off_policy_it_is_unbiased_with_plain_importance_weights(critic: Array) -> None:
    target, behaviour = softmax(LOGITS), softmax(np.array([-0.5, 0.4, 0.2, 0.1, 1.0]))
    np.testing.assert_allclose(expected_gradient(target, behaviour, critic, 3), true_gradient(target), atol=1e-11)
    # And the weights matter: without them (ceiling far below) the answer is another.
    assert np.abs(expected_gradient(target, behaviour, critic, 3, ceiling=0.3) - true_gradient(target)).max() > 1e-3


def test_a_finite_cap_shrinks_towards_the_critic() -> None:
    target = softmax(LOGITS)
    # An exact critic leaves no residual to shrink; a wrong one leaves a bias.
    exact = expected_gradient(target, target, CRITICS["exact"], 3, cap=1.0)
    np.testing.assert_allclose(exact, true_gradient(target), atol=1e-12)
    assert np.abs(expected_gradient(target, target, CRITICS["bad"], 3, cap=1.0) - true_gradient(target)).max() > 1e-3


@given(reward=st.floats(-5, 5), rho=st.floats(0, 4))
def test_without_critic_and_with_one_sample_it_is_reinforce(reward: float, rho: float) -> None:
    one = np.ones(1)
    factor = doubly_robust_factors(np.zeros(1), one, one * rho, np.zeros(1, np.intp), one * reward, one)
    assert factor == pytest.approx([rho * reward])


@given(
    q=st.lists(st.floats(-3, 3), min_size=2, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_without_cap_it_is_the_plain_doubly_robust_formula(q: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(q)
    values = np.array(q)
    counts = rng.integers(1, 4, n).astype(float)
    rho = rng.uniform(0, 2, n)
    shown = rng.integers(0, n, 5)
    rewards = rng.uniform(0, 1, 5)
    selection = rng.dirichlet(np.ones(n))[shown]
    got = doubly_robust_factors(values, counts, rho, shown, rewards, selection, np.inf)
    # The formula of the module's head, sample by sample and decision by decision.
    pool = np.repeat(np.arange(n), counts.astype(int))
    expected = np.zeros(n)
    for decided, reward, s in zip(shown, rewards, selection, strict=True):
        for k, i in enumerate(pool):
            baseline = np.delete(values[pool], k).mean()
            corrected = (reward - values[i]) / s if i == decided else 0.0
            expected[i] += rho[i] * (values[i] - baseline + corrected) / len(pool) / len(shown)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_capped_inverse_propensities_are_no_larger_than_the_cap() -> None:
    shown = np.array([0, 1], np.intp)
    got = residuals(np.array([0.2, 0.5]), shown, np.array([1.0, 0.0]), np.array([0.01, 0.9]), cap=10.0)
    np.testing.assert_allclose(got, [(1.0 - 0.2) * 10.0, (0.0 - 0.5) / 0.9])


def test_texts_that_are_no_samples_take_no_part() -> None:
    counts = np.array([2.0, 0.0, 1.0])
    shown, one = np.array([1], np.intp), np.ones(1)
    factors = doubly_robust_factors(np.array([0.1, 0.9, 0.4]), counts, np.ones(3), shown, one, one * 0.5)
    assert factors[1] == 0.0
    np.testing.assert_allclose(factors[[0, 2]], [2 * (0.1 - 0.25) / 3, (0.4 - 0.1) / 3])


def test_the_baseline_leaves_its_own_sample_out() -> None:
    values, counts = np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(leave_one_out(values, counts), [4.0, 2.5, 3.0])
    np.testing.assert_allclose(leave_one_out(np.array([3.0]), np.ones(1)), [0.0])


@pytest.mark.parametrize("selection", [0.0, -0.1, 1.5, np.nan])
def test_impossible_propensities_are_refused(selection: float) -> None:
    with pytest.raises(ValueError, match="selection"):
        residuals(np.zeros(2), np.zeros(1, np.intp), np.zeros(1), np.array([selection]))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        residuals(np.zeros(2), np.zeros(2, np.intp), np.zeros(1), np.ones(1))
