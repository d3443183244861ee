"""The doubly robust policy gradient: what each candidate of a pool is worth to the update.

For a decision with pool a_1..a_n sampled from pi_behaviour, shown index j drawn with probability s_j, reward r (design,
"Two levels, one estimator"; the estimator of rewards is Dudik, Langford, Li 2011, arXiv 1103.4601, eq. 3):

    g = (1/n) sum_i rho_i * grad log pi(a_i|x) * [ Q(x,a_i) - V_i(x) + 1{i=j} (r - Q(x,a_j)) / s_j ]

The functions here give the factor in front of `grad log pi(a_i|x)`; the caller differentiates. With Q = 0 and n = 1 (so
s_j = 1, V = 0) it is REINFORCE (Williams 1992). It is unbiased for every Q that does not depend on j and r, because s_j
is exact and the baseline V_i leaves candidate i out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def leave_one_out(values: Array, counts: Array) -> Array:
    """Mean of the other samples' values: the baseline V_i.

    Args:
      values: float[n], one per distinct candidate.
      counts: float[n] >= 0, how many samples gave that candidate; 0 for one that is no sample (its baseline is the
        whole mean).
    Returns:
      float[n]; 0 where there is no other sample.
    """
    total, weight = float(values @ counts), float(counts.sum())
    own = np.minimum(counts, 1.0)
    others = weight - own
    return np.divide(total - own * values, others, out=np.zeros_like(values), where=others > 0)


def residuals(q: Array, shown: NDArray[np.intp], rewards: Array, selection: Array, cap: float = np.inf) -> Array:
    """Sum over decisions of 1{i=j} (r - Q_j) / s_j for each candidate.

    Args:
      q: float[n], the critic's values.
      shown: int[D], the candidate that each decision showed.
      rewards: float[D].
      selection: float[D] in (0, 1], the exact probability s_j with which it was drawn.
      cap: largest 1 / s_j used. Infinity is unbiased. A finite cap shrinks the correction of rarely drawn candidates
        towards the critic: doubly robust with shrinkage (Su, Dimakopoulou, Krishnamurthy, Dudik 2020, arXiv
        1907.09623, section 3.2).
    Returns:
      float[n].
    """
    if not (shown.shape == rewards.shape == selection.shape):
        raise ValueError(f"shapes differ: {shown.shape}, {rewards.shape}, {selection.shape}")
    if selection.size and not (selection.min() > 0 and selection.max() <= 1):
        raise ValueError("selection: expected probabilities in (0, 1]")
    inverse = np.minimum(1.0 / selection, cap)
    return np.bincount(shown, weights=(rewards - q[shown]) * inverse, minlength=q.size).astype(np.float64)


def doubly_robust_factors(
    q: Array,
    counts: Array,
    rho: Array,
    shown: NDArray[np.intp],
    rewards: Array,
    selection: Array,
    cap: float = np.inf,
) -> Array:
    """Factors f_i so that g = sum_i f_i grad log pi(a_i|x), averaged over the D decisions of one pool.

    Args:
      q: float[n], values of the n distinct candidates.
      counts: float[n], how many of the pool's samples each one stands for (0: shown, but no sample of this policy).
      rho: float[n], truncated importance ratios of the candidates.
      shown, rewards, selection, cap: as in `residuals`; D = 0 leaves the critic's part alone.
    Returns:
      float[n].
    """
    samples = float(counts.sum())
    if samples <= 0:
        return np.zeros_like(q)
    advantage = q - leave_one_out(q, counts)
    if shown.size:
        advantage = advantage + residuals(q, shown, rewards, selection, cap) / shown.size
    return counts * rho * advantage / samples
