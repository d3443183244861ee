"""Adloop in the replay of headline tests: its own serving, log, joiner and critic, with the real headlines as the
pools.

Each group is a campaign (holdback 0) whose headlines stand as one pool in the `candidates` topic. A round is: decisions
by AdService, impression and click events through the log, the joiner, then one increment of the learner, which
publishes a version that serving takes up. The language model has no part: the texts are given, so the learner teaches
its critic alone. `DirectPeer` leaves out what carries records from one to the other, for the largest replays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.ids import campaign_hash, variant_id
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.learner import Learner
from optimizer.learning.view import CriticView
from optimizer.maths.selection import selection_probabilities
from optimizer.store import PolicyStore
from optimizer.stream.log import Append
from optimizer.types import Campaign, Candidate, Decode, Pool, to_json
from serving.campaigns import campaign_from
from serving.drawing import EPSILON
from serving.schemas import CampaignIn, GenerateIn, Variant
from serving.wire import convert
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
# The features' first scales add up to a headline's: at a third of the default that is a standard deviation of 0.5. The
# evidence of the weeks that teach moves the scales on from there.
PRIOR = 0.35
TAUGHT_FITS = 60  # the evidence's scales and the heads have settled by then
WHOLE_ROUND = 1_000_000  # more outcomes than any round has: one increment a round


class AdloopPeer:
    """The loop as a `Peer`: row g is the campaign of group g, arm a its pool's candidate a."""

    name = "adloop"

    def __init__(
        self, groups: Sequence[HeadlineGroup], folder: Path, seed: int, past: Sequence[HeadlineGroup] = ()
    ) -> None:
        """`folder`: empty, takes log, states and policy versions. `past`: tests whose counts teach the critic first."""
        store = PolicyStore(folder / "policies")
        self._ids = [f"group-{number}" for number in range(len(groups))]
        campaigns = {name: _campaign(group) for name, group in zip(self._ids, groups, strict=True)}
        self._loop = Loop(campaigns, folder, seed, load_critic=critic_loader(store))
        self._arm_of: dict[str, int] = {}
        self._append_pools(groups)
        config = LearnerConfig(
            train_policy=False,
            min_outcomes=1,
            catch_up_fits=1,
            outcomes_per_poll=WHOLE_ROUND,
            critic=critic_config(seed),
        )
        learner = Learner(self._loop.log, store, None, self._loop.clock, config)
        if past:
            teach(learner.critic, past)
            learner.increment()
        self._loop.attach(learner)
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
            candidates = _candidates(name, group)
            self._arm_of.update({text.variant_id: arm for arm, text in enumerate(candidates)})
            pool = Pool(
                pool_id=f"{name}.pool",
                tenant=TENANT,
                campaign_id=name,
                segment=SEGMENT,
                policy_version=POLICY,
                campaign_hash=campaign_hash(campaign),
                candidates=candidates,
                decode=Decode(),
                ts=self._loop.clock.now_ms(),
            )
            records.append(Append("candidates", pool.pool_id, to_json(pool)))
        self._loop.log.append(records)


class DirectPeer:
    """As AdloopPeer, with the same features, critic, selector and increments, but no log between them: serving,
    tokens and joiner are left out, and the critic is taught each round's counts instead of outcomes one by one."""

    name = "adloop"

    def __init__(self, groups: Sequence[HeadlineGroup], seed: int, past: Sequence[HeadlineGroup] = ()) -> None:
        self._critic = Critic(critic_config(seed))
        teach(self._critic, past)
        ids = [f"group-{number}" for number in range(len(groups))]
        self._campaigns = [_parsed(name, group) for name, group in zip(ids, groups, strict=True)]
        self._texts = [_candidates(name, group) for name, group in zip(ids, groups, strict=True)]
        self._view: CriticView | None = self._critic.view() if past else None

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        """Each impression drawn anew from the selector's distribution."""
        chosen = np.empty((len(rows), count), np.int64)
        for at, row in enumerate(rows):
            campaign, texts = self._campaigns[row], self._texts[row]
            scores = np.zeros((1, len(texts)))
            if self._view is not None:
                scores = self._view.score(self._view.encode(campaign, SEGMENT, texts), {})
            probabilities = selection_probabilities(scores, np.ones(len(texts), bool), EPSILON)
            chosen[at] = rng.choice(len(texts), count, p=probabilities)
        return chosen

    def update(self, rows: Ints, arms: Ints, rewards: Floats) -> None:
        """Teach the critic what came back: one increment."""
        for row, shown, hits in zip(rows, arms, rewards, strict=True):
            texts = self._texts[row]
            counts = np.bincount(shown, minlength=len(texts)).tolist()
            clicks = np.bincount(shown, weights=hits, minlength=len(texts)).astype(int).tolist()
            for text, impressions, clicked in zip(texts, counts, clicks, strict=True):
                if impressions:
                    self._critic.add_counts(self._campaigns[row], {}, text.variant_id, text.slots, impressions, clicked)
        self._critic.fit()
        self._view = self._critic.view()


def critic_config(seed: int) -> CriticConfig:
    """Production's critic, with narrower first scales and the evidence shared. Arm rates do not change here: the past
    keeps its weight, whatever the drift watch makes of a thousand new campaigns at once."""
    return CriticConfig(seed=seed, prior=PRIOR, shared_evidence=True, kept_at_drift=1.0)


def teach(critic: Critic, past: Sequence[HeadlineGroup]) -> None:
    """Teach a critic tests that are over, by the counts of each headline."""
    for number, group in enumerate(past):
        campaign = _parsed(f"past-{number}", group)
        texts = _candidates(campaign.campaign_id, group)
        for text, shown, clicked in zip(texts, group.impressions, group.clicks, strict=True):
            critic.add_counts(campaign, {}, text.variant_id, text.slots, shown, clicked)
    for _ in range(TAUGHT_FITS if past else 0):
        critic.fit()


def _parsed(name: str, group: HeadlineGroup) -> Campaign:
    return campaign_from(TENANT, name, convert(_campaign(group), CampaignIn))


def _candidates(name: str, group: HeadlineGroup) -> tuple[Candidate, ...]:
    slots = [{"headline": headline} for headline in group.headlines]
    return tuple(Candidate(variant_id(name, text), text) for text in slots)


def _campaign(group: HeadlineGroup) -> dict[str, Any]:
    longest = max(len(headline) for headline in (*group.headlines, CONTROL))
    return {
        "product": {"name": "Headline test"},
        "slots": [{"name": "headline", "max_chars": longest}],
        "controls": [{"headline": CONTROL}],
        "attribution": {"click_window_ms": CLICK_WINDOW_MS, "conversion_window_ms": 0},
        "holdback": 0.0,
    }
