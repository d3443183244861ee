"""A market whose people change their minds: half-way through the run, segments swap their preferences."""

from __future__ import annotations

from simulators.worlds.length import OfLength
from simulators.worlds.phrases import Phrases


class Drift(OfLength, Phrases):
    """A World: after `impressions` // 2 arrivals commuters like what parents liked until then, and the other way round;
    students and explorers likewise. Their shares, hours and devices stay theirs. Only a tenth of a taste is shared by
    all, so that what was learnt is worth little afterwards."""

    kinship = (0.10, 0.60, 0.30)

    def swapped(self) -> bool:
        """Whether it has happened yet."""
        return self._arrived > self.impressions // 2

    def oracle_rate(self) -> float:
        """Mean click rate of the best text for each campaign and segment, before the swap and after it."""
        before = self.impressions // 2 / self.impressions
        halves = ((before, False), (1.0 - before, True))
        return sum(
            weight * share * self._place_rate(place[0], place[1], swapped)
            for weight, swapped in halves
            for place, share in self._places()
        )

    def oracle_reward(self) -> float:
        """The same: clicks are all that counts."""
        return self.oracle_rate()

    def best_rate(self, campaign_id: str, segment: str) -> float:
        """The oracle's click rate there now."""
        return self._place_rate(campaign_id, segment, self.swapped())

    def _place_rate(self, campaign_id: str, segment: str, swapped: bool) -> float:
        likes = self._other(segment) if swapped else segment
        text = self._best((campaign_id, likes))
        return self._mean_rate(segment, self._bases[campaign_id] + self._liking((campaign_id, likes), text))

    def _log_odds(self, campaign_id: str, segment: str, slots: dict[str, str]) -> float:
        return super()._log_odds(campaign_id, self._other(segment) if self.swapped() else segment, slots)

    def _other(self, segment: str) -> str:
        return self.segments[self.segments.index(segment) ^ 1]
