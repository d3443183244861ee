"""Who plays in a comparison: Adloop, the control texts, and bandits over a fixed pool, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optimizer.types import Scalar
from simulators.adloop_agent import AdloopAgent
from simulators.loop import START_MS, TENANT, Reaction, Shown
from simulators.peers import UCB1, Peer, ThompsonSampling, Uniform

Slots = Mapping[str, str]
Texts = Mapping[tuple[str, str], Sequence[Slots]]
BANDITS = {peer.name: peer for peer in (Uniform, ThompsonSampling, UCB1)}
NAMES = ("uniform", "control", "thompson", "ucb", "adloop")


class Contender(Protocol):
    """One policy in one world. Calls come as serve, feed, serve, feed, ... with `advance` before each arrival and
    `increment` at fixed numbers of impressions. `kl` is in nats per sequence, 0 for who has no language model."""

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots: ...

    def feed(self, reactions: Sequence[Reaction]) -> None: ...

    def advance(self, elapsed_ms: int) -> None: ...

    def increment(self) -> None: ...

    def kl(self) -> float: ...

    def close(self) -> None: ...


class AdloopContender:
    """The real system."""

    def __init__(self, agent: AdloopAgent) -> None:
        self._agent = agent
        self._shown: Shown | None = None

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        self._shown = self._agent.serve(campaign_id, context)
        slots: Slots = self._shown.variant.slots
        return slots

    def feed(self, reactions: Sequence[Reaction]) -> None:
        if self._shown is None:
            raise ValueError("feed comes after serve: nothing was shown")
        self._agent.feed(self._shown, reactions)

    def advance(self, elapsed_ms: int) -> None:
        self._agent.advance(START_MS + elapsed_ms)

    def increment(self) -> None:
        self._agent.increment()

    def kl(self) -> float:
        return self._agent.figures().kl

    def close(self) -> None:
        self._agent.close()


class BanditContender:
    """A peer over fixed texts, one bandit for each (campaign, segment).

    It is told at once whether the person will click: Adloop has to wait for that."""

    def __init__(self, peer: type[Uniform] | type[ThompsonSampling] | type[UCB1], texts: Texts, seed: int) -> None:
        self._places = {place: row for row, place in enumerate(texts)}
        self._texts = list(texts.values())
        self._peer: Peer = peer(np.array([len(some) for some in self._texts], dtype=np.int64))
        self._rng = np.random.default_rng([seed, 2])
        self._row = np.zeros(1, dtype=np.int64)
        self._arm = np.zeros((1, 1), dtype=np.int64)

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        self._row[0] = self._places[(campaign_id, str(context["segment"]))]
        self._arm = self._peer.choose(self._row, 1, self._rng)
        return self._texts[int(self._row[0])][int(self._arm[0, 0])]

    def feed(self, reactions: Sequence[Reaction]) -> None:
        clicked = any(kind == "click" for kind, _, _ in reactions)
        self._peer.update(self._row, self._arm, np.array([[float(clicked)]]))

    def advance(self, elapsed_ms: int) -> None:
        """Time means nothing to it."""

    def increment(self) -> None:
        """It learns from every impression already."""

    def kl(self) -> float:
        return 0.0

    def close(self) -> None:
        """Holds nothing open."""


def contender(
    name: str, campaigns: Mapping[str, dict[str, Any]], folder: Path, seed: int, model: str | None = None
) -> Contender:
    """The contender of that name (of NAMES), in an empty folder. The bandits' fixed pool is Adloop's own first one,
    written by the untrained model under the same seed. Raises ValueError for an unknown name, ConfigError for a
    model."""
    if name == "control":
        return BanditContender(Uniform, control_texts(campaigns), seed)
    if name not in NAMES:
        raise ValueError(f"contender: got {name!r}, expected one of {', '.join(NAMES)}")
    agent = AdloopAgent(campaigns, folder, seed, model=model)
    if name == "adloop":
        return AdloopContender(agent)
    try:
        return BanditContender(BANDITS[name], pool_texts(agent), seed)
    finally:
        agent.close()


def control_texts(campaigns: Mapping[str, Mapping[str, Any]]) -> Texts:
    """Each campaign's control texts, for each of its segments."""
    return {
        (name, segment): body["controls"]
        for name, body in campaigns.items()
        for segment in body.get("segments", ("all",))
    }


def pool_texts(agent: AdloopAgent) -> Texts:
    """What serving may show of the present pools; the controls where it may show nothing of one."""
    texts: dict[tuple[str, str], Sequence[Slots]] = {}
    for campaign in agent.views.campaigns(TENANT):
        for segment in campaign.segments:
            shelf = agent.views.shelf(campaign, segment)
            texts[(campaign.campaign_id, segment)] = (
                campaign.controls
                if shelf is None
                else [c.slots for c, shown in zip(shelf.pool.candidates, shelf.permitted, strict=True) if shown]
            )
    return texts
