"""What the critic said of each decision before it learnt what came of it, and what came: its calibration."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.learning.buffer import Entry
from optimizer.maths.calibration import Calibration


class Forecasts:
    """Predictions wait until the decision's click window is over, clicked or not: if clicks were counted when they
    come, and the rest when the window closes, the newest would all seem to be clicked. Not thread-safe."""

    def __init__(self, capacity: int = 200_000) -> None:
        """`capacity`: predictions that wait at most; of those that come while so many wait nothing is told."""
        self.calibration = Calibration()
        self._capacity = capacity
        self._waiting: list[tuple[int, str, float]] = []

    def note(self, names: Sequence[str], p: NDArray[np.float64], entries: Mapping[str, Entry]) -> None:
        """Take in what was said, float64[n], of decisions that are held and new."""
        room = max(0, self._capacity - len(self._waiting))
        for name, said in zip(names[:room], p[:room].tolist(), strict=True):
            entry = entries[name]
            heapq.heappush(self._waiting, (entry.impression_ts + entry.click_window_ms, name, said))

    def settle(self, now_ms: int, entries: Mapping[str, Entry]) -> None:
        """Compare what was said with what came, where no click can come any more at `now_ms`."""
        said, came = [], []
        while self._waiting and self._waiting[0][0] < now_ms:
            _, name, p = heapq.heappop(self._waiting)
            entry = entries.get(name)
            if entry is not None:
                said.append(p)
                came.append(float(entry.click > 0))
        self.calibration = self.calibration.after(np.array(said), np.array(came))
