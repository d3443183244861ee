"""From a shelf or the controls to the decisions of one request: the draws and their exactly known probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from optimizer.ids import variant_id
from optimizer.maths.selection import Floats, draw, selection_probabilities, without
from optimizer.types import Campaign, Scalar, Source
from serving.views import Shelf

EPSILON = 0.02  # share of uniform exploration inside a pool


class Arms(NamedTuple):
    """What one request may draw from, and the distribution of the first draw.

    `share` is the probability that the request draws from these arms at all: (1 - holdback) for a pool, holdback for
    the controls, 1 for the controls where there is no pool. `probabilities` is `[n]` and sums to 1.
    """

    source: Source
    pool_id: str
    policy_version: str
    critic_version: str
    share: float
    probabilities: Floats
    slots: tuple[dict[str, str], ...]
    variant_ids: tuple[str, ...]


class Drawn(NamedTuple):
    """One draw: its index among the arms, its probability given the draws before it (the first times `share`), and the
    distribution that it came from."""

    candidate: int
    propensity: float
    probabilities: list[float]


def pool_arms(
    shelf: Shelf, context: Mapping[str, Scalar], share: float, source: Source, epsilon: float = EPSILON
) -> Arms:
    """The pool's candidates under the critic's heads; without a critic all that are permitted are equally likely."""
    critic, pool = shelf.critic, shelf.pool
    scores = np.zeros((1, len(pool.candidates))) if critic is None else critic.score(shelf.features, context)
    return Arms(
        source,
        pool.pool_id,
        pool.policy_version,
        "" if critic is None else critic.version,
        share,
        selection_probabilities(scores, shelf.permitted, epsilon),
        tuple(candidate.slots for candidate in pool.candidates),
        tuple(candidate.variant_id for candidate in pool.candidates),
    )


def control_arms(campaign: Campaign, share: float, policy_version: str) -> Arms:
    """The campaign's controls, equally likely."""
    n = len(campaign.controls)
    ids = tuple(variant_id(campaign.campaign_id, control) for control in campaign.controls)
    return Arms("control", "", policy_version, "", share, np.full(n, 1.0 / n), campaign.controls, ids)


def draws(arms: Arms, count: int, rng: np.random.Generator) -> list[Drawn]:
    """Up to `count` draws without replacement; fewer where there are fewer texts."""
    found: list[Drawn] = []
    probabilities, share = arms.probabilities, arms.share
    while len(found) < count and probabilities.any():
        index = draw(probabilities, rng.random())
        found.append(Drawn(index, share * float(probabilities[index]), probabilities.tolist()))
        probabilities, share = without(probabilities, index), 1.0
    return found
