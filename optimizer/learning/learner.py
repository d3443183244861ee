"""The learner: reads outcomes and pools, teaches the critic and the policy in small increments, publishes policy
versions.

An increment: critic (replay, targets) -> values of the pools -> doubly robust gradient steps -> KL measured and its
penalty's weight moved -> a version in the store, then its record in the log. What it leaves out today is listed in
docs/decisions.md."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from optimizer.clock import Clock
from optimizer.errors import StoreError
from optimizer.ids import campaign_hash
from optimizer.learning.base import BaseModel, load_policy, load_version
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.favourites import FavouritesConfig, Turns, favourites, follow
from optimizer.learning.pools import PoolShelf
from optimizer.learning.prompt import build_prompt
from optimizer.learning.update import PoolBatch, UpdateConfig, UpdateReport, update_policy
from optimizer.learning.view import CriticView
from optimizer.maths.kl import KL_BUDGET, KlController
from optimizer.store import Manifest, PolicyStore
from optimizer.stream.log import Append, EventLog, whole
from optimizer.stream.views import campaign_table, live_policy, policy_table
from optimizer.types import Campaign, Outcome, PolicyRecord, Pool, Scalar, Stage, to_json

logger = logging.getLogger(__name__)
PAUSE_FILE = "learner.paused"


@dataclass(frozen=True)
class LearnerConfig:
    """`kl_budget` nats per sequence, which no published version exceeds; `kl_aim`: the share of it that the controller
    steers for; `entropy_floor`: nats per token under which the penalty grows whatever the divergence is, so that the
    policy does not end in one text; `min_outcomes`: revisions that an increment waits for, but where there are
    `few_outcomes` no longer than `most_wait_ms`; `pools_per_increment`: pools in a gradient step; `staleness`: policy
    versions after which a pool no longer trains the policy; `most_waiting`: revisions after which an increment no
    longer waits for the log's end; `catch_up_fits`: most passes of the critic in an increment, where much was read at
    once; `train_policy` False teaches the critic alone (replays of fixed texts)."""

    kl_budget: float = KL_BUDGET
    kl_aim: float = 0.8
    entropy_floor: float = 0.35
    min_outcomes: int = 32
    few_outcomes: int = 8
    most_wait_ms: int = 3_000
    pools_per_increment: int = 4
    staleness: int = 30
    most_waiting: int = 100_000
    catch_up_fits: int = 20
    outcomes_per_poll: int = 4_000
    train_policy: bool = True
    critic: CriticConfig = field(default_factory=CriticConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    favourites: FavouritesConfig = field(default_factory=FavouritesConfig)


class Learner:
    """One process of these at a time for a log. Not thread-safe, but for `status`."""

    def __init__(
        self,
        log: EventLog,
        store: PolicyStore,
        base: BaseModel | None,
        clock: Clock,
        config: LearnerConfig,
        data: Path | None = None,
    ) -> None:
        """`base` None: the critic alone learns (`config.train_policy` must be False). `data` holds the pause file."""
        if base is None and config.train_policy:
            raise ValueError("base: got None, expected a base model, or train_policy=False")
        self.config = config
        self.critic = Critic(config.critic)
        self.kl = KlController(budget=config.kl_aim * config.kl_budget, weight=0.05)
        self.increments = 0
        self.unused_outcomes = 0
        self.skipped_steps = 0
        self.last: UpdateReport | None = None
        self._log, self._store, self._base, self._clock = log, store, base, clock
        self._pause = data / PAUSE_FILE if data is not None else None
        self._campaigns = campaign_table(log)
        self._policies = policy_table(log)
        self._shelf = PoolShelf(log)
        self._turns = Turns()
        start = whole(log, "outcomes")
        self._outcome_places = tuple(start)
        self._outcomes = log.reader(start)
        self._decoder = msgspec.json.Decoder(Outcome)
        self._waiting = 0
        self._waiting_since_ms = 0
        self._touched: dict[str, None] = {}
        self._reward_scale = 0.0
        self._accepted_kl = math.inf
        self._head: str | None = None
        self._refused: str | None = None
        self._policy = load_policy(base) if base is not None and config.train_policy else None
        self._optimizer: torch.optim.Optimizer | None = None
        self._adopt()

    # -- reading -------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read what is new and, where there is enough of it, take an increment. False where there was nothing to do."""
        read = self._read_outcomes()
        if self.paused:
            return read > 0
        # After a restart the whole history is read before anything is learnt from a part of it.
        caught_up = read < self.config.outcomes_per_poll or self._outcomes.at_end()
        if self._enough() and (caught_up or self._waiting >= self.config.most_waiting):
            self.increment()
            return True
        return read > 0

    def _enough(self) -> bool:
        """Whether what waits is worth an increment: many outcomes, or a few that have waited long."""
        if self._waiting < self.config.few_outcomes:
            return self._waiting >= self.config.min_outcomes
        waited_ms = self._clock.now_ms() - self._waiting_since_ms
        return self._waiting >= self.config.min_outcomes or waited_ms >= self.config.most_wait_ms

    @property
    def paused(self) -> bool:
        """Paused by an operator (POST /v1/learner/pause)."""
        return self._pause is not None and self._pause.exists()

    def _read_outcomes(self) -> int:
        records = self._outcomes.poll(self.config.outcomes_per_poll)
        # Read after the outcomes: a decision's campaign and pool are in the log before the decision.
        self._campaigns.refresh()
        self._shelf.refresh()
        for record in records:
            if record.value is not None:
                self._take(self._decoder.decode(record.value))
        return len(records)

    def _take(self, outcome: Outcome) -> None:
        decision = outcome.decision
        campaign = self._campaigns.rows.get(f"{decision.tenant}/{decision.campaign_id}")
        slots = self._shelf.slots(campaign, outcome) if campaign is not None else None
        if campaign is None or slots is None:
            # A deleted campaign, or a text that is no longer held: nothing can be learnt from it.
            self.unused_outcomes += 1
            return
        if self.critic.add(outcome, campaign, slots):
            if not self._waiting:
                self._waiting_since_ms = self._clock.now_ms()
            self._waiting += 1
            if decision.source == "pool":
                self._touched[decision.pool_id] = None
                if decision.position == 0:
                    # The later positions' probabilities leave out what stands before them: they teach the critic alone.
                    self._shelf.note(decision.pool_id, outcome.decision_id)

    # -- learning ------------------------------------------------------------------------------------------------------

    def increment(self) -> Manifest:
        """One increment on what has been read; the published version's manifest."""
        # A long history read at once is learnt as it would have been bit by bit.
        fits = min(self.config.catch_up_fits, max(1, self._waiting // (10 * self.config.min_outcomes)))
        self._waiting = 0
        self.increments += 1
        self._adopt()
        for _ in range(fits):
            self.critic.fit()
        view = self.critic.view()
        before = None
        if self._policy is not None and self._optimizer is not None:
            before = {name: value.detach().clone() for name, value in self._policy.trainable().items()}
            self._improve(view)
            self._hold_budget(view, before)
        return self._publish(view)

    def _improve(self, view: CriticView) -> None:
        assert self._policy is not None
        assert self._optimizer is not None
        batches = self._batches(view)
        if not batches:
            return
        spread = float(np.sqrt(np.mean([np.var(batch.q) for batch in batches])))
        # Moves slowly and never to nothing: a pool of equals must not blow its noise up.
        self._reward_scale = spread if self._reward_scale == 0 else 0.9 * self._reward_scale + 0.1 * spread
        scale = max(self._reward_scale, 1e-6)
        self._follow_favourites(view)
        self.last = update_policy(self._policy, self._optimizer, batches, self.kl.weight, scale, self.config.update)
        self.skipped_steps += self.last.skipped
        if self.last.sequences:
            narrow = self.last.entropy < self.config.entropy_floor
            self.kl = self.kl.updated(math.inf if narrow else self.last.kl)

    def _follow_favourites(self, view: CriticView) -> None:
        assert self._policy is not None
        assert self._optimizer is not None
        config = self.config.favourites
        for _ in range(config.steps):
            places = self._turns.next(self._campaigns.rows.values(), config.places)
            found = [favourites(view, self._shelf.archive, campaign, segment, config) for campaign, segment in places]
            some = [one for one in found if one is not None]
            if some:
                self.skipped_steps += follow(self._policy, self._optimizer, some, self.kl.weight, config)

    def _hold_budget(self, view: CriticView, before: Mapping[str, Tensor]) -> None:
        """Steps on the penalty alone until the divergence is inside its budget; the old weights where that neither does
        nor at least brings it nearer."""
        assert self._policy is not None
        assert self._optimizer is not None
        config = self.config.update
        if self.last is None:
            return
        for _ in range(6):
            if self.last.kl <= self.config.kl_budget:
                break
            quiet = [
                batch._replace(
                    q=np.zeros_like(batch.q),
                    shown=batch.shown[:0],
                    rewards=batch.rewards[:0],
                    selection=batch.selection[:0],
                )
                for batch in self._batches(view)
            ]
            if not quiet:
                return
            self.last = update_policy(self._policy, self._optimizer, quiet, max(self.kl.weight, 0.1), 1.0, config)
        # Where a version already is over the budget (which may have been lowered), every step back towards it is kept.
        if not self.last.kl <= self.config.kl_budget and not self.last.kl < self._accepted_kl:
            logger.warning(
                "KL %.2f is over its budget of %.2f: this increment is taken back", self.last.kl, self.config.kl_budget
            )
            self._policy.put(before)
            self.last = self.last._replace(kl=self._accepted_kl)
        self._accepted_kl = self.last.kl

    def _batches(self, view: CriticView) -> list[PoolBatch]:
        """The pools of this increment: those with news first, then the newest of the others."""
        assert self._policy is not None
        pools = self._shelf.for_training(self._touched, self._recent_versions(), self.config.pools_per_increment)
        batches = []
        for pool in pools:
            campaign = self._campaigns.rows.get(f"{pool.tenant}/{pool.campaign_id}")
            if campaign is not None and campaign_hash(campaign) == pool.campaign_hash:
                batches.append(self._batch(view, campaign, pool))
        return batches

    def _batch(self, view: CriticView, campaign: Campaign, pool: Pool) -> PoolBatch:
        features = view.encode(campaign, pool.segment, pool.candidates)
        q = view.score(features, {}).mean(axis=0)
        # What the gate refuses earns exactly nothing: that is known without showing it.
        q = np.where([candidate.rejected is not None for candidate in pool.candidates], 0.0, q)
        shown, rewards, selection = self.critic.feedback(self._shelf.decisions(pool.pool_id), q, campaign)
        return PoolBatch(pool, build_prompt(campaign, pool.segment), q, shown, rewards, selection)

    def _recent_versions(self) -> set[str]:
        return set(self._store.versions()[-self.config.staleness :])

    # -- versions ------------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Continue from the live version: at start, and when an operator has promoted or rolled back."""
        self._policies.refresh()
        live = live_policy(self._policies)
        if live is None:
            if self._head is None:
                self._accepted_kl = 0.0
                self._publish(self.critic.view(), reference=True)
                self._new_optimizer()
            return
        if live.version not in (self._head, self._refused) and self._load_live():
            self._accepted_kl = math.inf
            self._new_optimizer()

    def _load_live(self) -> bool:
        """Take over the live version's weights. Where its files are damaged the version in use stays (False), after a
        restart the latest good one that was live before. Raises StoreError where there is no such version."""
        if self._policy is None or self._base is None:
            self._head = next(self._policies.stages.live_ones()).version
            return True
        refusal: StoreError | None = None
        for record in self._policies.stages.live_ones():
            try:
                load_version(self._policy, self._base, self._store, record.version)
            except StoreError as error:
                if refusal is None:
                    refusal, self._refused = error, record.version
                    logger.warning("%s; learning goes on from the version before", error)
                if self._head is not None:
                    return False
            else:
                self._head = record.version
                return True
        assert refusal is not None
        raise refusal

    def _new_optimizer(self) -> None:
        if self._policy is not None:
            parameters = list(self._policy.trainable().values())
            self._optimizer = torch.optim.Adam(parameters, lr=self.config.update.learning_rate, betas=(0.9, 0.98))

    def _publish(self, view: CriticView, reference: bool = False) -> Manifest:
        """Into the store first, then into the log: a record never names a version that is not there."""
        tensors = self._policy.trainable() if self._policy is not None else {}
        facts: dict[str, Scalar | None] = {
            "by": "learner",
            "kl": 0.0 if self.last is None else self.last.kl,
            "kl_budget": self.config.kl_budget,
            "kl_weight": self.kl.weight,
            "entropy": None if self.last is None else self.last.entropy,
            "gradient_norm": None if self.last is None else self.last.gradient_norm,
            "effective_sample_size": None if self.last is None else self.last.effective_sample_size,
            "increment": self.increments,
            "outcomes": len(self.critic.buffer.entries),
            "outcomes_to": ",".join(f"{at.partition}:{self._outcomes.position(at)}" for at in self._outcome_places),
            "critic_version": view.version,
        }
        manifest = self._store.publish(
            tensors,
            view.to_bytes(),
            parent=None if reference else self._head,
            base=self._base.digest if self._base is not None else "none",
            created_ts=self._clock.now_ms(),
            facts=facts,
            # The log may know of numbers that this store does not: a version numbered below those would not go live.
            after=self._policies.stages.newest,
        )
        self._record(manifest, "live")
        self._head = manifest.version
        if self._policy is not None:
            self._policy.version = manifest.version
        self._touched.clear()
        if self.increments % 10 == 0:
            self._store.prune({manifest.version})
        return manifest

    def _record(self, manifest: Manifest, stage: Stage) -> None:
        record = PolicyRecord(
            version=manifest.version,
            content_hash=manifest.content_hash,
            parent=manifest.parent,
            uri=self._store.uri(manifest.version),
            stage=stage,
            ts=self._clock.now_ms(),
            evidence=manifest.facts,
        )
        self._log.append([Append("policies", manifest.version, to_json(record))])
        self._policies.refresh()
