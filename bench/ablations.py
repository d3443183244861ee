"""What each part of learning is worth: `python -m bench.ablations [--world W --impressions N --seeds K]`.

The whole loop as it is, and with one part taken out at a time, on the same worlds; docs/learning.md keeps the table.
Parts are taken out by options where there is one, by a patch where leaving the part out is no option that anybody
should have.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from optimizer.arguments import natural, positive
from optimizer.learning import features
from optimizer.learning.features import Family, FeatureSet, TextParts, text_features
from simulators.compare import make_tiny_model, play
from simulators.contenders import AdloopContender
from simulators.progress import Bars, Report
from simulators.workers import one_thread, run_jobs
from simulators.worlds import load_world


@dataclass(frozen=True)
class Run:
    """One ablation in one world."""

    name: str
    world: str
    seed: int
    impressions: int


@dataclass(frozen=True)
class Score:
    """What it came to: true click rates, nats, the share of well-formed texts."""

    name: str
    mean: float
    last_fifth: float
    kl: float
    valid: float


def _critic(config: Any) -> Any:
    return replace(
        config, favourites=replace(config.favourites, steps=0), update=replace(config.update, residual_cap=float("inf"))
    )


KEYS = ("mean", "last_fifth", "kl", "valid")
CONFIGS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda config: config,
    "without trained critic (uniform choice, REINFORCE)": _critic,
    "without doubly robust residual": lambda config: replace(config, update=replace(config.update, residual_cap=0.0)),
    "without slow target network (copied each increment)": lambda config: replace(
        config, critic=replace(config.critic, target_every=1)
    ),
    "without bootstrapped heads (their mean chooses)": lambda config: replace(
        config, critic=replace(config.critic, spread=0.0)
    ),
    "without KL controller (fixed weight, no budget)": lambda config: replace(config, kl_budget=1e9),
    "without transfer (the critic's words are each campaign's own)": lambda config: config,
    "without guard": lambda config: replace(config, critic=replace(config.critic, guard=False)),
    "without favourites": lambda config: replace(config, favourites=replace(config.favourites, steps=0)),
    "without policy learning": lambda config: replace(config, update=replace(config.update, learning_rate=0.0)),
    "without earlier texts (64 samples in a pool, no archive)": lambda config: config,
    "without regrown texts (64 samples in a pool)": lambda config: config,
}


def _alone(place: str, several: bool, segment: str, parts: TextParts) -> FeatureSet:
    """Features under names of the campaign's own: what is learnt of a text in one says nothing of another. The bias,
    device and hour, the prior scales and the language model stay shared."""
    words, pairs, forms = (
        tuple(f"{place};{name}" for name in names) for names in (parts.words, parts.pairs, parts.forms)
    )
    found = text_features(place, several, f"{place};{segment}", TextParts(parts.variant_id, words, pairs, forms))
    # A word of the campaign's own is there as WORD already.
    kept = found.families != Family.WORD_CAMPAIGN
    return FeatureSet(found.ids[kept], found.families[kept])


def run_one(run: Run, folder: Path, report: Report) -> Score:
    """Play one ablation in an empty folder."""
    from optimizer.learning.config import LearnerConfig
    from optimizer.learning.critic import Critic, CriticConfig
    from optimizer.maths.kl import KlController
    from serving.drawing import EPSILON
    from serving.generator import GeneratorConfig
    from simulators.adloop_agent import AdloopAgent

    one_thread()
    world: Any = load_world(run.world, run.seed, run.impressions)
    config = CONFIGS[run.name](LearnerConfig(critic=CriticConfig(seed=run.seed)))
    generator = GeneratorConfig()
    if "archive" in run.name:
        generator = replace(generator, samples=generator.samples + generator.regrown, kept=0, regrown=0)
    elif "regrown" in run.name:
        generator = replace(generator, samples=generator.samples + generator.regrown, regrown=0)
    # What is remembered between runs in one process is of the run before.
    features._encoded.cache_clear()
    with (
        mock.patch.object(Critic, "fit", Critic.fit),
        mock.patch.object(KlController, "updated", KlController.updated),
        mock.patch.object(features, "text_features", _alone if "transfer" in run.name else text_features),
    ):
        if "trained critic" in run.name:
            Critic.fit = lambda self: 0.0  # type: ignore[method-assign]
        if "KL controller" in run.name:
            KlController.updated = lambda self, measured: self  # type: ignore[method-assign]
        agent = AdloopAgent(
            world.campaigns(),
            folder / "data",
            run.seed,
            learner=config,
            generator=generator,
            epsilon=1.0 if "trained critic" in run.name else EPSILON,
        )
        with closing(AdloopContender(agent)) as player:
            shown = play(player, world, run.impressions, 128, report)
            kl = player.kl()
    tail = max(1, run.impressions // 5)
    rates = shown.click_rates
    return Score(run.name, float(rates.mean()), float(rates[-tail:].mean()), kl, float(shown.valid.mean()))


def main(argv: list[str]) -> int:
    """The table, a row an ablation: means over the seeds, and each seed's mean rate."""
    parser = argparse.ArgumentParser(description="What each part of learning is worth.")
    parser.add_argument("--world", default="phrases", help="default: phrases")
    parser.add_argument("--impressions", type=positive, default=6_144, help="a run (default: 6144)")
    parser.add_argument("--first-seed", type=natural, default=201, help="default: 201, which nothing was chosen on")
    parser.add_argument("--seeds", type=positive, default=3, help="default: 3")
    parser.add_argument(
        "--only", metavar="PART,..", help="rows whose names hold one of these, beside the loop as it is"
    )
    parser.add_argument("--processes", type=positive, default=max(1, os.cpu_count() or 1), help="default: one a core")
    options = parser.parse_args(argv)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    parts = options.only.split(",") if options.only else [""]
    names = [name for name in CONFIGS if name == "as it is" or any(part in name for part in parts)]
    runs = [Run(name, options.world, seed, options.impressions) for seed in seeds for name in names]
    begun = time.perf_counter()
    with Bars() as bars:
        make_tiny_model(bars)
        scores = run_jobs(run_one, runs, options.processes, bars.bar("ablations"))
    print(f"{options.world}, {options.impressions} impressions, seeds {seeds[0]} to {seeds[-1]}")
    for name in names:
        own = [score for score in scores if score.name == name]
        mean, last, kl, valid = (np.mean([getattr(one, key) for one in own]) for key in KEYS)
        each = ", ".join(f"{100 * one.mean:.1f}" for one in own)
        print(
            f"{name:48} mean {100 * mean:5.1f} % ({each})  last fifth {100 * last:5.1f} %  KL {kl:5.1f}  "
            f"well-formed {valid:.3f}"
        )
    print(f"{time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
