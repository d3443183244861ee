"""Simulated markets (docs/worlds.md). A world knows nothing of the optimizer."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Protocol, cast

from optimizer.errors import ConfigError
from simulators.worlds.length import OfLength

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
    context, slots)` and `oracle_reward()`: the expected reward, where it is more than clicks. One that has to know how
    long its run is derives from `OfLength`.
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


def shipped(name: str) -> bool:
    """Whether it is a world of this package, by its short name or its place; others wrote the rest."""
    return name in WORLDS or name in WORLDS.values()


MUST_HAVE = ("interval_ms", "campaigns", "arrive", "respond", "click_rate", "valid", "oracle_rate")


def load_world(name: str, seed: int, impressions: int | None = None, known: Mapping[str, str] = WORLDS) -> World:
    """The world of that short name, or of `package.module:Class` (also in the working directory), begun with `seed`
    for a run of that many impressions. Raises ConfigError."""
    place = known.get(name, name)
    module_name, _, class_name = place.partition(":")
    if not module_name or module_name.startswith(".") or not class_name:
        raise ConfigError(f"world: got {name!r}, expected one of {', '.join(sorted(known))} or package.module:Class")
    if name not in known and not {"", os.getcwd()} & set(sys.path):
        # `python -m` looks there by itself; the installed command does not.
        sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
        if impressions is not None and isinstance(kind, type) and issubclass(kind, OfLength):
            kind = kind.lasting(impressions)
        world = kind(seed)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"world: {place!r} cannot be begun with seed {seed}: {blame(error, module_name)}; expected a module on "
            "Python's path and in it a class that takes a seed; check both names and what they do at the start"
        ) from error
    lacking = [member for member in MUST_HAVE if not hasattr(world, member)]
    if lacking:
        raise ConfigError(f"world: {place!r} has no {', '.join(lacking)}, which every World has; add what is missing")
    return cast(World, world)


def blame(error: BaseException, module: str) -> str:
    """An exception of somebody else's code in a sentence, with the last line of that module on the way to it: deeper
    down are libraries that cannot help it."""
    path = os.path.join(*module.split("."))
    files = (f"{path}.py", os.path.join(path, "__init__.py"))
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(files)]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in own[-1:])
    return f"{type(error).__name__}: {error}{where}"
