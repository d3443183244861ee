"""How the selector draws one candidate of a pool, with a probability that is known exactly.

The scheme is greedy exploration over a bootstrap, "bootstrap Thompson sampling" mixed with uniform exploration
(Osband & Van Roy, "Bootstrapped Thompson Sampling and Deep Exploration", arXiv:1507.00300; epsilon-greedy mixing as in
Bietti, Agarwal & Langford, "A Contextual Bandit Bake-off", arXiv:1802.04064, section 3.2). Pure: arrays in, arrays out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def selection_probabilities(scores: Floats, permitted: Bools, epsilon: float) -> Floats:
    """s_i = (1 - epsilon) x (share of heads whose best permitted candidate is i) + epsilon / n_permitted.

    Args:
      scores: `[H, n]` what each of the H heads expects of each candidate; finite.
      permitted: `[n]` the candidates that passed every filter; at least one.
      epsilon: share of uniform exploration, 0 to 1.

    Returns:
      `[n]` float64 that sums to 1, is 0 outside `permitted` and is > 0 inside it when epsilon > 0. A tie within a head
      is split evenly, so that equal scores (no critic yet) give the uniform distribution.

    Raises:
      ValueError: a shape, an epsilon or a score that cannot be, or nothing permitted.
    """
    if scores.ndim != 2 or scores.shape[0] < 1 or permitted.shape != scores.shape[1:]:
        raise ValueError(f"expected scores [H, n] and permitted [n], got {scores.shape} and {permitted.shape}")
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"expected 0 <= epsilon <= 1, got {epsilon}")
    if not permitted.any():
        raise ValueError("nothing is permitted: there is no distribution over no candidates")
    if not np.isfinite(scores[:, permitted]).all():
        raise ValueError("a score of a permitted candidate is not finite")
    allowed = np.where(permitted, scores, -np.inf)
    best = allowed == allowed.max(axis=1, keepdims=True)  # [H, n]; -inf never wins, since one candidate is permitted
    votes = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    uniform = permitted / np.count_nonzero(permitted)
    mixed: Floats = (1.0 - epsilon) * votes + epsilon * uniform
    mixed /= mixed.sum()
    return mixed


def without(probabilities: Floats, drawn: int) -> Floats:
    """The conditional distribution of the next draw, given that `drawn` is taken: `[n] -> [n]`.

    All zeros where no mass is left (everything that could be drawn has been).
    """
    rest = probabilities.copy()
    rest[drawn] = 0.0
    mass = rest.sum()
    return rest / mass if mass > 0.0 else rest


def draw(probabilities: Floats, uniform: float) -> int:
    """The index that the inverse cumulative distribution gives for `uniform` in [0, 1); never one of probability 0."""
    cumulative = np.cumsum(probabilities)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding can carry the product up to the very end of the table; the last index with mass is meant then.
    return min(index, int(np.flatnonzero(probabilities)[-1]))
