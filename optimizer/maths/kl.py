"""The KL budget's controller: the penalty's weight follows the divergence, not the other way round."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

KL_BUDGET: Final = 8.0  # nats per sequence: the default


@dataclass(frozen=True)
class KlController:
    """Multiplicative controller of the KL penalty (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    `budget`: nats per sequence that the policy may be away from the reference. `weight`: the penalty's present weight,
    in units of reward per nat. Each update moves log(weight) by at most `gain`; the weight stays in [floor,
    ceiling]."""

    budget: float
    weight: float
    gain: float = 0.2
    floor: float = 1e-4
    ceiling: float = 1e2

    def __post_init__(self) -> None:
        for name in ("budget", "weight", "gain", "floor"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number > 0")

    def updated(self, measured: float) -> KlController:
        """The controller after a measurement in nats per sequence. A measurement that is not finite counts as far over
        budget."""
        error = measured / self.budget - 1.0 if math.isfinite(measured) else 1.0
        step = self.gain * max(-1.0, min(1.0, error))
        return replace(self, weight=min(self.ceiling, max(self.floor, self.weight * math.exp(step))))
