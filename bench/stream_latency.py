"""From an event's append to its outcome's publication, at a steady rate: `python -m bench.stream_latency [--rate N]`.

The joiner is a process of its own with its default settings (`python -m optimizer join`). Every 10 ms decisions are
appended, and the events of those made 200 ms before; a read_committed reader of outcomes notes when each event's
revision can be read. An event's clock starts before its append is called, so this process's own work is part of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import deque
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from bench.stream_rig import PER_CLICK, traffic
from deploy.kafka.broker import Broker
from optimizer.arguments import number, seconds
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append, EventLog, whole

ROOT = Path(__file__).parents[1]
RATE = 2_000  # events a second
TICK_S = 0.01
LATER = 20  # ticks from a decision to its events
WARM_S = 5.0  # at the beginning, not counted
WANTED_MS = 500
KEY = b64encode(b"0123456789abcdef0123456789abcdef").decode()


class _Outcome(Struct):
    decision_id: str
    revision: int


_OUTCOME = msgspec.json.Decoder(_Outcome)


class _Feed(threading.Thread):
    """Appends at the rate until told to stop; `appended` is when (monotonic s) the event behind each revision was."""

    def __init__(self, log: EventLog, rate: float) -> None:
        super().__init__(name="feed")
        self.appended: dict[tuple[str, int], float] = {}
        self.stopped = threading.Event()
        self.slowest = 0.0  # append, in seconds
        self.error: Exception | None = None
        self._log = log
        self._decisions = rate * TICK_S / (1 + 1 / PER_CLICK)

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error

    def _run(self) -> None:
        rest = traffic(sys.maxsize, first_ts=int(time.time() * 1000))
        later: deque[list[Append]] = deque([[] for _ in range(LATER)])
        ahead = [next(rest)]
        made, started, tick = 0, time.monotonic(), 0
        while not self.stopped.is_set():
            tick += 1
            now: list[Append] = []
            events: list[Append] = []
            while made < tick * self._decisions:
                now.append(ahead.pop())
                made += 1
                while (record := next(rest)).topic == "events":
                    events.append(record)
                ahead.append(record)
            later.append(events)
            due = later.popleft()
            at = time.monotonic()
            seen: dict[str, int] = {}
            for record in due:
                seen[record.key] = revision = seen.get(record.key, 0) + 1
                self.appended[record.key, revision] = at
            self._log.append([*now, *due])
            self.slowest = max(self.slowest, time.monotonic() - at)
            self.stopped.wait(max(0.0, started + tick * TICK_S - time.monotonic()))


def latency(bootstrap: str, client: str, seconds: float, rate: float = RATE) -> str:
    """Measure for so long, and say in a line what came out."""
    url = f"kafka://{bootstrap}?prefix=latency-{client}.&client={client}"
    log = KafkaLog(parse_kafka_url(url, {}))
    reader = log.reader(whole(log, "outcomes"))
    feed = _Feed(log, rate)
    delays: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "optimizer", "join", "--log", url, "--state", folder]
        environment = {**os.environ, "ADLOOP_TOKEN_KEYS": f"bench:{KEY}"}
        joiner = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        feed.start()
        counted_from = time.monotonic() + WARM_S
        counted_to = counted_from + seconds
        try:
            while (now := time.monotonic()) < counted_to + 2.0:
                for record in reader.poll(5_000, 0.05):
                    outcome = _OUTCOME.decode(record.value or b"")
                    at = feed.appended.pop((outcome.decision_id, outcome.revision))
                    if counted_from <= at < counted_to:
                        delays.append(time.monotonic() - at)
                if now > counted_to:
                    feed.stopped.set()
        finally:
            feed.stopped.set()
            feed.join()
            joiner.terminate()
            joiner.wait(30)
    missing = sum(counted_from <= at < counted_to for at in feed.appended.values())
    reader.close()
    log.close()
    if feed.error is not None:
        raise feed.error
    p50, p99, most = np.percentile(np.array(delays) * 1000, [50, 99, 100])
    return (
        f"event appended -> outcome published on {client}, {len(delays) / seconds:,.0f} events/s for {seconds:.0f} s: "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms (wanted {WANTED_MS}), most {most:.0f} ms; {missing} missing; "
        f"slowest append {feed.slowest * 1000:.0f} ms"
    )


def main() -> None:
    """Start a broker and print a line for each client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rate", type=number(0.1, 100_000.0, "a rate"), default=RATE, help="events a second (%(default)s)"
    )
    parser.add_argument("--seconds", type=seconds, default=30.0)
    parser.add_argument("--client", choices=("kafka-python", "confluent"), action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            for client in options.client or ("kafka-python", "confluent"):
                print(latency(broker.bootstrap, client, options.seconds, options.rate), flush=True)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
