"""One increment of the language model beside TRL's GRPO step and `transformers`' generate: `python -m bench.update`.

All on the same model, in the same dtype and threads, on the same 256 texts (8 places x 32 samples) and so the same
tokens, taking turns in one run. Printed are medians and ratios. What is counted:

- update: score the texts, gradient, clip, optimizer step. Adloop's is `update_policy`, with the divergence of every
  second text over the whole vocabulary at every token. A learner's increment has a step towards the critic's favourites
  before it: it is counted with 64 favourites beside all 256 samples, and as large as a learner takes it by default, 4
  pools of 32 samples and 64 favourites, 192 texts in all. TRL's is `GRPOTrainer.training_step` on the 256 texts as
  rollouts and then the optimizer's step, in one batch, with and without its own divergence estimate (beta).
- sample: 256 texts from 8 prompts. Adloop's is `LanguagePolicy.sample`, with the exact log-probability of each token;
  the other is `generate` with the same temperature, cuts and ends of text.
- both: sample and update; TRL's samples by itself.

Needs the `peers` extra for TRL's part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from optimizer.arguments import positive
from optimizer.learning.config import LearnerConfig
from optimizer.learning.favourites import Favourites, FavouritesConfig, follow
from optimizer.learning.policy import LanguagePolicy, Sample
from optimizer.learning.prompt import Prompt, build_prompt
from optimizer.learning.update import PoolBatch, UpdateConfig, update_policy
from optimizer.types import Candidate, Pool
from simulators.language_peers import DECODE, Told, open_policy
from simulators.places import Places
from simulators.settings import GRPO, lacking
from simulators.trl_peer import make_trainer, rollout, training_step
from simulators.worlds import load_world

PLACES, SAMPLES = 8, 32
DECISIONS = 16
BETA = 0.04


def batches(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Sample]], rng: np.random.Generator) -> list[PoolBatch]:
    """The samples as pools with made-up values and `DECISIONS` answered decisions each."""
    made = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        candidates = tuple(
            Candidate(f"v{at}", one.slots, token_ids=one.token_ids, log_probs=one.log_probs)
            for at, one in enumerate(samples)
        )
        pool = Pool("p", "default", "c", "all", "v", "h", candidates, DECODE, 0)
        shown = rng.integers(len(samples), size=DECISIONS)
        rewards = (rng.random(DECISIONS) < 0.1).astype(np.float64)
        selection = np.full(DECISIONS, 1.0 / len(samples))
        made.append(PoolBatch(pool, prompt, 0.05 * rng.random(len(samples)), shown, rewards, selection))
    return made


class Grpo:
    """TRL's step on given texts, or on texts that it samples itself."""

    def __init__(self, policy: LanguagePolicy, told: Sequence[Told], beta: float, folder: Path, own: bool) -> None:
        self._prompts = [one.prompt.text if not own else _head(policy, one.prompt) for one in told]
        rollouts = None if own else lambda prompts, trainer: rollout(policy, told)
        ends = policy.codec.line_enders(policy.vocab_size).nonzero()[:, 0].tolist()
        settings = {
            "max_completion_length": policy.slot_tokens(told[0].prompt)[0],
            "top_k": DECODE.top_k,
            "top_p": DECODE.top_p,
            "min_p": DECODE.min_p or None,
            "generation_kwargs": {"eos_token_id": ends},
        }
        rewards = np.random.default_rng(1).random(len(told)).tolist()
        config = replace(GRPO, beta=beta, group=SAMPLES, learning_rate=1e-6)
        self.trainer = make_trainer(policy, config, folder, 1, rollouts, lambda **_: rewards, **settings)
        self._optimizer = self.trainer.create_optimizer()

    def step(self) -> None:
        training_step(self.trainer, self._optimizer, self._prompts)


def timed(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Medians of each, taking turns, after one round that does not count."""
    taken: dict[str, list[Times]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            begun, begun_cpu = time.perf_counter(), time.process_time()
            work()
            if round_:
                taken[name].append(Times(time.perf_counter() - begun, time.process_time() - begun_cpu))
    return {name: Times(median(t.wall for t in some), median(t.cpu for t in some)) for name, some in taken.items()}


class Times(NamedTuple):
    """Seconds by the clock, and of the processor; only the latter mean much on a machine that others use as well."""

    wall: float
    cpu: float


def measure(rounds: int, folder: Path, model: str | None) -> None:
    """Print every measurement and its ratio."""
    world = load_world("market", 1)
    places = Places(world.campaigns())
    prompts = [build_prompt(places.campaigns[name], segment) for name, segment in places.all()[:PLACES]]
    policy = open_policy(folder / "ours", model)
    generator = torch.Generator(device=policy.device).manual_seed(1)
    drawn = policy.sample(prompts, SAMPLES, DECODE, generator)
    made = batches(prompts, drawn, np.random.default_rng(1))
    told = [
        Told(("c", "all"), prompt, one, 0.0) for prompt, samples in zip(prompts, drawn, strict=True) for one in samples
    ]
    tokens = sum(len(ids) for one in told for ids in one.sample.token_ids)
    weights = sum(value.numel() for value in policy.model.parameters())
    print(
        f"{len(told)} texts, {tokens} tokens; {weights:,} weights, {next(policy.model.parameters()).dtype}, "
        f"{policy.device}, {torch.get_num_threads()} threads; medians of {rounds}"
    )
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=1e-6)
    one_pass = replace(UpdateConfig(), learning_rate=1e-6, passes=1)

    def update(config: UpdateConfig, pools: int = PLACES) -> None:
        policy.model.train()
        update_policy(policy, optimizer, made[:pools], 0.05, 0.02, config)

    following = FavouritesConfig()
    some = [
        Favourites(batch.prompt, [text.token_ids for text in batch.pool.candidates[: following.texts]], weights)
        for batch in made
        for weights in [np.full(following.texts, 1.0 / following.texts)]
    ]

    def increment(pools: int = PLACES) -> None:
        policy.model.train()
        follow(policy, optimizer, some, 0.05, following)
        update(replace(UpdateConfig(), learning_rate=1e-6), pools)

    works: dict[str, Callable[[], object]] = {
        "update: adloop, 1 gradient step": lambda: update(one_pass),
        "update: adloop, an increment (256 samples, 64 favourites)": increment,
        "update: adloop, a default increment (128 and 64)": lambda: increment(LearnerConfig().pools_per_increment),
        "sample: adloop": lambda: policy.sample(prompts, SAMPLES, DECODE, generator),
    }
    baselines = {"update": "", "sample": "", "both": ""}
    theirs = open_policy(folder / "theirs", model)
    works["sample: transformers generate"] = lambda: _generate(theirs, prompts)
    baselines["sample"] = "sample: transformers generate"
    why = lacking("trl_grpo")
    if why is None:
        plain = Grpo(open_policy(folder / "a", model), told, 0.0, folder / "a", own=False)
        anchored = Grpo(open_policy(folder / "b", model), told, BETA, folder / "b", own=False)
        alone = Grpo(open_policy(folder / "c", model), told, BETA, folder / "c", own=True)
        works["update: TRL's GRPO step, beta 0"] = plain.step
        works[f"update: TRL's GRPO step, beta {BETA}"] = anchored.step
        works[f"both: TRL's GRPO step that samples, beta {BETA}"] = alone.step
        baselines["update"] = f"update: TRL's GRPO step, beta {BETA}"
        baselines["both"] = f"both: TRL's GRPO step that samples, beta {BETA}"
    times = timed(works, rounds)
    sampled, updated = times["sample: adloop"], times["update: adloop, an increment (256 samples, 64 favourites)"]
    times["both: adloop, sample and an increment"] = Times(sampled.wall + updated.wall, sampled.cpu + updated.cpu)
    print(f"{'':<62}{'clock':>9}{'processor':>12}   as fast, by clock and processor")
    for name in sorted(times):
        baseline, mine = times.get(baselines[name.split(":")[0]]), times[name]
        ratio = "" if baseline is None else f"{baseline.wall / mine.wall:8.2f} x{baseline.cpu / mine.cpu:8.2f} x"
        print(f"{name:<62}{mine.wall:7.3f} s{mine.cpu:10.3f} s{ratio}")
    if why is not None:
        print(f"skipped: TRL: {why}")


def _head(policy: LanguagePolicy, prompt: Prompt) -> str:
    """The text that `LanguagePolicy` has the first slot's text follow."""
    return policy.codec.decode(policy.prompt_ids(prompt)) + f"{prompt.slots[0].name}:"


def _generate(policy: LanguagePolicy, prompts: Sequence[Prompt]) -> None:
    """256 texts by `transformers`, which reads each prompt as often as it samples from it."""
    model: Any = policy.model
    tokenizer = policy.codec.tokenizer
    texts = [_head(policy, prompt) for prompt in prompts for _ in range(SAMPLES)]
    given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ends = policy.codec.line_enders(policy.vocab_size).nonzero()[:, 0].tolist()
    with torch.inference_mode():
        model.generate(
            given["input_ids"].to(policy.device),
            attention_mask=given["attention_mask"].to(policy.device),
            do_sample=True,
            temperature=DECODE.temperature,
            top_k=DECODE.top_k,
            top_p=DECODE.top_p,
            min_p=DECODE.min_p or None,
            max_new_tokens=policy.slot_tokens(prompts[0])[0],
            eos_token_id=ends,
            pad_token_id=policy.codec.end_id,
        )


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Adloop's increment beside TRL's GRPO step and generate.")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of torch (default: its own)")
    parser.add_argument("--model", help="a Hugging Face causal LM (default: the tiny one)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="adloop-bench-") as folder:
        measure(arguments.rounds, Path(folder), arguments.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
