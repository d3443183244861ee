"""The four roles as processes over a real broker, as `make demo KAFKA=1` runs them: one lap of the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.kafka.broker import Broker
from optimizer.errors import ConfigError
from simulators.ad_client import AdClient
from simulators.pace import Monitor
from simulators.roles import check_empty, running_roles
from simulators.server import Child, Server
from tests.kafka_rig import ROOT, new_prefix, url
from tests.serving_rig import MINIMAL

SHOWN = 48  # over the 32 outcomes that an increment waits for
WITHIN_S = 180.0  # a slow machine, and two processes that load torch


async def until(holds: Callable[[], Coroutine[Any, Any, bool]], server: Server, what: str) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while not await holds():
        server.check()
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.1)


async def lap(data: Path, log: str, model: Path) -> tuple[Child, ...]:
    """Show ads, click on every second one, and wait for a version that has learned from them."""
    async with running_roles(data, log, 0, str(model)) as server, AdClient(server.url) as client:
        await client.put_campaign("c1", MINIMAL)
        await Monitor(client).until_pools(WITHIN_S, server.check)
        variants = [await client.generate("c1", {}) for _ in range(SHOWN)]
        assert {variant["source"] for variant in variants} >= {"pool"}
        events = [
            {"event_id": f"{kind}-{n}", "type": kind, "decision_id": v["decision_id"], "token": v["token"]}
            for n, v in enumerate(variants)
            for kind in (("impression", "click") if n % 2 else ("impression",))
        ]
        await client.post_events(events)

        async def counted() -> bool:
            figures = (await client.stats())["c1"]
            sides = [*figures["policies"].values(), figures["control"]]
            return (sum(s["impressions"] for s in sides), sum(s["clicks"] for s in sides)) == (SHOWN, SHOWN // 2)

        async def learnt() -> bool:
            live = [policy for policy in await client.policies() if policy.get("serving")]
            return bool(live) and int(live[0]["evidence"].get("outcomes") or 0) == SHOWN

        async def seen() -> bool:
            async with httpx.AsyncClient(base_url=server.url, trust_env=False) as browser:
                return "Joiner up to date" in (await browser.get("/")).text

        await until(counted, server, "every event counts")
        await until(learnt, server, "a version that knows all of them goes live")
        await until(seen, server, "the live page sees the joiner")
    return (server.child, *server.others)


@pytest.mark.timeout(600)
def test_one_lap_over_a_broker_and_an_orderly_end(broker: Broker, tmp_path: Path, tiny_model_folder: Path) -> None:
    log = url(broker, new_prefix(), partitions=2)
    check_empty(log)
    children = asyncio.run(lap(tmp_path, log, tiny_model_folder))
    assert {child.name: child.process.returncode for child in children} == dict.fromkeys(
        ("server", "joiner", "learner", "generator"), 0
    ), {child.name: child.stderr.read_text() for child in children}
    # What a demo measures needs a fresh start.
    with pytest.raises(ConfigError, match="holds records already"):
        check_empty(log)


BESIDE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(sys.argv[1], flush=True)
time.sleep(600)
"""


def test_a_broker_for_one_command_ends_with_it(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts/kafka"), "run", sys.executable, "-c", BESIDE, "kafka://BROKER"]
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        address = run.stdout.readline().strip().removeprefix("kafka://127.0.0.1:")
        assert address.isdigit()
        socket.create_connection(("127.0.0.1", int(address)), timeout=60).close()
        assert len(list(tmp_path.glob("adloop-kafka-*"))) == 1
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 7, "the command hears the signal, and its status is ours"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address)), timeout=60)
    assert list(tmp_path.iterdir()) == []
