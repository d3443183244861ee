"""Adloop in the replay of headline tests: its own serving, log, joiner and critic, with the real headlines as the
pools.

Each group is a campaign (holdback 0) whose headlines stand as one pool in the `candidates` topic. A round is: decisions
by AdService, impression and click events through the log, the joiner, then one increment of the learner, which
publishes a version that serving takes up. The language model has no part: the texts are given, so the learner teaches
its critic alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.ids import campaign_hash, variant_id
from optimizer.learning.critic import CriticConfig
from optimizer.learning.learner import Learner, LearnerConfig
from optimizer.store import PolicyStore
from optimizer.stream.log import Append
from optimizer.types import Candidate, Decode, Pool, to_json
from serving.schemas import GenerateIn, Variant
from simulators.loop import TENANT, Loop, critic_loader
from simulators.peers import Floats, Ints
from simulators.upworthy import HeadlineGroup

SEGMENT = "all"
# A visitor clicks at once or never, so a second settles what was not clicked. The round after is two seconds later: a
# replay of 300 rounds stays inside the joiner's grace, and no outcome needs a closing revision of its own.
CLICK_WINDOW_MS = 1_000
ROUND_MS = 2_000
# No headline equals it: the pool holds no control, and with holdback 0 a control is never shown.
CONTROL = "(the page without a headline)"
POLICY = "headlines"
# A headline's rate differs from its neighbours' by a fifth: there is little to gain from looking at one more than the
# data ask for. Measured on one sample of 72 groups (README, Results).
SPREAD = 0.5
# The features' first scales add up to a headline's: at a third of the default that is a standard deviation of 0.5.
PRIOR = 0.35
EPSILON = 0.02
WHOLE_ROUND = 1_000_000  # more outcomes than any round has: one increment a round


class AdloopPeer:
    """The loop as a `Peer`: row g is the campaign of group g, arm a its pool's candidate a."""

    name = "adloop"

    def __init__(self, groups: Sequence[HeadlineGroup], folder: Path, seed: int) -> None:
        """`folder`: empty, takes log, states and policy versions."""
        store = PolicyStore(folder / "policies")
        self._ids = [f"group-{number}" for number in range(len(groups))]
        campaigns = {name: _campaign(group) for name, group in zip(self._ids, groups, strict=True)}
        self._loop = Loop(campaigns, folder, seed, load_critic=critic_loader(store), epsilon=EPSILON)
        self._arm_of: dict[str, int] = {}
        self._append_pools(groups)
        config = LearnerConfig(
            train_policy=False,
            min_outcomes=1,
            catch_up_fits=1,
            outcomes_per_poll=WHOLE_ROUND,
            critic=CriticConfig(seed=seed, prior=PRIOR, spread=SPREAD),
        )
        self._loop.attach(Learner(self._loop.log, store, None, self._loop.clock, config))
        self._loop.views.refresh_tables()
        self._shown: list[Variant] = []

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        """One decision for each impression, by the service's own seeded draws; `rng` is not used."""
        requests = [GenerateIn(campaign_id=self._ids[row]) for row in rows for _ in range(count)]
        self._shown = self._loop.serve_many(requests)
        chosen = [self._arm_of[variant.variant_id] for variant in self._shown]
        return np.array(chosen, dtype=np.int64).reshape(len(rows), count)

    def update(self, rows: Ints, arms: Ints, rewards: Floats) -> None:
        """Post what happened to the texts shown last, let time pass, join and learn."""
        loop = self._loop
        events = [loop.impression(variant) for variant in self._shown]
        events += [loop.click(variant) for variant, hit in zip(self._shown, rewards.ravel(), strict=True) if hit]
        loop.post(events)
        loop.advance(loop.clock.now_ms() + ROUND_MS)
        loop.increment()

    def close(self) -> None:
        self._loop.close()

    def _append_pools(self, groups: Sequence[HeadlineGroup]) -> None:
        records = []
        for name, group in zip(self._ids, groups, strict=True):
            campaign = self._loop.service.get_campaign(TENANT, name)
            slots = [{"headline": headline} for headline in group.headlines]
            ids = [variant_id(name, text) for text in slots]
            self._arm_of.update({variant: arm for arm, variant in enumerate(ids)})
            pool = Pool(
                pool_id=f"{name}.pool",
                tenant=TENANT,
                campaign_id=name,
                segment=SEGMENT,
                policy_version=POLICY,
                campaign_hash=campaign_hash(campaign),
                candidates=tuple(Candidate(variant, text) for variant, text in zip(ids, slots, strict=True)),
                decode=Decode(),
                ts=self._loop.clock.now_ms(),
            )
            records.append(Append("candidates", pool.pool_id, to_json(pool)))
        self._loop.log.append(records)


def _campaign(group: HeadlineGroup) -> dict[str, Any]:
    longest = max(len(headline) for headline in (*group.headlines, CONTROL))
    return {
        "product": {"name": "Headline test"},
        "slots": [{"name": "headline", "max_chars": longest}],
        "controls": [{"headline": CONTROL}],
        "attribution": {"click_window_ms": CLICK_WINDOW_MS, "conversion_window_ms": 0},
        "holdback": 0.0,
    }
