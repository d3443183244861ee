"""The reference market of the comparison: what a text says and how it says it decide together.

The market (`market.py`) with stronger likes, a quarter of which no single word or form explains: pairs of a topic and a
tone or form work together or against each other, and each segment has its own. Average generated copy earns about what
control does, the best of a small pool several times as much, and the best text that can be written about twice as much
again. Ill-formed text earns a ninth of average copy, whatever it says. A campaign rewards clicks alone.
"""

from __future__ import annotations

import numpy as np

from simulators.worlds.catalogue import Item, shipped
from simulators.worlds.market import Market
from simulators.worlds.people import Place, reference_features, reference_fit

_AVERAGE = (np.arange(60) + 0.5) / 60
"""Which quantiles of the reference copy's likings stand for average copy."""


class Phrases(Market):
    """A World: eight campaigns, four segments, strong preferences with interactions."""

    spread = 2.2
    ceiling = 4.6
    kinship = (0.30, 0.50, 0.20)
    couples = (200, 200, 200)
    copy_rates = (0.040, 0.048)
    """Average copy clicks at a rate drawn from this range, over a campaign's arrivals."""

    def __init__(self, seed: int) -> None:
        self._familiar: dict[tuple[str, str], float] = {}
        super().__init__(seed)

    def _offered(self) -> dict[str, Item]:
        return {
            name: item._replace(body={key: value for key, value in item.body.items() if key != "reward"})
            for name, item in shipped().items()
        }

    def _base(self, campaign_id: str, drawing: np.random.Generator) -> float:
        """The base at which average copy clicks at its rate. Controls run for long and are known: that counts for or
        against them, so that they click at theirs."""
        goods = reference_fit(self._items[campaign_id].goods)
        felt = [self._felt((campaign_id, segment), reference_features(), goods) for segment in self.segments]
        average = np.array([np.quantile(liked, _AVERAGE) for liked in felt])
        base = self._level(campaign_id, average, float(drawing.uniform(*self.copy_rates)))
        familiar = self._control_level(campaign_id, float(drawing.uniform(*self.control_rates))) - base
        for slots in self._items[campaign_id].body["controls"]:
            self._familiar[campaign_id, self._whole(campaign_id, slots)] = familiar
        return base

    def _liking(self, place: Place, masked: str) -> float:
        return super()._liking(place, masked) + self._familiar.get((place[0], masked), 0.0)


class Sparse(Phrases):
    """A World in which hardly anybody clicks: control at 0.5 %. Runs are 100,000 impressions long."""

    control_rates = (0.0046, 0.0054)
    copy_rates = (0.0052, 0.0062)
