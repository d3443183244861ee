"""Values of the command line, checked (argparse's `type`): a refusal says what came and what is expected.

argparse itself names the function that a value was refused by, which tells a person nothing.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Final

from optimizer.types import MOST_WINDOW_MS

MOST: Final = 2**31 - 1
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")  # no signs, blanks or underscores that `int` would take as well


def whole(least: int, most: int = MOST, what: str = "a whole number") -> Callable[[str], int]:
    """Whole numbers from `least` to `most`, both included; `what` says in the refusal what they are."""

    def checked(text: str) -> int:
        value = int(text) if _WHOLE.fullmatch(text) else None
        if value is None or not least <= value <= most:
            raise ArgumentTypeError(f"got {text!r}, expected {what} from {least} to {most}")
        return value

    return checked


def number(least: float, most: float = math.inf, what: str = "a number") -> Callable[[str], float]:
    """Finite numbers from `least` to `most`, both included."""
    to = "" if most == math.inf else f" to {most:g}"

    def checked(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise ArgumentTypeError(f"got {text!r}, expected {what} from {least:g}{to}")
        return value

    return checked


natural: Final = whole(0)
positive: Final = whole(1)
port: Final = whole(0, 65_535, "a port")
seconds: Final = number(0.0, what="seconds")
extra_retention: Final = whole(0, MOST_WINDOW_MS, "whole milliseconds")
"""How long after its windows a decision can still be revised; serving and the joiner must agree on it."""
