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
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from simulators.worlds import taste
from simulators.worlds.language import Language
from simulators.worlds.oracle import best_text, ended
from simulators.worlds.taste import Taste, Vector

SEGMENTS = ("commuters", "parents", "students", "explorers")
DEVICES = {"mobile": (0.6, 0.1), "desktop": (0.3, -0.15), "tablet": (0.1, 0.0)}
"""Device -> (share of arrivals, effect in log-odds)."""
POSITIONS = {"top": (0.3, 0.35), "middle": (0.4, 0.0), "bottom": (0.3, -0.4)}
"""Position on the page -> (share of arrivals, effect in log-odds)."""
HOUR_EFFECT = 0.25
DAY_MS = 86_400_000

CONTROL_RATES = (0.032, 0.038)
"""Each campaign's own controls click at a rate drawn from this range, averaged over its arrivals."""
SHARED, OWN, LOCAL = 0.40, 0.45, 0.15
"""Shares of that variance: liked by all, by the segment, by the segment in this campaign alone."""
CEILING = 6.0
"""No text gains more than this, in log-odds, whatever it piles up."""
FITTING, STRAYING = 0.55, -1.1
ILL_FORMED = -2.2

CLICK_MEDIAN_MS, CLICK_LONGEST_MS = 20_000, 1_500_000
CONVERSION_RATES = (0.05, 0.15)
CONVERSION_MEDIAN_MS, CONVERSION_LONGEST_MS = 8 * 3_600_000, 5 * DAY_MS
MAX_CHARS = 80
_PLACEHOLDER = re.compile(r"\[\w+\]")


class Cell(NamedTuple):
    """What one segment makes of one campaign's copy: `scale` x (the taste's utility - `mean`), in log-odds."""

    taste: Taste
    scale: float
    mean: float


@cache
def _reference() -> tuple[tuple[str, ...], Language]:
    lines = tuple((taste.DATA / "reference.txt").read_text(encoding="utf-8").splitlines())
    return lines, Language(lines)


@cache
def _reference_features() -> Vector:
    return np.stack([taste.features(line) for line in _reference()[0]])


@cache
def _reference_goods(goods: str) -> Vector:
    return np.array([_fit(line, goods) for line in _reference()[0]])


def _fit(masked: str, goods: str) -> float:
    """Log-odds for speaking of these goods, or of others."""
    own, stray = taste.about(masked, goods)
    return FITTING * own + STRAYING * stray


@cache
def _catalogue() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((taste.DATA / "campaigns.json").read_text(encoding="utf-8"))
    return loaded


def _sigmoid(value: Vector) -> Vector:
    return 1.0 / (1.0 + np.exp(-value))


def saturated(utility: Vector) -> Vector:
    """Likes that add up ever more slowly, up to `CEILING`; dislikes as they are."""
    return np.where(utility > 0.0, CEILING * np.tanh(utility / CEILING), utility)


@cache
def _circumstances(peak_hour: float) -> tuple[Vector, Vector]:
    """(effects in log-odds, shares), both float64[216]: every device, position and hour."""
    every = list(product(DEVICES.values(), POSITIONS.values(), range(24)))
    effects = [device[1] + position[1] + _hour_effect(hour, peak_hour) for device, position, hour in every]
    shares = [device[0] * position[0] / 24 for device, position, _ in every]
    return np.array(effects), np.array(shares)


def _hour_effect(hour: float, peak_hour: float) -> float:
    return HOUR_EFFECT * math.cos(2 * math.pi * (hour - peak_hour) / 24)


class Market:
    """A World (contracts section 6): the same seed and calls give the same people.

    A context holds segment, device, position and hour. `click_rate` takes what a context lacks at its average."""

    interval_ms = 30_000
    spread = 1.0
    """Standard deviation, in log-odds, of what people make of good copy."""

    def __init__(self, seed: int) -> None:
        # Three streams: what is asked of the one never shifts the others, so every policy meets the same arrivals.
        drawing, self._arrivals, self._responses = (np.random.default_rng([seed, stream]) for stream in range(3))
        self._arrived = 0
        self._read: dict[tuple[str, str], tuple[Vector, float]] = {}
        self._well_formed: dict[str, bool] = {}
        self._best: dict[tuple[str, str], float] = {}
        self._bodies = {name: _body(entry["body"]) for name, entry in _catalogue().items()}
        self._own_words = {name: _own_words(body["product"]) for name, body in self._bodies.items()}
        self._campaign_shares = drawing.dirichlet(np.full(len(self._bodies), 12.0))
        self._segment_shares = {name: drawing.dirichlet(np.full(len(SEGMENTS), 12.0)) for name in self._bodies}
        self._peak_hours = {segment: float(drawing.uniform(7, 22)) for segment in SEGMENTS}
        self._conversion_rates = {segment: float(drawing.uniform(*CONVERSION_RATES)) for segment in SEGMENTS}
        self._cells = _draw_cells(drawing, list(self._bodies), self.spread)
        self._bases = {name: self._base(name, float(drawing.uniform(*CONTROL_RATES))) for name in self._bodies}

    # What the contract asks for.

    def campaigns(self) -> dict[str, dict[str, Any]]:
        """Bodies of PUT /v1/campaigns/{id}; a fresh copy each time."""
        return copy.deepcopy(self._bodies)

    def arrive(self) -> tuple[str, dict[str, Any]]:
        """The next request, `interval_ms` after the one before."""
        hour = self._arrived * self.interval_ms % DAY_MS // 3_600_000
        self._arrived += 1
        campaign_id = _choice(self._arrivals, list(self._bodies), self._campaign_shares)
        segment = _choice(self._arrivals, SEGMENTS, self._segment_shares[campaign_id])
        device = _choice(self._arrivals, list(DEVICES), [share for share, _ in DEVICES.values()])
        position = _choice(self._arrivals, list(POSITIONS), [share for share, _ in POSITIONS.values()])
        return campaign_id, {"segment": segment, "device": device, "position": position, "hour": hour}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[tuple[str, int, float]]:
        """A click, perhaps, and perhaps a conversion with its value; draws the same number of random values always."""
        click, convert, size = self._responses.random(3)
        slow, slower = self._responses.normal(size=2)
        if click >= self.click_rate(campaign_id, context, slots):
            return []
        click_ms = min(CLICK_LONGEST_MS, round(CLICK_MEDIAN_MS * math.exp(1.1 * slow)))
        events = [("click", click_ms, 0.0)]
        if convert < self._conversion_rates[self._segment(context)]:
            later_ms = min(CONVERSION_LONGEST_MS, round(CONVERSION_MEDIAN_MS * math.exp(1.0 * slower)))
            median = float(_catalogue()[campaign_id]["median_value"])
            events.append(("conversion", click_ms + later_ms, round(median * (0.5 + float(size)), 2)))
        return events

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """The true click rate of this text in this context."""
        segment = self._segment(context)
        value = self._log_odds(campaign_id, segment, slots)
        if {"device", "position", "hour"} <= context.keys():
            value += DEVICES.get(str(context["device"]), (0.0, 0.0))[1]
            value += POSITIONS.get(str(context["position"]), (0.0, 0.0))[1]
            value += _hour_effect(float(context["hour"]), self._peak_hours[segment])
            return float(_sigmoid(np.array(value)))
        return self._mean_rate(segment, value)

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        """Every slot there, none too long, no placeholder left, and each text good copy to the world's own ear."""
        wanted = {slot["name"]: slot["max_chars"] for slot in self._bodies[campaign_id]["slots"]}
        if slots.keys() != wanted.keys() or any(len(text) > wanted[name] for name, text in slots.items()):
            return False
        if any("[" in text or "]" in text or not text.isprintable() for text in slots.values()):
            return False
        return all(self._sounds_right(self._masked(campaign_id, text)) for text in slots.values())

    def oracle_rate(self) -> float:
        """Mean click rate, over the arrivals, of the best text that the world's own search finds for each cell."""
        return self._oracle(lambda campaign_id, segment: 1.0)

    # Beyond clicks: what the campaign's reward weights make of clicks, conversions and their values.

    def true_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """Expected reward of showing this text."""
        return self.click_rate(campaign_id, context, slots) * self._click_worth(campaign_id, self._segment(context))

    def oracle_reward(self) -> float:
        """Expected reward of the best texts, over the arrivals."""
        return self._oracle(self._click_worth)

    def shares(self, campaign_id: str) -> dict[str, float]:
        """Segment -> share of all arrivals that are this campaign's and segment's; for reports."""
        share = float(self._campaign_shares[list(self._bodies).index(campaign_id)])
        return {name: share * float(own) for name, own in zip(SEGMENTS, self._segment_shares[campaign_id], strict=True)}

    # How it comes about.

    def _segment(self, context: Mapping[str, Any]) -> str:
        segment = str(context.get("segment", SEGMENTS[0]))
        if segment not in SEGMENTS:
            raise ValueError(f"segment: got {segment!r}, expected one of {', '.join(SEGMENTS)}")
        return segment

    def _masked(self, campaign_id: str, text: str) -> str:
        pattern, placeholders = self._own_words[campaign_id]
        return pattern.sub(lambda match: placeholders[match.group().lower()], text)

    def _whole(self, campaign_id: str, slots: Mapping[str, str]) -> str:
        return _joined([self._masked(campaign_id, text) for text in slots.values()])

    def _sounds_right(self, masked: str) -> bool:
        if masked not in self._well_formed:
            self._well_formed[masked] = not _reference()[1].flaws(masked)
        return self._well_formed[masked]

    def _log_odds(self, campaign_id: str, segment: str, slots: dict[str, str]) -> float:
        """Log-odds of a click before device, position and hour."""
        if not self.valid(campaign_id, slots):
            return self._bases[campaign_id] + ILL_FORMED
        return self._bases[campaign_id] + self._liking(campaign_id, segment, self._whole(campaign_id, slots))

    def _liking(self, campaign_id: str, segment: str, masked: str) -> float:
        """What this segment makes of well-formed copy, in log-odds; average copy for these goods is about 0."""
        key = campaign_id, masked
        if key not in self._read:
            self._read[key] = taste.features(masked), _fit(masked, _catalogue()[campaign_id]["goods"])
        vector, fit = self._read[key]
        return float(self._felt((campaign_id, segment), vector[None, :], np.array([fit]))[0])

    def _felt(self, key: tuple[str, str], features: Vector, fit: Vector) -> Vector:
        """float64[N] log-odds for float64[N, K] features and float64[N] fit to the goods."""
        cell = self._cells[key]
        return saturated(cell.scale * (cell.taste.utility(features) - cell.mean) + fit)

    def _mean_rate(self, segment: str, log_odds: float) -> float:
        effects, shares = _circumstances(self._peak_hours[segment])
        return float(shares @ _sigmoid(log_odds + effects))

    def _base(self, campaign_id: str, target: float) -> float:
        """The base log-odds at which the campaign's controls click at `target`, over its segments; by bisection."""
        controls = [self._whole(campaign_id, slots) for slots in self._bodies[campaign_id]["controls"]]
        shares = self._segment_shares[campaign_id] / len(controls)
        liked = [
            (segment, share, self._liking(campaign_id, segment, text))
            for segment, share in zip(SEGMENTS, shares, strict=True)
            for text in controls
        ]
        low, high = -12.0, 2.0
        for _ in range(40):
            middle = (low + high) / 2
            rate = sum(share * self._mean_rate(segment, middle + liking) for segment, share, liking in liked)
            low, high = (middle, high) if rate < target else (low, middle)
        return (low + high) / 2

    def _click_worth(self, campaign_id: str, segment: str) -> float:
        """Expected reward of one click, what follows it included."""
        weights = {"click": 1.0, "conversion": 0.0, "value": 0.0, **self._bodies[campaign_id].get("reward", {})}
        chance, value = self._conversion_rates[segment], float(_catalogue()[campaign_id]["median_value"])
        return float(weights["click"] + chance * (weights["conversion"] + weights["value"] * value))

    def _oracle(self, worth: Callable[[str, str], float]) -> float:
        total = 0.0
        for name in self._bodies:
            for segment, share in self.shares(name).items():
                rate = self._mean_rate(segment, self._bases[name] + self._best_liking(name, segment))
                total += share * rate * worth(name, segment)
        return total

    def _best_liking(self, campaign_id: str, segment: str) -> float:
        """How much this segment likes the best text for this campaign; searched for once."""
        key = campaign_id, segment
        if key not in self._best:
            own, goods = self._bodies[campaign_id]["product"], _catalogue()[campaign_id]["goods"]
            has = {"[product]", *(f"[{field}]" for field in ("brand", "price") if own.get(field))}
            lines, _ = _reference()
            rows = [at for at, line in enumerate(lines) if set(_PLACEHOLDER.findall(line)) <= has]
            matrix = np.hstack([_reference_features()[rows], _reference_goods(goods)[rows, None]])
            self._best[key], _ = best_text(
                [lines[at] for at in rows],
                matrix,
                lambda features: self._felt(key, features[:, :-1], features[:, -1]),
                lambda text: self._liking(campaign_id, segment, text),
                lambda text: self._length(campaign_id, text) <= MAX_CHARS and self._sounds_right(text),
                len(taste.lexicon().topics),
            )
        return self._best[key]

    def _length(self, campaign_id: str, masked: str) -> int:
        own = self._bodies[campaign_id]["product"]
        for field in ("name", "brand", "price"):
            masked = masked.replace("[product]" if field == "name" else f"[{field}]", own.get(field, ""))
        return len(masked)


class Subtle(Market):
    """The market with people who care two thirds as much about what a text says: learning takes several times the
    impressions."""

    spread = 0.66


def _draw_cells(rng: np.random.Generator, names: Sequence[str], spread: float) -> dict[tuple[str, str], Cell]:
    """Likes of every campaign and segment, of equal spread over the reference copy."""
    shared = taste.drawn(rng, 6)
    own = {segment: taste.drawn(rng, 8) for segment in SEGMENTS}
    cells: dict[tuple[str, str], Cell] = {}
    for name, segment in product(names, SEGMENTS):
        parts = ((SHARED**0.5, shared), (OWN**0.5, own[segment]), (LOCAL**0.5, taste.drawn(rng, 2)))
        likes = taste.mixed(parts)
        felt = likes.utility(_reference_features())
        cells[name, segment] = Cell(likes, spread / float(felt.std()), float(felt.mean()))
    return cells


def _body(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **copy.deepcopy(dict(body)),
        "segments": list(SEGMENTS),
        "slots": [{"name": "headline", "max_chars": MAX_CHARS}],
    }


def _own_words(own: Mapping[str, Any]) -> tuple[re.Pattern[str], dict[str, str]]:
    """(pattern of the campaign's own words, word -> placeholder)."""
    words = {fact.lower(): "[fact]" for fact in own.get("facts", ())}
    for field, placeholder in (("price", "[price]"), ("brand", "[brand]"), ("name", "[product]")):
        if own.get(field):
            words[own[field].lower()] = placeholder
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE), words


def _joined(masked: Sequence[str]) -> str:
    """Several slots read as one text."""
    return " ".join([*(ended(text) for text in masked[:-1]), *masked[-1:]])


def _choice(rng: np.random.Generator, options: Sequence[str], shares: Sequence[float] | Vector) -> str:
    return options[int(rng.choice(len(options), p=shares))]
