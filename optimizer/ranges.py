"""Ranges of settings: what is out of its range is refused where it is set, not deep inside, or never."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from optimizer.errors import ConfigError, FieldError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both in it. `over`: `low` itself is out. `under`: so is `high`. `whole`: integers
    alone. Infinity is in where `endless` says so."""

    low: float
    high: float = math.inf
    over: bool = False
    under: bool = False
    whole: bool = False
    endless: bool = False

    def holds(self, value: object) -> bool:
        """Whether a value is in the range; what is no number, or no whole one, is not."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = float(value)
        low = self.low < number if self.over else self.low <= number
        high = number < self.high if self.under else number <= self.high
        return low and high and (self.endless or number < math.inf)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = [f"{'over' if self.over else 'of at least'} {self.low:g}"]
        if self.high < math.inf:
            bounds.append(f"{'under' if self.under else 'at most'} {self.high:g}")
        return f"{kind} {' and '.join(bounds)}" + (", or infinity" if self.endless else "")


def check_ranges(config: Any, **ranges: Range) -> None:
    """Check a dataclass's fields. Raises ConfigError with every one that is out of its range."""
    defaults = {one.name: one.default for one in fields(config)}
    refused = [
        FieldError(
            f"{type(config).__name__}.{name}",
            repr(getattr(config, name)),
            str(allowed),
            f"set it in that range, or leave it out: it is then {defaults[name]!r}",
        )
        for name, allowed in ranges.items()
        if not allowed.holds(getattr(config, name))
    ]
    if refused:
        raise ConfigError("; ".join(error.sentence() for error in refused))


def whole(low: int) -> Range:
    """A whole number, `low` or more."""
    return Range(low, whole=True)


NOT_NEGATIVE = Range(0.0)
POSITIVE = Range(0.0, over=True)
POSITIVE_OR_ENDLESS = Range(0.0, over=True, endless=True)
NOT_NEGATIVE_OR_ENDLESS = Range(0.0, endless=True)
SHARE = Range(0.0, 1.0)
SHARE_OVER_0 = Range(0.0, 1.0, over=True)
SHARE_BETWEEN = Range(0.0, 1.0, over=True, under=True)
