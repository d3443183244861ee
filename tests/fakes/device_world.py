"""A World (contracts section 6) in which the device says what people like, as much as their segment does."""

from __future__ import annotations

import math
from typing import Any

from simulators.worlds.phrases import Phrases

LIKES_OF = {"mobile": "commuters", "desktop": "parents", "tablet": "students"}
OTHER_PEOPLE = 1_000_000


class Devices(Phrases):
    """`phrases`, and on top of it each device's own likes, which are those of a segment of other people: of another
    seed. Both count for `SHARE` of what they are."""

    SHARE = 0.7

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._others = Phrases(seed + OTHER_PEOPLE)

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        own = super().click_rate(campaign_id, context, slots)
        base = self._bases[campaign_id]
        liked = self._log_odds(campaign_id, self._segment(context), slots) - base
        theirs = LIKES_OF[str(context.get("device", "mobile"))]
        added = self._others._log_odds(campaign_id, theirs, slots) - self._others._bases[campaign_id]
        log_odds = math.log(own / (1.0 - own)) - (1.0 - self.SHARE) * liked + self.SHARE * added
        return 1.0 / (1.0 + math.exp(-log_odds))
