"""TRL's GRPO (Shao et al. 2024, arXiv 2402.03300) taught by live traffic: its own trainer, advantages, loss and step.

TRL samples a group of completions for one prompt and rewards them at once. Here a group is made of texts of one place
that were shown, one after another; a place's texts wait until there are enough of them for a group. The weights have
moved on by then, so each text's log-probabilities are kept from when it was shown: they are the old policy of GRPO's
clipped ratio, which TRL would otherwise take for the present one.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from optimizer.learning.policy import LanguagePolicy
from simulators.language_peers import DECODE, Told
from simulators.places import Place
from simulators.settings import GrpoConfig
from simulators.streams import LANGUAGE_STREAM, salted

READ_AT_ONCE = 64


class Grpo:
    """A `Trainer` (simulators/language_peers.py) around `trl.GRPOTrainer`. Needs the `peers` extra."""

    def __init__(self, policy: LanguagePolicy, config: GrpoConfig, folder: Path, seed: int) -> None:
        self._policy, self._config = policy, config
        self._waiting: dict[Place, list[Remembered]] = defaultdict(list)
        self._batch: list[Remembered] = []
        self._kl = 0.0
        self.trainer = make_trainer(policy, config, folder, salted(LANGUAGE_STREAM, seed), self._rollout, self._rewards)
        _compare_with_remembered(self.trainer)
        self._optimizer = self.trainer.create_optimizer()

    def update(self, told: Sequence[Told]) -> None:
        """One of TRL's training steps on every whole group there is."""
        rolled = rollout(self._policy, told)
        rolled["logprobs"] = log_probs(self.trainer, rolled)
        for at, one in enumerate(told):
            self._waiting[one.place].append(Remembered(one, {name: rows[at] for name, rows in rolled.items()}))
        self._batch = []
        for waiting in self._waiting.values():
            whole = len(waiting) - len(waiting) % self._config.group
            self._batch += waiting[:whole]
            del waiting[:whole]
        if self._batch:
            batch = [one.told for one in self._batch]
            training_step(self.trainer, self._optimizer, [one.prompt.text for one in batch])
            with torch.no_grad():
                tokens = [one.sample.token_ids for one in batch]
                scored = self._policy.score([one.prompt for one in batch], tokens, DECODE)
            self._kl = float(scored.kl.mean())

    def kl(self) -> float:
        return self._kl

    def _rollout(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What was shown, in the place of what TRL would sample."""
        del prompts, trainer
        return {name: [one.rolled[name] for one in self._batch] for name in self._batch[0].rolled}

    def _rewards(self, **_: Any) -> list[float]:
        return [one.told.reward for one in self._batch]


class Remembered(NamedTuple):
    """A text that was shown. `rolled`: its line of a rollout, with TRL's own log-probabilities of that time."""

    told: Told
    rolled: dict[str, list[Any]]


@torch.no_grad()
def log_probs(trainer: Any, rolled: Mapping[str, Sequence[Sequence[Any]]]) -> list[list[float]]:
    """TRL's log-probabilities of a rollout's completions under the present weights. (The sampler's own are of the
    distribution that the decoding cuts off, which TRL's loss knows nothing of.)"""
    prompts, completions = rolled["prompt_ids"], rolled["completion_ids"]
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = torch.zeros(len(prompts), before + after, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        held = slice(before - len(prompt), before + len(completion))
        ids[row, held] = torch.tensor([*prompt, *completion])
        mask[row, held] = 1
    device = trainer.accelerator.device
    values, *_ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids.to(device), mask.to(device), after, batch_size=READ_AT_ONCE
    )
    return [line[: len(completion)] for line, completion in zip(values.tolist(), completions, strict=True)]


def _compare_with_remembered(trainer: Any) -> None:
    """Make the rollout's log-probabilities the old policy's. TRL uses such only where vLLM has sampled."""
    scored = trainer._generate_and_score_completions

    def with_old(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = scored(inputs)
        return output | {"old_per_token_logps": output["sampling_per_token_logps"]}

    trainer._generate_and_score_completions = with_old


def _count_from_the_first(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where nobody says otherwise a text's positions are counted from its first token, as the policy's are. TRL says
    nothing, and a model with absolute positions (GPT-2, and so the tiny one) would count the padding before it."""
    mask = kwargs.get("attention_mask")
    if mask is None or kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None:
        return None
    return args, kwargs | {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def rollout(policy: LanguagePolicy, told: Sequence[Told]) -> dict[str, Any]:
    """Shown texts as TRL's rollouts: prompt and completion tokens; the forced names of later slots are no actions."""
    output: dict[str, list[list[Any]]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    for one in told:
        heads = [policy.codec.encode(f"{slot.name}:") for slot in one.prompt.slots]
        ids: list[int] = []
        logs: list[float] = []
        mask: list[int] = []
        for at, (tokens, values) in enumerate(zip(one.sample.token_ids, one.sample.log_probs, strict=True)):
            forced = heads[at] if at else []
            ids += [*forced, *tokens]
            logs += [0.0] * len(forced) + list(values)
            mask += [0] * len(forced) + [1] * len(tokens)
        output["prompt_ids"].append(policy.prompt_ids(one.prompt) + heads[0])
        output["completion_ids"].append(ids)
        output["logprobs"].append(logs)
        output["env_mask"].append(mask)
    return output


def make_trainer(
    policy: LanguagePolicy,
    config: GrpoConfig,
    folder: Path,
    seed: int,
    rollouts: Callable[..., dict[str, Any]] | None,
    rewards: Callable[..., list[float]],
    **more: Any,
) -> Any:
    """TRL's trainer of the policy's own model, on the device where it is, without logging and saving; in batches of 64
    groups. `rollouts` None lets it sample by itself. `more` are further fields of TRL's `GRPOConfig`."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with warnings.catch_warnings():
        # What it imports warns of its own future.
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        arguments = GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=64 * config.group,
            num_generations=config.group,
            steps_per_generation=1,
            learning_rate=config.learning_rate,
            beta=config.beta,
            scale_rewards=config.scale_rewards,
            loss_type=config.loss_type,
            temperature=DECODE.temperature,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=policy.device.type == "cpu",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            **more,
        )
        trainer = GRPOTrainer(
            model=policy.model,
            reward_funcs=rewards,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "unused"}]),
            processing_class=policy.codec.tokenizer,
            rollout_func=rollouts,
        )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.register_forward_pre_hook(_count_from_the_first, with_kwargs=True)
    return trainer


def training_step(trainer: Any, optimizer: Any, prompts: Sequence[str]) -> None:
    """TRL's own step, then what its trainer's loop does after it: clip, step, clear."""
    model = trainer.model
    model.train()
    with warnings.catch_warnings():
        # TRL asks transformers for a property that the latter has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        trainer.training_step(model, [{"prompt": prompt} for prompt in prompts], None)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    if bool(torch.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    trainer.state.global_step += 1
    model.eval()
