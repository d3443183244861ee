"""`adloop compare`: every policy of a table on the same arrivals of one world, synchronously and reproducibly.

Each (policy, seed) plays its own World(seed), so that arrivals agree; the learner takes its increments at fixed numbers
of impressions, not by the clock.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulators.command import answer, execute, positive
from simulators.progress import Bars, Report
from simulators.report import CompareCurve, CompareRow
from simulators.workers import one_thread, run_jobs
from simulators.worlds import World, load_world

if TYPE_CHECKING:
    from simulators.contenders import Contender

NAMES = ("uniform", "control", "thompson", "ucb", "adloop")
INCREMENT = 128
CURVE_POINTS = 40


@dataclass(frozen=True)
class Job:
    """One policy in one world. `increment`: impressions between the learner's increments; `model` None: the tiny
    one."""

    name: str
    world: str
    seed: int
    impressions: int
    increment: int
    model: str | None


@dataclass(frozen=True)
class Run:
    """What a policy's run gave."""

    row: CompareRow
    curve: CompareCurve


def play(
    contender: Contender, world: World, impressions: int, increment: int, report: Report = lambda done, of: None
) -> Shown:
    """Play a policy through the world's next arrivals. What is measured is the world's own truth about what was
    shown."""
    true_rate: Callable[..., float] = getattr(world, "true_rate", world.click_rate)
    shown = Shown(np.zeros(impressions), np.zeros(impressions), np.zeros(impressions, dtype=bool), set())
    for at in range(impressions):
        contender.advance(at * world.interval_ms)
        campaign_id, context = world.arrive()
        slots = dict(contender.serve(campaign_id, context))
        # Before `respond`, which may change the world: the truth at the moment of showing.
        shown.click_rates[at] = world.click_rate(campaign_id, context, slots)
        shown.rewards[at] = true_rate(campaign_id, context, slots)
        shown.valid[at] = world.valid(campaign_id, slots)
        shown.texts.add((campaign_id, tuple(slots.items())))
        contender.feed(world.respond(campaign_id, context, slots))
        if (at + 1) % increment == 0:
            contender.increment()
            report(at + 1, impressions)
    report(impressions, impressions)
    return shown


@dataclass(frozen=True)
class Shown:
    """What was shown, impression by impression: true click rate and reward rate, and whether the world calls it well
    formed; and the distinct texts."""

    click_rates: np.ndarray[Any, np.dtype[np.float64]]
    rewards: np.ndarray[Any, np.dtype[np.float64]]
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    texts: set[tuple[str, tuple[tuple[str, str], ...]]]


def run_job(job: Job, folder: Path, report: Report) -> Run:
    """Play one job in an empty folder."""
    # Imported here: it brings torch.
    from simulators.contenders import contender

    one_thread()
    world = load_world(job.world, job.seed)
    with closing(contender(job.name, world.campaigns(), folder / "data", job.seed, job.model)) as player:
        begun = time.perf_counter()
        shown = play(player, world, job.impressions, job.increment, report)
        tenth = max(1, job.impressions // 10)
        row = CompareRow(
            name=job.name,
            seed=job.seed,
            mean_ctr=float(shown.click_rates.mean()),
            last_tenth_ctr=float(shown.click_rates[-tenth:].mean()),
            oracle_ctr=float(world.oracle_rate()),
            mean_reward=float(shown.rewards.mean()),
            kl=player.kl(),
            valid_share=float(shown.valid.mean()),
            distinct_texts=len(shown.texts),
            seconds=round(time.perf_counter() - begun, 2),
        )
    return Run(row, CompareCurve(job.name, job.seed, _curve(shown.click_rates)))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The comparison's figures (contracts section 5)."""
    jobs = [
        Job(name, options.world, seed, options.impressions, options.increment, options.model)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for name in options.only
    ]
    # The longest first, so that no core is left with one at the end; the rows keep the table's order.
    order = sorted(range(len(jobs)), key=lambda at: jobs[at].name != "adloop")
    with Bars() as bars:
        if options.model is None and set(options.only) != {"control"}:
            _make_tiny_model(bars)
        done = run_jobs(run_job, [jobs[at] for at in order], options.processes, bars.bar("compare"))
    runs = [run for _, run in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    if options.report is not None:
        from simulators.report import write_compare_report

        write_compare_report([run.row for run in runs], [run.curve for run in runs], options.report)
    return {
        "world": options.world,
        "impressions": options.impressions,
        "increment": options.increment,
        "rows": [asdict(run.row) for run in runs],
    }


def show(figures: Mapping[str, Any]) -> str:
    """The figures as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{figures['world']}, {figures['impressions']:,} impressions", title_justify="left")
    columns = ("policy", "seed", "mean CTR", "last tenth", "oracle", "reward", "KL", "valid", "texts", "seconds")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in figures["rows"]:
        rates = [f"{row[key]:.4f}" for key in ("mean_ctr", "last_tenth_ctr", "oracle_ctr", "mean_reward")]
        rest = [f"{row['kl']:.2f}", f"{row['valid_share']:.3f}", str(row["distinct_texts"]), f"{row['seconds']:.1f}"]
        table.add_row(row["name"], str(row["seed"]), *rates, *rest)
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def main(argv: Sequence[str]) -> int:
    """`adloop compare`."""
    parser = argparse.ArgumentParser(
        prog="adloop compare",
        description="Play a simulated market with Adloop and with its peers, on the same arrivals.",
    )
    parser.add_argument(
        "--world", default="market", metavar="W", help="a name or package.module:Class (default: market)"
    )
    parser.add_argument("--impressions", type=positive, default=4000, metavar="N", help="a run (default: 4000)")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="K", help="runs a policy, seeds 1 to K (default: 1)"
    )
    parser.add_argument("--first-seed", type=positive, default=1, metavar="S", help="seeds S to S+K-1 (default: 1)")
    parser.add_argument(
        "--only", type=_names, default=NAMES, metavar="NAME,..", help=f"of {', '.join(NAMES)} (default: all)"
    )
    parser.add_argument(
        "--increment", type=positive, default=INCREMENT, metavar="N", help="impressions to an increment (default: 128)"
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a Hugging Face causal LM (default: the tiny one)")
    parser.add_argument("--report", type=Path, metavar="PATH", help="write an HTML report with the learning curves")
    parser.add_argument(
        "--processes", type=positive, default=max(1, os.cpu_count() or 1), metavar="N", help="default: one a core"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    return execute(lambda: answer(run(options), show, options.json))


def _make_tiny_model(bars: Bars) -> None:
    """Have the tiny model in the cache before several workers would each train it."""
    from optimizer.learning.recipe import PretrainConfig, made_already

    if made_already(PretrainConfig()) is not None:
        return
    # Imported here: it brings torch, which the command's help does without.
    from optimizer.learning.base import tiny_model

    report = bars.bar("tiny model")
    tiny_model(PretrainConfig(), lambda stage, done, of: report(done, of))


def _curve(rates: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[tuple[int, float], ...]:
    edges = np.unique(np.linspace(0, len(rates), min(CURVE_POINTS, len(rates)) + 1).astype(int))
    return tuple((int(end), float(rates[start:end].mean())) for start, end in pairwise(edges))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {', '.join(NAMES)}, each once")
    return names
