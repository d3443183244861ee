"""The whole loop with its language model, played synchronously: every role that production runs, on a clock that the
caller moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import CriticConfig
from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.run import Learning, open_learning
from optimizer.types import Campaign
from serving.drawing import EPSILON
from serving.generator import Generator, GeneratorConfig
from serving.guardrails import Gate
from simulators.loop import TENANT, Loop, within


def check_prompts(policy: LanguagePolicy, campaigns: Iterable[Campaign]) -> None:
    """Raises BadInput for a campaign whose prompt the model has no room for, as serving would at PUT."""
    for campaign in campaigns:
        error = Learning.prompt_limit(policy.codec, policy.max_prompt_tokens, campaign)
        if error is not None:
            with within(f"campaigns[{campaign.campaign_id!r}]"):
                raise BadInput(error)


@dataclass(frozen=True)
class Figures:
    """Where learning stands: `kl` nats per sequence from the live version to the reference, texts `sampled` and how
    many of them the gate `rejected` by reason, the live `version`, why learning has `halted` by itself (empty where it
    has not)."""

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
        # A world judges texts by rules of its own, whatever language its campaigns name.
        learning = replace(learning, base=replace(learning.base, language=None))
        gate = Gate()
        super().__init__(campaigns, folder, seed, load_critic=learning.load_critic, gate=gate.check, epsilon=epsilon)
        config = learner or LearnerConfig(critic=CriticConfig(seed=seed))
        self.learner = learning.learner(self.log, self.clock, config)
        self.generator = Generator(self.log, learning.store, learning.base, self.clock, gate.check, seed, generator)
        self.attach(self.learner, self.generator)
        try:
            check_prompts(self.generator.policy, self.views.campaigns(TENANT))
        except BadInput:
            self.close()
            raise
        self.fill_pools()

    def fill_pools(self) -> None:
        """Let the generator write every pool that is out of date."""
        while self.generator.step():
            pass
        self.views.refresh_tables()

    def figures(self) -> Figures:
        """Where learning stands."""
        live = self.views.live()
        return Figures(
            # Of the version that is live: after a halt the last increment's is of weights that were taken back.
            kl=0.0 if live is None else float(live.evidence.get("kl") or 0.0),
            kl_budget=self.learner.config.kl_budget,
            increments=self.learner.increments,
            sampled=self.generator.sampled,
            rejected=dict(self.generator.rejected),
            version="" if live is None else live.version,
            halted=self.learner.halted,
        )
