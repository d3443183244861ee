"""A campaign's reference clicks: what its texts' conversions are held against (maths/guard.py)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from optimizer.learning.buffer import Entry
from optimizer.maths.guard import reference_rates

FIRST_CLICKS, CONTROL_CLICKS, RECENT_CLICKS = 64, 2_000, 200
Arrived = Callable[[list[Entry]], tuple[NDArray[np.bool_], NDArray[np.float64]]]


class Reference(NamedTuple):
    """Of one campaign: `offset`, log-odds that one of its clicks converts as things are; `low`, how often its reference
    clicks do at least."""

    offset: float
    low: float


class ReferenceClicks:
    """The clicks of each campaign that pays for clicks alone, in three parts: those on its controls, the newest
    CONTROL_CLICKS; those on other texts that are among the first FIRST_CLICKS of all campaigns; the newest
    RECENT_CLICKS on any.

    The first two are the reference: later clicks may be on text that is shown because it is clicked, also in a campaign
    that has just begun, since campaigns teach each other. What a new text's clicks convert at is best guessed by the
    newest: where they have come to convert less often than the reference, it is text of which nothing is known yet
    that counts less, not text that has shown that it converts."""

    def __init__(self) -> None:
        self._controls: dict[str, OrderedDict[str, Entry]] = {}
        self._first: dict[str, OrderedDict[str, Entry]] = {}
        self._recent: dict[str, OrderedDict[str, Entry]] = {}
        self._begun = 0

    def note(self, campaign: str, name: str, entry: Entry) -> None:
        """Take in a decision as it stands now; one that has been taken in stays, whatever becomes of it."""
        counts = bool(entry.click) and not entry.pays_later
        _hold(self._recent.setdefault(campaign, OrderedDict()), name, entry, counts, RECENT_CLICKS)
        if not entry.pool_id:
            _hold(self._controls.setdefault(campaign, OrderedDict()), name, entry, counts, CONTROL_CLICKS)
            return
        first = self._first.setdefault(campaign, OrderedDict())
        self._begun += _hold(first, name, entry, counts and self._begun < FIRST_CLICKS, FIRST_CLICKS)

    def rates(self, arrived: Arrived) -> dict[str, Reference]:
        """Of each campaign whose reference clicks have brought a conversion. `arrived` says of each click whether it
        can bring no more, and the share of conversions that have come by its age."""
        reference: dict[str, tuple[float, float]] = {}
        recent: dict[str, tuple[float, float]] = {}
        for campaign, clicks in self._recent.items():
            held = (*self._first.get(campaign, {}).values(), *self._controls.get(campaign, {}).values())
            sold = _counted(held, arrived)
            if sold[0] > 0:
                reference[campaign], recent[campaign] = sold, _counted(clicks.values(), arrived)
        if not reference:
            return {}
        _, low = reference_rates(*np.array(list(reference.values())).T)
        centre, _ = reference_rates(*np.array(list(recent.values())).T)
        offsets = logit(np.clip(centre, 1e-3, 1 - 1e-3))
        return {name: Reference(float(o), float(c)) for name, o, c in zip(reference, offsets, low, strict=True)}


def _counted(held: Iterable[Entry], arrived: Arrived) -> tuple[float, float]:
    """(clicks that converted, clicks of which that is known) of some decisions."""
    clicks = [entry for entry in held if entry.click]
    if not clicks:
        return 0.0, 0.0
    sold = np.array([entry.converted for entry in clicks], bool)
    done, share = arrived(clicks)
    return float(sold.sum()), float(np.where(done | sold, 1.0, share).sum())


def _hold(held: OrderedDict[str, Entry], name: str, entry: Entry, counts: bool, most: int) -> bool:
    """Keep a decision that counts, or that is kept already, as it stands now, and the newest `most`; whether it is
    new."""
    new = name not in held
    if new and not counts:
        return False
    held[name] = entry
    if len(held) > most:
        held.popitem(last=False)
    return new
