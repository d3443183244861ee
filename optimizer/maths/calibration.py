"""Whether predicted probabilities are what comes: Brier score, its decomposition, and the reliability curve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# Octaves: click rates of one and two in a thousand are to be told apart as those of a fourth and a half.
EDGES = np.array([0.0, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0])


class ReliabilityBin(NamedTuple):
    """Predictions of about one size: of how many `decisions` (older ones count less), their mean, and the share that
    came true."""

    decisions: float
    expected: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """What has become of the predictions that were made before the event, the newest first in weight: each counts
    exp(-k / memory) once k others have come after it.

    `brier` is the mean of (p - y)^2 (Brier 1950, Monthly Weather Review 78). With predictions taken by bin it is
    reliability - resolution + uncertainty (Murphy 1973, Journal of Applied Meteorology 12): `reliability` is how far
    what comes is from what was said (0 is best), `resolution` how far the bins differ from their common rate (more is
    better), `skill` = 1 - brier / uncertainty, what is gained over always saying the common rate."""

    memory: float = 10_000.0
    count: Floats = field(default_factory=lambda: np.zeros(len(EDGES) - 1))
    expected: Floats = field(default_factory=lambda: np.zeros(len(EDGES) - 1))
    observed: Floats = field(default_factory=lambda: np.zeros(len(EDGES) - 1))
    squared: float = 0.0

    def after(self, said: ArrayLike, came: ArrayLike) -> Calibration:
        """With these predictions settled, oldest first.

        Args:
          said: p float64[n], predicted probabilities.
          came: y float64[n], what came: 0 or 1.
        Raises ValueError for probabilities outside [0, 1] and outcomes that are neither."""
        p, y = np.asarray(said, np.float64), np.asarray(came, np.float64)
        if p.shape != y.shape or not ((p >= 0) & (p <= 1)).all() or not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"said, came: got {p}, {y}, expected probabilities and as many outcomes of 0 or 1")
        if not p.size:
            return self
        weight = np.exp(-np.arange(len(p))[::-1] / self.memory)
        kept = float(np.exp(-len(p) / self.memory))
        at = np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, len(EDGES) - 2)

        def summed(values: Floats) -> Floats:
            return np.bincount(at, weight * values, minlength=len(EDGES) - 1).astype(np.float64)

        return replace(
            self,
            count=kept * self.count + summed(np.ones_like(p)),
            expected=kept * self.expected + summed(p),
            observed=kept * self.observed + summed(y),
            squared=kept * self.squared + float(weight @ np.square(p - y)),
        )

    @property
    def total(self) -> float:
        """Predictions settled, older ones counting less."""
        return float(self.count.sum())

    @property
    def rate(self) -> float:
        """Share that came true; nan where nothing is settled."""
        return float(self.observed.sum()) / self.total if self.total else float("nan")

    @property
    def mean(self) -> float:
        """Mean prediction; nan where nothing is settled."""
        return float(self.expected.sum()) / self.total if self.total else float("nan")

    @property
    def brier(self) -> float:
        """Mean of (p - y)^2; nan where nothing is settled."""
        return self.squared / self.total if self.total else float("nan")

    @property
    def skill(self) -> float:
        """1 - brier / uncertainty; nan where nothing is settled, or all outcomes are alike."""
        uncertainty = self.rate * (1.0 - self.rate)
        return 1.0 - self.brier / uncertainty if uncertainty > 0 else float("nan")

    def bins(self) -> list[ReliabilityBin]:
        """The reliability curve: the bins that hold something, by size of the prediction."""
        return [
            ReliabilityBin(float(n), float(expected / n), float(observed / n))
            for n, expected, observed in zip(self.count, self.expected, self.observed, strict=True)
            if n > 0
        ]

    @property
    def reliability(self) -> float:
        """Mean over the predictions of (bin's mean prediction - bin's rate)^2; nan where nothing is settled."""
        if not self.total:
            return float("nan")
        return sum(one.decisions * (one.expected - one.observed) ** 2 for one in self.bins()) / self.total

    @property
    def resolution(self) -> float:
        """Mean over the predictions of (bin's rate - common rate)^2; nan where nothing is settled."""
        if not self.total:
            return float("nan")
        return sum(one.decisions * (one.observed - self.rate) ** 2 for one in self.bins()) / self.total
