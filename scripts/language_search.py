"""Finds the learning rates of REINFORCE and GRPO on seeds that no comparison is shown with (docs/decisions.md).

Plays each of `--rates` with each of `--only` on the same arrivals. Prints a JSON line for each, in order of the mean
click rate, the best last. Usage: python scripts/language_search.py --world phrases
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from optimizer.arguments import natural, positive
from simulators.compare import INCREMENT, play
from simulators.language_peers import LanguageContender, Reinforce, Trainer, open_policy
from simulators.payout import Payout
from simulators.places import Places
from simulators.settings import GRPO
from simulators.trl_peer import Grpo
from simulators.worlds import load_world


def outcome(name: str, learning_rate: float, world_name: str, seed: int, impressions: int) -> tuple[float, ...]:
    """Mean click rate of one run, that of its last fourth, the share of well-formed texts, nats to the first model."""
    world = load_world(world_name, seed, impressions)
    places = Places(world.campaigns())
    with tempfile.TemporaryDirectory() as folder:
        policy = open_policy(Path(folder), None)
        trainer: Trainer = (
            Grpo(policy, replace(GRPO, learning_rate=learning_rate), Path(folder), seed)
            if name == "grpo"
            else Reinforce(policy, learning_rate)
        )
        with closing(LanguageContender(policy, trainer, places, Payout(places.campaigns), seed)) as player:
            shown = play(player, world, impressions, INCREMENT)
            late = shown.click_rates[-impressions // 4 :]
            return float(shown.click_rates.mean()), float(late.mean()), float(shown.valid.mean()), player.kl()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="language_search")
    parser.add_argument("--world", default="phrases")
    parser.add_argument("--impressions", type=positive, default=20_480)
    parser.add_argument("--first-seed", type=natural, default=101)
    parser.add_argument("--seeds", type=positive, default=2)
    parser.add_argument("--rates", default="3e-5,1e-4,3e-4,1e-3")
    parser.add_argument("--only", default="reinforce,grpo")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for name in options.only.split(","):
        found = []
        for rate in map(float, options.rates.split(",")):
            runs = []
            for seed in seeds:
                runs.append(outcome(name, rate, options.world, seed, options.impressions))
                print(name, rate, seed, [round(figure, 4) for figure in runs[-1]], file=sys.stderr, flush=True)
            found.append((fmean(run[0] for run in runs), rate, runs))
        for _, rate, runs in sorted(found):
            figures = {
                each: [round(run[at], 4) for run in runs]
                for at, each in enumerate(("mean", "last_fourth", "valid", "kl"))
            }
            print(json.dumps({"name": name, "learning_rate": rate, **figures}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
