"""`python -m simulators demo`: the whole loop on a simulated market, over real HTTP, in a few minutes.

It starts the real system as a subprocess and knows nothing of its inside: it PUTs the market's campaigns, asks for
texts, posts what the market's people do, and waits where the learner needs time. The market measures what it reports.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from optimizer import arguments
from optimizer.clock import SystemClock
from optimizer.errors import ConfigError
from optimizer.signals import interrupt
from simulators.ad_client import AdClient, Unreachable
from simulators.command import execute
from simulators.pace import Monitor, Pace
from simulators.report import write_report
from simulators.results import DemoResult
from simulators.roles import check_empty, running_roles
from simulators.screen import Screen, summary
from simulators.server import Server, make_model, pretrain_command, running, serving_command
from simulators.tally import (
    METHOD,
    curve,
    last_fifth,
    learned,
    rates,
    realised_lift,
    segments,
    text_pairs,
    traffic,
    valid_share,
)
from simulators.traffic import Remains, Shown, play, put_campaigns
from simulators.worlds import World, load_world

WORLD = "market"
IMPRESSIONS = 24_000
TRAFFIC_S = 225.0  # the slowest schedule for the default number of impressions: the rest of six minutes is for training
POOLS_WITHIN_S = 240.0
SLACK = 192  # how far behind the learner may be before traffic waits, in impressions
STDERR_FILE = "server.stderr"


@dataclass(frozen=True)
class Options:
    """The command's options, checked. None means: a temporary data folder, no report, the tiny model, all roles in one
    process over the embedded log."""

    seed: int = 1
    impressions: int = IMPRESSIONS
    port: int = 0
    data: Path | None = None
    report: Path | None = None
    model: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Run:
    """What a run gave: the figures, and the rate at which the server was asked (every kind of request)."""

    result: DemoResult
    requests_per_s: float


async def demo(options: Options, data: Path, world: World, console: Console) -> Run:
    """Play one demo into the empty folder `data`, with its progress on `console`.

    Raises:
      AdloopError: there is no model, or the server died, refused a request or learnt nothing.
    """
    began_s = time.monotonic()
    if options.log is not None:
        check_empty(options.log)
    if options.model is None:
        told = "language model: out of the cache, or trained now, once (1 to 5 minutes, by the machine)"
        console.print(told, highlight=False)
        await make_model(pretrain_command())
    with Screen(console, options.impressions) as screen:
        return await _with_server(options, data, world, screen, began_s)


async def _with_server(options: Options, data: Path, world: World, screen: Screen, began_s: float) -> Run:
    screen.stage("starting the server" if options.log is None else "starting the four roles")
    async with _system(options, data) as server, AdClient(server.url) as client:
        screen.url(server.url)
        try:
            return await _drive(options, world, server, client, screen, began_s)
        except Unreachable:
            # The reason behind an answer that never came: give the process a moment to be seen as ended.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.process.wait(), 1.0)
            server.check()
            raise


def _system(options: Options, data: Path) -> AbstractAsyncContextManager[Server]:
    """All roles in one process; over a log that was named, each in a process of its own."""
    if options.log is None:
        return running(serving_command(data, options.port, options.model), data / STDERR_FILE)
    return running_roles(data, options.log, options.port, options.model)


async def _drive(
    options: Options, world: World, server: Server, client: AdClient, screen: Screen, began_s: float
) -> Run:
    campaigns = await put_campaigns(world, client)
    monitor = Monitor(client)
    screen.stage("writing the first texts")
    await monitor.until_pools(POOLS_WITHIN_S, server.check)
    within_s = TRAFFIC_S * options.impressions / IMPRESSIONS
    pace = Pace(monitor, options.impressions, within_s, SLACK, time.monotonic, server.check)
    shown: list[Shown] = []

    def seen(one: Shown) -> None:
        shown.append(one)
        screen.saw(one)
        screen.state(monitor.version, monitor.versions, monitor.kl, monitor.kl_budget)

    screen.stage("serving the market")
    traffic_s, asked = time.monotonic(), client.requests
    remains = await play(world, campaigns, client, options.impressions, SystemClock(), pace.admit, seen)
    requests_per_s = (client.requests - asked) / (time.monotonic() - traffic_s)
    screen.stage("adding up")
    stats = await client.stats()
    await monitor.poll(len(shown))
    control_ctr, learned_ctr = rates(shown)
    lift = realised_lift(shown)
    controls = {campaign_id: campaign["controls"][0] for campaign_id, campaign in campaigns.items()}
    result = DemoResult(
        seed=options.seed,
        impressions=len(shown),
        control_ctr=control_ctr,
        learned_ctr=learned_ctr,
        oracle_ctr=world.oracle_rate(),
        lift=lift.value if lift else None,
        lift_interval=(lift.low, lift.high) if lift else None,
        valid_share=valid_share(shown),
        kl=max(float(campaign["kl"]) for campaign in stats.values()),
        kl_budget=monitor.kl_budget,
        seconds=time.monotonic() - began_s,
        curve=curve(shown),
        kl_curve=tuple(monitor.curve),
        traffic=traffic(shown),
        texts=text_pairs(shown, controls, world.click_rate),
        segments=segments(shown),
        method=(*METHOD, *_how_it_went(shown, remains, pace.waited_s, requests_per_s)),
    )
    return Run(result, requests_per_s)


def _how_it_went(
    shown: Sequence[Shown], remains: Remains, waited_s: float, requests_per_s: float
) -> tuple[str, str, str]:
    """This run's own sentences for the report."""
    late = last_fifth(shown)
    leftovers = (
        f"{remains.posted_after:,} events came due after the last arrival and were posted; {remains.unlived:,} lie "
        "later than the run lived (delayed conversions) and were not."
    )
    return (
        f"The last fifth is {len(late):,} impressions, {len(learned(late)):,} of them served from a pool.",
        leftovers,
        f"Traffic waited {waited_s:.0f} s in all for the learner; {requests_per_s:.0f} requests a second over HTTP.",
    )


def as_json(result: DemoResult, report: Path | None) -> str:
    """The object of docs/api.md, Commands, on one line."""
    return json.dumps(
        {
            "seed": result.seed,
            "impressions": result.impressions,
            "control_ctr": result.control_ctr,
            "learned_ctr": result.learned_ctr,
            "oracle_ctr": result.oracle_ctr,
            "lift": result.lift,
            "lift_interval": list(result.lift_interval) if result.lift_interval else None,
            "valid_share": result.valid_share,
            "kl": result.kl,
            "seconds": round(result.seconds, 3),
            "report": str(report) if report else None,
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (0 also after SIGTERM and Ctrl-C, 1 failed, 2 wrong usage)."""
    given = _parser().parse_args(argv)
    options = Options(
        seed=given.seed,
        impressions=given.impressions,
        port=given.port,
        data=given.keep,
        model=given.model,
        log=given.log,
        report=None if given.no_report else given.report or Path("runs") / f"demo-{given.seed}.html",
    )
    return execute(lambda: _play(options, given.json), "demo")


def _play(options: Options, json_wanted: bool) -> int:
    err = Console(stderr=True)
    with _folder(options.data) as data:
        world = load_world(WORLD, options.seed)
        try:
            run = asyncio.run(_until_stopped(demo(options, data, world, err)))
        finally:
            signal.signal(signal.SIGTERM, interrupt)  # again: the event loop took its handler with it
    if run is None:
        print("demo: stopped before its end, the server with it", file=sys.stderr)
        return 0
    report = write_report(run.result, options.report) if options.report else None
    (err if json_wanted else Console()).print(summary(run.result, run.requests_per_s, str(report) if report else None))
    if json_wanted:
        print(as_json(run.result, report))
    return 0


async def _until_stopped(work: Coroutine[None, None, Run]) -> Run | None:
    """The result, or None where SIGTERM or Ctrl-C came first; either way the server is stopped in order."""
    task = asyncio.create_task(work)
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The data folder: `keep`, which must be new or empty, or a temporary one that is removed afterwards."""
    if keep is None:
        temporary = Path(tempfile.mkdtemp(prefix="adloop-demo-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise ConfigError(
            f"--keep: {keep} is not empty, expected a new or empty folder; a demo's figures need a fresh start"
        )
    yield keep


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulators demo",
        description="Serve ads to a simulated market over HTTP and learn from its clicks.",
    )
    parser.add_argument(
        "--seed", type=arguments.natural, default=1, help="of the market: its people and their taste (default: 1)"
    )
    parser.add_argument(
        "--impressions", type=arguments.positive, default=IMPRESSIONS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line; the rest on stderr"
    )
    parser.add_argument(
        "--port", type=arguments.port, default=0, help="of the server and its live page (default: a free one)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the log and the policies in this new or empty folder"
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a Hugging Face causal LM (default: the tiny one)")
    parser.add_argument(
        "--log",
        metavar="URL",
        help="a new log, sqlite:///PATH or kafka://HOST:PORT?prefix=NAME.: server, joiner, learner and generator run "
        "as four processes over it (default: one process, an embedded log)",
    )
    report = parser.add_mutually_exclusive_group()
    report.add_argument("--report", type=Path, metavar="PATH", help="the HTML report (default: runs/demo-SEED.html)")
    report.add_argument("--no-report", action="store_true", help="write no report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
