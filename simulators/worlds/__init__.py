"""Simulated markets (contracts section 6). A world knows nothing of the optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from optimizer.errors import ConfigError

# The worlds that have a short name: where each is, imported when it is asked for.
WORLDS = {
    "market": "simulators.worlds.market:Market",
    "subtle": "simulators.worlds.market:Subtle",
    "phrases": "simulators.worlds.phrases:Phrases",
    "sparse": "simulators.worlds.phrases:Sparse",
    "drift": "simulators.worlds.drift:Drift",
    "delay": "simulators.worlds.conversions:Delay",
    "proxy": "simulators.worlds.conversions:Proxy",
    "fatigue": "simulators.worlds.fatigue:Fatigue",
    "cold": "simulators.worlds.cold:Cold",
}


class World(Protocol):
    """A simulated market. Only `arrive` and `respond` change its state; the same seed and calls give the same people.

    `interval_ms` is the simulated time from one arrival to the next. Worlds may also have `true_rate(campaign_id,
    context, slots)` and `oracle_reward()`: the expected reward, where it is more than clicks.
    """

    interval_ms: int

    def __init__(self, seed: int) -> None: ...

    def campaigns(self) -> dict[str, dict[str, Any]]:
        """Bodies of PUT /v1/campaigns/{id}, by campaign_id."""
        ...

    def arrive(self) -> tuple[str, dict[str, Any]]:
        """The next request: campaign_id, and the context with its segment."""
        ...

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[tuple[str, int, float]]:
        """What the person shown this does: (event type, ms after the impression, value); [] is no click.

        Called once for each variant shown, after its arrive; the caller posts the impression itself, at 0 ms."""
        ...

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """The true click rate now; for reports only."""
        ...

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        """Whether the text is well formed, by the world's own judgement."""
        ...

    def oracle_rate(self) -> float:
        """Mean click rate of the best text per campaign and segment, over the run."""
        ...


def load_world(name: str, seed: int, known: Mapping[str, str] = WORLDS) -> World:
    """The world of that short name, or of `package.module:Class`, begun with `seed`. Raises ConfigError."""
    place = known.get(name, name)
    module_name, _, class_name = place.partition(":")
    if not class_name:
        raise ConfigError(f"world: got {name!r}, expected one of {', '.join(sorted(known))} or package.module:Class")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"world: {place!r} cannot be loaded ({error}); check the module and the class") from error
    return cast(World, kind(seed))
