"""The whole loop with its language model, played synchronously: every role that production runs, on a clock that the
caller moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import CriticConfig
from optimizer.learning.run import open_learning
from serving.drawing import EPSILON
from serving.generator import Generator, GeneratorConfig
from serving.guardrails import Gate
from simulators.loop import Loop


@dataclass(frozen=True)
class Figures:
    """Where learning stands: `kl` nats per sequence to the reference, texts `sampled` and how many of them the gate
    `rejected` by reason, the live `version`, why learning has `halted` by itself (empty where it has not)."""

    kl: float
    kl_budget: float
    increments: int
    sampled: int
    rejected: dict[str, int]
    version: str
    halted: str = ""


class AdloopAgent(Loop):
    """The whole loop with its language model. `serve`, `feed` and `advance` play the traffic, `increment` lets it
    learn.

    Args:
      campaigns, folder, seed: as for `Loop`.
      model: a Hugging Face name or folder; None for the tiny model, which is trained on first use and cached.
      learner, generator: their options; None for the defaults. `epsilon` as for `Loop`.
      progress: told what the model's training does, as (stage, done, of).
    Raises:
      ConfigError: a model that can't be had.
    """

    def __init__(
        self,
        campaigns: Mapping[str, Mapping[str, Any]],
        folder: Path,
        seed: int,
        *,
        model: str | None = None,
        learner: LearnerConfig | None = None,
        generator: GeneratorConfig | None = None,
        epsilon: float = EPSILON,
        progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
    ) -> None:
        learning = open_learning(folder, model, progress)
        gate = Gate()
        super().__init__(campaigns, folder, seed, load_critic=learning.load_critic, gate=gate.check, epsilon=epsilon)
        config = learner or LearnerConfig(critic=CriticConfig(seed=seed))
        self.learner = learning.learner(self.log, self.clock, config)
        self.generator = Generator(self.log, learning.store, learning.base, self.clock, gate.check, seed, generator)
        self.attach(self.learner, self.generator)
        self.fill_pools()

    def fill_pools(self) -> None:
        """Let the generator write every pool that is out of date."""
        while self.generator.step():
            pass
        self.views.refresh_tables()

    def figures(self) -> Figures:
        """Where learning stands."""
        last, live = self.learner.last, self.views.live()
        return Figures(
            kl=0.0 if last is None else last.kl,
            kl_budget=self.learner.config.kl_budget,
            increments=self.learner.increments,
            sampled=self.generator.sampled,
            rejected=dict(self.generator.rejected),
            version="" if live is None else live.version,
            halted=self.learner.halted,
        )
