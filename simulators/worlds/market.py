"""The market: eight campaigns, four segments, and people whose likes nobody knows but they.

A click's log-odds are a base rate, plus what this segment likes about what the text says and how it says it, plus
device, position on the page and hour of the day. Likes are drawn from the seed: a part that all people share, a part of
each segment's own, a small part of each campaign and segment; topics and forms also work together or against each
other. Good copy for the wrong goods earns less; ill-formed text, by the world's own ear (`language.py`), a ninth of the
base whatever it says. Clicks come after seconds to minutes, conversions after hours to days, with values. There is no
fatigue.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import brentq

from simulators.worlds import taste
from simulators.worlds.catalogue import Item, Masking, joined, shipped
from simulators.worlds.oracle import best_texts
from simulators.worlds.people import (
    DEVICES,
    ILL_FORMED,
    POSITIONS,
    Cell,
    Place,
    Reading,
    Shares,
    circumstances,
    fit,
    hour_effect,
    reference,
    reference_features,
    reference_fit,
    remember,
    saturated,
    sigmoid,
)
from simulators.worlds.taste import Vector

SEGMENTS = ("commuters", "parents", "students", "explorers")
DAY_MS = 86_400_000
CLICK_MEDIAN_MS, CLICK_LONGEST_MS = 20_000, 1_500_000
CONVERSION_RATES = (0.05, 0.15)
CONVERSION_MEDIAN_MS, CONVERSION_LONGEST_MS = 8 * 3_600_000, 5 * DAY_MS
MAX_CHARS = 80
KEPT = 400
"""How many of the best texts the search for the oracle keeps."""
_PLACEHOLDER = re.compile(r"\[\w+\]")
Events = list[tuple[str, int, float]]


class Market:
    """A World (docs/worlds.md): the same seed and calls give the same people.

    A context holds segment, device, position and hour. `click_rate` takes what a context lacks at its average.
    The class's attributes are what its kinds differ in."""

    interval_ms = 30_000
    segments: tuple[str, ...] = SEGMENTS
    spread = 1.0
    """Standard deviation, in log-odds, of what people make of good copy."""
    ceiling = 6.0
    """No text gains more than this, in log-odds, whatever it piles up."""
    kinship = (0.40, 0.45, 0.15)
    """Shares of that variance: liked by all, by the segment, by the segment in this campaign alone."""
    couples = (6, 8, 2)
    """Pairs of features that work together or against each other, in each of these three parts."""
    control_rates = (0.032, 0.038)
    """Each campaign's own controls click at a rate drawn from this range, averaged over its arrivals."""

    def __init__(self, seed: int) -> None:
        # Three streams: what is asked of the one never shifts the others, so every policy meets the same arrivals.
        drawing, self._arrivals, self._responses = (np.random.default_rng([seed, stream]) for stream in range(3))
        self._arrived = 0
        self._items = self._offered()
        self._masking = {name: Masking(item.body["product"]) for name, item in self._items.items()}
        # What follows is remembered, not state: it says the same whenever it is asked.
        self._read: dict[tuple[str, str], Reading] = {}
        self._liked: dict[tuple[object, ...], float] = {}
        self._fine: dict[tuple[object, ...], bool] = {}
        self._sounds: dict[str, bool] = {}
        self._found: dict[tuple[str, Place], list[str]] = {}
        self._campaign_shares = drawing.dirichlet(np.full(len(self._items), 12.0))
        self._segment_shares = {name: drawing.dirichlet(np.full(len(self.segments), 12.0)) for name in self._items}
        self._peak_hours = {segment: float(drawing.uniform(7, 22)) for segment in self.segments}
        self._conversion_rates = {segment: float(drawing.uniform(*CONVERSION_RATES)) for segment in self.segments}
        self._who = Shares(list(self._items), self._campaign_shares)
        self._which = {name: Shares(self.segments, shares) for name, shares in self._segment_shares.items()}
        self._device, self._position = (
            Shares(list(kinds), [share for share, _ in kinds.values()]) for kinds in (DEVICES, POSITIONS)
        )
        self._cells = self._draw_cells(drawing)
        self._bases = {name: self._base(name, drawing) for name in self._items}

    # What the contract asks for.

    def campaigns(self) -> dict[str, dict[str, Any]]:
        """Bodies of PUT /v1/campaigns/{id}; a fresh copy each time."""
        own = {"segments": list(self.segments), "slots": [{"name": "headline", "max_chars": MAX_CHARS}]}
        return copy.deepcopy({name: {**item.body, **own} for name, item in self._items.items()})

    def arrive(self) -> tuple[str, dict[str, Any]]:
        """The next request, `interval_ms` after the one before."""
        hour = self._arrived * self.interval_ms % DAY_MS // 3_600_000
        self._arrived += 1
        campaign_id = self._next_campaign()
        segment = self._which[campaign_id].draw(self._arrivals)
        device, position = self._device.draw(self._arrivals), self._position.draw(self._arrivals)
        return campaign_id, {"segment": segment, "device": device, "position": position, "hour": hour}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Events:
        """A click, perhaps, and perhaps a conversion with its value; draws the same number of random values always."""
        click, convert, size = self._responses.random(3).tolist()
        slow, slower = self._responses.normal(size=2).tolist()
        if click >= self.click_rate(campaign_id, context, slots):
            return []
        click_ms = min(CLICK_LONGEST_MS, round(CLICK_MEDIAN_MS * math.exp(1.1 * slow)))
        events = [("click", click_ms, 0.0)]
        if convert < self._conversion_rates[self._segment(context)]:
            later_ms = min(CONVERSION_LONGEST_MS, round(CONVERSION_MEDIAN_MS * math.exp(1.0 * slower)))
            events.append(
                ("conversion", click_ms + later_ms, round(self._items[campaign_id].median_value * (0.5 + size), 2))
            )
        return events

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """The true click rate of this text in this context."""
        segment = self._segment(context)
        value = self._log_odds(campaign_id, segment, slots)
        if {"device", "position", "hour"} <= context.keys():
            value += DEVICES.get(context["device"], (0.0, 0.0))[1]
            value += POSITIONS.get(context["position"], (0.0, 0.0))[1]
            value += hour_effect(float(context["hour"]), self._peak_hours[segment])
            return 1.0 / (1.0 + math.exp(-value))
        return self._mean_rate(segment, value)

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        """Every slot there, none too long, no placeholder left, and each text good copy to the world's own ear."""
        key = (campaign_id, *slots.items())
        known = self._fine.get(key)
        return known if known is not None else remember(self._fine, key, self._well_formed(campaign_id, slots))

    def oracle_rate(self) -> float:
        """Mean click rate, over the arrivals, of the best text that the world's own search finds for each cell."""
        return sum(share * self._text_rate(place, self._best(place)) for place, share in self._places())

    # Beyond clicks: what the campaign's reward weights make of clicks, conversions and their values.

    def true_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """Expected reward of showing this text."""
        return self.click_rate(campaign_id, context, slots) * self._click_worth(campaign_id, self._segment(context))

    def oracle_reward(self) -> float:
        """Expected reward of the best texts, over the arrivals."""
        return sum(
            share * self._text_rate(place, self._best(place)) * self._click_worth(*place)
            for place, share in self._places()
        )

    def shares(self, campaign_id: str) -> dict[str, float]:
        """Segment -> share of all arrivals that are this campaign's and segment's; for reports."""
        share = float(self._campaign_shares[list(self._items).index(campaign_id)])
        own = self._segment_shares[campaign_id]
        return {name: share * float(part) for name, part in zip(self.segments, own, strict=True)}

    def items(self) -> dict[str, Item]:
        """What is advertised, by campaign_id; a copy."""
        return copy.deepcopy(self._items)

    def best_rate(self, campaign_id: str, segment: str) -> float:
        """The oracle's click rate there, over device, position and hour; for reports."""
        return self._text_rate((campaign_id, segment), self._best((campaign_id, segment)))

    def utility(self, campaign_id: str, segment: str, features: Vector) -> Vector:
        """float64[N] for features float64[N, K]: how much is liked there, before likes add up ever more slowly."""
        return self._cells[campaign_id, segment].taste.utility(features)

    # What the market's kinds change.

    def _offered(self) -> dict[str, Item]:
        """What is advertised, by campaign_id."""
        return shipped()

    def _next_campaign(self) -> str:
        return self._who.draw(self._arrivals)

    def _base(self, campaign_id: str, drawing: np.random.Generator) -> float:
        """The base log-odds at which the campaign's controls click at a rate drawn for them."""
        return self._control_level(campaign_id, float(drawing.uniform(*self.control_rates)))

    # How it comes about.

    def _draw_cells(self, rng: np.random.Generator) -> dict[Place, Cell]:
        """Likes of every campaign and segment, of equal spread over the reference copy."""
        weights = [part**0.5 for part in self.kinship]
        shared = taste.drawn(rng, self.couples[0])
        own = {segment: taste.drawn(rng, self.couples[1]) for segment in self.segments}
        cells: dict[Place, Cell] = {}
        for name, segment in product(self._items, self.segments):
            parts = (shared, own[segment], taste.drawn(rng, self.couples[2]))
            likes = taste.mixed(tuple(zip(weights, parts, strict=True)))
            felt = likes.utility(reference_features())
            cells[name, segment] = Cell(likes, self.spread / float(felt.std()), float(felt.mean()))
        return cells

    def _places(self) -> list[tuple[Place, float]]:
        """Every campaign and segment with its share of the arrivals."""
        return [((name, segment), share) for name in self._items for segment, share in self.shares(name).items()]

    def _segment(self, context: Mapping[str, Any]) -> str:
        segment = str(context.get("segment", self.segments[0]))
        if segment not in self.segments:
            raise ValueError(f"segment: got {segment!r}, expected one of {', '.join(self.segments)}")
        return segment

    def _whole(self, campaign_id: str, slots: Mapping[str, str]) -> str:
        return joined([self._masking[campaign_id].masked(text) for text in slots.values()])

    def _well_formed(self, campaign_id: str, slots: Mapping[str, str]) -> bool:
        if slots.keys() != {"headline"} or any(len(text) > MAX_CHARS for text in slots.values()):
            return False
        if any("[" in text or "]" in text or not text.isprintable() for text in slots.values()):
            return False
        return all(self._sounds_right(self._masking[campaign_id].masked(text)) for text in slots.values())

    def _sounds_right(self, masked: str) -> bool:
        known = self._sounds.get(masked)
        return known if known is not None else remember(self._sounds, masked, not reference()[1].flaws(masked))

    def _log_odds(self, campaign_id: str, segment: str, slots: dict[str, str]) -> float:
        """Log-odds of a click before device, position and hour."""
        key = (campaign_id, segment, *slots.items())
        known = self._liked.get(key)
        if known is not None:
            return known
        liking = ILL_FORMED
        if self.valid(campaign_id, slots):
            liking = self._liking((campaign_id, segment), self._whole(campaign_id, slots))
        return remember(self._liked, key, self._bases[campaign_id] + liking)

    def _reading(self, campaign_id: str, masked: str) -> Reading:
        key = campaign_id, masked
        known = self._read.get(key)
        if known is not None:
            return known
        about = fit(masked, self._items[campaign_id].goods)
        return remember(self._read, key, Reading(taste.features(masked), about))

    def _liking(self, place: Place, masked: str) -> float:
        """What this segment makes of well-formed copy, in log-odds; average copy for these goods is about 0."""
        read = self._reading(place[0], masked)
        return float(self._felt(place, read.features[None, :], np.array([read.fit]))[0])

    def _felt(self, place: Place, features: Vector, fit: Vector) -> Vector:
        """float64[N] log-odds for float64[N, K] features and float64[N] fit to the goods."""
        cell = self._cells[place]
        return saturated(cell.scale * (cell.taste.utility(features) - cell.mean) + fit, self.ceiling)

    def _mean_rate(self, segment: str, log_odds: float) -> float:
        effects, shares = circumstances(self._peak_hours[segment])
        return float(shares @ sigmoid(log_odds + effects))

    def _text_rate(self, place: Place, masked: str) -> float:
        """Click rate of a well-formed text over device, position and hour."""
        return self._mean_rate(place[1], self._bases[place[0]] + self._liking(place, masked))

    def _control_level(self, campaign_id: str, target: float) -> float:
        """The base log-odds at which the campaign's controls click at `target`, over its segments."""
        controls = [self._whole(campaign_id, slots) for slots in self._items[campaign_id].body["controls"]]
        likings = np.array(
            [[self._liking((campaign_id, segment), text) for text in controls] for segment in self.segments]
        )
        return self._level(campaign_id, likings, target)

    def _level(self, campaign_id: str, likings: Vector, target: float) -> float:
        """The log-odds to add so that texts of `likings` float64[segments, texts] click at `target` on average, over
        the campaign's arrivals."""

        def rate(level: float) -> float:
            by_segment = [
                float(shares @ sigmoid(level + row[None, :] + effects[:, None]).mean(axis=1))
                for row, (effects, shares) in zip(
                    likings, (circumstances(self._peak_hours[segment]) for segment in self.segments), strict=True
                )
            ]
            return float(self._segment_shares[campaign_id] @ np.array(by_segment))

        return float(brentq(lambda level: rate(level) - target, -14.0, 14.0, xtol=1e-9))

    def _click_worth(self, campaign_id: str, segment: str) -> float:
        """Expected reward of one click, what follows it included."""
        item = self._items[campaign_id]
        weights = {"click": 1.0, "conversion": 0.0, "value": 0.0, **item.body.get("reward", {})}
        each = weights["conversion"] + weights["value"] * item.median_value
        return float(weights["click"] + self._conversion_rates[segment] * each)

    def _best(self, place: Place) -> str:
        """The text, masked, that most people of this segment click on; searched for once."""
        return self._search("clicks", place, lambda features, fit: self._felt(place, features, fit))[0]

    def _search(self, name: str, place: Place, score: Callable[[Vector, Vector], Vector]) -> list[str]:
        """The best texts, masked, for a place by `score(features [N, K], fit [N]) -> [N]`, the best first; remembered
        under `name`."""
        if (name, place) not in self._found:
            campaign_id = place[0]
            lines, _ = reference()
            has = self._masking[campaign_id].has()
            rows = [at for at, line in enumerate(lines) if set(_PLACEHOLDER.findall(line)) <= has]
            goods = reference_fit(self._items[campaign_id].goods)[rows, None]

            def read(text: str) -> float:
                reading = self._reading(campaign_id, text)
                return float(score(reading.features[None, :], np.array([reading.fit]))[0])

            ranked = best_texts(
                [lines[at] for at in rows],
                np.hstack([reference_features()[rows], goods]),
                lambda features: score(features[:, :-1], features[:, -1]),
                read,
                lambda text: len(self._masking[campaign_id].filled(text)) <= MAX_CHARS and self._sounds_right(text),
                len(taste.lexicon().topics),
            )
            self._found[name, place] = [text for _, text in ranked[:KEPT]]
        return self._found[name, place]


class Subtle(Market):
    """The market with people who care two thirds as much about what a text says: learning takes several times the
    impressions."""

    spread = 0.66
