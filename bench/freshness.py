"""How soon an event is learnt from: `python -m bench.freshness [--log URL] [--rate R --seconds S]`.

The real system serves a simulated market over HTTP; every impression, and every click, is posted at once. Afterwards
the log tells, event by event, when its outcome was published, when the first policy version that had read that outcome
went live, and when the first decision was drawn from texts of that version or a later one (and when such a version's
critic first chose, among whatever texts). Without `--log` all roles run in one process on the embedded log; with it
they are four processes on that log: `make bench-freshness` runs both, the second on a Kafka broker of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.arguments import natural, number
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError
from optimizer.stream.log import EventLog, Record, whole
from optimizer.stream.open import open_log, sqlite_url
from optimizer.types import Decision, Outcome, PolicyRecord
from simulators.ad_client import AdClient, Json
from simulators.pace import Monitor
from simulators.roles import check_empty, running_roles
from simulators.server import make_model, pretrain_command, running, serving_command
from simulators.traffic import put_campaigns
from simulators.worlds import World, load_world

POOLS_WITHIN_S = 240.0
TAIL_S = 30.0  # traffic goes on for so long behind the last event that is judged
IN_FLIGHT = 8
STAGES = ("event -> outcome", "event -> version live", "event -> critic chooses", "event -> its texts are shown")


@dataclass
class Posted:
    """When each event was sent, in epoch ms; `ends_ms`: events sent after it are not judged."""

    sent_ms: dict[str, int] = field(default_factory=dict)
    ends_ms: int = 0


class Version(NamedTuple):
    """A policy version: when it went live, what it had read of the outcomes by partition, and its critic."""

    live_ms: int
    read_to: dict[int, int]
    critic: str
    name: str


async def traffic(world: World, campaigns: dict[str, Json], client: AdClient, rate: float, seconds: float) -> Posted:
    """Send arrivals evenly, `rate` a second, each with its events at once."""
    posted, clock, room = Posted(), SystemClock(), asyncio.Semaphore(IN_FLIGHT)
    began = time.monotonic()

    async def one(number: int, campaign_id: str, context: Json) -> None:
        async with room:
            variant = await client.generate(campaign_id, context)
            window_ms = campaigns[campaign_id]["attribution"]["click_window_ms"]
            reactions = world.respond(campaign_id, context, variant["slots"])
            clicked = any(kind == "click" and after_ms <= window_ms for kind, after_ms, _ in reactions)
            kinds = ("impression", "click") if clicked else ("impression",)
            events = [
                {"event_id": f"{kind}-{number}", "type": kind, "decision_id": variant["decision_id"]}
                | {"token": variant["token"]}
                for kind in kinds
            ]
            now_ms = clock.now_ms()
            posted.sent_ms.update((str(event["event_id"]), now_ms) for event in events)
            await client.post_events(events)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * (seconds + TAIL_S))):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            tasks.create_task(one(number, *world.arrive()))
            if number == int(rate * seconds):
                posted.ends_ms = clock.now_ms()
    return posted


def records(log: EventLog, topic: str) -> Iterator[Record]:
    """Everything in a topic."""
    reader = log.reader(whole(log, topic))
    try:
        while found := reader.poll(5000):
            yield from found
    finally:
        reader.close()


def stages(log: EventLog, posted: Posted) -> np.ndarray:
    """`[events, stages]`: seconds from an event's sending to each of STAGES; infinite where that never came."""
    outcome_of: dict[str, Record] = {}
    for record in records(log, "outcomes"):
        for event_id in msgspec.json.decode(record.value or b"", type=Outcome).events:
            outcome_of.setdefault(event_id, record)
    versions = []
    for record in records(log, "policies"):
        policy = msgspec.json.decode(record.value or b"", type=PolicyRecord)
        told = str(policy.evidence.get("outcomes_to") or "")
        read_to = {int(p): int(to) for p, _, to in (part.partition(":") for part in told.split(",") if part)}
        versions.append(Version(record.ts, read_to, str(policy.evidence["critic_version"]), policy.version))
    place = {version.name: at for at, version in enumerate(versions)}
    of_critic = {version.critic: at for at, version in reversed(list(enumerate(versions)))}
    texts, critics = [(0, -1)], [(0, -1)]
    for record in records(log, "decisions"):
        decision = msgspec.json.decode(record.value or b"", type=Decision)
        if decision.source == "pool":
            texts.append((decision.ts, place.get(decision.policy_version, -1)))
            critics.append((decision.ts, of_critic.get(decision.critic_version, -1)))
    shown, chosen = _firsts(texts, len(versions)), _firsts(critics, len(versions))
    rows = []
    for event_id, sent_ms in posted.sent_ms.items():
        if sent_ms > posted.ends_ms or (outcome := outcome_of.get(event_id)) is None:
            continue
        learnt = next((n for n, v in enumerate(versions) if v.read_to.get(outcome.partition, 0) > outcome.offset), None)
        moments = [float("inf")] * 3 if learnt is None else [versions[learnt].live_ms, chosen[learnt], shown[learnt]]
        rows.append([(at - sent_ms) / 1000 for at in (outcome.ts, *moments)])
    return np.array(rows)


def _firsts(seen: Sequence[tuple[int, int]], count: int) -> list[float]:
    """For each version the time of the first decision by it or a later one. `seen`: (time, version)."""
    times: list[int] = []
    highest: list[int] = []
    for at, version in sorted(seen):
        if not highest or version > highest[-1]:
            times.append(at)
            highest.append(version)
    firsts = (bisect_left(highest, version) for version in range(count))
    return [float(times[at]) if at < len(times) else float("inf") for at in firsts]


async def measure(log: str | None, rate: float, seconds: float, seed: int, data: Path) -> np.ndarray:
    """One run into the empty folder `data`; see `stages`."""
    await make_model(pretrain_command())
    world = load_world("market", seed)
    system = (
        running(serving_command(data, 0, None), data / "stderr") if log is None else running_roles(data, log, 0, None)
    )
    async with system as server, AdClient(server.url, IN_FLIGHT) as client:
        campaigns = await put_campaigns(world, client)
        await Monitor(client).until_pools(POOLS_WITHIN_S, server.check)
        posted = await traffic(world, campaigns, client, rate, seconds)
        server.check()
    with closing(open_log(log or sqlite_url(data / "log.db"), create=False)) as written:
        return stages(written, posted)


def main() -> int:
    """Measure once and print; returns the exit status."""
    parser = argparse.ArgumentParser(description="From an event to the first decision that has learnt from it.")
    parser.add_argument("--log", metavar="URL", help="a new log: four processes over it (default: one, embedded log)")
    parser.add_argument(
        "--rate", type=number(0.1, 100_000.0, "a rate"), default=20.0, help="impressions a second (default %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=number(1.0, what="seconds"),
        default=60.0,
        help="of events that are judged (default %(default)s)",
    )
    parser.add_argument("--seed", type=natural, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    try:
        if args.log is not None:
            check_empty(args.log)
        with tempfile.TemporaryDirectory(prefix="adloop-freshness-") as folder:
            seconds = asyncio.run(measure(args.log, args.rate, args.seconds, args.seed, Path(folder)))
    except (AdloopError, OSError) as error:
        print(f"freshness: {error}", file=sys.stderr)
        return 1
    where = "one process, embedded log" if args.log is None else f"four processes, {args.log.split('?')[0]}"
    print(f"{where}: {len(seconds):,} events at {args.rate:g} impressions/s; seconds")
    quantiles = {name: np.quantile(seconds[:, at], (0.5, 0.9)) for at, name in enumerate(STAGES)}
    for name, (median, most) in quantiles.items():
        print(f"  {name:<30} median {median:6.2f}   p90 {most:6.2f}")
    if args.json:
        print(json.dumps({name: [round(float(q), 3) for q in found] for name, found in quantiles.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
