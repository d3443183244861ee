"""The commands `learn` and `pretrain`. What learns is imported once the command line is known to be right: torch takes
seconds to load, and help and refusals come at once."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from optimizer.arguments import natural, number
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError, ConfigError
from optimizer.learning.owncorpus import read_own_corpus
from optimizer.learning.recipe import PretrainConfig
from optimizer.learning.recipe import Progress as Told
from optimizer.loop import step_until
from optimizer.maths.kl import KL_BUDGET
from optimizer.stream.open import open_log


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
    parser = learn_parser()
    args = parser.parse_args(argv)
    if args.kl_budget == 0:
        parser.error("--kl-budget: got 0, expected more than 0 nats")
    stopping = threading.Event()
    shown, told = bar(Console(stderr=True))
    try:
        with closing(open_log(args.log)) as log:
            from optimizer.learning.config import LearnerConfig
            from optimizer.learning.run import open_learning, share_processor

            with shown:
                learning = open_learning(args.data, args.model, told)
            share_processor()
            config = LearnerConfig(kl_budget=args.kl_budget)
            with closing(learning.learner(log, SystemClock(), config)) as learner:
                # From here on a step is finished first; before, a signal interrupts what may take minutes.
                for name in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(name, lambda *_: stopping.set())
                print("learning; Ctrl-C stops", file=sys.stderr, flush=True)
                step_until(stopping, learner.step)
    except (AdloopError, OSError) as error:
        print(f"adloop learn: {error}", file=sys.stderr)
        return 1
    return 0


def learn_parser() -> argparse.ArgumentParser:
    """The options of `learn`."""
    parser = argparse.ArgumentParser(
        prog="adloop learn", description="Teach critic and policy from the outcomes in the log."
    )
    parser.add_argument("--log", required=True, help="sqlite:///PATH or kafka://HOST:PORT[,HOST:PORT]?prefix=adloop.")
    parser.add_argument("--data", required=True, type=Path, help="folder of the policy store and the base model")
    parser.add_argument(
        "--model", help="Hugging Face name or folder of a causal language model (default: the tiny one)"
    )
    parser.add_argument(
        "--kl-budget", type=number(0.0), default=KL_BUDGET, help="nats per sequence (default %(default)s)"
    )
    return parser


def main_pretrain(argv: Sequence[str]) -> int:
    """`python -m optimizer pretrain [--corpus FILE] --out DIR`."""
    parser = argparse.ArgumentParser(
        prog="adloop pretrain",
        description="Train the tiny language model, on the generated ad copy or on your own texts.",
    )
    parser.add_argument(
        "--corpus", type=Path, help="your texts: .txt (one a line), .csv or .jsonl (see docs/pretrain.md)"
    )
    parser.add_argument("--out", type=Path, help="folder for the model (with --corpus); use it as --model FOLDER")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(argv)
    if (args.corpus is None) != (args.out is None):
        parser.error("--corpus and --out go together")
    shown, told = bar(Console(stderr=True))
    try:
        with shown:
            folder = _pretrain(args.corpus, args.out, args.seed, told)
    except (AdloopError, OSError) as error:
        print(f"adloop pretrain: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _pretrain(corpus: Path | None, out: Path | None, seed: int, told: Told) -> Path:
    from optimizer.learning.base import tiny_model
    from optimizer.learning.pretrain import pretrain

    if corpus is None or out is None:
        return tiny_model(PretrainConfig(seed=seed), told)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out.name} is there already and not empty; name a new folder")
    own = read_own_corpus(corpus)
    print(own.summary(), file=sys.stderr)
    # As many passes as the generated corpus would take steps, but a small corpus is not learnt by heart.
    config = PretrainConfig(seed=seed, rows=len(own.lines), epochs=min(20.0, PretrainConfig.rows / len(own.lines)))
    return pretrain(config, own.lines, out, told)
