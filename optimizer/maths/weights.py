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
