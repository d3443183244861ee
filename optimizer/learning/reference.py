"""What a place's clicks convert at before its texts are told apart: where the critic's fourth output starts from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from optimizer.learning.buffer import Entry
from optimizer.learning.traffic import campaign_of
from optimizer.maths.guard import conversion_evidence, shared_rates, trust_in_texts

RECENT_CLICKS = 200
Arrived = Callable[[list[Entry]], tuple[NDArray[np.bool_], NDArray[np.float64]]]


class RecentClicks:
    """The newest RECENT_CLICKS clicks of each place (traffic.py) of campaigns that pay for clicks alone.

    Of a place and not of the campaign: people of one segment may buy three times as often as those of another, and a
    text that has been clicked there would look good or bad for it beside texts that have not.

    The newest and not the first: a text of which nothing is known is taken for one of those that are clicked now, so
    that it looks no better than a text that has shown what it converts at, neither where the first clicks were lucky
    nor where the shop's conversions fall."""

    def __init__(self) -> None:
        self._held: dict[str, OrderedDict[str, Entry]] = {}

    def note(self, place: str, name: str, before: Entry | None, after: Entry) -> None:
        """Take in a decision's revision: as it stood before, None where it is new, and as it stands now.

        A click enters once, when it becomes one: if those that are no longer held came back with a late conversion, the
        rate would be that of clicks that convert."""
        held = self._held.setdefault(place, OrderedDict())
        new = after.click and not after.pays_later and not (before and before.click)
        if name in held or new:
            held[name] = after
            if len(held) > RECENT_CLICKS:
                held.popitem(last=False)

    def rates(self, arrived: Arrived) -> dict[str, float]:
        """Log-odds that a click converts, of each place of the campaigns where one has. `arrived` says of each click
        whether it can bring no more, and the share of conversions that have come by its age."""
        clicks = {place: [one for one in held.values() if one.click] for place, held in self._held.items()}
        guarded = {campaign_of(place) for place, some in clicks.items() if any(one.converted for one in some)}
        counts: dict[str, tuple[float, float]] = {}
        for place, some in clicks.items():
            if some and campaign_of(place) in guarded:
                sold = np.array([entry.converted for entry in some], bool)
                done, share = arrived(some)
                counts[place] = float(sold.sum()), float(np.where(done | sold, 1.0, share).sum())
        if not counts:
            return {}
        converted, known = np.array(list(counts.values())).T
        return dict(zip(counts, logit(np.clip(shared_rates(converted, known), 1e-3, 1 - 1e-3)).tolist(), strict=True))


class ConversionEvidence:
    """Whether what a text says matters for conversions, campaign by campaign: what was said of each click before it was
    learnt from, beside what has become of it. It begins anew after a restart."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, float]] = {}

    def trust(
        self,
        names: Sequence[str],
        campaigns: Sequence[str],
        said: NDArray[np.float64],
        common: NDArray[np.float64],
        converted: NDArray[np.bool_],
        arrived: NDArray[np.float64],
    ) -> dict[str, float]:
        """Each campaign's trust (maths/guard.py), from all clicks that are held.

        Args:
          names, campaigns: of n clicks, the decisions and their campaigns.
          said, common: float64[n], log-odds of a conversion by the text, and for any text of the place, as they are
            now; taken of clicks that are new.
          converted, arrived: as for `conversion_evidence`.
        """
        now = zip(said.tolist(), common.tolist(), strict=True)
        self._said = {name: self._said.get(name, each) for name, each in zip(names, now, strict=True)}
        before = expit(np.array([self._said[name] for name in names], np.float64))
        nats = conversion_evidence(before[:, 0], before[:, 1], converted, arrived)
        own, at = np.unique(campaigns, return_inverse=True)
        sums = np.bincount(at, weights=nats, minlength=len(own)).astype(np.float64)
        return dict(zip(own.tolist(), trust_in_texts(sums).tolist(), strict=True))
