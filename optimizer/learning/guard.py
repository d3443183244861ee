"""How often a click converts that nobody pays for: the critic's fourth output, learnt beside the place's newest clicks.

In log-odds: what the place's newest clicks convert at (reference.py), plus the campaign's slope times how much
likelier a click on this text is than on those (bait shows as a slope under zero, and one slope is learnt sooner than
what each of its many words does), plus what the text's features say. How far slope and features are trusted is learnt
beside them (maths/guard.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from optimizer.learning.buffer import Entry
from optimizer.learning.features import Family
from optimizer.learning.heads import Heads
from optimizer.learning.reference import (
    NOTHING,
    Arrived,
    ConversionEvidence,
    LureText,
    RecentClicks,
    Said,
    of_each,
    place_rates,
)
from optimizer.learning.traffic import campaign_of
from optimizer.learning.view import trusts
from optimizer.maths.delay import still_to_come
from optimizer.maths.guard import beside_their_time, lure_slopes

Floats = NDArray[np.float64]
LEAST_TEXTS = 8  # clicked texts of which a place's middle is taken


class Clicks(NamedTuple):
    """What is known of clicks: `x` csr[R, F], the features of all rows, their `places` and `lures` float64[R] (log-odds
    of a click on them); the decisions that were `clicked` and can convert; the heads' bootstrap `weight` of a decision,
    float32[H]; all decisions that are `held`. `replayed`: they were decided long ago, and what was said of them then is
    not known."""

    x: sparse.csr_matrix
    places: Sequence[str]
    lures: Floats
    clicked: list[tuple[str, Entry]]
    weight: Callable[[str], NDArray[np.float32]]
    held: Mapping[str, Entry]
    replayed: bool = False


class _Rows(NamedTuple):
    """The R rows that have clicks: features, place, campaign, what the place converts at in log-odds and how much
    likelier a click on each is than on the place's clicked ones, float64[R]; of n clicks, the oldest first, the row
    `at` int[n]."""

    x: sparse.csr_matrix
    places: list[str]
    owners: list[str]
    reference: Floats
    lure: Floats
    at: NDArray[np.intp]


class Guard:
    """What the fourth output's heads stand beside, and how far they are trusted. Not thread-safe."""

    def __init__(self, passes: int) -> None:
        """`passes`: over the clicks, each time the heads are fitted."""
        self._passes = passes
        self._recent = RecentClicks()
        self._references = self._earlier = NOTHING
        self._slopes: dict[str, float] = {}
        self._ever: dict[str, float] = {}
        self._told = ConversionEvidence()
        self._evidence = LureText({}, {})
        self._yardsticks: dict[str, float] = {}

    def note(self, place: str, name: str, before: Entry | None, after: Entry) -> None:
        """A decision's revision, as it stood before and as it stands now."""
        self._recent.note(place, name, before, after)

    def keep(self, moved: NDArray[np.intp]) -> None:
        """The rows have new numbers; -1: there is none any more."""
        self._recent.keep(moved)

    def resume(self, evidence: LureText) -> None:
        """Go on from the evidence that an earlier process had."""
        self._told.resume(evidence)
        self._evidence = evidence

    def figures(self, trained: bool) -> dict[str, Mapping[str, float]]:
        """What a `CriticView` needs of it; `trained`: the heads have been fitted."""
        found: dict[str, Mapping[str, float]] = {
            "lure_evidence": self._evidence.lure,
            "text_evidence": self._evidence.text,
        }
        if trained and self._references.places:
            found |= {"guard": self._references.places, "yardstick": self._yardsticks}
            found |= {"lure": self._references.lures, "slope": self._slopes}
        return found

    def fit(
        self,
        heads: Heads,
        clicks: Clicks,
        arrived: Arrived,
        target: Callable[[sparse.csr_matrix], NDArray[np.float32]],
        chosen: Callable[[int], tuple[NDArray[np.intp], NDArray[np.float32]]],
    ) -> None:
        """One increment. Clicks that may still convert count what is still expected of them.

        Args:
          arrived: as for `RecentClicks.rates`.
          target: what the target network's heads say of rows, float32[R, H].
          chosen: which of so many rows take part, int[r], and how many each stands for, float32[r, 1].
        """
        self._earlier = self._references
        self._references = self._recent.rates(arrived, lambda some: clicks.lures[[entry.row for entry in some]])
        clicked = [one for one in clicks.clicked if clicks.places[one[1].row] in self._references.places]
        if not clicked:
            return
        clicked.sort(key=lambda one: one[1].click_ts)
        names, entries = [name for name, _ in clicked], [entry for _, entry in clicked]
        rows = self._rows(clicks, entries)
        at = rows.at
        done, share = arrived(entries)
        converted, known = np.array([entry.converted for entry in entries]), np.where(done, 1.0, share)
        said = self._said(heads, rows, clicks.replayed)
        owners = [rows.owners[row] for row in at]
        self._evidence = self._told.of(names, owners, said, converted, known, clicks.held)
        self._ever = place_rates(rows.places, at, converted, known)
        self._slopes = self._learn_slopes(rows, converted, known)
        # As far as the slope is trusted, as in serving: otherwise the features would learn to undo the rest of it.
        trust = trusts(self._evidence.lure, self._references.places)
        drawn = np.array([trust[owner] for owner in rows.owners]) * self._drawn(rows)
        offset = (rows.reference + drawn)[:, None].astype(np.float32)
        expected = expit(target(rows.x) + offset)[at]
        later = np.where((done | converted)[:, None], converted[:, None], still_to_come(expected, share[:, None]))
        weight = np.array([clicks.weight(name) for name in names])
        mass = np.zeros((len(rows.places), heads.heads), np.float32)
        total = np.zeros_like(mass)
        np.add.at(mass, at, weight)
        np.add.at(total, at, weight * later.astype(np.float32))
        part, each = chosen(len(mass))
        heads.fit(
            rows.x[part],
            mass[part] * each,
            total[part] * each,
            "logistic",
            self._passes,
            offset[part],
            among=np.unique(rows.x.indices).astype(np.intp),
        )
        by_text = rows.x @ heads.weights()
        rate = expit(by_text + offset)
        heads.learn_scales(rows.x, np.asarray((mass * rate * (1 - rate)).mean(axis=1), np.float64))
        self._yardsticks = self._middles(rows, drawn, by_text.mean(axis=1, dtype=np.float64))

    def _learn_slopes(self, rows: _Rows, converted: NDArray[np.bool_], known: Floats) -> dict[str, float]:
        _, place = np.unique(rows.places, return_inverse=True)
        owners, owner = np.unique(rows.owners, return_inverse=True)
        _, tenant = np.unique([name.split("/", 1)[0] for name in owners], return_inverse=True)
        at = rows.at
        offset, lure = beside_their_time(place[at], converted, known, rows.lure[at])
        slopes = lure_slopes(offset, lure, converted, known, owner[at], tenant)
        return dict(zip(owners.tolist(), slopes.tolist(), strict=True))

    def _drawn(self, rows: _Rows) -> Floats:
        """By how much the slope moves each row's log-odds, float64[R]."""
        return np.array([self._slopes.get(owner, 0.0) for owner in rows.owners]) * rows.lure

    def _rows(self, clicks: Clicks, entries: list[Entry]) -> _Rows:
        rows, at = np.unique([entry.row for entry in entries], return_inverse=True)
        places = [clicks.places[row] for row in rows]
        reference, usual = (
            np.array([told[place] for place in places]) for told in (self._references.places, self._references.lures)
        )
        owners = [campaign_of(place) for place in places]
        return _Rows(clicks.x[rows], places, owners, reference, clicks.lures[rows] - usual, at)

    def _said(self, heads: Heads, rows: _Rows, replayed: bool) -> Said:
        """What was said of each click by all that was known before this increment; the others are the rate of its
        place, that at this moment, and that since ever. What is `replayed` says nothing: the heads may know it."""
        places, at = rows.places, rows.at
        before = [self._earlier.places.get(place, now) for place, now in zip(places, rows.reference, strict=True)]
        offset = np.array(before)[:, None]
        weights = heads.weights()
        of_place = weights * (heads.families == Family.INTERCEPT)[:, None]
        text, place = ((rows.x @ part + offset).mean(axis=1, dtype=np.float64)[at] for part in (weights, of_place))
        if replayed:
            return Said(place, place, (place, place, place))
        drawn = self._drawn(rows)[at]
        moment = place + np.array([self._earlier.moments.get(rows.owners[row], 0.0) for row in at])
        ever = np.array([self._ever.get(places[row], own) for row, own in zip(at, place, strict=True)])
        trust = trusts(self._evidence.lure, self._references.places)
        trusted = np.array([trust[owner] for owner in rows.owners])[at] * drawn
        return Said(text + trusted, place + drawn, (place, moment, ever))

    def _middles(self, rows: _Rows, drawn: Floats, by_text: Floats) -> dict[str, float]:
        """The middle of what a place's clicked texts convert at as far as that is trusted, each counted once, in
        log-odds beside the place's newest clicks; by place where it has LEAST_TEXTS of them, by campaign for the
        others."""
        trust = trusts(self._evidence.text, self._references.places)
        beside = drawn + np.array([trust[owner] for owner in rows.owners]) * by_text
        found = {}
        for names, least in ((rows.owners, 1), (rows.places, LEAST_TEXTS)):
            for name, own in of_each(names):
                if len(own) >= least:
                    found[name] = float(np.median(beside[own]))
        return found
