"""Importance ratios and the effective sample size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.maths.weights import boltzmann_weights, effective_sample_size, tempered, truncated_ratios

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


@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=40, unique=True), share=st.floats(0.1, 0.9))
def test_boltzmann_weights_have_the_size_asked_for(values: list[float], share: float) -> None:
    array = np.array(values)
    size = 1.0 + share * (len(values) - 1)
    weights = boltzmann_weights(array, size)
    assert weights.sum() == pytest.approx(1.0)
    assert (np.diff(weights[np.argsort(array, kind="stable")]) >= 0).all()
    # Values so close that no temperature in range tells them apart keep an equal share.
    assert effective_sample_size(weights) == pytest.approx(size, rel=1e-3) or np.ptp(np.sort(array)[-2:]) < 1e-6


def test_boltzmann_weights_are_exponential_and_know_no_unit() -> None:
    values = np.array([0.0, 1.0, 2.0])
    weights = boltzmann_weights(values, 1.5)
    assert weights[2] / weights[1] == pytest.approx(weights[1] / weights[0])
    np.testing.assert_allclose(weights, boltzmann_weights(1000.0 * values - 7.0, 1.5), rtol=1e-6)


def test_boltzmann_weights_of_equals_are_equal() -> None:
    np.testing.assert_allclose(boltzmann_weights(np.full(4, 0.3), 2.0), 0.25)
    np.testing.assert_allclose(boltzmann_weights(np.array([0.0, 1.0]), 2.0), 0.5)
    np.testing.assert_allclose(boltzmann_weights(np.array([1.0, 0.0, 1.0]), 1.5), [0.5, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize(("values", "size"), [([], 1.0), ([np.nan], 1.0), ([1.0, 2.0], 0.0)])
def test_boltzmann_weights_refuse_what_has_no_answer(values: list[float], size: float) -> None:
    with pytest.raises(ValueError, match=r"values|size"):
        boltzmann_weights(np.array(values), size)


@given(weights=st.lists(st.floats(0, 2), min_size=1, max_size=40), share=st.floats(0.01, 1.0))
def test_tempered_weights_reach_the_size_that_is_asked_or_are_equal(weights: list[float], share: float) -> None:
    given_, least = np.array(weights), share * len(weights)
    found = tempered(given_, least)
    assert ((found > 0) == (given_ > 0)).all()
    if effective_sample_size(given_) >= least:
        np.testing.assert_array_equal(found, given_)
        return
    reachable = float((given_ > 0).sum())
    assert effective_sample_size(found) >= min(least, reachable) * (1 - 1e-6)
    order = np.argsort(given_, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()


def test_tempering_takes_no_more_than_it_must() -> None:
    weights = np.array([2.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    found = tempered(weights, 3.0)
    assert effective_sample_size(found) == pytest.approx(3.0, rel=1e-6)
    assert np.log(found[0]) / np.log(2.0) == pytest.approx(np.log(found[1]) / np.log(1e-3))
    np.testing.assert_allclose(tempered(weights, 6.0), np.ones(6), rtol=1e-6)
    np.testing.assert_array_equal(tempered(np.zeros(3), 2.0), np.zeros(3))
