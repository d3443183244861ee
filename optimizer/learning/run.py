"""Learning, opened for a data folder, and the commands `learn` and `pretrain`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from optimizer.clock import Clock, SystemClock
from optimizer.errors import AdloopError, ConfigError, FieldError
from optimizer.learning.base import BaseModel, settle_base
from optimizer.learning.learner import Learner, LearnerConfig
from optimizer.learning.owncorpus import read_own_corpus
from optimizer.learning.policy import fits_in
from optimizer.learning.pretrain import Progress as Told
from optimizer.learning.pretrain import pretrain
from optimizer.learning.prompt import build_prompt
from optimizer.learning.recipe import PretrainConfig
from optimizer.learning.tokenizer import TextCodec
from optimizer.learning.view import CriticView
from optimizer.store import PolicyStore
from optimizer.stream.log import EventLog
from optimizer.stream.open import open_log
from optimizer.types import Campaign, PolicyRecord

IDLE_S = 0.05


@dataclass(frozen=True)
class Learning:
    """A data folder's base model and policy store, and what the roles need of them."""

    data: Path
    base: BaseModel
    store: PolicyStore

    def learner(self, log: EventLog, clock: Clock, config: LearnerConfig | None = None) -> Learner:
        return Learner(log, self.store, self.base, clock, config or LearnerConfig(), self.data)

    def load_critic(self, record: PolicyRecord) -> CriticView:
        """The critic of a version. Raises StoreError where it is refused."""
        return CriticView.from_bytes(self.store.critic_bytes(record.version), record.version)

    @staticmethod
    def prompt_limit(codec: TextCodec, limit: int, campaign: Campaign) -> FieldError | None:
        """What to answer to a campaign whose prompt is longer than the model takes; None where it fits."""
        prompts = [build_prompt(campaign, segment) for segment in campaign.segments]
        if all(fits_in(codec, prompt, limit) for prompt in prompts):
            return None
        longest = max(len(codec.encode(prompt.text)) for prompt in prompts)
        if longest <= limit:
            got = f"{len(campaign.slots)} slots"
            return FieldError("slots", got, "as many as the model's context holds", "take fewer slots or shorter names")
        fix = "shorten product, audience or facts"
        return FieldError("product", f"a prompt of {longest} tokens", f"at most {limit} tokens for this model", fix)


def open_learning(
    data: Path, model: str | None = None, progress: Told | None = None, config: PretrainConfig | None = None
) -> Learning:
    """Settle the base model (training the tiny one where it is not cached: up to 90 s) and open the policy store.

    Raises ConfigError for a model that can't be had."""
    data.mkdir(parents=True, exist_ok=True)
    return Learning(
        data, settle_base(data, model, progress or (lambda *_: None), config), PolicyStore(data / "policies")
    )


def bar(console: Console) -> tuple[Progress, Told]:
    """A progress bar on `console` and the function that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=console, transient=False)
    task = shown.add_task("tiny language model", total=1)

    def told(what: str, done: int, total: int) -> None:
        if what:
            shown.update(task, description=f"tiny language model: {what}")
        shown.update(task, completed=done, total=total)

    return shown, told


def main_learn(argv: Sequence[str]) -> int:
    """`python -m optimizer learn --log URL --data DIR`."""
    parser = argparse.ArgumentParser(
        prog="optimizer learn", description="Teach critic and policy from the outcomes in the log."
    )
    parser.add_argument("--log", required=True, help="sqlite:///PATH or kafka://HOST:PORT[,HOST:PORT]?prefix=adloop.")
    parser.add_argument("--data", required=True, type=Path, help="folder of the policy store and the base model")
    parser.add_argument(
        "--model", help="Hugging Face name or folder of a causal language model (default: the tiny one)"
    )
    parser.add_argument(
        "--kl-budget", type=float, default=LearnerConfig.kl_budget, help="nats per sequence (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if not args.kl_budget > 0:
        parser.error(f"--kl-budget: got {args.kl_budget}, expected nats > 0")
    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    shown, told = bar(Console(stderr=True))
    try:
        with shown:
            learning = open_learning(args.data, args.model, told)
        log = open_log(args.log)
        learner = learning.learner(log, SystemClock(), LearnerConfig(kl_budget=args.kl_budget))
        print("learning; Ctrl-C stops", file=sys.stderr)
        while not stopping.is_set():
            if not learner.step():
                stopping.wait(IDLE_S)
        log.close()
    except (AdloopError, OSError) as error:
        print(f"optimizer learn: {error}", file=sys.stderr)
        return 1
    return 0


def main_pretrain(argv: Sequence[str]) -> int:
    """`python -m optimizer pretrain [--corpus FILE] --out DIR`."""
    parser = argparse.ArgumentParser(
        prog="optimizer pretrain",
        description="Train the tiny language model, on the generated ad copy or on your own texts.",
    )
    parser.add_argument(
        "--corpus", type=Path, help="your texts: .txt (one a line), .csv or .jsonl (see docs/pretrain.md)"
    )
    parser.add_argument("--out", type=Path, help="folder for the model (with --corpus); use it as --model FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if (args.corpus is None) != (args.out is None):
        parser.error("--corpus and --out go together")
    shown, told = bar(Console(stderr=True))
    try:
        with shown:
            folder = _pretrain(args.corpus, args.out, args.seed, told)
    except (AdloopError, OSError) as error:
        print(f"optimizer pretrain: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _pretrain(corpus: Path | None, out: Path | None, seed: int, told: Told) -> Path:
    from optimizer.learning.base import tiny_model

    if corpus is None or out is None:
        return tiny_model(PretrainConfig(seed=seed), told)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out.name} is there already and not empty; name a new folder")
    own = read_own_corpus(corpus)
    print(own.summary(), file=sys.stderr)
    # As many passes as the generated corpus would take steps, but a small corpus is not learnt by heart.
    config = PretrainConfig(seed=seed, rows=len(own.lines), epochs=min(20.0, PretrainConfig.rows / len(own.lines)))
    return pretrain(config, own.lines, out, told)
