"""Bootstrapped heads: prior draws, the posterior they approximate, learnt prior scales."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from optimizer.learning.heads import Heads, prior_draws

IDS = np.arange(40, dtype=np.uint64) * 977
FAMILY = np.zeros(40, np.uint8)


def heads(count: int = 8, scale: float = 0.5, families: int = 1, **more: object) -> Heads:
    learnt = np.ones(families, bool)
    return Heads(count, np.full(families, scale), learnt, salt=3, **more)  # type: ignore[arg-type]


def test_prior_draws_belong_to_the_feature_not_to_who_asks() -> None:
    alone = prior_draws(IDS[5:6], 8, 3)
    np.testing.assert_array_equal(prior_draws(IDS, 8, 3)[5:6], alone)
    assert not np.array_equal(prior_draws(IDS[5:6], 8, 4), alone)


def test_prior_draws_are_antithetic_and_standard_normal() -> None:
    many = prior_draws(np.arange(4096, dtype=np.uint64), 8, 3)
    np.testing.assert_allclose(many.mean(axis=1), 0.0, atol=1e-6)
    # 16,384 independent draws: mean square within 5 standard errors of 1 (false alarm below 1e-6).
    assert np.square(many).mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 16_384))


def test_new_features_start_at_their_prior_draw() -> None:
    made = heads()
    made.grow(IDS[:4], FAMILY[:4])
    made.grow(IDS[4:], FAMILY[4:])
    np.testing.assert_array_equal(made.weights(), prior_draws(IDS, 8, 3) * np.float32(0.5))
    assert not made.trained


def test_the_linear_heads_converge_to_the_ridge_posterior_mean() -> None:
    # Identity link, Gaussian prior: each head's optimum has a closed form, w = (X'MX + 1/s^2)^-1 (X'y + z/s).
    rng = np.random.default_rng(0)
    dense = (rng.random((30, 10)) < 0.4).astype(np.float32)
    mass = rng.poisson(1.0, (30, 4)).astype(np.float32)
    total = mass * rng.normal(0, 1, (30, 4)).astype(np.float32)
    made = heads(4, scale=0.7, learning_rate=0.02)
    made.grow(IDS[:10], FAMILY[:10])
    z = prior_draws(IDS[:10], 4, 3)
    for _ in range(40):
        made.fit(sparse.csr_matrix(dense), mass, total, "identity", 50, 0.0)
    for head in range(4):
        precision = dense.T @ (mass[:, head, None] * dense) + np.eye(10) / 0.49
        exact = np.linalg.solve(precision, dense.T @ total[:, head] + z[:, head] / 0.7)
        np.testing.assert_allclose(made.weights()[:, head], exact, atol=0.02)


def test_the_logistic_heads_find_the_rates_of_well_known_rows() -> None:
    rates = np.array([0.02, 0.2, 0.7])
    made = heads(4, scale=3.0)
    made.grow(IDS[:3], FAMILY[:3])
    mass = np.full((3, 4), 5_000, np.float32)
    for _ in range(20):
        made.fit(sparse.csr_matrix(np.eye(3, dtype=np.float32)), mass, mass * rates[:, None], "logistic", 40, -2.0)
    got = 1 / (1 + np.exp(-(made.weights() - 2.0)))
    np.testing.assert_allclose(got, np.repeat(rates[:, None], 4, axis=1), atol=0.01)


def test_without_data_the_heads_stay_at_their_prior() -> None:
    made = heads(4)
    made.grow(IDS[:3], FAMILY[:3])
    none = np.zeros((3, 4), np.float32)
    made.fit(sparse.csr_matrix(np.eye(3, dtype=np.float32)), none, none, "logistic", 30, -2.0)
    np.testing.assert_allclose(made.weights(), prior_draws(IDS[:3], 4, 3) * 0.5, atol=1e-6)


def test_features_that_no_row_has_cost_nothing_and_stand_at_their_prior() -> None:
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix((rng.random((40, 12)) < 0.4).astype(np.float32) * (np.arange(12) % 3 > 0))
    mass = rng.poisson(1.0, (40, 4)).astype(np.float32)
    total = mass * (rng.random((40, 4)) < 0.3)
    whole, part = heads(4), heads(4)
    for made in (whole, part):
        made.grow(IDS[:12], FAMILY[:12])
    there = np.unique(x.indices).astype(np.intp)
    for _ in range(6):
        whole.fit(x, mass, total, "logistic", 20, -2.0)
        part.fit(x, mass, total, "logistic", 20, -2.0, among=there)
    np.testing.assert_allclose(part.weights(), whole.weights(), atol=1e-6)
    assert len(there) == 8
    z = prior_draws(IDS[:12], 4, 3)
    assert (np.abs(part.u - z).max(axis=1)[there] > 0.01).all()
    # What has data no more goes back to its draw, and is learnt from there when it has again.
    fewer = there[:5]
    part.fit(sparse.csr_matrix(np.zeros((40, 12), np.float32)), mass, total, "logistic", 1, -2.0, among=fewer)
    gone = np.setdiff1d(np.arange(12), fewer)
    np.testing.assert_array_equal(part.u[gone], z[gone])
    for _ in range(12):
        part.fit(x, mass, total, "logistic", 20, -2.0, among=there)
        whole.fit(x, mass, total, "logistic", 20, -2.0)
    np.testing.assert_allclose(part.weights(), whole.weights(), atol=2e-3)


def test_learn_scales_shrinks_a_family_that_explains_nothing_and_keeps_the_functions() -> None:
    # Two families of 200 features, each feature seen 1,000 times: weights of one are noise about 0, of the other +-1.
    count = 200
    made = Heads(4, np.array([0.3, 0.3]), np.array([True, True]), salt=3)
    families = np.repeat(np.array([0, 1], np.uint8), count)
    made.grow(np.arange(2 * count, dtype=np.uint64), families)
    x = sparse.csr_matrix(np.eye(2 * count, dtype=np.float32))
    truth = np.where(families == 1, np.where(np.arange(2 * count) % 2 == 0, 1.0, -1.0), 0.0)
    for _ in range(30):
        made.u[:] = (truth[:, None] / made.scale[families][:, None]).astype(np.float32)
        before = made.weights()
        made.learn_scales(x, np.full(2 * count, 250.0))
        np.testing.assert_allclose(made.weights(), before, atol=1e-5)
    assert made.scale[0] < 0.12
    # Root mean square 1, held back by the 20 pseudo-features of the first scale: sqrt((200 + 20 x 0.09) / (200 + 20)).
    assert made.scale[1] == pytest.approx(0.96, abs=0.05)


def test_learn_scales_shares_information_among_features_that_come_together() -> None:
    # 4,000 rows, each with three features of its own whose sum has the standard deviation 0.3, and information 10 about
    # that sum. The weights are put at their exact posterior mean; the three scales must come to 0.3 together.
    count, truth, information = 4_000, 0.3, 10.0
    rng = np.random.default_rng(1)
    seen = truth * rng.standard_normal(count) + rng.standard_normal(count) / np.sqrt(information)
    x = sparse.csr_matrix(np.hstack([np.eye(count, dtype=np.float32)] * 3))
    families = np.repeat(np.arange(3, dtype=np.uint8), count)
    made = heads(2, scale=0.3, families=3)
    made.grow(np.arange(3 * count, dtype=np.uint64), families)
    for _ in range(60):
        total = float(np.square(made.scale).sum())
        mean = made.scale[families] * np.tile(seen, 3) / (total + 1 / information)
        made.u[:] = mean[:, None]
        made.learn_scales(x, np.full(count, information), shared=True)
    # Five standard errors of the estimate, 0.3 x sqrt(2 / 4,000) / 2 x (1 + 1 / 0.9), and the 20 pseudo-features' pull.
    # With the information counted anew for each of the three it is 0.22.
    assert np.sqrt(np.square(made.scale).sum()) == pytest.approx(truth, abs=0.04)


def test_learn_scales_leaves_a_fixed_family_alone() -> None:
    made = Heads(4, np.array([1.0]), np.array([False]), salt=3)
    made.grow(IDS[:3], FAMILY[:3])
    made.learn_scales(sparse.csr_matrix(np.eye(3, dtype=np.float32)), np.full(3, 100.0))
    assert made.scale.tolist() == [1.0]
