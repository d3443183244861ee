"""Finds Vowpal Wabbit's settings by random search on seeds that no comparison is shown with (docs/learning.md).

For each exploration and cost estimate: `--configs` random settings on the first `--seeds`, at half the impressions and
the small pool; the best `--keep` of them, and those in use, on all seeds at full length and the large pool. Prints the
finalists as JSON lines, the best last. Usage: python scripts/vowpal_search.py --world phrases
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from optimizer.arguments import natural, positive
from simulators.compare import INCREMENT, PoolJob, play, write_pools_job
from simulators.payout import Payout
from simulators.places import Places, Texts, first_of
from simulators.settings import EXPLORATIONS, POOL, SMALL, VowpalConfig
from simulators.vowpal import VowpalContender
from simulators.worlds import load_world

STRENGTHS: dict[str, tuple[str, ...]] = {
    "squarecb": tuple(
        f"--squarecb --gamma_scale {scale} --gamma_exponent {exponent}"
        for scale in (3, 10, 30, 100, 300, 1000)
        for exponent in (0.25, 0.5, 0.75)
    ),
    "epsilon": tuple(f"--epsilon {share}" for share in (0.01, 0.02, 0.05, 0.1, 0.2)),
    "softmax": tuple(f"--softmax --lambda {sharpness}" for sharpness in (5, 10, 20, 40, 80, 160)),
    "bag": tuple(f"--bag {heads} --epsilon {share}" for heads in (3, 5, 10, 16) for share in (0.0, 0.02)),
}
TEXTS = ("I", "W", "IW", "IWN", "WN")
CROSSED = (("S",), ("S", "C"), ())
LEARNING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
POWERS = (0.0, 0.25, 0.5)


def drawn(rng: random.Random, name: str, cb_type: str) -> VowpalConfig:
    """Random settings of one exploration."""
    texts = rng.choice(TEXTS)
    crossed = [(space, kind) for space in rng.choice(CROSSED) for kind in texts]
    return VowpalConfig(
        rng.choice(STRENGTHS[name]),
        cb_type,
        texts,
        tuple("".join(pair) for pair in crossed),
        rng.choice(LEARNING_RATES),
        rng.choice(POWERS),
    )


def rate(config: VowpalConfig, world_name: str, seed: int, pools: Texts, impressions: int) -> float:
    """Mean reward of one run, by the world's truth."""
    world = load_world(world_name, seed, impressions)
    places = Places(world.campaigns())
    with closing(VowpalContender(config, places, pools, Payout(places.campaigns), seed)) as player:
        return float(play(player, world, impressions, INCREMENT).rewards.mean())


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="vowpal_search")
    parser.add_argument("--world", default="phrases")
    parser.add_argument("--impressions", type=positive, default=20_480)
    parser.add_argument("--first-seed", type=natural, default=101)
    parser.add_argument("--seeds", type=positive, default=2, help="of the first stage")
    parser.add_argument("--more-seeds", type=natural, default=2, help="that the second stage adds")
    parser.add_argument("--configs", type=positive, default=16)
    parser.add_argument("--keep", type=positive, default=3)
    parser.add_argument("--only", default=",".join(EXPLORATIONS))
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds + options.more_seeds)
    pools: dict[int, Texts] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            job = PoolJob(options.world, seed, options.impressions, None)
            pools[seed] = write_pools_job(job, Path(folder), lambda done, of: None)
    for name in options.only.split(","):
        for cb_type in ("mtr",) if name == "squarecb" else ("mtr", "dr"):
            _search(name, cb_type, options, pools)
    return 0


def _search(name: str, cb_type: str, options: argparse.Namespace, pools: dict[int, Texts]) -> None:
    rng = random.Random(f"{name} {cb_type}")
    first = list(pools)[: options.seeds]
    scored = []
    for _ in range(options.configs):
        config = drawn(rng, name, cb_type)
        runs = [
            rate(config, options.world, seed, first_of(pools[seed], SMALL), options.impressions // 2) for seed in first
        ]
        scored.append((fmean(runs), config))
        print(f"{name} {cb_type} {fmean(runs):.4f} {config}", file=sys.stderr)
    scored.sort(key=lambda pair: pair[0])
    finalists = [replace(EXPLORATIONS[name], cb_type=cb_type), *(config for _, config in scored[-options.keep :])]
    finals = []
    for config in dict.fromkeys(finalists):
        runs = [rate(config, options.world, seed, first_of(pools[seed], POOL), options.impressions) for seed in pools]
        finals.append((fmean(runs), runs, config))
    for mean, runs, config in sorted(finals, key=lambda final: final[0]):
        rounded = [round(run, 4) for run in runs]
        print(json.dumps({"mean_reward": round(mean, 4), "runs": rounded, **asdict(config)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
