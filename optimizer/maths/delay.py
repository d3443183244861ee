"""Delayed feedback: how much of what will come has come by a given age, learnt from what has come so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def age_edges(window_ms: int, buckets: int) -> Array:
    """Upper edges of `buckets` age classes, growing geometrically from about a second to the window. float[buckets],
    ms."""
    first = min(1_000.0, float(window_ms))
    return np.asarray(np.geomspace(first, max(float(window_ms), first * 1.001), buckets), np.float64)


def arrival_distribution(
    delays: NDArray[np.intp], horizons: NDArray[np.intp], buckets: int, prior: float = 1.0
) -> Array:
    """F[k]: the share of what arrives inside the window that has arrived by the end of age class k.

    What was seen is truncated on the right: a delay is only known where it is shorter than the time watched. The
    product over reverse-time hazards corrects for that (Lagakos, Barraj, De Gruttola 1988, Biometrika 75, eq. 2.3).

    Args:
      delays: int[m], age class in which each arrival came.
      horizons: int[m] >= delays, the age class up to which its subject had been watched.
      buckets: K, number of classes.
      prior: pseudo-arrivals spread evenly over the classes, watched to the end; > 0.
    Returns:
      float[K], not decreasing, F[K-1] = 1.
    """
    if delays.shape != horizons.shape:
        raise ValueError(f"shapes differ: {delays.shape} and {horizons.shape}")
    if np.any(delays > horizons):
        raise ValueError("a delay can't be longer than the time watched")
    pseudo = prior / buckets
    came = np.bincount(delays, minlength=buckets)[:buckets] + pseudo
    # At risk in class k, looking backwards: those that came by k and had been watched for at least k.
    by_class = np.arange(buckets)
    arrived = np.cumsum(np.bincount(delays, minlength=buckets)[:buckets])
    cut_before = np.concatenate([[0], np.cumsum(np.bincount(horizons, minlength=buckets)[:buckets])[:-1]])
    at_risk = arrived - cut_before + pseudo * (by_class + 1)
    hazard = np.clip(came / np.maximum(at_risk, 1e-12), 0.0, 1.0)
    # F[k] = prod over later classes of (1 - hazard).
    survive = np.concatenate([np.cumprod((1.0 - hazard)[:0:-1])[::-1], [1.0]])
    return np.asarray(np.clip(survive, 0.0, 1.0), np.float64)


def still_to_come(probability: Array, arrived: Array) -> Array:
    """P(it comes later | it has not come yet) = p (1 - F) / (1 - p F): the bootstrapped target of an open, empty
    record.

    Chapelle 2014 (Modeling delayed feedback in display advertising, eq. 10's posterior), with F the arrival
    distribution."""
    return np.asarray(probability * (1.0 - arrived) / np.maximum(1.0 - probability * arrived, 1e-12))
