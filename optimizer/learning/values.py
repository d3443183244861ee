"""The critic's two value outputs: what comes after a click, and what comes without one.

Both are linear, in units of their campaign (units.py), and bootstrap what is still to come from the target network:

    clicked at age t:                    extra + k(t) V_clicked     k: what is still to come (_kept)
    not clicked, view-through open:      extra + k(t) V_unclicked   with F from the impression on

F is the share of conversions that has arrived by that age (arrivals.py), s the share of such decisions that convert.
What an average decision brings needs no bootstrap: it is what has come over the share of it that can have come. The
heads learn how texts and places differ from it.
A decision whose click may still come counts for V_unclicked as far as it will not. Ratings are taken as they come:
of what is still to come of them nothing is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from optimizer.learning.arrivals import Arrivals
from optimizer.learning.buffer import Entry, OpenShown, ReplayBuffer, Totals, Waiting
from optimizer.learning.heads import Heads
from optimizer.learning.rows import Rows
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
        done, arrived = self._arrivals.conversions([entry for _, entry in clicked], now_ms, every=True)
        converted = np.array([entry.converted for _, entry in clicked])
        self._converting = _share(float(converted.sum()), float(np.sum(np.where(done, 1.0, arrived))))
        unit = self._units("clicked", rows)[:, None]
        done |= ~np.array([entry.pays_conversions for _, entry in clicked])
        kept = _kept(self._converting, done, np.array([entry.counts_once for _, entry in clicked]), arrived)
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
        owner, names = self._rows.owner(), self._rows.owners()
        these = np.unique(owner[np.concatenate([waiting.row, open_.waiting.row])])
        plain, paid = self.units.viewed(names[at] for at in these)
        if plain:
            still = float(np.sum(1.0 - arrived) + np.sum(1.0 - open_arrived))
            self._viewing = _share(float(paid), plain - still)
        # As far as a click will come, neither the decision nor what it has earned is one without.
        not_clicked = open_.weight * (1.0 - later)
        np.add.at(mass, open_.row, not_clicked)
        np.add.at(total, open_.row, (-open_.weight * later * open_.extra[:, None]).astype(np.float32))
        weights = ((waiting, arrived, waiting.weight), (open_.waiting, open_arrived, not_clicked[open_.at]))
        open_kept = [
            (some, weight * _kept(self._viewing, some.done, some.once, share)[:, None])
            for some, share, weight in weights
        ]
        # Of campaigns that pay for clicks alone nothing can be learnt here.
        rows = np.flatnonzero(np.array(self._rows.pays_later, bool))
        unit = self._units("unclicked", rows)[:, None].astype(np.float32)
        known = mass[rows].mean(axis=1).sum() - sum(kept.mean(axis=1).sum() for _, kept in open_kept)
        self.means["unclicked"] = float((total[rows] / unit).mean(axis=1).sum() / (max(known, 0.0) + BELIEF))
        for some, kept in open_kept:
            if len(some.row):
                those, at = np.unique(some.row, return_inverse=True)
                by_row = np.zeros((len(those), kept.shape[1]))
                np.add.at(by_row, at, kept)
                total[those] += (by_row * self._expected("unclicked", x, those, target)).astype(np.float32)
        x, mass, heads = x[rows], mass[rows], self._outputs["unclicked"]
        total = total[rows] / unit - np.float32(self.means["unclicked"]) * mass
        among = np.unique(x.indices).astype(np.intp)
        heads.fit(x, mass, total, "identity", self._steps, 0.0, among=among)
        heads.learn_scales(x, np.asarray(mass.mean(axis=1), np.float64))

    def _units(
        self, output: Output, rows: NDArray[np.intp], table: dict[str, float] | None = None
    ) -> NDArray[np.float64]:
        """float64[len(rows)]: the unit of each row's campaign."""
        now = self.units.table(output)
        # A campaign that the target network has not met is measured as it is now.
        known = now if table is None else {**now, **table}
        by_owner = np.array([known.get(name, 1.0) for name in self._rows.owners()])
        return np.asarray(by_owner[self._rows.owner()[rows]], np.float64)

    def _expected(
        self, output: Output, x: sparse.csr_matrix, rows: NDArray[np.intp], target: Predict
    ) -> NDArray[np.float64]:
        """float64[len(rows), H], in units of reward: what is expected of these rows, the average's part as known now,
        the rest by the target network."""
        some, at = np.unique(rows, return_inverse=True)
        said = np.asarray(target(output, x[some]), np.float64)[at]
        then, now = (self._units(output, some, table)[at][:, None] for table in (self._then[output], None))
        return np.asarray(said * then + self.means[output] * now, np.float64)

    # -- what is still to come -----------------------------------------------------------------------------------------

    def after_click(self, entries: list[Entry], now_ms: int) -> NDArray[np.float64]:
        """float64[n]: what these decisions, clicked, are still expected to bring."""
        done, arrived = self._arrivals.conversions(entries, now_ms, every=True)
        done |= ~np.array([entry.pays_conversions for entry in entries])
        once = np.array([entry.counts_once for entry in entries])
        return _kept(self._converting, done, once, arrived) * self.said("clicked", entries)

    def without_click(self, entries: list[Entry], now_ms: int) -> NDArray[np.float64]:
        """float64[n]: what these, if they stay without a click, are still expected to bring."""
        some = Waiting.of(entries, now_ms)
        kept = _kept(self._viewing, some.done, some.once, self._arrived(some, now_ms))
        return kept * self.said("unclicked", entries)

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
        self._arrivals.fill(arrived, "view", some.window_ms, some.age_ms, ~some.done, some.once, now_ms)
        return arrived


def _kept(
    share: float, done: NDArray[np.bool_], once: NDArray[np.bool_], arrived: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The part of V that is still to come, float64[n]. Where one conversion is all that counts and none has come it is
    E[value | not yet] / E[value] = (1 - F) / (1 - s F), the ratio for the probability of converting at all (`share`);
    where all count it is 1 - F, whatever has come: those that come do not hang on those that have."""
    first = still_to_come(np.full(len(arrived), share), arrived) / share
    return np.where(done, 0.0, np.where(once, first, 1.0 - arrived))


def _share(converted: float, known: float) -> float:
    """Which share of so many `known` decisions converts; half a one in five more, so that none is certain."""
    return min(0.95, (converted + 0.5) / (known + 5.0))
