"""Importance ratios and the effective sample size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.maths.weights import effective_sample_size, truncated_ratios

LOGS = st.lists(st.floats(-60, 0), min_size=1, max_size=8)


@given(logs=LOGS, seed=st.integers(0, 999))
def test_without_a_ceiling_they_are_plain_importance_weights(logs: list[float], seed: int) -> None:
    target = np.array(logs)
    behaviour = np.random.default_rng(seed).uniform(-60, 0, len(logs))
    np.testing.assert_allclose(
        truncated_ratios(target, behaviour, np.inf), np.exp(target) / np.exp(behaviour), rtol=1e-9
    )


@given(logs=LOGS, ceiling=st.floats(0.1, 10))
def test_the_ceiling_holds_and_touches_nothing_below(logs: list[float], ceiling: float) -> None:
    target = np.array(logs)
    behaviour = np.full(len(logs), -3.0)
    plain = truncated_ratios(target, behaviour, np.inf)
    np.testing.assert_allclose(truncated_ratios(target, behaviour, ceiling), np.minimum(plain, ceiling), rtol=1e-9)


def test_nothing_overflows_and_the_impossible_weighs_nothing() -> None:
    got = truncated_ratios(np.array([0.0, -np.inf]), np.array([-1e6, -3.0]), 2.0)
    np.testing.assert_allclose(got, [2.0, 0.0])


@pytest.mark.parametrize("ceiling", [0.0, -1.0, np.nan])
def test_an_impossible_ceiling_is_refused(ceiling: float) -> None:
    with pytest.raises(ValueError, match="ceiling"):
        truncated_ratios(np.zeros(1), np.zeros(1), ceiling)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        truncated_ratios(np.zeros(2), np.zeros(1), 1.0)


def test_effective_sample_size_counts_equal_weights_and_ignores_scale() -> None:
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7.0)
    assert effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_sample_size(np.array([1.0, 2.0])) == pytest.approx(effective_sample_size(np.array([10.0, 20.0])))
    assert effective_sample_size(np.array([1.0, 2.0])) == pytest.approx(9 / 5)
    assert effective_sample_size(np.zeros(3)) == 0.0
    assert effective_sample_size(np.zeros(0)) == 0.0
