"""A market whose people tire of what they have seen: a text wears out by being shown, and recovers slowly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulators.worlds.language import tokens
from simulators.worlds.length import OfLength
from simulators.worlds.market import Events
from simulators.worlds.people import Place
from simulators.worlds.phrases import Phrases


class Fatigue(OfLength, Phrases):
    """A World: each showing of a text to a segment of a campaign adds 1 to its wear there, which halves in `half_life`
    arrivals; a text of wear w loses `depth` x (1 - exp(-w / `patience`)) in log-odds. Capitals and marks do not make a
    text another one. Controls are worn already and stay as they are."""

    half_life = 3_000.0
    depth = 2.0
    patience = 40.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._worn: dict[tuple[str, str, tuple[str, ...]], tuple[float, int]] = {}
        self._words: dict[tuple[object, ...], tuple[str, ...]] = {}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Events:
        events = super().respond(campaign_id, context, slots)
        key = campaign_id, self._segment(context), self._said(campaign_id, slots)
        self._worn[key] = (self._wear(key) + 1.0, self._arrived)
        return events

    def oracle_rate(self) -> float:
        """Mean click rate of who shows, at each arrival, the text that is best just then, over the run. The best single
        text would wear out; what a cleverer rota could earn is not searched for."""
        return sum(share * self._rota(place, share) for place, share in self._places())

    def oracle_reward(self) -> float:
        """The same: clicks are all that counts."""
        return self.oracle_rate()

    def _rota(self, place: Place, share: float) -> float:
        """Mean click rate at a place that has this share of the arrivals, when texts take turns."""
        ranked = self._search("clicks", place, lambda features, fit: self._felt(place, features, fit))
        texts = list({self._spoken(text): text for text in reversed(ranked)}.values())
        likings = np.array([self._liking(place, text) for text in texts])
        wear, decay = np.zeros(len(texts)), 0.5 ** (1.0 / (share * self.half_life))
        shown = max(1, round(share * self.impressions))
        earned = 0.0
        for _ in range(shown):
            now = likings - self.depth * (1.0 - np.exp(-wear / self.patience))
            best = int(np.argmax(now))
            earned += self._mean_rate(place[1], self._bases[place[0]] + float(now[best]))
            wear[best] += 1.0
            wear *= decay
        return earned / shown

    def _log_odds(self, campaign_id: str, segment: str, slots: dict[str, str]) -> float:
        fresh = super()._log_odds(campaign_id, segment, slots)
        if dict(slots) in self._items[campaign_id].body["controls"]:
            return fresh
        wear = self._wear((campaign_id, segment, self._said(campaign_id, slots)))
        return fresh - self.depth * (1.0 - math.exp(-wear / self.patience))

    def _wear(self, key: tuple[str, str, tuple[str, ...]]) -> float:
        wear, since = self._worn.get(key, (0.0, 0))
        return wear * 0.5 ** ((self._arrived - since) / self.half_life) if wear else 0.0

    def _said(self, campaign_id: str, slots: dict[str, str]) -> tuple[str, ...]:
        key = (campaign_id, *slots.items())
        if key not in self._words:
            self._words[key] = self._spoken(self._whole(campaign_id, slots))
        return self._words[key]

    def _spoken(self, masked: str) -> tuple[str, ...]:
        """A text's words, as people remember it."""
        return tuple(token for token in tokens(masked) if token not in ".!?,")
