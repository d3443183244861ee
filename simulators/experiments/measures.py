"""What an experiment reads off its traces. Pure: arrays in, plain values out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.maths.intervals import Interval, Moments, lift

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
WINDOW = 1_024
"""Impressions in which a share of the oracle is told."""


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole; NaN, which nothing is said to be above or below, where there is no whole."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0.0, np.nan, np.divide(part, whole))


def _moments(rewards: Floats) -> Moments:
    return Moments(len(rewards), float(rewards.sum()), float(np.square(rewards).sum()), int(np.count_nonzero(rewards)))


def lift_so_far(control: Bools, rewards: Floats, impressions: int) -> Interval | None:
    """Lift of what was learnt over control after so many impressions, from realised rewards [N] alone, as `/v1/stats`
    tells it. `control` [N]: whether the text came from the controls."""
    held, earned = control[:impressions], rewards[:impressions]
    return lift(_moments(earned[~held]), _moments(earned[held]))


class Significance(NamedTuple):
    """`first`: impressions after which the lift's interval was above 0 at every look until the end; None: never.
    `final`: the lift at the end."""

    first: int | None
    final: Interval | None


def significance(control: Bools, rewards: Floats, every: int) -> Significance:
    """Looks at the lift each `every` impressions. What was significant at one look and not at a later one does not
    count: with many looks chance alone gets there now and then."""
    looks = [*range(every, len(rewards), every), len(rewards)]
    intervals = [lift_so_far(control, rewards, look) for look in looks]
    first = None
    for look, interval in zip(reversed(looks), reversed(intervals), strict=True):
        if interval is None or interval.low <= 0.0:
            break
        first = look
    return Significance(first, intervals[-1])


class Recovery(NamedTuple):
    """`share`: of the oracle, just before the swap. `at_first`, `after`: impressions until 90 % of it was reached, from
    the beginning and from the swap; None: never."""

    share: float
    at_first: int | None
    after: int | None


def recovery(rates: Floats, best: Floats, swap: int, window: int = WINDOW, part: float = 0.9) -> Recovery:
    """How long it took to reach `part` of the share of the oracle, before `swap` impressions and after them.

    The share is sum(rates) / sum(best) over `window` impressions; a share counts from the first whole window on, and
    windows after the swap hold nothing from before it. `rates`, `best` [N]: click rates of what was shown, and of the
    best text, at each arrival."""
    if not 2 * window <= swap <= len(rates) - window:
        raise ValueError(f"swap: got {swap}, expected {2 * window} to {len(rates) - window}")
    old = _share(rates[swap - 2 * window : swap].sum(), best[swap - 2 * window : swap].sum())

    def reached(start: int, end: int) -> int | None:
        earned, possible = (np.cumsum(np.concatenate([[0.0], some[start:end]])) for some in (rates, best))
        shares = _share(earned[window:] - earned[:-window], possible[window:] - possible[:-window])
        good = np.flatnonzero(shares >= part * old)
        return int(good[0]) + window if len(good) else None

    return Recovery(float(old), reached(0, swap), reached(swap, len(rates)))


def beginnings(campaigns: Sequence[str], rates: Floats, counted: Sequence[str], impressions: int = 500) -> float:
    """Mean click rate of the first `impressions` of each counted campaign; all campaigns weigh the same."""
    names = np.array(campaigns)
    return float(np.mean([rates[np.flatnonzero(names == name)[:impressions]].mean() for name in counted]))


class Shortfall(NamedTuple):
    """How far the true reward was below the frozen control's at worst, as a share of control's: `window` in any
    window, `so_far` in all that was shown until then (from the first whole window on). Negative: never below."""

    window: float
    so_far: float


def shortfall(rewards: Floats, control: Floats, until: int, window: int = 1_000) -> Shortfall | None:
    """The worst shortfall in the first `until` impressions; None where they are fewer than a window. `rewards`,
    `control` [N]: true rewards, on the same arrivals."""
    if until < window:
        return None
    earned, frozen = (np.cumsum(np.concatenate([[0.0], some[:until]])) for some in (rewards, control))
    inside = _share(earned[window:] - earned[:-window], frozen[window:] - frozen[:-window])
    so_far = _share(earned[window:], frozen[window:])
    return Shortfall(float(1.0 - inside.min()), float(1.0 - so_far.min()))
