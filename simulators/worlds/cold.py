"""A market of many small campaigns: each is there for a while and gone before much can be learnt of it alone."""

from __future__ import annotations

from typing import Any

from simulators.worlds.catalogue import Item, shipped
from simulators.worlds.length import OfLength
from simulators.worlds.phrases import Phrases

FIRST = (
    "Amber",
    "Birch",
    "Cedar",
    "Delta",
    "Ember",
    "Fjord",
    "Grove",
    "Harbor",
    "Iris",
    "Juniper",
    "Kestrel",
    "Linden",
)
SECOND = ("Lane", "Works", "House", "Peak")


class Cold(OfLength, Phrases):
    """A World: every `begins_each` arrivals a new campaign begins, and has a fourth of the next four times as many.
    `together` are there at any time. They sell eight kinds of goods under other names; most of what people like, they
    like in all campaigns, so what one campaign taught helps the next. All campaigns are told from the start; how many
    there are follows from the run's length."""

    begins_each = 512
    together = 4
    segments = ("commuters", "parents")
    kinship = (0.60, 0.30, 0.10)

    def begins(self, campaign_id: str) -> int:
        """The arrival, counted from 0, from which on a campaign is there; below 0 for those of before the run."""
        return (self._order[campaign_id] - self.together + 1) * self.begins_each

    def _offered(self) -> dict[str, Item]:
        kinds = list(shipped().values())
        count = -(-self.impressions // self.begins_each) + self.together - 1
        items = {}
        for number in range(count):
            item = kinds[number % len(kinds)]
            name = f"{FIRST[number % len(FIRST)]} {SECOND[number // len(FIRST) % len(SECOND)]}"
            items[f"{name.lower().replace(' ', '-')}-{number}"] = item._replace(body=_renamed(item.body, name))
        self._order = {name: at for at, name in enumerate(items)}
        self._names = list(items)
        return items

    def _next_campaign(self) -> str:
        # The newest is the one that began last; after the run's end the last ones stay.
        newest = (self._arrived - 1) // self.begins_each + self.together - 1
        newest = min(newest, len(self._names) - 1)
        return self._names[newest - int(self._arrivals.integers(self.together))]

    def shares(self, campaign_id: str) -> dict[str, float]:
        """Segment -> share of the run's arrivals that are this campaign's and segment's."""
        first, last = self.begins(campaign_id), self.begins(campaign_id) + self.together * self.begins_each
        there = max(0, min(last, self.impressions) - max(first, 0)) / self.together
        own = self._segment_shares[campaign_id]
        return {
            segment: there / self.impressions * float(part) for segment, part in zip(self.segments, own, strict=True)
        }


def _renamed(body: dict[str, Any], name: str) -> dict[str, Any]:
    """The same goods under another name; a brand that was the name goes with it."""
    own = body["product"]
    product = {**own, "name": name}
    if own.get("brand") == own["name"]:
        product["brand"] = name
    controls = [{slot: text.replace(own["name"], name) for slot, text in one.items()} for one in body["controls"]]
    plain = {key: value for key, value in body.items() if key != "reward"}
    return {**plain, "product": product, "controls": controls}
