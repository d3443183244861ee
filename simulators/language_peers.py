"""Policies that teach a language model directly, without a critic, a pool or a KL budget: plain REINFORCE, and what any
such peer shares.

Each arrival is shown a text that the model has just sampled for its place; the texts that the gate refuses are never
shown. After each increment the model has new weights and samples anew.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from optimizer.learning.base import load_policy, settle_base
from optimizer.learning.policy import LanguagePolicy, Sample
from optimizer.learning.prompt import Prompt, build_prompt, fill
from optimizer.types import Scalar
from serving.generator import GeneratorConfig
from serving.guardrails import Gate
from simulators.adloop_agent import check_prompts
from simulators.loop import Reaction
from simulators.payout import Payout
from simulators.places import Place, Places, Slots
from simulators.streams import LANGUAGE_STREAM, salted

PLACES_AT_ONCE = 32
TEXTS_AT_ONCE = 6
ROUNDS = 3
DECODE = GeneratorConfig().decode


@dataclass(frozen=True)
class Told:
    """A text that was shown, and what it earned."""

    place: Place
    prompt: Prompt
    sample: Sample
    reward: float


class Trainer(Protocol):
    """What teaches the model. `update` takes what was shown since the last one; `kl` is in nats per sequence."""

    def update(self, told: Sequence[Told]) -> None: ...

    def kl(self) -> float: ...


class LanguageContender:
    """A language model and its trainer as a contender (simulators/contenders.py). Raises BadInput for a campaign whose
    prompt the model has no room for."""

    halted = ""

    def __init__(self, policy: LanguagePolicy, trainer: Trainer, places: Places, payout: Payout, seed: int) -> None:
        self._policy, self._trainer, self._places, self._payout = policy, trainer, places, payout
        self._gate = Gate()
        self._torch = torch.Generator(device=policy.device).manual_seed(salted(LANGUAGE_STREAM, seed))
        self._rng = np.random.default_rng([LANGUAGE_STREAM, seed])
        self._prompts = {place: build_prompt(places.campaigns[place[0]], place[1]) for place in places.all()}
        check_prompts(policy, places.campaigns.values())
        self._ready: dict[Place, deque[tuple[Sample, Slots]]] = defaultdict(deque)
        self._wanted: dict[Place, int] = defaultdict(int)
        # Rounds of sampling that gave a place no text it may show, since the model changed last.
        self._tried: dict[Place, int] = self._untried()
        self._told: list[Told] = []
        self._shown: tuple[Place, Sample | None] | None = None

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        place = self._places.of(campaign_id, context)
        self._wanted[place] += 1
        while not self._ready[place] and self._tried[place] < ROUNDS:
            self._sample(place)
        if not self._ready[place]:
            # Nothing it writes may be shown: its place is a control's, from which it learns nothing.
            self._shown = place, None
            controls = self._places.campaigns[campaign_id].controls
            return controls[int(self._rng.integers(len(controls)))]
        sample, slots = self._ready[place].popleft()
        self._shown = place, sample
        return slots

    def feed(self, reactions: Sequence[Reaction]) -> None:
        if self._shown is None:
            raise ValueError("feed comes after serve: nothing was shown")
        place, sample = self._shown
        if sample is not None:
            reward = self._payout.scaled(place[0], reactions)
            self._told.append(Told(place, self._prompts[place], sample, reward))

    def advance(self, elapsed_ms: int) -> None:
        """Time means nothing to it."""

    def increment(self) -> None:
        if self._told:
            self._trainer.update(self._told)
            self._told = []
            self._ready.clear()
        self._tried = self._untried()

    def kl(self) -> float:
        return self._trainer.kl()

    def close(self) -> None:
        """Holds nothing open."""

    def _sample(self, place: Place) -> None:
        """Write texts for the place, and in the same batch for those that will want some next."""
        slots = self._prompts[place].slots
        others = [
            other
            for other in sorted(self._wanted, key=self._wanted.__getitem__, reverse=True)
            if other != place
            and not self._ready[other]
            and self._tried[other] < ROUNDS
            and self._prompts[other].slots == slots
        ]
        places = [place, *others[: PLACES_AT_ONCE - 1]]
        prompts = [self._prompts[one] for one in places]
        drawn = self._policy.sample(prompts, TEXTS_AT_ONCE, DECODE, self._torch)
        for one, samples in zip(places, drawn, strict=True):
            campaign = self._places.campaigns[one[0]]
            for sample in samples:
                text = {name: fill(campaign, part) for name, part in sample.slots.items()}
                if sample.finished and self._gate.check(campaign, text) is None:
                    self._ready[one].append((sample, text))
            if not self._ready[one]:
                self._tried[one] += 1

    def _untried(self) -> dict[Place, int]:
        """Where an editor must approve texts, none of the model's may be shown at all."""
        campaigns = self._places.campaigns
        return {place: ROUNDS if campaigns[place[0]].rules.require_approval else 0 for place in self._prompts}


class Reinforce:
    """REINFORCE (Williams 1992) with the batch's mean reward as the baseline, by Adam: no critic, no KL penalty."""

    def __init__(self, policy: LanguagePolicy, learning_rate: float) -> None:
        self._policy = policy
        self._parameters = list(policy.trainable().values())
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate)
        self._last: Sequence[Told] = ()

    def update(self, told: Sequence[Told]) -> None:
        """One step on a batch."""
        rewards = np.array([one.reward for one in told])
        advantages = torch.tensor(rewards - rewards.mean(), dtype=torch.float32, device=self._policy.device)
        self._optimizer.zero_grad(set_to_none=True)
        scored = self._policy.score([one.prompt for one in told], [one.sample.token_ids for one in told], DECODE)
        (-(advantages * scored.log_prob).mean()).backward()  # type: ignore[no-untyped-call]
        self._last = told
        if np.isfinite(float(torch.nn.utils.clip_grad_norm_(self._parameters, 1.0))):
            self._optimizer.step()

    def kl(self) -> float:
        """After the last step, on the texts that it was taken on."""
        if not self._last:
            return 0.0
        with torch.no_grad():
            texts = [one.sample.token_ids for one in self._last]
            return float(self._policy.score([one.prompt for one in self._last], texts, DECODE).kl.mean())


def open_policy(folder: Path, model: str | None) -> LanguagePolicy:
    """The untrained model. Raises ConfigError for one that can't be had."""
    folder.mkdir(parents=True, exist_ok=True)
    return load_policy(settle_base(folder, model, lambda *_: None))
