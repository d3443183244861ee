"""The critic's two value outputs: what comes after a click, and what comes without one.

Both are linear, in units of their campaign (units.py), and bootstrap what is still to come from the target network:

    clicked at age t, not converted:     extra + k(t) V_clicked,    k = (1 - F) / (1 - s F)
    not clicked, view-through open:      extra + k(t) V_unclicked   with F from the impression on

F is the share of conversions that has arrived by that age (arrivals.py), s the share of such decisions that convert.
What an average decision brings needs no bootstrap: it is what has come over the share of it that can have come. The
heads learn how texts and places differ from it.
A decision whose click may still come counts for V_unclicked as far as it will not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from optimizer.learning.arrivals import Arrivals
from optimizer.learning.buffer import Entry, OpenShown, ReplayBuffer, Totals, Waiting
from optimizer.learning.heads import Heads
from optimizer.learning.rows import Rows
from optimizer.learning.traffic import campaign_of
from optimizer.learning.units import Output, Units
from optimizer.maths.delay import still_to_come

Floats = NDArray[np.float32]
Predict = Callable[[str, sparse.csr_matrix], Floats]
BELIEF = 1.0  # decisions' worth of belief that nothing comes
VALUES: tuple[Output, Output] = ("clicked", "unclicked")


class Values:
    """Targets and fits of "clicked" and "unclicked". Not thread-safe."""

    def __init__(
        self, outputs: dict[str, Heads], rows: Rows, buffer: ReplayBuffer, arrivals: Arrivals, steps: int
    ) -> None:
        self.units = Units()
        self.means: dict[str, float] = dict.fromkeys(VALUES, 0.0)
        """What an average decision brings, in units: what each output's heads stand beside."""
        self._outputs, self._rows, self._buffer, self._arrivals, self._steps = outputs, rows, buffer, arrivals, steps
        self._converting = self._viewing = 0.5
        self._then: dict[str, dict[str, float]] = {name: {} for name in VALUES}

    def table(self, output: Output) -> dict[str, float]:
        """The campaigns' units (units.py); none where the output was never trained."""
        return self.units.table(output) if self._outputs[output].trained else {}

    def frozen(self) -> None:
        """The target network has been copied: its answers mean what they mean now, whatever the units are later."""
        self._then = {name: self.units.table(name) for name in VALUES}

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(
        self, x: sparse.csr_matrix, totals: Totals, open_: OpenShown, later: Floats, now_ms: int, target: Predict
    ) -> None:
        """One increment. `open_`: decisions whose click may still come, with probability `later` float32[m, H];
        `target`: what the target network says of an output and rows."""
        clicked = [(name, one) for name, one in self._buffer.entries.items() if one.click and one.pays_later]
        if clicked:
            self._fit_clicked(x, clicked, now_ms, target)
        if np.any(totals.unclicked_extra):
            self._fit_unclicked(x, totals, open_, later, now_ms, target)

    def _fit_clicked(
        self, x: sparse.csr_matrix, clicked: list[tuple[str, Entry]], now_ms: int, target: Predict
    ) -> None:
        rows = np.array([entry.row for _, entry in clicked], np.intp)
        extra = np.array([entry.extra for _, entry in clicked])
        done, arrived = self._arrivals.conversions([entry for _, entry in clicked], now_ms)
        converted = np.array([entry.converted for _, entry in clicked])
        self._converting = _share(float(converted.sum()), float(np.sum(np.where(done, 1.0, arrived))))
        unit = self._units("clicked", rows)[:, None]
        kept = self._kept(done, arrived)
        self.means["clicked"] = float((extra[:, None] / unit).sum() / (np.sum(1.0 - kept) + BELIEF))
        wanted = (extra[:, None] + kept[:, None] * self._expected("clicked", x, rows, target)) / unit
        weight = np.array([self._buffer.weight(name) for name, _ in clicked])
        those, at = np.unique(rows, return_inverse=True)
        x = x[those]
        heads = self._outputs["clicked"]
        mass = np.zeros((len(those), heads.heads), np.float32)
        total = np.zeros_like(mass)
        np.add.at(mass, at, weight)
        np.add.at(total, at, weight * (wanted - self.means["clicked"]).astype(np.float32))
        heads.fit(x, mass, total, "identity", self._steps, 0.0, among=np.unique(x.indices).astype(np.intp))
        heads.learn_scales(x, np.asarray(mass.mean(axis=1), np.float64))

    def _fit_unclicked(
        self, x: sparse.csr_matrix, totals: Totals, open_: OpenShown, later: Floats, now_ms: int, target: Predict
    ) -> None:
        mass, total = totals.settled.copy(), totals.unclicked_extra.copy()
        waiting = self._buffer.waiting(now_ms)
        arrived, open_arrived = self._arrived(waiting, now_ms), self._arrived(open_.waiting, now_ms)
        plain, paid = self.units.viewed({campaign_of(self._rows.places[row]) for row in waiting.row} or ())
        if plain:
            self._viewing = _share(float(paid), plain - float(np.sum(1.0 - arrived)))
        not_clicked = open_.weight * (1.0 - later)
        np.add.at(mass, open_.row, not_clicked)
        weights = ((waiting, arrived, waiting.weight), (open_.waiting, open_arrived, not_clicked[open_.at]))
        open_kept = [
            (some, weight * np.where(some.done, 0.0, still_to_come_of(self._viewing, share))[:, None])
            for some, share, weight in weights
        ]
        # Of campaigns that pay for clicks alone nothing can be learnt here.
        rows = np.flatnonzero(np.array(self._rows.pays_later, bool))
        unit = self._units("unclicked", rows)[:, None].astype(np.float32)
        known = mass[rows].mean(axis=1).sum() - sum(kept.mean(axis=1).sum() for _, kept in open_kept)
        self.means["unclicked"] = float((total[rows] / unit).mean(axis=1).sum() / (max(known, 0.0) + BELIEF))
        for some, kept in open_kept:
            if len(some.row):
                expected = self._expected("unclicked", x, some.row, target)
                np.add.at(total, some.row, (kept * expected).astype(np.float32))
        x, mass, heads = x[rows], mass[rows], self._outputs["unclicked"]
        total = total[rows] / unit - np.float32(self.means["unclicked"]) * mass
        among = np.unique(x.indices).astype(np.intp)
        heads.fit(x, mass, total, "identity", self._steps, 0.0, among=among)
        heads.learn_scales(x, np.asarray(mass.mean(axis=1), np.float64))

    def _units(
        self, output: Output, rows: NDArray[np.intp], table: dict[str, float] | None = None
    ) -> NDArray[np.float64]:
        """float64[len(rows)]: the unit of each row's campaign."""
        known = self.units.table(output) if table is None else table
        return np.array([known.get(campaign_of(self._rows.places[row]), 1.0) for row in rows])

    def _expected(
        self, output: Output, x: sparse.csr_matrix, rows: NDArray[np.intp], target: Predict
    ) -> NDArray[np.float64]:
        """float64[len(rows), H], in units of reward: what is expected of these rows, the average's part as known now,
        the rest by the target network."""
        some, at = np.unique(rows, return_inverse=True)
        said = np.asarray(target(output, x[some]), np.float64)[at]
        beside = said * self._units(output, rows, self._then[output])[:, None]
        return np.asarray(beside + self.means[output] * self._units(output, rows)[:, None], np.float64)

    # -- what is still to come -----------------------------------------------------------------------------------------

    def after_click(self, entries: list[Entry], now_ms: int) -> NDArray[np.float64]:
        """float64[n]: what these decisions, clicked, are still expected to bring."""
        done, arrived = self._arrivals.conversions(entries, now_ms)
        return self._kept(done, arrived) * self.said("clicked", entries)

    def without_click(self, entries: list[Entry], now_ms: int) -> NDArray[np.float64]:
        """float64[n]: what these, if they stay without a click, are still expected to bring."""
        waiting = Waiting.of(entries, now_ms)
        return np.where(waiting.done, 0.0, still_to_come_of(self._viewing, self._arrived(waiting, now_ms))) * self.said(
            "unclicked", entries
        )

    def said(self, output: Output, entries: list[Entry]) -> NDArray[np.float64]:
        """float64[n]: V of these decisions by the heads' mean, in units of reward; 0 before it is trained."""
        heads = self._outputs[output]
        if not heads.trained or not entries:
            return np.zeros(len(entries))
        rows = np.array([entry.row for entry in entries], np.intp)
        by_heads = self._rows.matrix(rows) @ heads.weights()
        said = by_heads.mean(axis=1, dtype=np.float64) + self.means[output]
        return np.asarray(said * self._units(output, rows), np.float64)

    def _arrived(self, some: Waiting, now_ms: int) -> NDArray[np.float64]:
        """F of view-through conversions at these ages."""
        arrived = np.ones(len(some.row))
        for window in np.unique(some.window_ms[~some.done]):
            at = ~some.done & (some.window_ms == window)
            arrived[at] = self._arrivals.share("view", int(window), some.age_ms[at], now_ms)
        return arrived

    def _kept(self, done: NDArray[np.bool_], arrived: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part of V_clicked that is still to come: E[value | not yet] / E[value] is the same ratio as for the
        probability of converting at all."""
        return np.where(done, 0.0, still_to_come_of(self._converting, arrived))


def still_to_come_of(share: float, arrived: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 - F) / (1 - s F), s the `share` that converts at all."""
    return still_to_come(np.full(len(arrived), share), arrived) / share


def _share(converted: float, known: float) -> float:
    """Which share of so many `known` decisions converts; half a one in five more, so that none is certain."""
    return min(0.95, (converted + 0.5) / (known + 5.0))
