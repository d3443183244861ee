"""`adloop compare`: every policy of a table on the same arrivals of one world, synchronously and reproducibly.

Each (policy, seed) plays its own World(seed), so that arrivals agree; the learner takes its increments at fixed numbers
of impressions, not by the clock.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.arguments import positive
from optimizer.errors import ConfigError
from simulators.command import answer, execute
from simulators.progress import Bars, Report
from simulators.results import CompareCurve, CompareRow
from simulators.settings import NAMES, SETTINGS, lacking
from simulators.summary import beside_ours, summary
from simulators.workers import one_thread, run_jobs
from simulators.worlds import World

if TYPE_CHECKING:
    from simulators.contenders import Contender
    from simulators.guest import Guest
    from simulators.places import Texts

INCREMENT = 128
CURVE_POINTS = 40
COLUMNS = (
    ("mean CTR", "mean_ctr", 4),
    ("last tenth", "last_tenth_ctr", 4),
    ("of oracle", "share_of_oracle", 3),
    ("reward", "mean_reward", 4),
    ("KL", "kl", 2),
    ("valid", "valid_share", 3),
    ("texts", "distinct_texts", 0),
    ("seconds", "seconds", 1),
)
LONGEST = ("adloop", "reinforce", "grpo")


@dataclass(frozen=True)
class Job:
    """One policy in one world. `increment`: impressions between the learner's increments; `model` None: the tiny
    one; `pools`: the fixed pools, for who plays them."""

    name: str
    world: str
    seed: int
    impressions: int
    increment: int
    model: str | None
    pools: Texts


@dataclass(frozen=True)
class PoolJob:
    """The fixed pools of one seed's world."""

    world: str
    seed: int
    impressions: int
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
    from simulators.contenders import Start, contender
    from simulators.guest import guest

    one_thread()
    world = guest(job.world, job.seed, job.impressions)
    start = Start(world.campaigns(), job.pools, folder / "data", job.seed, job.model, world.true_rate)
    with closing(contender(job.name, start)) as player:
        begun = time.perf_counter()
        shown = play(player, world, job.impressions, job.increment, report)
        seconds = time.perf_counter() - begun
        row = _row(job, world, shown, player, seconds)
    return Run(row, CompareCurve(job.name, job.seed, _curve(shown.click_rates)))


def _row(job: Job, world: Guest, shown: Shown, player: Contender, seconds: float) -> CompareRow:
    tenth = max(1, job.impressions // 10)
    mean_ctr, oracle_ctr = float(shown.click_rates.mean()), world.oracle_rate()
    mean_reward, oracle_reward = float(shown.rewards.mean()), world.oracle_reward()
    return CompareRow(
        name=job.name,
        seed=job.seed,
        mean_ctr=mean_ctr,
        last_tenth_ctr=float(shown.click_rates[-tenth:].mean()),
        oracle_ctr=oracle_ctr,
        mean_reward=mean_reward,
        kl=player.kl(),
        valid_share=float(shown.valid.mean()),
        distinct_texts=len(shown.texts),
        seconds=round(seconds, 2),
        share_of_oracle=mean_ctr / oracle_ctr if oracle_ctr > 0.0 else None,
        last_tenth_reward=float(shown.rewards[-tenth:].mean()),
        oracle_reward=oracle_reward,
        share_of_reward=None if oracle_reward is None or oracle_reward <= 0.0 else mean_reward / oracle_reward,
        halted=player.halted or None,
    )


def write_pools_job(job: PoolJob, folder: Path, report: Report) -> Texts:
    """The fixed pools that all bandits of one seed share, in an empty folder."""
    from simulators.guest import guest
    from simulators.places import write_pools

    one_thread()
    world = guest(job.world, job.seed, job.impressions)
    texts = write_pools(world.campaigns(), folder / "data", job.seed, job.model)
    report(1, 1)
    return texts


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The comparison's figures (contracts section 5)."""
    from simulators.guest import guest

    names, skipped = _able(options.only)
    # What can be known to fail fails now, not after minutes.
    guest(options.world, options.first_seed, options.impressions).campaigns()
    if options.report is not None:
        _check_writable(options.report)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Bars() as bars:
        if options.model is None and set(names) - {"control"}:
            make_tiny_model(bars)
        pools: dict[int, Texts] = {seed: {} for seed in seeds}
        if any(SETTINGS[name].size for name in names):
            writing = [PoolJob(options.world, seed, options.impressions, options.model) for seed in seeds]
            written = run_jobs(write_pools_job, writing, options.processes, bars.bar("pools"))
            pools = dict(zip(seeds, written, strict=True))
        jobs = [
            Job(
                name,
                options.world,
                seed,
                options.impressions,
                options.increment,
                options.model,
                pools[seed] if SETTINGS[name].size else {},
            )
            for seed in seeds
            for name in names
        ]
        # The longest first, so that no core is left with one at the end; the rows keep the table's order.
        order = sorted(range(len(jobs)), key=lambda at: SETTINGS[jobs[at].name].kind not in LONGEST)
        done = run_jobs(run_job, [jobs[at] for at in order], options.processes, bars.bar("compare"))
    runs = [run for _, run in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    rows = [run.row for run in runs]
    if options.report is not None:
        from simulators.report import write_compare_report

        write_compare_report(rows, [run.curve for run in runs], options.report, skipped)
    return {
        "world": options.world,
        "impressions": options.impressions,
        "increment": options.increment,
        "rows": [asdict(row) for row in rows],
        "summary": summary(rows),
        "beside_adloop": beside_ours(rows),
        "skipped": skipped,
    }


def show(figures: Mapping[str, Any]) -> str:
    """The figures as a table for people: means over the seeds and half the width of their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    seeds = len({row["seed"] for row in figures["rows"]})
    title = f"{figures['world']}, {figures['impressions']:,} impressions, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(("policy", *(heading for heading, _, _ in COLUMNS))):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for entry in figures["summary"]:
        table.add_row(entry["name"], *(_cell(entry[key], digits) for _, key, digits in COLUMNS))
    console = Console(width=150)
    with console.capture() as capture:
        console.print(table)
    notes = [f"skipped: {entry['name']}: {entry['why']}" for entry in figures["skipped"]]
    notes += [f"halted: {row['name']}, seed {row['seed']}: {row['halted']}" for row in figures["rows"] if row["halted"]]
    return "\n".join([capture.get().rstrip(), *notes])


def _cell(measured: Mapping[str, float | None], digits: int) -> str:
    mean, high = measured["mean"], measured["high"]
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if high is None else f" ±{high - mean:.{digits}f}")


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
    return execute(lambda: _answer(run(options), options.json))


def _answer(figures: dict[str, Any], as_json: bool) -> int:
    """The table on stdout; on stderr, with the progress, where stdout is for the JSON object."""
    if as_json:
        print(show(figures), file=sys.stderr)
    return answer(figures, show, as_json)


def make_tiny_model(bars: Bars) -> None:
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


def _able(names: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Who can play, and who is skipped and why."""
    reasons = {name: lacking(name) for name in names}
    skipped = [{"name": name, "why": why} for name, why in reasons.items() if why is not None]
    if len(skipped) == len(names):
        raise ConfigError(f"--only: nobody is left to play; {skipped[0]['name']}: {skipped[0]['why']}")
    return [name for name, why in reasons.items() if why is None], skipped


def _check_writable(report: Path) -> None:
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with report.open("ab"):
            pass
    except OSError as error:
        why = f"a file that can be written ({error.strerror}); give another path"
        raise ConfigError(f"--report: got {report}, expected {why}") from error


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {', '.join(NAMES)}, each once")
    return names
