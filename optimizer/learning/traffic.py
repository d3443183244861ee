"""Where the impressions are, so that pools are written and favourites followed where somebody is shown them."""

from __future__ import annotations

from collections import Counter, deque

from optimizer.learning.features import campaign_name
from optimizer.types import Campaign

QUIET = 0.1  # what a place without impressions counts, beside one with its equal share of them


def place_name(campaign: Campaign, segment: str) -> str:
    """What names a campaign's segment among all tenants'."""
    return f"{campaign_name(campaign)}\x1f{segment}"


def campaign_of(place: str) -> str:
    """The campaign's name (features.py) in a place's."""
    return place.split("\x1f", 1)[0]


def due(share: float, waited: float, places: int) -> float:
    """How urgent a place is that has `share` of the impressions and has `waited` since its turn: the impressions it
    has had since, where each of the `places` has some of its own beside. With equal shares the longest wait comes
    first; a place without impressions has its turn too, ten times as rarely."""
    return (share + QUIET / max(places, 1)) * waited


class Traffic:
    """The newest `window` decisions' places. Not thread-safe."""

    def __init__(self, window: int = 10_000) -> None:
        self._window = window
        self._newest: deque[str] = deque()
        self._counts: Counter[str] = Counter()

    def note(self, place: str) -> None:
        """A decision was shown there."""
        self._newest.append(place)
        self._counts[place] += 1
        if len(self._newest) > self._window:
            old = self._newest.popleft()
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]

    def shares(self) -> dict[str, float]:
        """Each place's share of the newest decisions, by name; places without any are left out."""
        total = len(self._newest)
        return {name: self._counts[name] / total for name in sorted(self._counts)}
