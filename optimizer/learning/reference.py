"""What a place's clicks convert at before its texts are told apart: where the critic's fourth output starts from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from optimizer.learning.buffer import Entry
from optimizer.learning.traffic import campaign_of
from optimizer.maths.guard import conversion_evidence, conversion_logs, shared_rates

RECENT_CLICKS = 200
MOMENT_CLICKS = 40
MOMENT_PRIOR = 1.0  # conversions' worth of belief that now is as ever
RATES = 1e-3, 1.0 - 1e-3
Arrived = Callable[[list[Entry]], tuple[NDArray[np.bool_], NDArray[np.float64]]]
Floats = NDArray[np.float64]
Lure = Callable[[list[Entry]], Floats]


class References(NamedTuple):
    """`places`: log-odds that a click converts, by place; by the campaign's name for its places that have no click.
    `lures`: likewise, the mean log-odds of a click on the texts that were clicked. `moments`: of each campaign, the log
    of what its newest MOMENT_CLICKS convert at over what their places would say."""

    places: dict[str, float]
    lures: dict[str, float]
    moments: dict[str, float]


NOTHING = References({}, {}, {})


class RecentClicks:
    """The newest RECENT_CLICKS clicks of each place (traffic.py) of campaigns that pay for clicks alone.

    Of a place and not of the campaign: people of one segment may buy three times as often as those of another, and a
    text that has been clicked there would look good or bad for it beside texts that have not.

    The newest and not the first: a text of which nothing is known is taken for one of those that are clicked now, so
    that it looks no better than a text that has shown what it converts at, neither where the first clicks were lucky
    nor where the shop's conversions fall."""

    def __init__(self) -> None:
        self._held: dict[str, OrderedDict[str, Entry]] = {}
        self._selling: set[str] = set()

    def note(self, place: str, name: str, before: Entry | None, after: Entry) -> None:
        """Take in a decision's revision: as it stood before, None where it is new, and as it stands now.

        A click enters once, when it becomes one: if those that are no longer held came back with a late conversion, the
        rate would be that of clicks that convert. A campaign that has once sold is guarded from then on: where bait has
        all of the newest clicks, none of them need have converted."""
        if not watched(after):
            return
        if after.click and after.converted:
            self._selling.add(campaign_of(place))
        held = self._held.setdefault(place, OrderedDict())
        new = after.click and not (before and before.click)
        if name in held or new:
            held[name] = after
            if len(held) > RECENT_CLICKS:
                held.popitem(last=False)

    def keep(self, moved: NDArray[np.intp]) -> None:
        """The rows have new numbers; clicks on those that have none (-1) are let go."""
        for place, held in self._held.items():
            stay = {name: one._replace(row=int(moved[one.row])) for name, one in held.items() if moved[one.row] >= 0}
            self._held[place] = OrderedDict(stay)

    def rates(self, arrived: Arrived, lure: Lure) -> References:
        """Of the campaigns that have ever sold. `arrived` says of each click whether it can bring no more, and the
        share of conversions that have come by its age; `lure` the log-odds of a click on its text."""
        names, clicks = [], []
        for place, held in self._held.items():
            some = [one for one in held.values() if one.click]
            if some and campaign_of(place) in self._selling:
                names.append(place)
                clicks.append(some)
        if not names:
            return NOTHING
        every = [one for some in clicks for one in some]
        at = np.repeat(np.arange(len(names)), [len(some) for some in clicks])
        sold = np.array([one.converted for one in every], bool)
        done, share = arrived(every)
        known = np.where(done, 1.0, share)
        places = place_rates(names, at, sold, known)
        rates = expit(np.array(list(places.values())))
        of = np.bincount(at, weights=known, minlength=len(names))
        drawn = np.bincount(at, weights=lure(every), minlength=len(names)) / np.bincount(at, minlength=len(names))
        lures = dict(zip(names, drawn.tolist(), strict=True))
        owners = [campaign_of(name) for name in names]
        by_place = np.split(np.arange(len(at)), np.flatnonzero(np.diff(at)) + 1)
        when = np.array([one.click_ts for one in every], np.int64)
        moments = {}
        for owner, own in of_each(owners):
            places[owner] = float(logit(np.average(rates[own], weights=of[own] + 1.0)))
            lures[owner] = float(drawn[own].mean())
            newest = np.concatenate([by_place[place] for place in own])
            newest = newest[np.argsort(when[newest], kind="stable")[-MOMENT_CLICKS:]]
            expected = float((rates[at[newest]] * known[newest]).sum())
            moments[owner] = float(np.log((sold[newest].sum() + MOMENT_PRIOR) / (expected + MOMENT_PRIOR)))
        return References(places, lures, moments)


def of_each(names: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Each distinct name, and where it stands, ascending."""
    distinct, which = np.unique(np.array(names), return_inverse=True)
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    return list(zip(distinct.tolist(), parts, strict=True))


def place_rates(
    places: Sequence[str], at: NDArray[np.intp], converted: NDArray[np.bool_], known: Floats
) -> dict[str, float]:
    """Log-odds that a click converts, by place: conversions over the share of them that can have come, since what is
    still to come is not a click without.

    Args:
      places: R names, in which a place may come more than once.
      at: int[n], each click's index into them; `converted` bool[n]; `known` float64[n], the share of conversions that
        have come by its age, 1 where none can come.
    """
    names, which = np.unique(np.array(places), return_inverse=True)
    of = which[at]
    sold = np.bincount(of, weights=converted, minlength=len(names)).astype(np.float64)
    told = np.maximum(np.bincount(of, weights=known, minlength=len(names)), sold)
    rates = logit(np.clip(shared_rates(sold, told), *RATES))
    found = dict(zip(names.tolist(), rates.tolist(), strict=True))
    return {place: found[place] for place in places}


def watched(entry: Entry) -> bool:
    """Whether what a click on it converts at says something of the text: nobody pays for it, and it can convert."""
    return not entry.pays_later and entry.conversion_window_ms > 0


class LureText(NamedTuple):
    """Two figures by campaign, of clicks that convert by how likely their text is clicked (`lure`), and besides by what
    it says (`text`): evidence in nats, or trust in it."""

    lure: dict[str, float]
    text: dict[str, float]


class Said(NamedTuple):
    """Log-odds that each of n clicks converts, float64[n] each: by its text (`text`), by how likely that is clicked
    (`lure`), and by what knows nothing of it (`others`)."""

    text: Floats
    lure: Floats
    others: tuple[Floats, ...]


class ConversionEvidence:
    """Whether conversions depend on the text, campaign by campaign: what was said of each click before it was learnt
    from, beside what has become of it."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, ...]] = {}
        self._before = LureText({}, {})

    def resume(self, before: LureText) -> None:
        """Go on from the evidence that an earlier process had: of the clicks that it has seen nobody knows any more
        what was said of them."""
        self._before = before

    def of(
        self,
        names: Sequence[str],
        campaigns: Sequence[str],
        said: Said,
        converted: NDArray[np.bool_],
        arrived: Floats,
        held: Mapping[str, object],
    ) -> LureText:
        """Each campaign's evidence (maths/guard.py), from all clicks that are held.

        Args:
          names, campaigns: of n clicks, the oldest first, the decisions and their campaigns.
          said: as it is now; taken of clicks that are new.
          converted, arrived: as for `conversion_logs`.
          held: names of all decisions that may come again.
        """
        for name, now in zip(names, np.column_stack([said.text, said.lure, *said.others]).tolist(), strict=True):
            self._said.setdefault(name, tuple(now))
        if len(self._said) > 2 * len(held) + 1:
            self._said = {name: each for name, each in self._said.items() if name in held}
        told = np.array([self._said[name] for name in names], np.float64)
        before = np.clip(expit(told.T), 1e-6, 1.0 - 1e-6)
        logs = np.stack([conversion_logs(one, converted, arrived) for one in before])
        lure, text = dict(self._before.lure), dict(self._before.text)
        for owner, which in of_each(campaigns):
            own = logs[:, which]
            # What came before stands ahead of all that is held, as one more click's evidence.
            lure[owner] = conversion_evidence(*_after(self._before.lure.get(owner, 0.0), own[1], own[2:]))
            # What is said has to tell more than that bait is clicked more.
            text[owner] = conversion_evidence(*_after(self._before.text.get(owner, 0.0), own[0], own[1:]))
        return LureText(lure, text)


def _after(before: float, by_text: Floats, others: Floats) -> tuple[Floats, Floats]:
    return np.concatenate([[before], by_text]), np.concatenate([np.zeros((len(others), 1)), others], axis=1)
