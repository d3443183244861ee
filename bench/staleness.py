"""What weight a late reward keeps: `python -m bench.staleness [--world W --impressions N --increment K --seed S]`.

The whole loop plays; then each pool's samples are scored under the policy as it is at the end, and the importance
ratios of the gradient (optimizer/maths/weights.py: pi_now / pi_then, at most `ratio_ceiling`) are told by the versions
that came between. The ratio is what a reward for such a text counts in the gradient; the effective share is the
effective sample size over the samples. The critic and the favourites take a late reward whole (docs/learning.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from optimizer.arguments import natural, positive
from optimizer.ids import version_number
from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.prompt import build_prompt
from optimizer.maths.weights import effective_sample_size, truncated_ratios
from optimizer.types import Campaign, Pool
from simulators.adloop_agent import AdloopAgent
from simulators.compare import make_tiny_model, play
from simulators.contenders import AdloopContender
from simulators.progress import Bars
from simulators.worlds import load_world

AGES = (0, 1, 10, 30, 100, 200, 300, 500, 1_000)


class Aged(NamedTuple):
    """A pool `versions` old: truncated ratios float[n] of its samples, and how often each was `shown`, int[n]."""

    versions: int
    ratios: np.ndarray
    shown: np.ndarray


def aged(agent: AdloopAgent, ceiling: float) -> Iterator[Aged]:
    """Each pool that the learner's shelf still holds, under the policy that is live."""
    policy, shelf = agent.generator.policy, agent.learner._shelf
    campaigns = {f"{one.tenant}/{one.campaign_id}": one for one in agent.learner._campaigns.rows.values()}
    now = version_number(policy.version) or 0
    for pool in list(shelf._pools.values()):
        campaign = campaigns[f"{pool.tenant}/{pool.campaign_id}"]
        entries = agent.learner.critic.buffer.entries
        decided = [entries[name].candidate for name in shelf.decisions(pool.pool_id) if name in entries]
        found = _ratios(policy, campaign, pool, decided, ceiling)
        if found is not None:
            yield Aged(now - (version_number(pool.policy_version) or 0), *found)


def _ratios(
    policy: LanguagePolicy, campaign: Campaign, pool: Pool, decided: Sequence[int], ceiling: float
) -> tuple[np.ndarray, np.ndarray] | None:
    samples = [at for at, text in enumerate(pool.candidates) if text.log_probs and not text.kept]
    if not samples:
        return None
    some = [pool.candidates[at] for at in samples]
    prompts = [build_prompt(campaign, pool.segment)] * len(some)
    with torch.no_grad():
        now = policy.score(prompts, [text.token_ids for text in some], pool.decode).log_prob.double().cpu().numpy()
    then = np.array([sum(map(sum, text.log_probs)) for text in some])
    shown = np.bincount(decided, minlength=len(pool.candidates))[samples]
    return truncated_ratios(now, then, ceiling), shown


def main(argv: list[str]) -> int:
    """The table, a row an age."""
    parser = argparse.ArgumentParser(description="What weight a late reward keeps in the gradient.")
    parser.add_argument("--world", default="phrases", help="default: phrases")
    parser.add_argument("--impressions", type=positive, default=8_192, help="default: 8192")
    parser.add_argument("--increment", type=positive, default=32, help="impressions to a version (default: 32)")
    parser.add_argument("--seed", type=natural, default=201, help="default: 201")
    options = parser.parse_args(argv)
    begun = time.perf_counter()
    world: Any = load_world(options.world, options.seed, options.impressions)
    with tempfile.TemporaryDirectory() as folder, Bars() as bars:
        make_tiny_model(bars)
        agent = AdloopAgent(world.campaigns(), Path(folder), options.seed)
        with closing(AdloopContender(agent)) as player:
            play(player, world, options.impressions, options.increment, bars.bar("staleness"))
            ceiling = agent.learner.config.update.ratio_ceiling
            pools = list(aged(agent, ceiling))
    print(
        f"{options.world}, seed {options.seed}, {options.impressions} impressions, a version each {options.increment}"
    )
    for low, high in zip(AGES, (*AGES[1:], 10**9), strict=True):
        own = [pool for pool in pools if low <= pool.versions < high]
        if not own:
            continue
        ratios, shown = np.concatenate([one.ratios for one in own]), np.concatenate([one.shown for one in own])
        told = f"{shown @ ratios / shown.sum():5.2f}" if shown.any() else "    -"
        effective = np.mean([effective_sample_size(one.ratios) / len(one.ratios) for one in own])
        print(
            f"{low:4} to {'more' if high == 10**9 else high - 1:>4} versions ago: {len(own):4} pools, mean ratio "
            f"{ratios.mean():5.2f}, of the impressions {told}, effective share {effective:.2f}"
        )
    print(f"{time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
