"""Figures of a simulation, as pure functions: captured shares and their intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def share(part: float, whole: float | None) -> float | None:
    """part / whole; None where there is no whole, or the share is no number."""
    if whole is None or not whole > 0.0:
        return None
    ratio = part / whole
    return ratio if math.isfinite(ratio) else None


def finite(figures: Any) -> Any:
    """The same figures with None for what JSON has no number for (NaN and the infinities), at any depth."""
    if isinstance(figures, float):
        return figures if math.isfinite(figures) else None
    if isinstance(figures, dict):
        return {name: finite(one) for name, one in figures.items()}
    if isinstance(figures, list | tuple):
        return [finite(one) for one in figures]
    return figures


def captured_share(earned: Floats, uniform: Floats, best: Floats) -> float:
    """Share of the gap between uniform and best that a policy captured, pooled over groups.

    Args:
      earned: [G] clicks expected from what the policy showed, over the horizon.
      uniform: [G] clicks expected from the uniform policy over the same impressions.
      best: [G] clicks expected from always showing the group's best arm.
    Returns:
      sum (earned - uniform) / sum (best - uniform): 0 for uniform, 1 for the best arm from the first impression on;
      negative for worse than uniform. 0 where there is no gap.
    """
    if not earned.shape == uniform.shape == best.shape:
        raise ValueError(f"expected three arrays [G], got {earned.shape}, {uniform.shape}, {best.shape}")
    gap = float((best - uniform).sum())
    return float((earned - uniform).sum()) / gap if gap > 0 else 0.0


def captured_interval(earned: Floats, uniform: Floats, best: Floats, z: float = 1.96) -> tuple[float, float] | None:
    """Normal interval of `captured_share` over groups as the sampling units, by the ratio estimator's linearisation.

    Var ~ G / (G - 1) x sum_g (d_g - share x gap_g)^2 / (sum gap)^2 (Cochran 1977, Sampling Techniques, eq. 6.13).
    None below two groups or where there is no gap.
    """
    groups, gap = len(earned), best - uniform
    total = float(gap.sum())
    if groups < 2 or total <= 0:
        return None
    share = captured_share(earned, uniform, best)
    residual = (earned - uniform) - share * gap
    half = z * float(np.sqrt(groups / (groups - 1) * np.square(residual).sum())) / total
    return share - half, share + half
