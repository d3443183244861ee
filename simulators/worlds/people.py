"""What the simulated markets have in common: where and when their people look, what moves all of them, and how likes
add up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np

from simulators.worlds import taste
from simulators.worlds.language import Language
from simulators.worlds.taste import Taste, Vector

DEVICES = {"mobile": (0.6, 0.1), "desktop": (0.3, -0.15), "tablet": (0.1, 0.0)}
"""Device -> (share of arrivals, effect in log-odds)."""
POSITIONS = {"top": (0.3, 0.35), "middle": (0.4, 0.0), "bottom": (0.3, -0.4)}
"""Position on the page -> (share of arrivals, effect in log-odds)."""
HOUR_EFFECT = 0.25

FITTING, STRAYING = 0.55, -1.1
ILL_FORMED = -2.2

_REMEMBERED = 200_000
"""Texts whose judgement is kept: more than any run shows, and no leak in one that never ends."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Place = tuple[str, str]
"""(campaign_id, segment)."""


class Cell(NamedTuple):
    """What one segment makes of one campaign's copy: `scale` x (the taste's utility - `mean`), in log-odds."""

    taste: Taste
    scale: float
    mean: float


class Reading(NamedTuple):
    """What is in a text: `features` float64[K], and log-odds for the goods it speaks of."""

    features: Vector
    fit: float


@cache
def reference() -> tuple[tuple[str, ...], Language]:
    """(the lines of good copy, what is good copy by them)."""
    lines = tuple((taste.DATA / "reference.txt").read_text(encoding="utf-8").splitlines())
    return lines, Language(lines)


@cache
def reference_features() -> Vector:
    """float64[N, K] of the reference lines."""
    return np.stack([taste.features(line) for line in reference()[0]])


@cache
def reference_fit(goods: str) -> Vector:
    """float64[N] log-odds for the goods that the reference lines speak of."""
    return np.array([fit(line, goods) for line in reference()[0]])


def fit(masked: str, goods: str) -> float:
    """Log-odds for speaking of these goods, or of others."""
    own, stray = taste.about(masked, goods)
    return FITTING * own + STRAYING * stray


def sigmoid(value: Vector) -> Vector:
    """Log-odds -> probability."""
    return 1.0 / (1.0 + np.exp(-value))


def saturated(utility: Vector, ceiling: float) -> Vector:
    """Likes that add up ever more slowly, up to `ceiling`; dislikes as they are."""
    return np.where(utility > 0.0, ceiling * np.tanh(utility / ceiling), utility)


@cache
def circumstances(peak_hour: float) -> tuple[Vector, Vector]:
    """(effects in log-odds, shares), both float64[216]: every device, position and hour."""
    every = list(product(DEVICES.values(), POSITIONS.values(), range(24)))
    effects = [device[1] + position[1] + hour_effect(hour, peak_hour) for device, position, hour in every]
    shares = [device[0] * position[0] / 24 for device, position, _ in every]
    return np.array(effects), np.array(shares)


def hour_effect(hour: float, peak_hour: float) -> float:
    """Log-odds at this hour of the day, for who looks most at `peak_hour`."""
    return HOUR_EFFECT * math.cos(2 * math.pi * (hour - peak_hour) / 24)


class Shares:
    """Draws from options with fixed shares, one random value a draw."""

    def __init__(self, options: Sequence[str], shares: Sequence[float] | Vector) -> None:
        cumulative = np.cumsum(np.asarray(shares, dtype=np.float64))
        self._options, self._edges = tuple(options), (cumulative / cumulative[-1]).tolist()

    def draw(self, rng: np.random.Generator) -> str:
        """One of the options."""
        return self._options[bisect_right(self._edges, rng.random())]


def remember(memory: dict[Key, Value], key: Key, value: Value) -> Value:
    """Keep a judgement that would come out the same again, and give it back."""
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value
    return value
