"""Who plays in a comparison: Adloop, the control texts, bandits over a fixed pool, and learners of the language model,
behind one interface.

Only Adloop waits for events. Everybody else is told at once, when a text is shown, what it will have earned
(simulators/payout.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from optimizer.types import Scalar
from simulators.loop import START_MS, Reaction, Shown
from simulators.payout import Payout
from simulators.peers import UCB1, Peer, ThompsonSampling, Uniform
from simulators.places import Places, Slots, Texts, first_of
from simulators.settings import GRPO, REINFORCE_LEARNING_RATE, SETTINGS
from simulators.streams import BANDIT_STREAM

if TYPE_CHECKING:
    from simulators.adloop_agent import AdloopAgent

BANDITS: dict[str, type[Uniform] | type[ThompsonSampling] | type[UCB1]] = {
    peer.name: peer for peer in (Uniform, ThompsonSampling, UCB1)
}
Truth = Callable[[str, dict[str, Any], dict[str, str]], float]


class Contender(Protocol):
    """One policy in one world. Calls come as serve, feed, serve, feed, ... with `advance` before each arrival and
    `increment` at fixed numbers of impressions. `kl` is in nats per sequence, 0 for who has no language model;
    `halted` says why it has stopped learning, empty where it has not."""

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots: ...

    def feed(self, reactions: Sequence[Reaction]) -> None: ...

    def advance(self, elapsed_ms: int) -> None: ...

    def increment(self) -> None: ...

    def kl(self) -> float: ...

    @property
    def halted(self) -> str: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """What a contender starts from. `bodies`: the world's campaigns. `pools`: the fixed pools, empty for who plays
    none. `folder`: empty. `truth`: the expected reward of a text now, for the oracle alone."""

    bodies: Mapping[str, dict[str, Any]]
    pools: Texts
    folder: Path
    seed: int
    model: str | None
    truth: Truth


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

    @property
    def halted(self) -> str:
        return self._agent.learner.halted

    def close(self) -> None:
        self._agent.close()


class Timeless:
    """What those share who learn from every impression at once, and hold neither a language model nor a file."""

    halted = ""

    def advance(self, elapsed_ms: int) -> None:
        """Time means nothing to it."""

    def increment(self) -> None:
        """It learns from every impression already."""

    def kl(self) -> float:
        return 0.0

    def close(self) -> None:
        """Holds nothing open."""


class BanditContender(Timeless):
    """A peer over fixed texts, one bandit for each (campaign, segment)."""

    def __init__(
        self,
        peer: type[Uniform] | type[ThompsonSampling] | type[UCB1],
        places: Places,
        texts: Texts,
        payout: Payout,
        seed: int,
    ) -> None:
        self._places, self._payout = places, payout
        self._rows = {place: row for row, place in enumerate(texts)}
        self._texts = list(texts.values())
        self._peer: Peer = peer(np.array([len(some) for some in self._texts], dtype=np.int64))
        self._rng = np.random.default_rng([BANDIT_STREAM, seed])
        self._row = np.zeros(1, dtype=np.int64)
        self._arm = np.zeros((1, 1), dtype=np.int64)
        self._campaign_id = ""

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        self._campaign_id = campaign_id
        self._row[0] = self._rows[self._places.of(campaign_id, context)]
        self._arm = self._peer.choose(self._row, 1, self._rng)
        return self._texts[int(self._row[0])][int(self._arm[0, 0])]

    def feed(self, reactions: Sequence[Reaction]) -> None:
        reward = self._payout.of(self._campaign_id, reactions)
        self._peer.update(self._row, self._arm, np.array([[reward]]))


class BestContender(Timeless):
    """No policy but a bound on those that choose from a fixed pool: always the text that is truly best here and now."""

    def __init__(self, places: Places, texts: Texts, truth: Truth) -> None:
        self._places, self._texts, self._truth = places, texts, truth

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        here = self._texts[self._places.of(campaign_id, context)]
        return max(here, key=lambda slots: self._truth(campaign_id, dict(context), dict(slots)))

    def feed(self, reactions: Sequence[Reaction]) -> None:
        """It has nothing to learn."""


def contender(name: str, start: Start) -> Contender:
    """The contender of that name (of `settings.NAMES`). Raises ValueError for an unknown name, ConfigError for a
    model, ImportError for a package that is not installed (see `settings.lacking`)."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise ValueError(f"contender: got {name!r}, expected one of {', '.join(SETTINGS)}")
    if setting.kind == "adloop":
        # Imported where they are needed: they bring torch.
        from simulators.adloop_agent import AdloopAgent

        return AdloopContender(AdloopAgent(start.bodies, start.folder, start.seed, model=start.model))
    places = Places(start.bodies)
    payout = Payout(places.campaigns)
    if setting.kind in ("reinforce", "grpo"):
        return _language_contender(setting.kind, start, places, payout)
    if setting.kind == "control":
        return BanditContender(Uniform, places, places.controls(), payout, start.seed)
    texts = first_of(start.pools, setting.size)
    if setting.kind == "best":
        return BestContender(places, texts, start.truth)
    if setting.vowpal is not None:
        from simulators.vowpal import VowpalContender

        return VowpalContender(setting.vowpal, places, texts, payout, start.seed)
    return BanditContender(BANDITS[setting.kind], places, texts, payout, start.seed)


def _language_contender(kind: str, start: Start, places: Places, payout: Payout) -> Contender:
    from simulators.language_peers import LanguageContender, Reinforce, Trainer, open_policy
    from simulators.trl_peer import Grpo

    policy = open_policy(start.folder, start.model)
    trainer: Trainer = (
        Grpo(policy, GRPO, start.folder, start.seed) if kind == "grpo" else Reinforce(policy, REINFORCE_LEARNING_RATE)
    )
    return LanguageContender(policy, trainer, places, payout, start.seed)
