"""Learning, opened for a data folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from optimizer.clock import Clock
from optimizer.errors import FieldError
from optimizer.learning.base import BaseModel, settle_base
from optimizer.learning.config import LearnerConfig
from optimizer.learning.learner import Learner
from optimizer.learning.policy import fits_in
from optimizer.learning.prompt import build_prompt
from optimizer.learning.recipe import PretrainConfig, Progress
from optimizer.learning.tokenizer import TextCodec
from optimizer.learning.view import CriticView
from optimizer.store import PolicyStore
from optimizer.stream.log import EventLog
from optimizer.types import Campaign, PolicyRecord


@dataclass(frozen=True)
class Learning:
    """A data folder's base model and policy store, and what the roles need of them."""

    data: Path
    base: BaseModel
    store: PolicyStore

    def learner(self, log: EventLog, clock: Clock, config: LearnerConfig | None = None) -> Learner:
        return Learner(log, self.store, self.base, clock, config or LearnerConfig(), self.data)

    def load_critic(self, record: PolicyRecord) -> CriticView:
        """The critic of a version. Raises StoreError where it is refused."""
        return CriticView.from_bytes(self.store.critic_bytes(record.version), record.version)

    @staticmethod
    def prompt_limit(codec: TextCodec, limit: int, campaign: Campaign) -> FieldError | None:
        """What to answer to a campaign whose prompt is longer than the model takes; None where it fits."""
        prompts = [build_prompt(campaign, segment) for segment in campaign.segments]
        if all(fits_in(codec, prompt, limit) for prompt in prompts):
            return None
        longest = max(len(codec.encode(prompt.text)) for prompt in prompts)
        if longest <= limit:
            got = f"{len(campaign.slots)} slots"
            return FieldError("slots", got, "as many as the model's context holds", "take fewer slots or shorter names")
        fix = "shorten product, audience or facts"
        return FieldError("product", f"a prompt of {longest} tokens", f"at most {limit} tokens for this model", fix)


def open_learning(
    data: Path, model: str | None = None, progress: Progress | None = None, config: PretrainConfig | None = None
) -> Learning:
    """Settle the base model (training the tiny one where it is not cached: 1 to 5 minutes) and open the policy store.

    Raises ConfigError for a model that can't be had."""
    data.mkdir(parents=True, exist_ok=True)
    return Learning(
        data, settle_base(data, model, progress or (lambda *_: None), config), PolicyStore(data / "policies")
    )


def share_processor() -> None:
    """Leave a core to the requests: this process's tensor work takes all but one. On two cores learner and generator,
    each with two threads, would wait for each other's."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
