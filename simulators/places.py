"""Where texts are shown: (campaign, segment) pairs, and the fixed pools of texts that the peers choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.types import Campaign, Pool, Scalar
from serving.campaigns import campaign_from
from serving.schemas import CampaignIn
from serving.wire import convert
from simulators.loop import TENANT
from simulators.settings import POOL

Place = tuple[str, str]
Slots = Mapping[str, str]
Texts = Mapping[Place, Sequence[Slots]]

SAMPLES = 80
ATTEMPTS = 4


class Places:
    """The campaigns of a world with their defaults filled in, by id, and where each request belongs."""

    def __init__(self, bodies: Mapping[str, Mapping[str, Any]]) -> None:
        """`bodies`: campaign_id -> body of `PUT /v1/campaigns/{campaign_id}`. Raises BadInput where serving would
        answer 422."""
        self.campaigns: dict[str, Campaign] = {
            name: campaign_from(TENANT, name, convert(dict(body), CampaignIn)) for name, body in bodies.items()
        }

    def of(self, campaign_id: str, context: Mapping[str, Scalar]) -> Place:
        """The request's place: the context's segment, or the campaign's first."""
        segment = context.get("segment")
        return campaign_id, self.campaigns[campaign_id].segments[0] if segment is None else str(segment)

    def all(self) -> list[Place]:
        return [(name, segment) for name, campaign in self.campaigns.items() for segment in campaign.segments]

    def controls(self) -> Texts:
        """Each campaign's control texts, for each of its segments."""
        return {place: self.campaigns[place[0]].controls for place in self.all()}


def first_of(texts: Texts, size: int) -> Texts:
    """The first `size` texts of each pool: a smaller pool that is part of the larger one."""
    return {place: some[:size] for place, some in texts.items()}


def write_pools(
    bodies: Mapping[str, dict[str, Any]], folder: Path, seed: int, model: str | None = None, size: int = POOL
) -> Texts:
    """`size` distinct texts for each place that pass serving's gate, by the untrained model; fewer where
    `ATTEMPTS` x `SAMPLES` samples give fewer, the controls where they give none.

    `folder` is empty. Raises ConfigError for a model that can't be had."""
    # Imported here: it brings torch, which a worker that only plays a bandit does without.
    from serving.generator import GeneratorConfig
    from simulators.adloop_agent import AdloopAgent

    agent = AdloopAgent(bodies, folder, seed, model=model, generator=GeneratorConfig(samples=SAMPLES, regrown=0))
    try:
        texts: dict[Place, Sequence[Slots]] = {}
        for campaign in agent.views.campaigns(TENANT):
            for segment in campaign.segments:
                shelf = agent.views.shelf(campaign, segment)
                found = (
                    {} if shelf is None else {c.variant_id: c.slots for c in shelf.pool.candidates if not c.rejected}
                )
                for _ in range(ATTEMPTS - 1):
                    if len(found) >= size or campaign.rules.require_approval:
                        break
                    more = agent.generator.fresh(campaign, segment, lambda: False)
                    if more is not None:
                        found |= _passed(more)
                texts[(campaign.campaign_id, segment)] = list(found.values())[:size] or campaign.controls
        return texts
    finally:
        agent.close()


def _passed(pool: Pool) -> dict[str, dict[str, str]]:
    """The texts that the gate let through, by variant."""
    return {one.variant_id: one.slots for one in pool.candidates if one.rejected is None}
