"""`adloop compare`: every policy of a table on the same arrivals of one world, synchronously and reproducibly.

Each (policy, seed) plays its own World(seed), so that arrivals agree; the learner takes its increments at fixed numbers
of impressions, not by the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from optimizer.arguments import positive
from optimizer.errors import AdloopError, ConfigError
from simulators.command import answer, execute, refuse_failed
from simulators.compare_table import show
from simulators.progress import Bars, Report
from simulators.results import Apart, CompareCurve, CompareRow, Failed, Setup
from simulators.settings import NAMES, SETTINGS, lacking
from simulators.stats import finite, share
from simulators.summary import beside_ours, summary
from simulators.workers import one_thread, try_jobs, why_failed
from simulators.worlds import World, shipped

if TYPE_CHECKING:
    from simulators.contenders import Contender
    from simulators.guest import Guest
    from simulators.loop import Reaction
    from simulators.places import Texts

INCREMENT = 128
CURVE_POINTS = 40
LONGEST = ("adloop", "reinforce", "grpo")
Floats = np.ndarray[Any, np.dtype[np.float64]]
Arrivals = np.ndarray[Any, np.dtype[np.uint64]]


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
    """What a policy's run gave. `arrivals` [N]: for each arrival a number that tells it and all before it from
    others."""

    row: CompareRow
    curve: CompareCurve
    arrivals: Arrivals


def play(
    contender: Contender,
    world: World,
    impressions: int,
    increment: int,
    report: Report = lambda done, of: None,
    paid: Callable[[str, Sequence[Reaction]], float] | None = None,
) -> Shown:
    """Play a policy through the world's next arrivals. What is measured is the world's own truth about what was
    shown; `paid`, where given, says instead what an impression earned by what happened."""
    true_rate: Callable[..., float] = getattr(world, "true_rate", world.click_rate)
    shown = Shown.empty(impressions)
    last, come = (impressions - 1) * world.interval_ms, b""
    for at in range(impressions):
        contender.advance(at * world.interval_ms)
        campaign_id, context = world.arrive()
        # Each of these numbers is made of the one before: they are equal up to where arrivals first differ.
        arrival = repr((campaign_id, sorted(context.items()))).encode()
        come = hashlib.blake2b(come + arrival, digest_size=8).digest()
        shown.arrivals[at] = int.from_bytes(come)
        slots = dict(contender.serve(campaign_id, context))
        # Before `respond`, which may change the world: the truth at the moment of showing.
        shown.click_rates[at] = world.click_rate(campaign_id, context, slots)
        if paid is None:
            shown.rewards[at] = true_rate(campaign_id, context, slots)
        shown.valid[at] = world.valid(campaign_id, slots)
        shown.texts.add((campaign_id, tuple(slots.items())))
        reactions = world.respond(campaign_id, context, slots)
        if paid is not None:
            shown.rewards[at] = paid(campaign_id, reactions)
        contender.feed(reactions)
        shown.late += sum(at * world.interval_ms + after > last or at == impressions - 1 for _, after, _ in reactions)
        if (at + 1) % increment == 0:
            contender.increment()
            report(at + 1, impressions)
    report(impressions, impressions)
    return shown


@dataclass
class Shown:
    """What was shown, impression by impression: true click rate and reward, and whether the world calls it well
    formed; the distinct texts; `arrivals` as in `Run`; how many reactions were `late`, after the last arrival."""

    click_rates: Floats
    rewards: Floats
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    texts: set[tuple[str, tuple[tuple[str, str], ...]]]
    arrivals: Arrivals
    late: int = 0

    @classmethod
    def empty(cls, impressions: int) -> Shown:
        """Before the first of so many impressions."""
        flags, arrivals = np.zeros(impressions, dtype=bool), np.zeros(impressions, dtype=np.uint64)
        return cls(np.zeros(impressions), np.zeros(impressions), flags, set(), arrivals)


def run_job(job: Job, folder: Path, report: Report) -> Run:
    """Play one job in an empty folder."""
    # Imported here: it brings torch.
    from simulators.contenders import Start, contender
    from simulators.guest import guest

    one_thread()
    world = guest(job.world, job.seed, job.impressions)
    start = Start(world.campaigns(), job.pools, folder / "data", job.seed, job.model, world.true_rate)
    paid = world.payout().of if _reward_is(world) == "realised" else None
    with closing(contender(job.name, start)) as player:
        begun = time.perf_counter()
        shown = play(player, world, job.impressions, job.increment, report, paid)
        seconds = time.perf_counter() - begun
        row = _row(job, world, shown, player, seconds)
    return Run(row, CompareCurve(job.name, job.seed, _curve(shown.click_rates), _curve(shown.rewards)), shown.arrivals)


def _reward_is(world: Guest) -> Literal["true", "realised", "clicks"]:
    if world.tells_reward:
        return "true"
    return "realised" if world.pays_for_more else "clicks"


def _row(job: Job, world: Guest, shown: Shown, player: Contender, seconds: float) -> CompareRow:
    tenth = max(1, job.impressions // 10)
    mean_ctr, mean_reward = float(shown.click_rates.mean()), float(shown.rewards.mean())
    (oracle_ctr, no_ctr), (oracle_reward, no_reward) = _told(world.oracle_rate), _told(world.oracle_reward)
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
        share_of_oracle=share(mean_ctr, oracle_ctr),
        last_tenth_reward=float(shown.rewards[-tenth:].mean()),
        oracle_reward=oracle_reward,
        share_of_reward=share(mean_reward, oracle_reward),
        halted=player.halted or None,
        oracle_why="; ".join(why for why in (no_ctr, no_reward) if why) or None,
        reward_is=_reward_is(world),
        # Nobody else waits for events.
        untold=shown.late if SETTINGS[job.name].kind == "adloop" else 0,
        keys_cut=world.keys_cut,
    )


def _told(oracle: Callable[[], float | None]) -> tuple[float | None, str]:
    """What the oracle says, or why it says nothing: a run is not lost at its end for that."""
    try:
        return oracle(), ""
    except AdloopError as error:
        return None, str(error)


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
    """The comparison's figures (docs/api.md, Commands)."""
    from simulators.guest import guest

    names, skipped = _able(options.only)
    # What can be known to fail fails now, not after minutes.
    world = guest(options.world, options.first_seed, options.impressions)
    world.campaigns()
    if options.report is not None:
        _check_writable(options.report)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Bars() as bars:
        if options.model is None and set(names) - {"control"}:
            make_tiny_model(bars)
        done = _play_all(options, names, seeds, bars)
    runs = [one for one in done.values() if isinstance(one, Run)]
    rows = [one.row for one in runs]
    setup = Setup(
        world=options.world,
        impressions=options.impressions,
        increment=options.increment,
        model=options.model,
        ranked_by="mean_reward" if world.pays_for_more else "mean_ctr",
        failed=tuple(
            Failed(name, seed, why_failed(one)) for (name, seed), one in done.items() if isinstance(one, Exception)
        ),
        apart=tuple(apart(runs)),
    )
    if options.report is not None and rows:
        from simulators.report import write_compare_report

        write_compare_report(rows, [one.curve for one in runs], options.report, skipped, setup)
    figures = {
        "world": setup.world,
        "impressions": setup.impressions,
        "increment": setup.increment,
        "ranked_by": setup.ranked_by,
        "rows": [asdict(row) for row in rows],
        "summary": summary(rows),
        "beside_adloop": beside_ours(rows),
        "skipped": skipped,
        "failed": [asdict(one) for one in setup.failed],
        "arrivals_differ": [
            {"seed": one.seed, "name": one.name, "from": one.start, "than": one.than} for one in setup.apart
        ],
    }
    told: dict[str, Any] = finite(figures)
    return told


def _play_all(
    options: argparse.Namespace, names: Sequence[str], seeds: Sequence[int], bars: Bars
) -> dict[tuple[str, int], Run | Exception]:
    """(name, seed) -> its run, or why there is none; seed by seed in the table's order."""
    # What others wrote may keep things in classes, or take a set's order for given: each run of it has a process of
    # its own, with the same hashes in all.
    fresh = not shipped(options.world)
    pools: dict[int, Texts | Exception] = {seed: {} for seed in seeds}
    if any(SETTINGS[name].size for name in names):
        writing = [PoolJob(options.world, seed, options.impressions, options.model) for seed in seeds]
        written = try_jobs(write_pools_job, writing, options.processes, bars.bar("pools"), fresh)
        pools = dict(zip(seeds, written, strict=True))
    done: dict[tuple[str, int], Run | Exception] = {}
    jobs = []
    for seed in seeds:
        for name in names:
            own = pools[seed] if SETTINGS[name].size else {}
            # Its place in the order, whoever finishes first.
            done[name, seed] = own if isinstance(own, Exception) else ConfigError("not played")
            if not isinstance(own, Exception):
                jobs.append(Job(name, options.world, seed, options.impressions, options.increment, options.model, own))
    # The longest first, so that no core is left with one at the end.
    jobs.sort(key=lambda job: SETTINGS[job.name].kind not in LONGEST)
    played = try_jobs(run_job, jobs, options.processes, bars.bar("compare"), fresh)
    return done | {(job.name, job.seed): one for job, one in zip(jobs, played, strict=True)}


def apart(runs: Sequence[Run]) -> list[Apart]:
    """Who met other arrivals than the first policy of the same seed, and from which on."""
    first: dict[int, Run] = {}
    found = []
    for one in runs:
        than = first.setdefault(one.row.seed, one)
        differ = np.flatnonzero(one.arrivals != than.arrivals)
        if len(differ):
            found.append(Apart(one.row.seed, one.row.name, int(differ[0]) + 1, than.row.name))
    return found


def main(argv: Sequence[str]) -> int:
    """`adloop compare`."""
    parser = argparse.ArgumentParser(
        prog="adloop compare",
        description="Play a simulated market with Adloop and with its peers, on the same arrivals. "
        "Exit status 1 where a run failed; those that did not are printed all the same.",
    )
    parser.add_argument(
        "--world",
        default="market",
        metavar="W",
        help="a name or package.module:Class, which is played in a fresh process each run (default: market)",
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
    status = answer(figures, show, as_json)
    refuse_failed(figures["failed"], len(figures["failed"]) + len(figures["rows"]))
    return status


def make_tiny_model(bars: Bars) -> None:
    """Have the tiny model in the cache before several workers would each train it."""
    from optimizer.learning.recipe import PretrainConfig, made_already

    if made_already(PretrainConfig()) is not None:
        return
    # Imported here: it brings torch, which the command's help does without.
    from optimizer.learning.base import tiny_model

    report = bars.bar("tiny model")
    tiny_model(PretrainConfig(), lambda stage, done, of: report(done, of))


def _curve(rates: Floats) -> tuple[tuple[int, float], ...]:
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
    there = report.exists()
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with report.open("ab"):
            pass
        if not there:
            report.unlink()
    except OSError as error:
        why = f"a file that can be written ({error.strerror}); give another path"
        raise ConfigError(f"--report: got {report}, expected {why}") from error


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {', '.join(NAMES)}, each once")
    return names
