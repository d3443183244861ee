"""Worlds as strangers write them from contracts section 6 alone: each is legal and unusual in one way."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np

BODY = {"product": {"name": "Boots"}, "controls": [{"headline": "Warm boots"}, {"headline": "Dry boots"}]}


class Plain:
    """Two segments, a taste by checksum, a random stream for arrivals and one for responses."""

    interval_ms = 60_000

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.people, self.moods = random.Random(f"people {seed}"), random.Random(f"moods {seed}")

    def campaigns(self) -> dict[str, dict[str, Any]]:
        return {"boots": {**BODY, "segments": ["young", "old"]}}

    def arrive(self) -> tuple[str, dict[str, Any]]:
        return "boots", {"segment": self.people.choice(["young", "old"]), "device": self.people.choice(["m", "d"])}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        if self.moods.random() >= self.click_rate(campaign_id, context, slots):
            return []
        return [("click", int(self.moods.expovariate(1 / 20_000)), 0.0)]

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        taste = f"{self.seed}{context['segment']}{context['device']}{'|'.join(slots.values())}"
        return 0.05 + 0.5 * (zlib.crc32(taste.encode()) % 1000) / 1000

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        return True

    def oracle_rate(self) -> Any:
        return 0.55


class OneStream(Plain):
    """Arrivals and responses from one stream: who is shown what decides who comes next."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.people = self.moods = random.Random(seed)


class GlobalRandom(Plain):
    """Everything from the global generators, which it never seeds."""

    def arrive(self) -> tuple[str, dict[str, Any]]:
        hour = int(np.random.randint(24))  # noqa: NPY002 - that is what it does
        return "boots", {"segment": random.choice(["young", "old"]), "device": "m", "hour": hour}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return []


class Hashing(Plain):
    """Its taste is Python's hash of a text, its segments come in a set's order."""

    PEOPLE = frozenset({"young", "old"})

    def arrive(self) -> tuple[str, dict[str, Any]]:
        return "boots", {"segment": self.people.choice(list(self.PEOPLE)), "device": "m"}

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return hash((self.seed, context["segment"], "|".join(slots.values()))) % 1000 / 3000

    def oracle_rate(self) -> Any:
        return hash("oracle") % 1000 / 1000


class Crowded(Plain):
    """What it has seen stands in its class; its oracle tells how much."""

    seen: list[int] = []  # noqa: RUF012 - the mistake that it makes

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        self.seen.append(1)
        return super().respond(campaign_id, context, slots)

    def oracle_rate(self) -> Any:
        return len(self.seen) / 1_000


class Generating(Plain):
    """Responds with a generator."""

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        yield ("click", 1_000, 0.0)
        yield ["conversion", 2_000, True]


class FailingLate(Generating):
    """Raises in a generator's second step."""

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        yield ("click", 1_000, 0.0)
        raise RuntimeError("no more")


class Meddling(Plain):
    """Changes what it is given."""

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        slots["headline"] = slots["headline"].lower()
        context.pop("device")
        return "warm" in slots["headline"]

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        return slots.pop("headline")[0].isupper()


class Talkative(Plain):
    """Says 70 things of each arrival, the segment last; its clicks depend on the 70th."""

    def arrive(self) -> tuple[str, dict[str, Any]]:
        return "boots", {**{f"k{at}": at / 3 for at in range(69)}, "segment": "old"}

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return context["k68"] / 100


class Conversions(Plain):
    """Pays for values alone and does not tell the expected reward; dry boots sell for 50."""

    def campaigns(self) -> dict[str, dict[str, Any]]:
        reward = {"click": 0.0, "conversion": 0.0, "value": 1.0}
        return {"boots": {**BODY, "segments": ["young", "old"], "reward": reward}}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        events = super().respond(campaign_id, context, slots)
        return events and [*events, ("conversion", 3_600_000, 50.0 * ("Dry" in slots["headline"]))]


class NoOracle(Plain):
    """Does not know the best, and fails where it is asked for the best reward."""

    def oracle_rate(self) -> Any:
        return float("nan")

    def oracle_reward(self) -> Any:
        raise NotImplementedError("not known")


class Nearly(Plain):
    """The best is next to nothing, which no share can be told of."""

    def oracle_rate(self) -> Any:
        return 5e-324


class FailingSecond(Plain):
    """Seed 2 ends after 30 arrivals."""

    came = 0

    def arrive(self) -> tuple[str, dict[str, Any]]:
        self.came += 1
        if self.seed == 2 and self.came > 30:
            raise StopIteration
        return super().arrive()


class Silent(Plain):
    """Nobody clicks, ever; it tells the best rate of a place."""

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return 0.0

    def best_rate(self, campaign_id: str, segment: str) -> Any:
        return np.float32(0.0)

    def oracle_rate(self) -> Any:
        return 0
