"""The texts that were written for a campaign, kept so that what the critic learns later can bring one back."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from optimizer.ids import campaign_hash
from optimizer.types import Campaign, Candidate, Pool

_WORD = re.compile(r"\w+")
Floats = NDArray[np.float64]


class Archive:
    """The newest `per_campaign` texts that passed the gate, for each of the `campaigns` written for last. A text
    written for one segment may be shown to another: what it is worth there is for the critic to say."""

    def __init__(self, per_campaign: int = 1_500, campaigns: int = 500) -> None:
        self._per_campaign, self._campaigns = per_campaign, campaigns
        self._texts: OrderedDict[tuple[str, str], OrderedDict[str, Candidate]] = OrderedDict()
        self._hashes: dict[tuple[str, str], str] = {}

    def add(self, pool: Pool) -> None:
        key = (pool.tenant, pool.campaign_id)
        if self._hashes.get(key) != pool.campaign_hash:
            # Written for other goods than the campaign sells now.
            self._hashes[key], self._texts[key] = pool.campaign_hash, OrderedDict()
        texts = self._texts[key]
        self._texts.move_to_end(key)
        for candidate in pool.candidates:
            if candidate.rejected is None:
                known = texts.pop(candidate.variant_id, None)
                # Many are held: without what only the gradient needs.
                texts[candidate.variant_id] = known or msgspec.structs.replace(candidate, log_probs=(), embedding=None)
        while len(texts) > self._per_campaign:
            texts.popitem(last=False)
        while len(self._texts) > self._campaigns:
            old, _ = self._texts.popitem(last=False)
            del self._hashes[old]

    def texts(self, campaign: Campaign) -> list[Candidate]:
        """What is held for the campaign as it stands, the oldest first."""
        key = (campaign.tenant, campaign.campaign_id)
        if self._hashes.get(key) != campaign_hash(campaign):
            return []
        return list(self._texts[key].values())


def most_promising(scores: Floats, limit: int) -> list[int]:
    """At most `limit` texts in the order in which they deserve to be looked at.

    Each head's favourites in turn (its best, then every head's second, ...), each text once: what one draw from the
    posterior would show, not what the mean would, so that texts that may yet turn out well stay in the pool.

    Args:
      scores: float[H, n], what each of the H heads expects of each text.
    """
    n = scores.shape[1]
    wanted = min(limit, n)
    ranks = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
    # The mean takes part as a head of its own: it is the best guess.
    mean = np.argsort(-scores.mean(axis=0), kind="stable")[:wanted]
    order = np.concatenate([mean[None, :], ranks]).T.ravel()
    _, first = np.unique(order, return_index=True)
    return [int(at) for at in order[np.sort(first)][:limit]]


def near_duplicate(text: Candidate, others: Sequence[Candidate], most_shared: float = 0.8) -> bool:
    """Whether more than `most_shared` of the words of a text and of one of the others are common to both (Jaccard's
    index of their sets of words)."""
    mine = _words(text)
    for other in others:
        theirs = _words(other)
        if len(mine & theirs) > most_shared * len(mine | theirs):
            return True
    return False


def _words(text: Candidate) -> frozenset[str]:
    return frozenset(_WORD.findall(text.text().lower()))
