"""Whether what is observed still fits what was expected: a test for abrupt change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Expected clicks' worth of belief, before there are any, that as many come as are expected.
BELIEF = 10.0


@dataclass(frozen=True)
class DriftWatch:
    """Cumulative sum test (Page 1954, Biometrika 41, 100-115) of clicks against their expectation, for a fall alone.

    Each batch adds the log-likelihood ratio of two Poisson rates: `fall` times what was expected against what was
    expected (scaled by `usual`, the running ratio of observed to expected: whoever shows the texts that look best
    expects too much of them, and that is no change of the world). The sum never falls under zero; where it reaches
    `threshold` nats, the alarm is raised.

    Clicks are taken in batches of at least `batch` expected ones, so that `memory` and `patience`, which count batches,
    mean the same for little traffic and much. While the sum is over zero `usual` stands still, and what came meanwhile
    enters it when the sum is back at zero: a fall must not become usual while it is looked at. Nothing is summed before
    `warm` clicks were expected, at first and after an alarm (those who predict need them to follow), and what is not
    told within `patience` batches was no abrupt change: it enters too.

    Were `usual` known and the clicks Poisson, false alarms would be at least exp(threshold) batches apart on average
    (Lorden 1971, Annals of Mathematical Statistics 42); it is estimated here, so that is a guide, no guarantee."""

    fall: float = 0.7
    threshold: float = 10.0
    memory: float = 0.97
    warm: float = 100.0
    patience: int = 40
    batch: float = 20.0
    observed: float = BELIEF
    expected: float = BELIEF
    warmed: float = 0.0
    held_observed: float = 0.0
    held_expected: float = 0.0
    total: float = 0.0
    pending_observed: float = 0.0
    pending_expected: float = 0.0
    waiting: int = 0

    @property
    def usual(self) -> float:
        """Observed over expected, as it has been of late; at most 1."""
        return min(1.0, self.observed / self.expected)

    @property
    def alarm(self) -> bool:
        """Whether the sum has reached its threshold."""
        return self.total >= self.threshold

    def after(self, clicks: float, expected: float) -> DriftWatch:
        """The watch after `clicks` where the mean prediction was `expected` clicks in all."""
        if not (clicks >= 0 and expected >= 0 and math.isfinite(expected)):
            raise ValueError(f"clicks, expected: got {clicks}, {expected}, expected finite numbers >= 0")
        clicks, expected = self.held_observed + clicks, self.held_expected + expected
        if expected < self.batch:
            return replace(self, held_observed=clicks, held_expected=expected)
        empty = replace(self, held_observed=0.0, held_expected=0.0)
        return empty._after_batch(clicks, expected)

    def _after_batch(self, clicks: float, expected: float) -> DriftWatch:
        gain = clicks * math.log(self.fall) + (1.0 - self.fall) * self.usual * expected
        total = max(0.0, self.total + gain)
        seen, due = self.pending_observed + clicks, self.pending_expected + expected
        if total > 0.0 and self.warmed >= self.warm and (total >= self.threshold or self.waiting < self.patience):
            return replace(self, total=total, pending_observed=seen, pending_expected=due, waiting=self.waiting + 1)
        return replace(
            self.calmed(),
            observed=self.memory * self.observed + seen,
            expected=self.memory * self.expected + due,
            warmed=min(self.warmed + expected, self.warm),
        )

    def calmed(self) -> DriftWatch:
        """With nothing summed; what is usual stays."""
        return replace(self, total=0.0, pending_observed=0.0, pending_expected=0.0, waiting=0)

    def reset(self) -> DriftWatch:
        """The watch after an alarm: what is usual stays, what was over it is done with, and it warms up again."""
        return replace(self.calmed(), warmed=0.0, held_observed=0.0, held_expected=0.0)
