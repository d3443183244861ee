"""`adloop replay`: loads a file of headline tests, plays every policy through a sample of them, prints what each
captured."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.arguments import natural, positive
from optimizer.errors import BadInput, FieldError
from simulators.command import answer, execute
from simulators.peers import PEERS
from simulators.progress import Bars, Report
from simulators.replay import HORIZONS, Arena, Floats, Played, captured, captured_intervals, differences, merged, play
from simulators.upworthy import (
    REFERENCE_RELATIVE_VARIANCE,
    HeadlineGroup,
    file_relative_variance,
    group_rates,
    read_arms,
    text_groups,
)
from simulators.workers import one_thread, run_jobs

# Systems that share the groups, a process each. Their number shows in the figures a little (what one group teaches
# about words helps the others of its system), so it does not follow the cores.
SHARDS = 2
DEFAULT_GROUPS = 144
SAMPLE_STREAM = 0x5A11


@dataclass(frozen=True)
class Sample:
    """The groups that are played, the number of each among all that could be, and how many those are."""

    groups: tuple[HeadlineGroup, ...]
    numbers: tuple[int, ...]
    of: int


@dataclass(frozen=True)
class Split:
    """Groups whose tests are over when the play begins (`past`), and those of `week` or later that can be played."""

    past: tuple[HeadlineGroup, ...]
    later: tuple[HeadlineGroup, ...]
    week: int


@dataclass(frozen=True)
class Shard:
    """What one process plays: some of the sample's groups, in one system of its own, taught by `past` tests;
    `direct` leaves out its log."""

    groups: tuple[HeadlineGroup, ...]
    arena: Arena
    past: tuple[HeadlineGroup, ...]
    direct: bool


def split_by_week(groups: Sequence[HeadlineGroup], week: int | None) -> Split:
    """The groups that were tested before `week` (YYYYWW), and the others. None: the first week that has at least half
    of all groups before it, so that a file of a single week has nothing but later groups."""
    if week is None:
        weeks = sorted(group.week for group in groups)
        middle = weeks[(len(weeks) - 1) // 2]
        week = next((one for one in weeks if one > middle), weeks[0])
    return Split(
        tuple(group for group in groups if group.week < week),
        tuple(group for group in groups if group.week >= week),
        week,
    )


def sample_groups(groups: Sequence[HeadlineGroup], wanted: int | None, seed: int) -> Sample:
    """`wanted` groups drawn without replacement, in the file's order; None or more than there are: all of them."""
    if wanted is None or wanted >= len(groups):
        return Sample(tuple(groups), tuple(range(len(groups))), len(groups))
    numbers = np.sort(np.random.default_rng([SAMPLE_STREAM, seed]).choice(len(groups), wanted, replace=False)).tolist()
    return Sample(tuple(groups[number] for number in numbers), tuple(numbers), len(groups))


def play_shard(shard: Shard, folder: Path, report: Report) -> Played:
    """Adloop's play over one shard, in an empty folder."""
    # Imported here: it brings torch, which the peers and the command's help do without.
    from simulators.replay_adloop import AdloopPeer, DirectPeer

    one_thread()
    seed = shard.arena.seed
    if shard.direct:
        return play(DirectPeer(shard.groups, seed, shard.past), shard.arena, HORIZONS, report)
    with closing(AdloopPeer(shard.groups, folder, seed, shard.past)) as peer:
        return play(peer, shard.arena, HORIZONS, report)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The replay's figures (docs/api.md and more). `groups` and `arms` are what was played, `file_groups` and
    `file_arms` all that the file has for a play. Raises BadInput for a file that can't be used."""
    begun = time.perf_counter()
    grouped = text_groups(read_arms(options.data), options.keep_broken_weeks)
    if not grouped.groups:
        raise BadInput(
            FieldError(
                str(options.data),
                f"no group of two headlines under one image ({grouped.dropped_rows} rows of broken weeks left out)",
                "at least one group",
                "give more of the archive, or --keep-broken-weeks",
            )
        )
    estimate = file_relative_variance(grouped.groups)
    tau2 = estimate if options.relative_variance is None else options.relative_variance
    split = _split(grouped.groups, options)
    sample = sample_groups(split.later, options.groups, options.seed)
    rates = [group_rates(group, tau2) for group in sample.groups]
    arena = Arena.of(rates, options.seed, sample.numbers)
    _say(
        f"{options.data.name}: {len(grouped.groups)} groups of {grouped.arms} headlines; {grouped.dropped_rows} rows "
        f"of the weeks of broken randomisation left out; relative variance {tau2:.4f} (this file's own: {estimate:.4f})"
    )
    if split.past:
        _say(f"{len(split.past)} groups of the weeks before {split.week} teach adloop's critic, by their counts")
    if len(sample.groups) < sample.of:
        _say(f"a sample of {len(sample.groups)} of the {sample.of} later groups; --groups all plays all of them")
    with Bars() as bars:
        played = [play(peer(arena.arms), arena, HORIZONS, bars.bar(peer.name)) for peer in PEERS]
        shards = _shards(sample, rates, split.past, options)
        played.append(merged(run_jobs(play_shard, shards, options.processes, bars.bar("adloop"))))
    adloop, thompson = played[-1], next(one for one in played if one.name == "thompson")
    return {
        "groups": len(sample.groups),
        "arms": int(arena.arms.sum()),
        "captured": {one.name: captured(one, arena) for one in played},
        "intervals": {one.name: captured_intervals(one, arena) for one in played},
        "differences": {
            "adloop - thompson": {h: one._asdict() for h, one in differences(adloop, thompson, arena).items()}
        },
        "kind": "simulation from real arm rates",
        "through": "critic and selector" if options.direct else "serving, log, joiner, critic",
        "file_groups": len(grouped.groups),
        "file_arms": grouped.arms,
        "taught_groups": len(split.past),
        "played_from_week": split.week,
        "relative_variance": tau2,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def main(argv: Sequence[str]) -> int:
    """`adloop replay`."""
    parser = argparse.ArgumentParser(
        prog="adloop replay",
        description="Play real headline tests again, as a simulation from their arm rates: Adloop against its peers.",
    )
    _add_options(parser)
    options = parser.parse_args(argv)
    return execute(lambda: answer(run(options), show, options.json))


def show(figures: dict[str, Any]) -> str:
    """The figures as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Share of the uniform-to-best gap captured, {figures['groups']} groups", title_justify="left")
    table.add_column("policy")
    for horizon in HORIZONS:
        table.add_column(f"{horizon:,} impressions", justify="right")
    for name, shares in figures["captured"].items():
        cells = []
        for horizon, share in shares.items():
            interval = figures["intervals"][name][horizon]
            around = "" if interval is None else f"  [{interval[0]:.3f}, {interval[1]:.3f}]"
            cells.append(f"{share:.3f}{around}")
        table.add_row(name, *cells)
    for name, by_horizon in figures["differences"].items():
        table.add_row(name, *(_signed(**one) for one in by_horizon.values()))
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
        console.print("A simulation from real arm rates; 95 % intervals over groups. The same draws for every policy.")
    return capture.get()


def _signed(value: float, low: float | None, high: float | None) -> str:
    return f"{value:+.3f}" if low is None else f"{value:+.3f}  [{low:+.3f}, {high:+.3f}]"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="csv of the archive, plain or gzipped")
    parser.add_argument(
        "--seed", type=natural, default=0, help="of the draws, the sample and the policies (default: 0)"
    )
    parser.add_argument(
        "--groups",
        type=_groups,
        default=DEFAULT_GROUPS,
        metavar="N|all",
        help=f"groups played (default: {DEFAULT_GROUPS})",
    )
    parser.add_argument(
        "--play-from",
        type=_week,
        default=None,
        metavar="YYYYWW|first",
        help="groups of this week and later are played, earlier ones teach the critic; first: all are played, none "
        "teaches (default: the week in the middle)",
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="leave out serving, log and joiner: the same critic and selector, many times faster",
    )
    parser.add_argument("--keep-broken-weeks", action="store_true", help="keep weeks 201325 to 201401: not causal")
    parser.add_argument(
        "--relative-variance",
        type=_variance,
        default=REFERENCE_RELATIVE_VARIANCE,
        metavar="X|estimate",
        help=f"of true rates inside a group, for shrinkage (default: {REFERENCE_RELATIVE_VARIANCE}, the archive's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--processes", type=positive, default=max(1, os.cpu_count() or 1), metavar="N", help="default: one a core"
    )


def _split(groups: Sequence[HeadlineGroup], options: argparse.Namespace) -> Split:
    split = split_by_week(groups, options.play_from)
    if not split.later:
        raise BadInput(
            FieldError(
                "--play-from",
                f"{split.week}, and no group of that week or later in {options.data}",
                f"at most {max(group.week for group in groups)}",
                "give an earlier week",
            )
        )
    return split


def _shards(
    sample: Sample, rates: Sequence[Floats], past: tuple[HeadlineGroup, ...], options: argparse.Namespace
) -> list[Shard]:
    bounds = np.linspace(0, len(sample.groups), min(SHARDS, len(sample.groups)) + 1).astype(int)
    shards: list[Shard] = []
    for some in (slice(start, end) for start, end in pairwise(bounds.tolist())):
        arena = Arena.of(rates[some], options.seed, sample.numbers[some])
        shards.append(Shard(sample.groups[some], arena, past, options.direct))
    return shards


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _groups(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _week(text: str) -> int:
    if text == "first":
        return 0
    week = int(text) if text.isascii() and text.isdigit() and len(text) == 6 else 0
    if not (2000 <= week // 100 <= 2100 and 0 <= week % 100 <= 53):
        raise argparse.ArgumentTypeError(f"got {text}, expected YYYYWW, a year and its week, or the word first")
    return week


def _variance(text: str) -> float | None:
    if text == "estimate":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 10.0:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 to 10, or the word estimate")
    return value
