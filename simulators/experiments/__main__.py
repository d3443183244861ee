"""`python -m simulators.experiments NAME`: one question, asked of every seed, and whether the answer is what docs and
issues promise."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from optimizer.arguments import positive
from optimizer.errors import ConfigError
from simulators.command import answer, execute, refuse_failed
from simulators.compare import INCREMENT, make_tiny_model
from simulators.experiments.measures import WINDOW, beginnings, recovery, shortfall, significance
from simulators.experiments.trace import Trace, Trial, run_trial
from simulators.progress import Bars
from simulators.results import Failed
from simulators.stats import finite, share
from simulators.summary import interval
from simulators.workers import try_jobs, why_failed
from simulators.worlds import shipped

LOOKS = 2_000
Traces = Mapping[str, Trace]
"""Variant -> its trace, of one seed."""
Row = dict[str, Any]


def sparse_row(traces: Traces) -> Row:
    """When the lift over control was told for good, from realised clicks alone."""
    trace = traces["adloop"]
    found = significance(trace.control, trace.earned, LOOKS)
    final = None if found.final is None else list(found.final)
    learned = trace.click_rates[~trace.control]
    ratio = share(float(learned.mean()), float(trace.frozen.mean())) if len(learned) else None
    truth = None if ratio is None else ratio - 1.0
    return {"significant_from": found.first, "lift": final, "true_lift": truth, "holds": found.first is not None}


def drift_row(traces: Traces) -> Row:
    """How long it took at first, and after the swap."""
    trace = traces["adloop"]
    found = recovery(trace.click_rates, trace.best, len(trace.click_rates) // 2)
    holds = found.at_first is not None and found.after is not None and found.after <= found.at_first
    return {**found._asdict(), "holds": holds}


def cold_row(traces: Traces) -> Row:
    """The first 500 impressions of campaigns that begin after others have ended, with and without transfer."""
    trace = traces["adloop"]
    names = list(dict.fromkeys(trace.campaigns))
    counts = {name: trace.campaigns.count(name) for name in names}
    # The first eight begin together or before anything was learnt; the last may not have their whole time.
    counted = [name for name in names[8:] if counts[name] >= 400]
    if not counted:
        return {"campaigns": 0, "with": None, "without": None, "ratio": None, "holds": False}
    rates = {name: beginnings(one.campaigns, one.click_rates, counted) for name, one in traces.items()}
    ratio = share(rates["adloop"], rates["alone"])
    return {
        "campaigns": len(counted),
        "with": rates["adloop"],
        "without": rates["alone"],
        "ratio": ratio,
        "holds": ratio is not None and ratio >= 1.3,
    }


def delay_row(traces: Traces) -> Row:
    """True reward beside a learner that is told conversions at once, and one that waits for the windows' end."""
    rewards = {name: float(trace.rewards.mean()) for name, trace in traces.items()}
    ours, waiting = (share(rewards[name], rewards["at_once"]) for name in ("adloop", "at_window_end"))
    holds = ours is not None and waiting is not None and ours >= 0.95 and waiting < ours
    return {"rewards": rewards, "adloop": ours, "at_window_end": waiting, "holds": holds}


def proxy_row(traces: Traces) -> Row:
    """The worst shortfall of the true reward: before the halt, or in the whole run where nothing was halted."""
    trace = traces["adloop"]
    until = len(trace.rewards) if trace.halted_at is None else trace.halted_at
    worst = shortfall(trace.rewards, trace.frozen, until)
    return {
        "halted_at": trace.halted_at,
        "why": trace.halted,
        "shortfall": None if worst is None else worst.window,
        "shortfall_so_far": None if worst is None else worst.so_far,
        "holds": worst is None or worst.window <= 0.05,
    }


def clean_row(traces: Traces) -> Row:
    """Whether learning was halted where nothing is wrong."""
    trace = traces["adloop"]
    return {"halted_at": trace.halted_at, "why": trace.halted, "holds": trace.halted_at is None}


@dataclass(frozen=True)
class Experiment:
    """`asked`: what has to hold, in `needed` of `seeds` seeds by default; `mean` instead: of the rows' mean."""

    asked: str
    world: str
    impressions: int
    seeds: int
    most_failures: int
    row: Callable[[Traces], Row]
    variants: tuple[str, ...] = ("adloop",)
    mean: str | None = None
    """Key whose mean over the seeds is reported with its interval."""
    increment: int = INCREMENT
    """Impressions to an increment by default."""
    least: int = 1
    """Impressions below which there is nothing to measure."""
    best: bool = False
    """Whether the world has to tell the oracle's click rate at an arrival."""
    reward: bool = False
    """Whether it has to tell the expected reward."""


EXPERIMENTS = {
    "sparse": Experiment(
        "the lift over control is significant within 100,000 impressions in 9 of 10 seeds",
        "sparse", 100_000, 10, 1, sparse_row, mean="true_lift", increment=4 * INCREMENT,
    ),
    "drift": Experiment(
        "back to 90 % of its old share of the oracle within as many impressions as it took at first",
        "drift", 20_480, 10, 0, drift_row, mean="share", least=4 * WINDOW, best=True,
    ),
    "cold": Experiment(
        "a new campaign's first 500 impressions earn 1.3 times what they do without transfer",
        "cold", 20_480, 3, 0, cold_row, ("adloop", "alone"), mean="ratio",
    ),
    "delay": Experiment(
        "95 % of the reward of a learner that is told conversions at once; waiting for the windows' end reaches less",
        "delay", 20_480, 5, 0, delay_row, ("adloop", "at_once", "at_window_end"), mean="adloop", reward=True,
    ),
    "proxy": Experiment(
        "up to a halt the true reward is never more than 5 % below the frozen control's in any 1,000 impressions",
        "proxy", 20_480, 20, 0, proxy_row, least=1_000, reward=True,
    ),
    "clean": Experiment(
        "where nothing is wrong (conversions follow clicks) learning is halted in at most 1 of 20 seeds",
        "market", 20_480, 20, 1, clean_row,
    ),
}  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The experiment's figures."""
    asked = EXPERIMENTS[options.name]
    count = options.seeds or asked.seeds
    seeds = list(range(options.first_seed, options.first_seed + count))
    world, impressions = options.world or asked.world, options.impressions or asked.impressions
    increment = options.increment or asked.increment
    _check(asked, world, seeds[0], impressions)
    trials = [
        Trial(variant, world, seed, impressions, increment, options.model)
        for seed in seeds
        for variant in asked.variants
    ]
    with Bars() as bars:
        if options.model is None:
            make_tiny_model(bars)
        played = try_jobs(run_trial, trials, options.processes, bars.bar(options.name), not shipped(world))
    failed = [
        Failed(trial.variant, trial.seed, why_failed(one))
        for trial, one in zip(trials, played, strict=True)
        if isinstance(one, Exception)
    ]
    traces = [one for one in played if isinstance(one, Trace)]
    rows = []
    for seed in seeds:
        own = {trace.trial.variant: trace for trace in traces if trace.trial.seed == seed}
        if len(own) < len(asked.variants):
            continue
        ours = own["adloop"]
        common = {
            "seed": seed,
            "mean_ctr": float(ours.click_rates.mean()),
            "last_tenth_ctr": float(ours.click_rates[-max(1, impressions // 10) :].mean()),
            "control_ctr_reward": float(ours.frozen.mean()),
            "valid_share": ours.valid_share,
            "kl": ours.kl,
            "seconds": round(sum(trace.seconds for trace in own.values()), 1),
        }
        rows.append({**common, **asked.row(own)})
    failures, lost = sum(not row["holds"] for row in rows), count - len(rows)
    holds: bool | None = failures <= asked.most_failures
    if holds and failures + lost > asked.most_failures:
        holds = None  # it hangs on what the lost seeds would have said
    figures: dict[str, Any] = {
        "experiment": options.name,
        "asked": asked.asked,
        "world": world,
        "impressions": impressions,
        "increment": increment,
        "rows": rows,
        "failures": failures,
        "failed": [asdict(one) for one in failed],
        "runs": len(trials),
        "holds": holds,
    }
    if asked.mean is not None and rows:
        figures["mean"] = {asked.mean: interval([row[asked.mean] for row in rows if row[asked.mean] is not None])}
    told: dict[str, Any] = finite(figures)
    return told


def _check(asked: Experiment, world: str, seed: int, impressions: int) -> None:
    """Raises ConfigError for a run that the question can't be asked of: now, not after hours."""
    # Imported here: the command's help does without.
    from simulators.guest import guest

    if impressions < asked.least:
        why = f"{asked.least} or more: a shorter run has nothing to measure"
        raise ConfigError(f"--impressions: got {impressions}, expected {why}; give more")
    one = guest(world, seed, impressions)
    one.campaigns()
    if asked.best and one.best_rate is None:
        why = (
            "a world with best_rate(campaign_id, segment), the best text's click rate now, which the question is about"
        )
        raise ConfigError(f"--world: got {world}, expected {why}; add it")
    if asked.reward and not one.tells_reward:
        why = "a world with true_rate(campaign_id, context, slots), the expected reward, which the question is about"
        raise ConfigError(f"--world: got {world}, expected {why}; add it")


def show(figures: Mapping[str, Any]) -> str:
    """The figures for people: a line a seed, and the verdict."""
    lines = [f"{figures['experiment']}: {figures['world']}, {figures['impressions']:,} impressions", figures["asked"]]
    lines += ["  ".join(f"{key} {_told(value)}" for key, value in row.items()) for row in figures["rows"]]
    for key, mean in figures.get("mean", {}).items():
        lines.append(f"mean {key} {_told(mean['mean'])} ({_told(mean['low'])} to {_told(mean['high'])})")
    for one in figures["failed"]:
        lines.append(f"failed: {one['name']}, seed {one['seed']}: {one['why']} (the seed is left out)")
    if figures["rows"]:
        took = fmean(row["seconds"] for row in figures["rows"])
        verdict = {True: "holds", False: "does not hold", None: "not told"}[figures["holds"]]
        short = f"{figures['failures']} of {len(figures['rows'])} seeds fall short"
        lines.append(f"{verdict}: {short}; {took:.0f} s a seed")
    else:
        lines.append("not told: no seed has been played to its end")
    return "\n".join(lines)


def _told(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return " ".join(f"{key}={_told(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "/".join(_told(one) for one in value)
    return "-" if value is None or value == "" else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status 0 also where the answer is no: it is an answer."""
    parser = argparse.ArgumentParser(
        prog="python -m simulators.experiments",
        description=f"{__doc__} Exit status 1 where a run failed; what the other seeds gave is printed all the same.",
    )
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=positive, metavar="K", help="default: what the question asks for")
    parser.add_argument("--first-seed", type=positive, default=1, metavar="S", help="seeds S to S+K-1 (default: 1)")
    parser.add_argument("--impressions", type=positive, metavar="N", help="default: what the question asks for")
    parser.add_argument("--world", metavar="W", help="another world of the same kind: a name or package.module:Class")
    parser.add_argument(
        "--increment",
        type=positive,
        metavar="N",
        help=f"impressions to one (default: {INCREMENT}; sparse: {4 * INCREMENT}, which bring two or three clicks)",
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a Hugging Face causal LM (default: the tiny one)")
    parser.add_argument(
        "--processes", type=positive, default=max(1, os.cpu_count() or 1), metavar="N", help="default: one a core"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    return execute(lambda: _answer(run(options), options.json))


def _answer(figures: dict[str, Any], as_json: bool) -> int:
    status = answer(figures, show, as_json)
    refuse_failed(figures["failed"], figures["runs"])
    return status


if __name__ == "__main__":
    sys.exit(main())
