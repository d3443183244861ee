"""Confidence intervals for a share of yes-or-no outcomes. Pure: plain numbers in, plain numbers out."""

from __future__ import annotations

import math

from optimizer.maths.intervals import Z_95, Interval


def wilson(successes: int, trials: int, z: float = Z_95) -> Interval | None:
    """Wilson's score interval of a proportion.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22(158). It stays inside
    [0, 1] and keeps its coverage for the small rates of ads, where the normal interval does not.

    Args:
      successes, trials: counts, 0 <= successes <= trials.
      z: quantile of the standard normal distribution; the default gives 95 %.

    Returns:
      The plain share and the interval's ends; None without trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(
            f"successes: got {successes} of {trials} trials, expected 0 to {trials}; count every trial once"
        )
    if trials == 0:
        return None
    share = successes / trials
    spread = z * z / trials
    centre = (share + spread / 2.0) / (1.0 + spread)
    half = z * math.sqrt(share * (1.0 - share) / trials + spread / (4.0 * trials)) / (1.0 + spread)
    # At the borders the ends equal 0 and 1 exactly; rounding must not say otherwise.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(share, low, high)
