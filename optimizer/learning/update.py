"""One policy-gradient step of the language model: the doubly robust gradient of maths/gradient.py with a KL penalty.

The gradient as it is taken is not unbiased: ratios are truncated and tempered, residuals of rarely drawn texts capped,
and the critic has seen the very rewards of the residuals (maths/gradient.py says when the estimator is).

What it leaves out: value-function bootstrapping inside a text (a text is one action), and PPO's clipping (importance
ratios are truncated instead, and the KL budget bounds the distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.learning.batches import which_compared
from optimizer.learning.policy import Anchor, LanguagePolicy
from optimizer.learning.prompt import Prompt
from optimizer.maths.gradient import doubly_robust_factors
from optimizer.maths.weights import effective_sample_size, tempered, truncated_ratios
from optimizer.ranges import (
    NOT_NEGATIVE,
    NOT_NEGATIVE_OR_ENDLESS,
    POSITIVE_OR_ENDLESS,
    SHARE,
    check_ranges,
    whole,
)
from optimizer.types import Pool

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UpdateConfig:
    """`learning_rate`: Adam's, also of the favourites' steps; 0 leaves the policy as it is. `passes`: gradient steps an
    increment. `ratio_ceiling`: rho-bar, the largest importance ratio (infinity: never cut). `residual_cap`: largest 1 /
    s_j, in units of the pool's size (infinity: never capped; docs/decisions.md has the measurement behind the default).
    `ratio_floor`: effective size of a step's samples, as a share of how many they are, under which their ratios are
    tempered (maths/weights.py). `clip`: gradient norm. `compare_every`: of the samples one in so many is compared with
    the reference and bears the penalty for all, since the reference's reading of them is a fifth of a step; all of them
    where that would leave fewer than `least_compared`. `least_effective`: effective sequences under which the
    divergence is that of the samples as they are, not as the present policy would weigh them: a mean over two texts
    says nothing. Raises ConfigError for what is out of its range."""

    learning_rate: float = 5e-4
    passes: int = 1
    ratio_ceiling: float = 2.0
    ratio_floor: float = 1 / 64
    residual_cap: float = 0.02
    clip: float = 1.0
    compare_every: int = 2
    least_compared: int = 32
    least_effective: float = 16.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            learning_rate=NOT_NEGATIVE,
            passes=whole(1),
            ratio_ceiling=POSITIVE_OR_ENDLESS,
            ratio_floor=SHARE,
            residual_cap=NOT_NEGATIVE_OR_ENDLESS,
            clip=POSITIVE_OR_ENDLESS,
            compare_every=whole(1),
            least_compared=whole(0),
            least_effective=NOT_NEGATIVE,
        )


class PoolBatch(NamedTuple):
    """A pool with what is known of it: `q` float[n]; `shown` int[D], `rewards` and `selection` float[D] of its
    decisions. `price`: a reward of its campaign that is not nothing, about (units.py); in it pools are comparable."""

    pool: Pool
    prompt: Prompt
    q: Floats
    shown: NDArray[np.intp]
    rewards: Floats
    selection: Floats
    price: float = 1.0


class UpdateReport(NamedTuple):
    """`kl` nats per sequence of the policy before the last step, on those samples of this batch that are compared;
    `skipped`: steps with gradients that were not finite; `clipped`: steps whose gradient was longer than the limit;
    `tempered`: the ratios of so many samples were."""

    kl: float
    entropy: float
    gradient_norm: float
    effective_sample_size: float
    sequences: int
    skipped: int
    clipped: int = 0
    tempered: int = 0


def update_policy(
    policy: LanguagePolicy,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[PoolBatch],
    kl_weight: float,
    reward_scale: float,
    config: UpdateConfig,
    anchors: dict[object, Anchor] | None = None,
) -> UpdateReport:
    """`config.passes` steps on the samples of some pools.

    Args:
      kl_weight: penalty per nat, in units of `reward_scale`.
      reward_scale: > 0, divides the advantages, which are in prices of their campaigns, so that one learning rate
        serves every reward.
      anchors: filled with the reference's part, and read where calls on the same samples have filled it.
    """
    # Pools may differ in their decode parameters: each keeps its own.
    groups = [
        (batch, [at for at, c in enumerate(batch.pool.candidates) if c.count > 0 and not c.kept]) for batch in batches
    ]
    groups = [(batch, index) for batch, index in groups if index]
    skipped = clipped = 0
    last = UpdateReport(0.0, 0.0, 0.0, 0.0, 0, 0)
    anchors = {} if anchors is None else anchors
    for _ in range(config.passes):
        optimizer.zero_grad(set_to_none=True)
        report = _accumulate(policy, groups, anchors, kl_weight, reward_scale, config)
        norm = float(torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), config.clip))
        if not np.isfinite(norm):
            skipped += 1
            # What was measured holds all the same.
            last = report
            continue
        optimizer.step()
        clipped += norm > config.clip
        last = report._replace(gradient_norm=norm)
    return last._replace(skipped=skipped, clipped=clipped)


def _accumulate(
    policy: LanguagePolicy,
    groups: Sequence[tuple[PoolBatch, list[int]]],
    anchors: dict[object, Anchor],
    kl_weight: float,
    reward_scale: float,
    config: UpdateConfig,
) -> UpdateReport:
    """Add the batch's gradient to the parameters', one backward pass for all pools of one decoding.
    `anchors` keeps the reference's part between the passes of one increment."""
    by_decode: dict[object, list[tuple[PoolBatch, list[int]]]] = {}
    for group in groups:
        by_decode.setdefault(group[0].pool.decode, []).append(group)
    kl_sum, entropy_sum, weight_sum, sequences, tempered_count = 0.0, 0.0, 0.0, 0, 0
    ratios: list[Floats] = []
    samples = sum(batch.pool.candidates[at].count for batch, index in groups for at in index)
    for decode, same in by_decode.items():
        prompts = [batch.prompt for batch, index in same for _ in index]
        tokens = [batch.pool.candidates[at].token_ids for batch, index in same for at in index]
        (compared,) = which_compared([len(tokens)], config.compare_every, config.least_compared)
        scored = policy.score(prompts, tokens, same[0][0].pool.decode, anchors.get(decode, ()), compared)
        anchors[decode] = scored.anchor
        logs = scored.log_prob.detach().double().cpu().numpy()
        sampled = [batch.pool.candidates[at] for batch, index in same for at in index]
        behaviour = np.array([sum(map(sum, candidate.log_probs)) for candidate in sampled])
        truncated = truncated_ratios(logs, behaviour, config.ratio_ceiling)
        ratio = tempered(truncated, config.ratio_floor * len(truncated))
        tempered_count += len(ratio) if ratio is not truncated else 0
        ratios.append(ratio)
        factors, counts = [], []
        start = 0
        for batch, index in same:
            candidates = batch.pool.candidates
            rho = np.zeros(len(candidates))
            rho[index] = ratio[start : start + len(index)]
            count = np.array([0.0 if c.kept else float(c.count) for c in candidates])
            cap = config.residual_cap * len(candidates)
            values = doubly_robust_factors(batch.q, count, rho, batch.shown, batch.rewards, batch.selection, cap)
            factors.append(values[index] / batch.price)
            counts.append(count[index])
            start += len(index)
        factor = torch.tensor(
            np.concatenate(factors) / (reward_scale * len(groups)), device=policy.device, dtype=torch.float32
        )
        if effective_sample_size(ratio[compared]) < max(config.least_effective, 1.0):
            ratio = np.ones_like(ratio)
        weight_np = np.concatenate(counts) * ratio
        # The samples that are compared stand for all.
        compared_np = weight_np * compared * (weight_np.sum() / weight_np[compared].sum())
        weight = torch.tensor(compared_np / samples, device=policy.device, dtype=torch.float32)
        # A text that the truncated distribution no longer reaches has weight 0 and no gradient.
        reachable = torch.where(torch.isfinite(scored.log_prob), scored.log_prob, torch.zeros_like(scored.log_prob))
        loss = -(factor * reachable).sum() + kl_weight * (weight * scored.kl).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        kl_sum += float(scored.kl.detach().double().cpu().numpy() @ compared_np)
        entropy_sum += float(scored.entropy.double().cpu().numpy() @ weight_np)
        weight_sum += float(weight_np.sum())
        sequences += len(tokens)
    total = max(weight_sum, 1e-12)
    ess = effective_sample_size(np.concatenate(ratios)) if ratios else 0.0
    return UpdateReport(kl_sum / total, entropy_sum / total, 0.0, ess, sequences, 0, tempered=tempered_count)
