"""The language model's part of an increment: towards the critic's favourites, then along the doubly robust gradient,
inside the KL budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from optimizer.files import write_whole
from optimizer.ids import campaign_hash
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import Critic
from optimizer.learning.favourites import WHOLE, Turns, favourites, follow
from optimizer.learning.policy import Anchor, LanguagePolicy
from optimizer.learning.pools import PoolShelf
from optimizer.learning.prompt import Prompt, build_prompt
from optimizer.learning.update import PoolBatch, UpdateReport, update_policy
from optimizer.learning.view import CriticView
from optimizer.maths.kl import KlController
from optimizer.types import Campaign, Pool

logger = logging.getLogger(__name__)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
BETAS = (0.9, 0.98)  # Adam's decays a step; the usual 0.999 would remember the policy of a thousand steps before
FIRST_KL_WEIGHT = 0.05  # of the reward's scale per nat: where the controller starts from
# The reward's scale moves a tenth of the way an increment, so that one odd batch does not set the step's length.
SCALE_STAYS, SCALE_MOVES = 0.9, 0.1
LEAST_SCALE = 1e-6  # prices: the advantages of equals are divided by no less
BACK_STEPS = 6  # steps on the penalty alone before an increment over its budget is taken back
BACK_WEIGHT = 0.1  # their penalty per nat at the least: one that has grown small would bring nothing back
STEP_TEXTS = 32  # texts on which the divergence of one version from the one before is measured


class PolicyTrainer:
    """Weights, optimizer and KL controller of one learner. `kl_step`: nats per sequence by which the last increment
    moved the policy, nan where that is not known; `kl_before`: its divergence from the reference before that;
    `measured`: the last increment has measured the policy. Not thread-safe."""

    def __init__(
        self,
        policy: LanguagePolicy,
        config: LearnerConfig,
        critic: Critic,
        shelf: PoolShelf,
        campaigns: Mapping[str, Campaign],
    ) -> None:
        """`campaigns` by tenant/campaign_id, kept up to date by the caller."""
        self.policy = policy
        self.config = config
        self.kl = KlController(budget=config.kl_aim * config.kl_budget, weight=FIRST_KL_WEIGHT)
        self.kl_step = math.nan
        self.kl_before = math.nan
        self.skipped_steps = self.clipped_steps = self.tempered_steps = 0
        self.last: UpdateReport | None = None
        self._critic, self._shelf, self._campaigns = critic, shelf, campaigns
        self._turns = Turns()
        self._followed = 0
        self._reward_scale = 0.0
        self._accepted_kl = math.inf
        self._before: dict[str, Tensor] = {}
        self.measured = False
        self.reset(0.0)

    def reset(self, kl: float) -> None:
        """The weights are others now, `kl` nats from the reference (infinity: not known): a new optimizer."""
        self._accepted_kl = kl
        parameters = list(self.policy.trainable().values())
        self._optimizer = torch.optim.Adam(parameters, lr=self.config.update.learning_rate, betas=BETAS)

    def increment(self, view: CriticView, touched: Mapping[str, None], versions: set[str]) -> None:
        """One increment by this critic. `touched`: pools with news; `versions`: those whose pools may train."""
        self._before = {name: value.detach().clone() for name, value in self.policy.trainable().items()}
        self.kl_before, self.kl_step, self.measured = math.nan if self.last is None else self.last.kl, math.nan, False
        prompts, tokens = self._newest_texts(versions)
        anchor = self.policy.anchor(prompts, tokens) if prompts else ()
        batches = self._batches(view, touched, versions)
        anchors: dict[object, Anchor] = {}
        self._improve(view, batches, anchors)
        self._hold_budget(batches, anchors)
        anchors.clear()  # of a large vocabulary they are gigabytes
        if anchor:
            with torch.no_grad():
                self.kl_step = float(self.policy.score(prompts, tokens, WHOLE, anchor).kl.mean())

    def facts(self) -> dict[str, float | None]:
        """What a version's record says of the increment that made it."""
        last, step = self.last, self.kl_step
        # Where nothing was measured it is what it was; after a restart that may not be known.
        known = self._accepted_kl if last is None or not last.sequences else last.kl
        return {
            "kl": known if math.isfinite(known) else None,
            "kl_weight": self.kl.weight,
            "kl_step": None if math.isnan(step) else step,
            "entropy": None if last is None else last.entropy,
            "gradient_norm": None if last is None else last.gradient_norm,
            "effective_sample_size": None if last is None else last.effective_sample_size,
            "skipped_steps": self.skipped_steps,
            "clipped_steps": self.clipped_steps,
            "tempered_steps": self.tempered_steps,
        }

    # -- over restarts -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Keep the optimizer's moments, the KL penalty's weight and the reward's scale; whole or not at all."""
        tensors = {name: np.ascontiguousarray(value) for name, value in self.moments()}
        facts = {"version": self.policy.version, "kl_weight": repr(self.kl.weight)}
        facts["price_scale"] = repr(self._reward_scale)
        write_whole(path, save(tensors, facts), durable=False)

    def moments(self) -> list[tuple[str, NDArray[np.float32]]]:
        """The optimizer's state by name, sorted, in float32: numpy knows no bfloat16."""
        parts = [
            (f"{moment}.{name}", value.detach().float().cpu().numpy())
            for name, parameter in self.policy.trainable().items()
            for moment, value in self._optimizer.state.get(parameter, {}).items()
        ]
        return sorted(parts, key=lambda part: part[0])

    def restore(self, path: Path, versions: Sequence[str]) -> bool:
        """Take up what `save` kept with one of these versions; False, with nothing changed, where there is none, or it
        belongs to another version or model."""
        names = self.policy.trainable()
        try:
            with safe_open(path, framework="pt", device=str(self.policy.device)) as file:
                facts, kept = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # From before there were prices it is in another unit: found anew.
            weight, scale, version = float(facts["kl_weight"]), float(facts.get("price_scale", 0.0)), facts["version"]
            state = {name: {moment: kept[f"{moment}.{name}"] for moment in MOMENTS} for name in names} if kept else {}
        except FileNotFoundError:
            return False
        except (SafetensorError, KeyError, ValueError) as error:
            logger.warning("%s: not an optimizer's state of this model (%s); the optimizer begins anew", path, error)
            return False
        if version not in versions:
            logger.info("%s: the optimizer's state belongs to %s, which is not live any more", path, version)
            return False
        if any(state[name]["exp_avg"].shape != value.shape for name, value in names.items() if state):
            logger.warning("%s: the optimizer's state is another model's; the optimizer begins anew", path)
            return False
        for name, moments in state.items():
            kept_as = {moment: value.to(names[name].dtype) for moment, value in moments.items()}
            self._optimizer.state[names[name]] = {**kept_as, "step": moments["step"].cpu().reshape(())}
        self.kl = replace(self.kl, weight=weight)
        self._reward_scale = scale
        return True

    # -- one increment -------------------------------------------------------------------------------------------------

    def take_back(self) -> None:
        """The weights as they were before the last increment."""
        if self._before:
            self.policy.put(self._before)
            self.reset(self._accepted_kl)

    def _newest_texts(self, versions: set[str]) -> tuple[list[Prompt], list[tuple[tuple[int, ...], ...]]]:
        """Some of the newest samples, and what they were written for."""
        prompts, tokens = [], []
        for pool in self._shelf.for_training((), versions, self.config.pools_per_increment):
            campaign = self._campaigns.get(f"{pool.tenant}/{pool.campaign_id}")
            if campaign is None or campaign_hash(campaign) != pool.campaign_hash:
                continue
            prompt = build_prompt(campaign, pool.segment)
            some = [text.token_ids for text in pool.candidates if text.token_ids and not text.kept]
            for ids in some[: max(1, STEP_TEXTS // self.config.pools_per_increment)]:
                prompts.append(prompt)
                tokens.append(ids)
        return prompts, tokens

    def _improve(self, view: CriticView, batches: list[PoolBatch], anchors: dict[object, Anchor]) -> None:
        if not batches:
            return
        spread = float(np.sqrt(np.mean([np.var(batch.q / batch.price) for batch in batches])))
        # Moves slowly and never to nothing: a pool of equals must not blow its noise up.
        moved = SCALE_STAYS * self._reward_scale + SCALE_MOVES * spread
        self._reward_scale = spread if self._reward_scale == 0 else moved
        scale = max(self._reward_scale, LEAST_SCALE)
        self._follow_favourites(view)
        self.last = update_policy(
            self.policy, self._optimizer, batches, self.kl.weight, scale, self.config.update, anchors
        )
        self.measured = True
        self._count(self.last)
        if self.last.sequences:
            narrow = self.last.entropy < self.config.entropy_floor
            self.kl = self.kl.updated(math.inf if narrow else self.last.kl)

    def _count(self, report: UpdateReport) -> None:
        self.skipped_steps += report.skipped
        self.clipped_steps += report.clipped
        self.tempered_steps += report.tempered > 0

    def _follow_favourites(self, view: CriticView) -> None:
        config = self.config.favourites
        for _ in range(config.steps):
            places = self._turns.next(self._campaigns.values(), config.places, view.traffic)
            found = [favourites(view, self._shelf.archive, campaign, segment, config) for campaign, segment in places]
            some = [one for one in found if one is not None]
            if some:
                self.skipped_steps += follow(self.policy, self._optimizer, some, self.kl.weight, config, self._followed)
                self._followed += 1

    def _hold_budget(self, batches: list[PoolBatch], anchors: dict[object, Anchor]) -> None:
        """Steps on the penalty alone until the divergence is inside its budget; the old weights where that neither does
        nor at least brings it nearer."""
        config = self.config.update
        if self.last is None or not self.last.sequences:
            return
        for _ in range(BACK_STEPS):
            if self.last.kl <= self.config.kl_budget:
                break
            quiet = [
                batch._replace(
                    q=np.zeros_like(batch.q),
                    shown=batch.shown[:0],
                    rewards=batch.rewards[:0],
                    selection=batch.selection[:0],
                )
                for batch in batches
            ]
            if not quiet:
                return
            weight = max(self.kl.weight, BACK_WEIGHT)
            self.last = update_policy(self.policy, self._optimizer, quiet, weight, 1.0, config, anchors)
            self._count(self.last)
        # Where a version already is over the budget (which may have been lowered), every step back towards it is kept.
        if not self.last.kl <= self.config.kl_budget and not self.last.kl < self._accepted_kl:
            logger.warning(
                "KL %.2f is over its budget of %.2f: this increment is taken back", self.last.kl, self.config.kl_budget
            )
            self.policy.put(self._before)
            self.last = self.last._replace(kl=self._accepted_kl)
        self._accepted_kl = self.last.kl

    def _batches(self, view: CriticView, touched: Mapping[str, None], versions: set[str]) -> list[PoolBatch]:
        """The pools of this increment: those with news first, then the newest of the others."""
        pools = self._shelf.for_training(touched, versions, self.config.pools_per_increment)
        batches = []
        for pool in pools:
            campaign = self._campaigns.get(f"{pool.tenant}/{pool.campaign_id}")
            if campaign is not None and campaign_hash(campaign) == pool.campaign_hash:
                batches.append(self._batch(view, campaign, pool))
        return batches

    def _batch(self, view: CriticView, campaign: Campaign, pool: Pool) -> PoolBatch:
        features = view.encode(campaign, pool.segment, pool.candidates)
        q = view.score(features, {}).mean(axis=0)
        # What the gate refuses earns exactly nothing: that is known without showing it.
        q = np.where([candidate.rejected is not None for candidate in pool.candidates], 0.0, q)
        decisions = self._shelf.decisions(pool.pool_id)
        shown, rewards, selection = self._critic.feedback(decisions, q, view.worth(features), campaign)
        prompt, price = build_prompt(campaign, pool.segment), self._critic.price(campaign)
        return PoolBatch(pool, prompt, q, shown, rewards, selection, price)
