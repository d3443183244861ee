"""Finds Vowpal Wabbit's settings by random search on seeds that no comparison is shown with (docs/decisions.md).

For each exploration and cost estimate: `--configs` random settings, and those in use, on the first `--seeds` with pools
of 20; the best `--keep` of them, and those in use, on `--more-seeds` others with pools of `--pool` (`--finalists` names
others for this stage and skips the first). A setting's score is its reward over that of the settings in use on the same
arrivals, averaged over worlds and seeds. Prints the finalists as JSON lines, the best last. Usage: python
scripts/vowpal_search.py --worlds phrases
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from optimizer.arguments import natural, positive
from simulators.compare import INCREMENT, PoolJob, play, write_pools_job
from simulators.payout import Payout
from simulators.places import Places, Texts, first_of
from simulators.settings import EXPLORATIONS, POOL, SMALL, VowpalConfig
from simulators.vowpal import VowpalContender
from simulators.worlds import load_world

STRENGTHS: dict[str, tuple[str, ...]] = {
    "squarecb": tuple(f"--squarecb{scale}" for scale in ("", *(f" --gamma_scale {x}" for x in (30, 100, 300, 1000)))),
    "epsilon": tuple(f"--epsilon {share}" for share in (0.01, 0.02, 0.05, 0.1)),
    "softmax": tuple(f"--softmax --lambda {sharpness}" for sharpness in (10, 20, 40, 80)),
    "bag": tuple(f"--bag {heads}" for heads in (3, 5, 10)),
}
CROSSED = (("SI", "SW"), ("SI", "SW", "CI", "CW"))
LEARNING_RATES = (0.1, 0.25, 0.5, 1.0, 2.0)
POWERS = (0.0, 0.25, 0.5)
Market = tuple[str, int]
"""A world's name and a seed."""


def drawn(rng: random.Random, name: str, cb_type: str) -> VowpalConfig:
    """Random settings of one exploration."""
    return VowpalConfig(
        rng.choice(STRENGTHS[name]),
        cb_type,
        interactions=rng.choice(CROSSED),
        learning_rate=rng.choice(LEARNING_RATES),
        power_t=rng.choice(POWERS),
    )


def rate(config: VowpalConfig, market: Market, pools: Texts, impressions: int) -> float:
    """Mean reward of one run, by the world's truth."""
    world_name, seed = market
    world = load_world(world_name, seed, impressions)
    places = Places(world.campaigns())
    with closing(VowpalContender(config, places, pools, Payout(places.campaigns), seed)) as player:
        return float(play(player, world, impressions, INCREMENT).rewards.mean())


def write_all(markets: Sequence[Market], impressions: int) -> dict[Market, Texts]:
    """Each market's fixed pools; worlds that offer the same campaigns have the same."""
    pools: dict[Market, Texts] = {}
    written: dict[tuple[str, int], Texts] = {}
    for name, seed in markets:
        offered = json.dumps(load_world(name, seed, impressions).campaigns(), sort_keys=True), seed
        if offered not in written:
            with tempfile.TemporaryDirectory() as folder:
                job = PoolJob(name, seed, impressions, None)
                written[offered] = write_pools_job(job, Path(folder), lambda done, of: None)
        pools[name, seed] = written[offered]
    return pools


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="vowpal_search")
    parser.add_argument("--worlds", default="phrases", help="with commas between them")
    parser.add_argument("--impressions", type=positive, default=20_480)
    parser.add_argument("--first-seed", type=natural, default=101)
    parser.add_argument("--seeds", type=positive, default=2, help="of the first stage")
    parser.add_argument("--more-seeds", type=natural, default=2, help="of the second stage")
    parser.add_argument("--configs", type=positive, default=16)
    parser.add_argument("--keep", type=positive, default=3)
    parser.add_argument("--pool", type=positive, default=POOL, help="texts of a place in the second stage")
    parser.add_argument("--only", default=",".join(EXPLORATIONS))
    parser.add_argument("--cb-types", default="mtr,dr")
    parser.add_argument(
        "--finalists",
        type=json.loads,
        metavar="JSON",
        help="a list of settings, by field: the second stage alone, of these",
    )
    options = parser.parse_args()
    worlds, middle = options.worlds.split(","), options.first_seed + options.seeds
    first = [] if options.finalists else list(product(worlds, range(options.first_seed, middle)))
    then = list(product(worlds, range(middle, middle + options.more_seeds)))
    pools = write_all([*first, *then], options.impressions)
    small = {market: first_of(pools[market], SMALL) for market in first}
    large = {market: first_of(pools[market], options.pool) for market in then}
    for name, cb_type in product(options.only.split(","), options.cb_types.split(",")):
        if (name, cb_type) == ("squarecb", "dr"):
            continue
        today = replace(EXPLORATIONS[name], cb_type=cb_type)
        if options.finalists:
            best = [_changed(today, fields) for fields in options.finalists]
        else:
            rng = random.Random(f"{name} {cb_type}")
            tried = [today, *(drawn(rng, name, cb_type) for _ in range(options.configs))]
            best = [config for config, _, _ in ranked(tried, small, options.impressions) if config != today]
            best = best[max(0, len(best) - options.keep) :]
        for config, score, runs in ranked([today, *best], large, options.impressions):
            print(json.dumps({"over_today": score, "runs": runs, **asdict(config)}), flush=True)
    return 0


def _changed(config: VowpalConfig, fields: Mapping[str, Any]) -> VowpalConfig:
    crossed = fields.get("interactions", config.interactions)
    return replace(config, **{**fields, "interactions": tuple(crossed)})


def ranked(
    configs: Sequence[VowpalConfig], pools: Mapping[Market, Texts], impressions: int
) -> list[tuple[VowpalConfig, float, list[float]]]:
    """(settings, score, runs) of each, the best last; the first of them are the settings in use."""
    found: list[tuple[VowpalConfig, float, list[float]]] = []
    for config in dict.fromkeys(configs):
        runs = [round(rate(config, market, texts, impressions), 4) for market, texts in pools.items()]
        today = found[0][2] if found else runs
        score = round(fmean(run / usual for run, usual in zip(runs, today, strict=True)), 3)
        found.append((config, score, runs))
        print(f"{score} {runs} {config}", file=sys.stderr, flush=True)
    return sorted(found, key=lambda one: one[1])


if __name__ == "__main__":
    sys.exit(main())
