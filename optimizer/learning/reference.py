"""A campaign's reference clicks: what its texts' conversions are held against (maths/guard.py)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from optimizer.learning.buffer import Entry
from optimizer.maths.guard import reference_rates

FIRST_CLICKS, CONTROL_CLICKS = 40, 2_000
Arrived = Callable[[list[Entry]], tuple[NDArray[np.bool_], NDArray[np.float64]]]


class Reference(NamedTuple):
    """Of one campaign: `offset`, log-odds that a reference click converts; `low`, how often they do at least."""

    offset: float
    low: float


class ReferenceClicks:
    """Of each campaign that pays for clicks alone: the clicks on its controls, the newest CONTROL_CLICKS, and the first
    FIRST_CLICKS on any text; later ones may be on text that is shown for its clicks."""

    def __init__(self) -> None:
        self._first: dict[str, dict[str, Entry]] = {}
        self._controls: dict[str, OrderedDict[str, Entry]] = {}

    def note(self, campaign: str, name: str, entry: Entry) -> None:
        """Take in a decision as it stands now; one that has been taken in stays, whatever becomes of it."""
        counts = bool(entry.click) and not entry.pays_later
        if not entry.pool_id:
            controls = self._controls.setdefault(campaign, OrderedDict())
            if name in controls or counts:
                controls[name] = entry
            if len(controls) > CONTROL_CLICKS:
                controls.popitem(last=False)
            return
        first = self._first.setdefault(campaign, {})
        if name in first or (counts and len(first) < FIRST_CLICKS):
            first[name] = entry

    def rates(self, arrived: Arrived) -> dict[str, Reference]:
        """Of each campaign whose reference clicks have brought a conversion. `arrived` says of each click whether it
        can bring no more, and the share of conversions that have come by its age."""
        names, converted, known = [], [], []
        for campaign in sorted({*self._first, *self._controls}):
            held = (*self._first.get(campaign, {}).values(), *self._controls.get(campaign, {}).values())
            clicks = [entry for entry in held if entry.click]
            sold = np.array([entry.converted for entry in clicks], bool)
            if sold.any():
                done, share = arrived(clicks)
                names.append(campaign)
                converted.append(float(sold.sum()))
                known.append(float(np.where(done | sold, 1.0, share).sum()))
        if not names:
            return {}
        centre, low = reference_rates(np.array(converted), np.array(known))
        offsets = logit(np.clip(centre, 1e-3, 1 - 1e-3))
        return {name: Reference(float(o), float(c)) for name, o, c in zip(names, offsets, low, strict=True)}
