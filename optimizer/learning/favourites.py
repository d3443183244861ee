"""The step towards the critic's favourites: the texts written for a place that the critic likes best, whatever their
age, are made likelier.

The policy gradient needs fresh samples of a few pools, most of which are poor; what the critic learns later about an
early text never reaches the policy through it. Here every place has its turn, on its best texts so far: the M-step of
maximum a posteriori policy optimisation (Abdolmaleki et al. 2018, arXiv 1806.06920), weighted maximum likelihood with
weights exp(Q / eta), under the same KL penalty as the gradient's. It is biased where the critic is
wrong; the doubly robust gradient, less so as it is taken (update.py), comes after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.learning.archive import Archive
from optimizer.learning.batches import which_compared
from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.prompt import Prompt, build_prompt
from optimizer.learning.traffic import due, place_name
from optimizer.learning.view import CriticView
from optimizer.maths.weights import boltzmann_weights
from optimizer.ranges import POSITIVE, POSITIVE_OR_ENDLESS, check_ranges, whole
from optimizer.types import Campaign, Decode

# The whole distribution: a text that cuts would leave out today is pulled back in.
WHOLE = Decode()
Place = tuple[Campaign, str]


@dataclass(frozen=True)
class FavouritesConfig:
    """`places`: places in a step. `texts`: of each, the heaviest. `effective`: effective number of the weights over the
    `best` texts by the critic, of which those are a part. `least`: texts that must be there before a place takes part.
    `steps` an increment; 0 leaves the policy to its gradient. `clip`: gradient norm. `compare_every`: of a place's
    texts one in so many, in turn, is compared with the reference and bears the penalty for the place; all of them where
    those would be fewer than `least_compared` in a step. Raises ConfigError for what is out of its range."""

    places: int = 8
    texts: int = 8
    effective: float = 10.0
    best: int = 64
    least: int = 64
    steps: int = 1
    clip: float = 1.0
    compare_every: int = 2
    least_compared: int = 16

    def __post_init__(self) -> None:
        check_ranges(
            self,
            places=whole(1),
            texts=whole(1),
            effective=POSITIVE,
            best=whole(1),
            least=whole(1),
            steps=whole(0),
            clip=POSITIVE_OR_ENDLESS,
            compare_every=whole(1),
            least_compared=whole(0),
        )


class Favourites(NamedTuple):
    """A place's best texts: their tokens and `weights` float[n], sum 1."""

    prompt: Prompt
    token_ids: list[tuple[tuple[int, ...], ...]]
    weights: NDArray[np.float64]


class Turns:
    """Deals the places round, those with more impressions more often. Not thread-safe."""

    def __init__(self) -> None:
        self._dealt = 0
        self._last: dict[tuple[str, str, str], int] = {}

    def next(self, campaigns: Iterable[Campaign], count: int, traffic: Mapping[str, float]) -> list[Place]:
        """The `count` places that are due (traffic.py), fewer where there are fewer. `traffic`: shares by
        `place_name`."""
        places = {(one.tenant, one.campaign_id, segment): one for one in campaigns for segment in one.segments}
        self._last = {name: self._last.get(name, -1) for name in places}

        def urgency(name: tuple[str, str, str]) -> float:
            return due(traffic.get(place_name(places[name], name[2]), 0.0), self._dealt - self._last[name], len(places))

        dealt = sorted(places, key=lambda name: (-urgency(name), name))[:count]
        self._last.update({name: self._dealt + at for at, name in enumerate(dealt)})
        self._dealt += len(dealt)
        return [(places[name], name[2]) for name in dealt]


def favourites(
    view: CriticView, archive: Archive, campaign: Campaign, segment: str, config: FavouritesConfig
) -> Favourites | None:
    """What the critic likes best among the texts held for the campaign, whichever segment they were written for; None
    where there are too few."""
    texts = [text for text in archive.texts(campaign) if text.token_ids]
    if len(texts) < config.least:
        return None
    q = view.score(view.encode(campaign, segment, texts), {}).mean(axis=0)
    best = np.argsort(-q, kind="stable")[: config.best]
    weights = boltzmann_weights(q[best], config.effective)[: config.texts]
    return Favourites(
        build_prompt(campaign, segment),
        [texts[at].token_ids for at in best[: config.texts]],
        weights / weights.sum(),
    )


def follow(
    policy: LanguagePolicy,
    optimizer: torch.optim.Optimizer,
    some: list[Favourites],
    kl_weight: float,
    config: FavouritesConfig,
    turn: int = 0,
) -> int:
    """One step on some places' favourites; returns the steps skipped (1 where the gradient was not finite).

    Args:
      kl_weight: penalty per nat of divergence from the reference on these texts, beside their negative
        log-likelihood.
      turn: number of the step, which moves on which texts are compared with the reference.
    """
    prompts = [one.prompt for one in some for _ in one.token_ids]
    tokens = [ids for one in some for ids in one.token_ids]
    weights = [one.weights / len(some) for one in some]
    compared = which_compared([len(own) for own in weights], config.compare_every, config.least_compared, turn)
    # Those of a place that are compared bear its penalty. They stand by weight, so that always the same would not do.
    penalties = [own * beside * (own.sum() / own[beside].sum()) for own, beside in zip(weights, compared, strict=True)]
    weight, penalty = (
        torch.tensor(np.concatenate(each), device=policy.device, dtype=torch.float32) for each in (weights, penalties)
    )
    optimizer.zero_grad(set_to_none=True)
    scored = policy.score(prompts, tokens, WHOLE, compared=np.concatenate(compared))
    loss = (kl_weight * penalty * scored.kl - weight * scored.log_prob).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), config.clip)
    if not torch.isfinite(norm):
        return 1
    optimizer.step()
    return 0
