"""A World (contracts section 6) that does everything its contract allows and the other worlds do not do."""

from __future__ import annotations

import random
from typing import Any

DAY_MS = 86_400_000


class OddWorld:
    """Three campaigns: two slots that pay by value and rating, counted in every way late and early events come; only
    the fields that must be there; texts that an editor must approve, which nobody does.

    Contexts lack the segment or hold odd keys and values; arrivals are half a day apart, so that windows and
    retentions end during a run; there is neither true_rate nor oracle_reward."""

    interval_ms = DAY_MS // 2

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def campaigns(self) -> dict[str, dict[str, Any]]:
        mail = {
            "product": {"name": "Fjord Tea"},
            "segments": ["all", "night:owls|x"],
            "slots": [{"name": "headline", "max_chars": 70}, {"name": "body", "max_chars": 90}],
            "controls": [
                {"headline": "Tea for you", "body": "Fjord tea."},
                {"headline": "Tea", "body": "Warm tea for a cold day."},
            ],
            "reward": {"click": -0.5, "conversion": 2.0, "value": 0.01, "rating": 30.0},
            "attribution": {
                "click_window_ms": 60_000,
                "conversion_window_ms": DAY_MS,
                "view_through_ms": 3 * DAY_MS,
                "count": "all",
            },
            "holdback": 0.3,
        }
        bare = {"product": {"name": "Thing"}, "controls": [{"headline": "A thing"}]}
        edited = {**bare, "rules": {"require_approval": True}, "holdback": 0.0}
        return {"mail-1": mail, "bare": bare, "edited": edited}

    def arrive(self) -> tuple[str, dict[str, Any]]:
        pick = self._random.random()
        if pick < 0.6:
            context = {"segment": self._random.choice(["all", "night:owls|x"]), "hour: now": 3.25, "vip": True}
            return "mail-1", context
        if pick < 0.9:
            return "bare", {"device|kind": "a b:c\nd", "n": 10**12, "share": 0.125, "né": ""}
        return "edited", {}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[tuple[str, int, float]]:
        if self._random.random() >= self.click_rate(campaign_id, context, slots):
            return [("rating", 5_000, 0.25)] if campaign_id == "mail-1" and self._random.random() < 0.3 else []
        late = self._random.choice([1, DAY_MS // 2, 2 * DAY_MS, 40 * DAY_MS])
        return [
            ("conversion", late, 1_000.5),
            ("click", self._random.choice([-2_000, 0, 59_000, 70_000]), 0.0),
            ("rating", 20 * DAY_MS, 1.0),
            ("click", 30, 0.0),
        ]

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        return 0.1 + 0.8 * ("light" in "".join(slots.values()))

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        return all(slots.values())

    def oracle_rate(self) -> float:
        return 0.0
