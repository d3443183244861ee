"""What the critic said of each decision before it learnt what came of it, and what came: its calibration."""

from __future__ import annotations

import heapq
import math
import zlib

import numpy as np

from optimizer.learning.buffer import Entry
from optimizer.maths.calibration import Calibration
from optimizer.types import Scalar

GRACE = 1.0  # how much longer than the click window a decision is waited for, in windows: clicks are told of late


class Forecasts:
    """Predictions wait until the decision's click window, and as long again, is over, clicked or not: if clicks were
    counted when they come, and the rest when the window closes, the newest would all seem to be clicked. A click that
    is told of later than that (a partition far behind the others, an ad server that was away) counts as none here,
    though the critic learns from it. Not thread-safe."""

    def __init__(self, capacity: int = 200_000) -> None:
        """`capacity`: predictions that wait at most; where more come a part of them, by their ids, is left out."""
        self.calibration = Calibration()
        self._capacity = capacity
        self._one_in = 1
        self._waiting: list[tuple[float, str, float, int]] = []
        self._renewed = 0
        self._clicked: dict[str, bool] = {}

    def note(self, name: str, p: float, entry: Entry) -> None:
        """Take in what was said of a new decision, once. What is no number is left out."""
        if not math.isfinite(p) or not self._chosen(name) or name in self._clicked:
            return
        due = entry.impression_ts + (1.0 + GRACE) * entry.click_window_ms
        heapq.heappush(self._waiting, (due, name, p, self._renewed))
        self._clicked[name] = entry.click > 0
        while len(self._waiting) > self._capacity:
            self._one_in *= 2
            self._waiting = [one for one in self._waiting if self._chosen(one[1])]
            heapq.heapify(self._waiting)
            self._clicked = {name: self._clicked[name] for _, name, *_ in self._waiting}

    def revise(self, name: str, entry: Entry) -> None:
        """A decision's outcome has been revised."""
        if name in self._clicked:
            self._clicked[name] = entry.click > 0

    def settle(self, now_ms: int) -> tuple[float, float]:
        """Compare what was said with what came, where that is waited for no longer at `now_ms`: the clicks of those
        decisions, and how many of them were expected, without what was said before `renew`."""
        said, came, new = [], [], []
        while self._waiting and self._waiting[0][0] < now_ms:
            _, name, p, renewed = heapq.heappop(self._waiting)
            said.append(p)
            came.append(float(self._clicked.pop(name)))
            new.append(renewed == self._renewed)
        self.calibration = self.calibration.after(said, came)
        return float(np.dot(came, new)), float(np.dot(said, new))

    def renew(self) -> None:
        """Who predicts has changed: what was said so far counts for the calibration alone."""
        self._renewed += 1

    def _chosen(self, name: str) -> bool:
        return zlib.crc32(name.encode()) // 7 % self._one_in == 0


def calibration_facts(seen: Calibration) -> dict[str, Scalar | None]:
    """What a version's record says of its critic's predictions; all None where nothing has been judged."""
    figures = {
        "clicks_expected": seen.mean,
        "clicks_seen": seen.rate,
        "brier": seen.brier,
        "brier_skill": seen.skill,
        "reliability": seen.reliability,
        "resolution": seen.resolution,
    }
    told = [one for one in seen.bins() if one.decisions >= 1]
    curve = ";".join(f"{one.decisions:.0f}:{one.expected:.5f}:{one.observed:.5f}" for one in told)
    return {
        **{name: None if math.isnan(value) else value for name, value in figures.items()},
        "reliability_curve": curve or None,
    }
