"""The smallest market that is a World (contracts section 6): two texts, of which one is ten times better."""

from __future__ import annotations

import random
from typing import Any

RATES = {"A good thing": 0.5, "A plain thing": 0.05, "Control": 0.05}
LATE_MS = 40_000_000  # beyond any run of a few hundred arrivals


class ToyWorld:
    """One campaign, two segments. Every click converts once at once and once much later."""

    interval_ms = 1000

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.asked: list[tuple[str, str]] = []

    def campaigns(self) -> dict[str, dict[str, Any]]:
        slots = [{"name": "headline", "max_chars": 80}]
        product = {"name": "Thing"}
        body = {"product": product, "segments": ["a", "b"], "slots": slots, "controls": [{"headline": "Control"}]}
        return {"things": body}

    def arrive(self) -> tuple[str, dict[str, Any]]:
        segment = self._random.choice(["a", "b"])
        self.asked.append(("arrive", segment))
        return "things", {"segment": segment}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[tuple[str, int, float]]:
        self.asked.append(("respond", context["segment"]))
        if self._random.random() >= self.click_rate(campaign_id, context, slots):
            return []
        return [("click", 2500, 0.0), ("conversion", 2600, 9.5), ("conversion", LATE_MS, 1.0)]

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        return RATES[slots["headline"]]

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        return slots["headline"] in RATES

    def oracle_rate(self) -> float:
        return max(RATES.values())
