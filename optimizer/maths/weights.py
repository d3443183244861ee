"""Importance weights: from log-probabilities to truncated ratios, and how much of a sample they leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def truncated_ratios(log_target: Array, log_behaviour: Array, ceiling: float) -> Array:
    """min(pi_target / pi_behaviour, ceiling), elementwise: the rho-bar of V-trace (Espeholt et al. 2018, arXiv
    1802.01561, eq. 1).

    Args:
      log_target: float[B], log-probabilities of whole sequences under the policy that is being improved.
      log_behaviour: float[B], under the distribution that they were sampled from; finite.
      ceiling: > 0; infinity gives plain importance weights.
    Returns:
      float[B] in [0, ceiling]; 0 where the target can't produce the sequence (-inf).
    """
    if log_target.shape != log_behaviour.shape:
        raise ValueError(f"shapes differ: {log_target.shape} and {log_behaviour.shape}")
    if not ceiling > 0:
        raise ValueError(f"ceiling: got {ceiling}, expected > 0")
    # Cut in log space, so that nothing overflows.
    return np.exp(np.minimum(log_target - log_behaviour, np.log(ceiling)))


def effective_sample_size(weights: Array) -> float:
    """(sum w)^2 / sum w^2 (Kong 1992); 0 for no weight at all."""
    total = float(np.sum(weights))
    squares = float(np.sum(np.square(weights)))
    return total * total / squares if squares > 0 else 0.0


def tempered(weights: Array, least: float) -> Array:
    """weights ** a with the largest a in [0, 1] that leaves an effective sample size of `least`: less variance for some
    bias towards equal weights (tempering, the first of the nonlinear importance weights of Koblents, Miguez 2015,
    Statistics and Computing 25, section 3.2).

    Args:
      weights: float[B], >= 0 and finite; those that are 0 stay 0.
      least: effective sample size under which the weights are tempered.
    Returns:
      float[B]; all 1 (but for the zeros) where even that leaves less than `least`.
    """
    if effective_sample_size(weights) >= least:
        return weights
    some = weights > 0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        if effective_sample_size(weights[some] ** middle) >= least:
            low = middle
        else:
            high = middle
    return np.where(some, np.where(some, weights, 1.0) ** low, 0.0)


def boltzmann_weights(values: Array, size: float) -> Array:
    """exp(values / eta) / sum, at the temperature eta > 0 at which the effective sample size is `size`: the weights of
    relative entropy policy search (Peters, Muelling, Altun 2010, AAAI), with the size held in place of the
    divergence (of order 2 instead of 1), so that neither the values' unit nor how many there are matters.

    Args:
      values: float[B], B >= 1, finite.
      size: > 0; where it is B or more, or all values are equal, the weights are equal.
    Returns:
      float[B], >= 0, sum 1. Where more than `size` values share the maximum, those share the weight.
    """
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values: got shape {values.shape}, expected a vector of finite numbers, at least one")
    if not size > 0:
        raise ValueError(f"size: got {size}, expected > 0")
    below = values - values.max()
    spread = float(-below.min())
    if size >= len(values) or spread == 0.0:
        return np.full(len(values), 1.0 / len(values))
    low, high = 1e-9, 1e9
    weights = np.full(len(values), 1.0 / len(values))
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        weights = np.exp(below / (spread * middle))
        weights /= weights.sum()
        if effective_sample_size(weights) < size:
            low = middle
        else:
            high = middle
    return weights
