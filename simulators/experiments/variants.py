"""Adloop as an experiment plays it: as it is, told too early or too late, or with a learner for each campaign alone."""

from __future__ import annotations

import shutil
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.types import Scalar
from simulators.adloop_agent import AdloopAgent
from simulators.contenders import AdloopContender
from simulators.loop import START_MS, Reaction, Shown
from simulators.places import Places, Slots

Bodies = Mapping[str, dict[str, Any]]
KEPT = 8
"""Agents of single campaigns that are held at a time."""


class Ours(AdloopContender):
    """Adloop as it is. `control`: whether the text shown last came from the controls."""

    def __init__(self, agent: AdloopAgent) -> None:
        super().__init__(agent)
        self.agent = agent

    @property
    def control(self) -> bool:
        return self._shown is not None and self._shown.variant.source == "control"


class AtOnce(Ours):
    """Told of every conversion in the moment of its click."""

    def feed(self, reactions: Sequence[Reaction]) -> None:
        clicked = next((after for kind, after, _ in reactions if kind == "click"), 0)
        super().feed([(kind, min(after, clicked), value) for kind, after, value in reactions])


class AtWindowEnd(Ours):
    """Told of nothing before all windows of the impression have passed; then of everything, with its true times."""

    def __init__(self, agent: AdloopAgent, bodies: Bodies) -> None:
        super().__init__(agent)
        self._windows = {
            name: campaign.attribution.click_window_ms + campaign.attribution.conversion_window_ms
            for name, campaign in Places(bodies).campaigns.items()
        }
        self._held: deque[tuple[int, Shown, Sequence[Reaction]]] = deque()

    def feed(self, reactions: Sequence[Reaction]) -> None:
        if self._shown is None:
            raise ValueError("feed comes after serve: nothing was shown")
        due = self._shown.ts + self._windows[self._shown.campaign_id]
        self._held.append((due, self._shown, reactions))

    def advance(self, elapsed_ms: int) -> None:
        now = START_MS + elapsed_ms
        # Campaigns with unequal windows would wait for each other here; those of one world do not differ.
        while self._held and self._held[0][0] <= now:
            due, shown, reactions = self._held.popleft()
            self.agent.advance(due)
            self.agent.feed(shown, reactions)
        self.agent.advance(now)


class Alone:
    """An Adloop for each campaign alone, which knows nothing of the others: what there is without transfer.

    The `KEPT` agents that were used last are held; one that is needed again after that begins anew."""

    control = False
    halted = ""

    def __init__(self, bodies: Bodies, make: Callable[[Bodies], AdloopAgent]) -> None:
        self._bodies, self._make = bodies, make
        self._agents: OrderedDict[str, Ours] = OrderedDict()
        self._served: Ours | None = None
        self._elapsed = 0

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        if campaign_id not in self._agents:
            self._agents[campaign_id] = Ours(self._make({campaign_id: self._bodies[campaign_id]}))
            if len(self._agents) > KEPT:
                self._agents.popitem(last=False)[1].close()
        self._agents.move_to_end(campaign_id)
        self._served = self._agents[campaign_id]
        self._served.advance(self._elapsed)
        return self._served.serve(campaign_id, context)

    def feed(self, reactions: Sequence[Reaction]) -> None:
        if self._served is None:
            raise ValueError("feed comes after serve: nothing was shown")
        self._served.feed(reactions)

    def advance(self, elapsed_ms: int) -> None:
        self._elapsed = elapsed_ms

    def increment(self) -> None:
        for agent in self._agents.values():
            agent.advance(self._elapsed)
            agent.increment()

    def kl(self) -> float:
        return max((agent.kl() for agent in self._agents.values()), default=0.0)

    def close(self) -> None:
        for agent in self._agents.values():
            agent.close()
        self._agents.clear()


Player = Ours | Alone
VARIANTS = ("adloop", "at_once", "at_window_end", "alone")


def player(variant: str, bodies: Bodies, folder: Path, seed: int, model: str | None) -> Player:
    """The variant of that name, in an empty folder. Raises ValueError for another name, ConfigError for a model."""
    if variant == "alone":
        return Alone(bodies, lambda one: AdloopAgent(one, _emptied(folder / next(iter(one))), seed, model=model))
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
    agent = AdloopAgent(bodies, folder, seed, model=model)
    if variant == "at_window_end":
        return AtWindowEnd(agent, bodies)
    return AtOnce(agent) if variant == "at_once" else Ours(agent)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
