"""Confidence intervals for ratios of means. Pure: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from typing import NamedTuple

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
MIN_SAMPLES = 100
MIN_REWARDED = 5


class Moments(NamedTuple):
    """A sample of rewards by its sufficient sums.

    `n` observations, `total` = sum of r, `squares` = sum of r^2, `rewarded` = how many r are not 0.
    """

    n: int
    total: float
    squares: float
    rewarded: int

    def mean(self) -> float:
        return self.total / self.n

    def variance_of_mean(self) -> float:
        """Unbiased sample variance over n; needs n >= 2. Rounding never makes it negative."""
        return max(0.0, self.squares - self.total * self.total / self.n) / (self.n - 1) / self.n


class Interval(NamedTuple):
    """An estimate with the two ends of its confidence interval."""

    value: float
    low: float
    high: float


def fieller(numerator: float, var_n: float, denominator: float, var_d: float, z: float = Z_95) -> Interval | None:
    """The ratio of two independent means with Fieller's confidence interval.

    Fieller (1954), "Some problems in interval estimation", JRSS B 16(2). The set of ratios q for which
    |numerator - q x denominator| <= z x sqrt(var_n + q^2 x var_d) is solved for q. It respects the skewness of a ratio,
    which the delta method's symmetric interval does not.

    Args:
      numerator, denominator: the two sample means.
      var_n, var_d: the variances of those means (not of the observations), >= 0.
      z: quantile of the standard normal distribution; the default gives 95 %.

    Returns:
      None where the denominator is not significantly positive: the set is then no finite interval.
    """
    a = denominator * denominator - z * z * var_d
    if denominator <= 0.0 or a <= 0.0:
        return None
    b = numerator * denominator
    c = numerator * numerator - z * z * var_n
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(numerator / denominator, (b - root) / a, (b + root) / a)


def lift(learned: Moments, control: Moments, z: float = Z_95) -> Interval | None:
    """Reward per impression, learned over control minus one, with Fieller's interval (95 % by default).

    Returns:
      None until it can be told: each side needs `MIN_SAMPLES` impressions and `MIN_REWARDED` rewarded ones (the normal
      approximation means nothing below that), and control's mean must be significantly above 0.
    """
    for side in (learned, control):
        if side.n < MIN_SAMPLES or side.rewarded < MIN_REWARDED:
            return None
    ratio = fieller(learned.mean(), learned.variance_of_mean(), control.mean(), control.variance_of_mean(), z)
    return None if ratio is None else Interval(ratio.value - 1.0, ratio.low - 1.0, ratio.high - 1.0)
