"""How fast one server answers over real HTTP: `python bench/serving.py [--requests N --connections C]`.

A server of its own (no background roles: controls are served) on the embedded log with full durability. Client and
server share the machine, so the client's own work is part of every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from optimizer.arguments import positive
from simulators.ad_client import AdClient, Json
from simulators.server import running

EVENTS_PER_POST = 500
CAMPAIGN = {"product": {"name": "Trail Runner 3"}, "controls": [{"headline": "Trail Runner 3: light and waterproof"}]}


async def generate(client: AdClient, requests: int, connections: int) -> tuple[list[Json], list[float]]:
    """`requests` decisions over `connections` at once; the variants and the seconds that each took."""
    variants: list[Json] = []
    seconds: list[float] = []

    async def worker(count: int) -> None:
        for _ in range(count):
            start_s = time.perf_counter()
            variants.append(await client.generate("bench", {"segment": "all", "device": "mobile"}))
            seconds.append(time.perf_counter() - start_s)

    await asyncio.gather(*(worker(requests // connections) for _ in range(connections)))
    return variants, seconds


async def measure(requests: int, connections: int, data: Path) -> None:
    """Run both measurements and print a line each."""
    command = [sys.executable, "-m", "serving", "--data", str(data), "--port", "0"]
    async with running(command, data / "stderr") as server, AdClient(server.url, connections) as client:
        await client.put_campaign("bench", CAMPAIGN)
        await generate(client, 20 * connections, connections)  # connections open, code paths warm
        start_s = time.perf_counter()
        variants, seconds = await generate(client, requests, connections)
        took_s = time.perf_counter() - start_s
        cuts = quantiles(seconds, n=100)
        print(
            f"generate: {len(variants) / took_s:,.0f} requests/s over {connections} connections; "
            f"p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms"
        )
        events = [
            {"event_id": "shown", "type": "impression", "decision_id": one["decision_id"], "token": one["token"]}
            for one in variants
        ]
        start_s = time.perf_counter()
        for start in range(0, len(events), EVENTS_PER_POST):
            await client.post_events(events[start : start + EVENTS_PER_POST])
        took_s = time.perf_counter() - start_s
        print(f"events: {len(events) / took_s:,.0f} events/s in posts of {EVENTS_PER_POST}, one after the other")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Requests and events a second of one server over HTTP.")
    parser.add_argument("--requests", type=positive, default=4000)
    parser.add_argument("--connections", type=positive, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adloop-bench-") as folder:
        asyncio.run(measure(arguments.requests, arguments.connections, Path(folder)))


if __name__ == "__main__":
    main()
