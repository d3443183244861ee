"""Markets in which what happens after the click counts most, and depends on the text: `delay` and `proxy`."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from simulators.worlds import taste
from simulators.worlds.catalogue import Item
from simulators.worlds.market import CLICK_LONGEST_MS, CLICK_MEDIAN_MS, DAY_MS, Events
from simulators.worlds.people import Cell, Place, reference_features, remember, saturated, sigmoid
from simulators.worlds.phrases import Phrases
from simulators.worlds.taste import Vector

_SLIP = -3.0


class _Converting(Phrases):
    """A click on a text converts with a chance of the text's own: `chance` for average copy, more or less by a second
    taste. What counts is `worth[0]` a click plus `worth[1]` a conversion."""

    chance = 0.25
    chance_spread = 1.6
    """Standard deviation, in log-odds, of what a text does to the chance."""
    chance_ceiling = 2.0
    worth = (1.0, 1.0)
    median_ms, width, longest_ms = 3_600_000, 1.0, DAY_MS
    """Conversions come after a log-normal time from the click, of this median, width and upper end."""

    def __init__(self, seed: int) -> None:
        self._chances: dict[tuple[str, str, str], float] = {}
        self._persuaded: dict[Place, Cell] = {}
        super().__init__(seed)
        drawing = np.random.default_rng([seed, 3])
        parts = {segment: taste.drawn(drawing, 60) for segment in ("", *self.segments)}
        for name, segment in product(self._items, self.segments):
            likes = taste.mixed([(0.5**0.5, parts[""]), (0.5**0.5, parts[segment])])
            felt = likes.utility(reference_features())
            scale = self.chance_spread / float(felt.std())
            self._persuaded[name, segment] = Cell(likes, scale, float(felt.mean()))

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Events:
        """A click, perhaps, and perhaps a conversion; draws the same number of random values always."""
        click, convert, size = self._responses.random(3).tolist()
        slow, slower = self._responses.normal(size=2).tolist()
        if click >= self.click_rate(campaign_id, context, slots):
            return []
        click_ms = min(CLICK_LONGEST_MS, round(CLICK_MEDIAN_MS * math.exp(1.1 * slow)))
        events = [("click", click_ms, 0.0)]
        if convert < self.conversion_chance(campaign_id, self._segment(context), slots):
            later_ms = min(self.longest_ms, round(self.median_ms * math.exp(self.width * slower)))
            value = round(self._items[campaign_id].median_value * (0.5 + size), 2)
            events.append(("conversion", click_ms + later_ms, value))
        return events

    def conversion_chance(self, campaign_id: str, segment: str, slots: dict[str, str]) -> float:
        """The probability that a click on this text converts."""
        if not self.valid(campaign_id, slots):
            return float(sigmoid(np.array(_logit(self.chance) + _SLIP)))
        return self._chance((campaign_id, segment), self._whole(campaign_id, slots))

    def true_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """Expected reward of showing this text: `worth[0]` a click, `worth[1]` a conversion."""
        chance = self.conversion_chance(campaign_id, self._segment(context), slots)
        return self.click_rate(campaign_id, context, slots) * (self.worth[0] + self.worth[1] * chance)

    def oracle_reward(self) -> float:
        """Expected reward of the best texts by reward, over the arrivals."""
        return sum(share * self._text_reward(place, self._best_paid(place)) for place, share in self._places())

    def best_reward(self, campaign_id: str, segment: str) -> float:
        """The oracle's reward there, over device, position and hour; for reports."""
        return self._text_reward((campaign_id, segment), self._best_paid((campaign_id, segment)))

    def _best_paid(self, place: Place) -> str:
        """The text, masked, of the highest expected reward; searched for once, from the best by clicks too."""
        base = self._bases[place[0]]

        def reward(features: Vector, fit: Vector) -> Vector:
            return sigmoid(base + self._felt(place, features, fit)) * self._click_value(place, features)

        paid = self._search("reward", place, reward)[0]
        return max((paid, self._best(place)), key=lambda text: self._text_reward(place, text))

    def _text_reward(self, place: Place, masked: str) -> float:
        return self._text_rate(place, masked) * (self.worth[0] + self.worth[1] * self._chance(place, masked))

    def _click_value(self, place: Place, features: Vector) -> Vector:
        return self.worth[0] + self.worth[1] * sigmoid(_logit(self.chance) + self._persuasion(place, features))

    def _chance(self, place: Place, masked: str) -> float:
        key = (*place, masked)
        known = self._chances.get(key)
        if known is not None:
            return known
        features = self._reading(place[0], masked).features[None, :]
        chance = float(sigmoid(_logit(self.chance) + self._persuasion(place, features))[0])
        return remember(self._chances, key, chance)

    def _persuasion(self, place: Place, features: Vector) -> Vector:
        """float64[N] log-odds of a click's conversion, average copy 0, for float64[N, K] features."""
        cell = self._persuaded[place]
        return saturated(cell.scale * (cell.taste.utility(features) - cell.mean), self.chance_ceiling)


class Delay(_Converting):
    """A World: conversions come days after the click (median 30 hours, at most 6.5 days, inside the window of 7), and
    three quarters of what average copy earns is theirs. A minute from arrival to arrival: a run of 20,480 is 14 days.
    The campaigns' reward says what counts: 0.25 a click, 3 a conversion."""

    interval_ms = 60_000
    worth = (0.25, 3.0)
    median_ms, width, longest_ms = 30 * 3_600_000, 0.6, 156 * 3_600_000

    def _offered(self) -> dict[str, Item]:
        reward = {"click": self.worth[0], "conversion": self.worth[1]}
        return {name: item._replace(body={**item.body, "reward": reward}) for name, item in super()._offered().items()}


class Proxy(_Converting):
    """A World in which clicks are not what counts: one kind of phrase (the seed's own choice of `BAITS`) brings clicks
    from people who never convert. The campaigns' reward pays a click 1 and a conversion 0, so who learns what it is
    paid for learns to bait; `true_rate` counts conversions above all (0.02 a click, 2 a conversion). Conversions are
    posted within hours, so that it can be seen in the events. Other likes are weak."""

    spread = 0.8
    ceiling = 1.0
    copy_rates = (0.054, 0.060)
    chance = 0.4
    chance_spread = 0.3
    chance_ceiling = 0.6
    worth = (0.02, 2.0)
    median_ms, width, longest_ms = 600_000, 0.8, 6 * 3_600_000
    lure, let_down = 2.0, -4.5
    """What bait adds to the log-odds of a click, and of a click's conversion."""

    def __init__(self, seed: int) -> None:
        bait = BAITS[int(np.random.default_rng([seed, 4]).integers(len(BAITS)))]
        self._bait_at = taste.names().index(bait)
        super().__init__(seed)

    def baited(self, campaign_id: str, slots: dict[str, str]) -> bool:
        """Whether the text holds the bait; for reports."""
        return bool(taste.features(self._whole(campaign_id, slots))[self._bait_at] > 0)

    def _felt(self, place: Place, features: Vector, fit: Vector) -> Vector:
        return super()._felt(place, features, fit) + self.lure * (features[:, self._bait_at] > 0)

    def _persuasion(self, place: Place, features: Vector) -> Vector:
        return super()._persuasion(place, features) + self.let_down * (features[:, self._bait_at] > 0)


BAITS = ("tone urgent", "tone bold", "topic fun", "topic time")
"""None of them is in a control."""


def _logit(chance: float) -> float:
    return math.log(chance / (1.0 - chance))
