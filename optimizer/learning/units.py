"""What a campaign pays in: one earns cents by the click, its neighbour hundreds by the sale, and neither may set the
other's scale. Learnt campaign by campaign from what its decisions have earned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.learning.buffer import Entry
from optimizer.learning.features import campaign_name
from optimizer.types import Campaign, RewardWeights

USUAL = 0.2  # root mean square over the largest weight before anything is known: one decision in 25 brings it
BELIEF = 2.0  # decisions that earned something, after which a campaign's own figures count as much as its neighbours'
Output = Literal["clicked", "unclicked"]


@dataclass
class _Sums:
    """Over a campaign's decisions `clicked` and `plain` (without a click) that may earn more than the click: how many,
    how many did, the sums of what they did and of its square."""

    clicked: int = 0
    clicked_paid: int = 0
    clicked_extra: float = 0.0
    clicked_square: float = 0.0
    plain: int = 0
    plain_paid: int = 0
    plain_square: float = 0.0

    def count(self, entry: Entry, sign: int) -> None:
        paid = sign if entry.extra else 0
        if entry.click:
            self.clicked += sign
            self.clicked_paid += paid
            self.clicked_extra += sign * entry.extra
            self.clicked_square += sign * entry.extra**2
        else:
            self.plain += sign
            self.plain_paid += paid
            self.plain_square += sign * entry.extra**2

    def spread(self, output: Output) -> tuple[float, float]:
        """(root mean square of what came besides the click, decisions to which anything came)."""
        if output == "clicked":
            square, count, paid = self.clicked_square, self.clicked, self.clicked_paid
        else:
            square, count, paid = self.plain_square, self.plain, self.plain_paid
        # Revisions take back what they had added: rounding may leave a little under nothing.
        return math.sqrt(max(square, 0.0) / max(count, 1)), float(paid)


class Units:
    """Of each campaign the unit of each value output, and its price. Not thread-safe."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._kinds: dict[str, str] = {}
        self._nominal: dict[str, float] = {}
        self._tables: dict[Output, dict[str, float]] = {}

    def note(self, campaign: Campaign, before: Entry | None, after: Entry) -> None:
        """A decision's revision, as it stood before and as it stands now."""
        self._tables.clear()
        name = campaign_name(campaign)
        sums = self._sums.setdefault(name, _Sums())
        self._kinds[name], self._nominal[name] = _kind(campaign), nominal(campaign.reward)
        for entry, sign in ((before, -1), (after, 1)):
            if entry is not None and entry.pays_later:
                sums.count(entry, sign)

    def table(self, output: Output) -> dict[str, float]:
        """Units by campaign, and by kind (the tenant's campaigns that pay by value, and its others) what one is in
        units of the largest weight, for campaigns of which nothing is known yet.

        A campaign's unit is the root mean square of what its decisions earn besides the click, drawn towards what is
        usual for its kind, in logarithms, since only the order of magnitude is common to neighbours."""
        known = self._tables.get(output)
        if known is not None:
            return known
        own = {name: sums.spread(output) for name, sums in self._sums.items()}
        trust = {name: paid / (paid + BELIEF) for name, (_, paid) in own.items()}
        logs, weights = dict.fromkeys(self._kinds.values(), 0.0), dict.fromkeys(self._kinds.values(), 0.0)
        for name, (spread, _) in own.items():
            if spread > 0 and self._nominal[name] > 0:
                logs[self._kinds[name]] += trust[name] * math.log(spread / self._nominal[name])
                weights[self._kinds[name]] += trust[name]
        usual = {kind: math.exp(logs[kind] / weight) if weight > 0 else USUAL for kind, weight in weights.items()}
        units = {}
        for name, (spread, _) in own.items():
            common = usual[self._kinds[name]] * self._nominal[name]
            if spread > 0 and common > 0:
                units[name] = math.exp(trust[name] * math.log(spread) + (1.0 - trust[name]) * math.log(common))
            else:
                units[name] = spread or common or 1.0
        self._tables[output] = {**usual, **units}
        return self._tables[output]

    def keep(self, names: set[str]) -> None:
        """Forget all campaigns but these."""
        self._tables.clear()
        for kept in (self._sums, self._kinds, self._nominal):
            for name in kept.keys() - names:
                del kept[name]

    def price(self, campaign: Campaign) -> float:
        """Root mean square of a reward of this campaign that is not nothing, > 0: in it, one learning rate and one KL
        penalty serve every campaign. Of one that pays for clicks alone, the click's weight."""
        weights = campaign.reward
        first = abs(weights.click) or nominal(weights) or 1.0
        sums = self._sums.get(campaign_name(campaign))
        if sums is None or not nominal(weights) or not (sums.clicked or sums.plain):
            return first
        click = weights.click
        square = sums.clicked * click**2 + 2.0 * click * sums.clicked_extra + sums.clicked_square + sums.plain_square
        count = (sums.clicked if click else sums.clicked_paid) + sums.plain_paid
        return math.sqrt(max(square + BELIEF * first**2, 0.0) / (count + BELIEF)) or first

    def viewed(self, names: Iterable[str]) -> tuple[int, int]:
        """(decisions without a click, those of them that earned something all the same) of these campaigns."""
        some = [self._sums[name] for name in names if name in self._sums]
        return sum(one.plain for one in some), sum(one.plain_paid for one in some)


def nominal(reward: RewardWeights) -> float:
    """The largest weight of what may come besides the click."""
    return max(abs(reward.conversion), abs(reward.value), abs(reward.rating))


def signed(value: NDArray[np.float64], reward: RewardWeights) -> NDArray[np.float64]:
    """What comes besides the click, elementwise, within what can come: conversions, values and ratings are never under
    0, so that its sign is that of the weights where these agree. Of a draw, not of a target: what is cut off at one
    side is no longer right on average."""
    weights = (reward.conversion, reward.value, reward.rating)
    low, high = (0.0 if min(weights) >= 0.0 else -math.inf), (0.0 if max(weights) <= 0.0 else math.inf)
    return np.clip(value, low, high)


def unit_of(table: Mapping[str, float], campaign: Campaign) -> float:
    """A campaign's unit by `Units.table`; 1 by an empty one (a critic from before there were units)."""
    known = table.get(campaign_name(campaign))
    if known is not None or not table:
        return 1.0 if known is None else known
    return table.get(_kind(campaign), USUAL) * (nominal(campaign.reward) or 1.0)


def _kind(campaign: Campaign) -> str:
    # No campaign's name: ids hold no such character.
    return f"{campaign.tenant}\x1f{'value' if campaign.reward.value else 'count'}"
