"""How late clicks and conversions come: learnt from those that have."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from optimizer.learning.buffer import Entry
from optimizer.maths.delay import age_edges, arrival_distribution
from optimizer.types import Outcome

EVERY = "every "
MOST_AT_ONCE = 100  # conversions of one revision whose delay is noted


class Arrivals:
    """The newest delays of each kind and window, in `age_classes` classes of age. Not thread-safe."""

    def __init__(self, age_classes: int, kept: int) -> None:
        self._age_classes, self._kept = age_classes, kept
        self._logs: dict[tuple[str, int], deque[tuple[int, int]]] = {}

    def note(self, before: Entry | None, after: Entry, outcome: Outcome) -> None:
        """Take in a decision's revision. By the log's event time: what matters is when a click could be known, not when
        it says it was."""
        attribution = outcome.decision.attribution
        if after.click and not (before and before.click):
            delay = min(max(0, outcome.as_of - after.impression_ts), attribution.click_window_ms)
            self._log("click", attribution.click_window_ms).append((delay, after.impression_ts))
        new = after.conversions - (before.conversions if before else 0)
        if new > 0:
            kind, since, window = "conversion", after.click_ts, attribution.conversion_window_ms
            if not after.click:
                kind, since, window = "view", after.impression_ts, attribution.view_through_ms
            delay = min(max(0, outcome.as_of - since), window)
            if not (before and before.converted):
                self._log(kind, window).append((delay, since))
            if not after.counts_once:
                self._log(EVERY + kind, window).extend([(delay, since)] * min(new, MOST_AT_ONCE))

    def share(self, kind: str, window_ms: int, ages: NDArray[np.int64], now_ms: int) -> NDArray[np.float64]:
        """F, the share of "click"s, of first "conversion"s after a click or of those after a "view" alone (with EVERY
        before it: of all), within a window, that have come by each age, float64[m]."""
        if window_ms <= 0:
            return np.ones(len(ages))
        edges = age_edges(window_ms, self._age_classes)
        log = np.array(self._log(kind, window_ms), np.int64).reshape(-1, 2)
        last = self._age_classes - 1
        delays = np.minimum(np.searchsorted(edges, log[:, 0]), last)
        watched = np.minimum(np.searchsorted(edges, now_ms - log[:, 1]), last)
        share = arrival_distribution(delays, np.maximum(delays, watched), len(edges))
        # Within a class arrivals are taken to come evenly.
        grown = np.interp(ages, np.concatenate([[0.0], edges]), np.concatenate([[0.0], share]))
        return np.asarray(grown, np.float64)

    def conversions(
        self, clicked: list[Entry], now_ms: int, every: bool = False
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(done bool[m], F float64[m]): which clicks can bring no more; the share of conversions come by their age, of
        the first ones, or of `every` one where all count."""
        done = np.array([entry.closed or (entry.converted and entry.counts_once) for entry in clicked], bool)
        ages = np.maximum(now_ms - np.array([entry.click_ts for entry in clicked], np.int64), 0)
        windows = np.array([entry.conversion_window_ms for entry in clicked])
        arrived = np.ones(len(clicked))
        once = np.array([entry.counts_once or not every for entry in clicked], bool)
        self.fill(arrived, "conversion", windows, ages, ~done, once, now_ms)
        return done, arrived

    def fill(
        self,
        arrived: NDArray[np.float64],
        kind: str,
        windows: NDArray[np.int64],
        ages: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        once: NDArray[np.bool_],
        now_ms: int,
    ) -> None:
        """Write into `arrived` the share F of those that are `chosen`, float64[m], by their windows and ages; of first
        ones where `once`, else of all."""
        for window in np.unique(windows[chosen]):
            for name, those in ((kind, once), (EVERY + kind, ~once)):
                at = chosen & those & (windows == window)
                if at.any():
                    arrived[at] = self.share(name, int(window), ages[at], now_ms)

    def _log(self, kind: str, window_ms: int) -> deque[tuple[int, int]]:
        return self._logs.setdefault((kind, window_ms), deque(maxlen=self._kept))
