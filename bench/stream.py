"""The joiner on a real broker beside bare loops of the clients and Quix Streams: `make bench-stream`.

One broker, the same data for all: decisions and events in four partitions, one click in ten impressions, tokens real.
bench/stream_loops.py says what each part does. Each runs in a process of its own; the broker shares the machine, so
its work is part of every figure. Quix Streams is installed in a virtual environment of its own (the group `bench` of
pyproject.toml); where that can't be done, the table says so. Latency: bench/stream_latency.py, on the same broker.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from kafka import KafkaAdminClient

from bench.stream_latency import latency
from bench.stream_loops import DATA, PARTITIONS, PARTS, SINK, Figures, log_url
from bench.stream_rig import traffic
from deploy.kafka.broker import Broker
from optimizer.arguments import positive, seconds
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url

ROOT = Path(__file__).parents[1]
FILL = 2_000  # records appended at once, with one timestamp
QUIX = ROOT / ".cache" / "bench-quix"
# Ratios printed: name, over what, how much is wanted.
GOALS = (
    ("joiner on kafka-python", "kafka-python: poll, loads, send", 0.8),
    ("joiner on confluent", "kafka-python: poll, loads", 0.8),
    ("joiner on confluent", "Quix Streams join_interval", 3.0),
    ("two joiners on confluent", "kafka-python: poll, loads", 0.8),
    ("two joiners on confluent", "Quix Streams join_interval", 3.0),
)


def fill(bootstrap: str, decisions: int, client: str) -> tuple[int, int, float]:
    """Append the data for the joiner on `client`; returns how many records and events, and the mean size in bytes."""
    log = KafkaLog(parse_kafka_url(log_url(bootstrap, client), {}))
    rest = traffic(decisions)
    count = events = size = 0
    while chunk := list(islice(rest, FILL)):
        log.append(chunk)
        count += len(chunk)
        events += sum(record.topic == "events" for record in chunk)
        size += sum(len(record.value or b"") for record in chunk)
    log.close()
    return count, events, size / count


def measured(commands: Sequence[Sequence[str | Path]]) -> Figures:
    """Run processes side by side, each of which prints its figures; they are added up."""
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for command in commands]
    found = []
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"bench: a part ended with status {process.returncode}")
        found.append(Figures(*json.loads(said.splitlines()[-1])))
    return Figures(
        min(part.began for part in found),
        max(part.ended for part in found),
        sum(part.cpu for part in found),
        sum(part.peak_mib for part in found),
    )


def quix_python() -> Path | None:
    """The interpreter that has Quix Streams; None, with the reason on stderr, where it can't be installed."""
    python = QUIX / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    try:
        if not python.exists():
            subprocess.run([uv, "venv", "--quiet", QUIX], check=True)
        group = f"{ROOT / 'pyproject.toml'}:bench"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "--group", group], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bench: Quix Streams can't be installed ({error})", file=sys.stderr)
        return None
    return python


def main() -> None:
    """Start a broker, fill it, and print a line for each part and each ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decisions", type=positive, default=200_000, help="2.1 records each (%(default)s)")
    parser.add_argument("--seconds", type=seconds, default=30.0, help="of each latency 0: none (%(default)s)")
    parser.add_argument("--only", help="parts whose name holds this")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=positive, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.bootstrap, options.records)))
        return
    fast = importlib.util.find_spec("confluent_kafka") is not None
    subprocess.run([ROOT / "scripts/kafka", "fetch"], check=True)
    quix = quix_python() if not options.only or options.only in "Quix Streams" else None
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            at = broker.bootstrap
            with KafkaAdminClient(bootstrap_servers=at) as admin:
                topics = {name: {"num_partitions": PARTITIONS} for name in (SINK, "quix", "quix-once")}
                admin.create_topics(topics, wait_for_metadata=True)
            for client in ("kafka-python", *(["confluent", "confluent-pair"] if fast else [])):
                records, events, size = fill(at, options.decisions, client)
            part = [sys.executable, "-m", "bench.stream", "--bootstrap", at, "--records", str(records), "--part"]
            runs: dict[str, list[list[str | Path]] | None] = {
                name: [[*part, name]] if fast or "confluent" not in name else None
                for name in PARTS
                if "of two" not in name
            }
            runs["two joiners on confluent"] = [[*part, name] for name in PARTS if "of two" in name] if fast else None
            for name, more in (
                ("Quix Streams join_interval", []),
                ("Quix Streams, exactly once", ["--exactly-once"]),
            ):
                script: list[str | Path] = [
                    ROOT / "bench/stream_quix.py",
                    "--bootstrap",
                    at,
                    "--prefix",
                    DATA,
                    "--events",
                    str(events),
                ]
                runs[name] = None if quix is None else [[quix, "-W", "ignore", *script, *more]]
            load = os.getloadavg()[0]
            print(f"{records:,} records of {size:.0f} bytes, {PARTITIONS} partitions, load average {load:.1f}")
            print(f"{'':<34}{'events/s':>10}{'CPU s':>8}{'us CPU':>8}{'peak MiB':>10}")
            rates: dict[str, float] = {}
            for name, commands in runs.items():
                if options.only and options.only not in name:
                    continue
                if commands is None:
                    print(f"{name:<34}{'not installed':>14}")
                    continue
                figures = measured(commands)
                rates[name] = records / (figures.ended - figures.began)
                each = figures.cpu / records * 1e6
                print(
                    f"{name:<34}{rates[name]:>10,.0f}{figures.cpu:>8.1f}{each:>8.1f}{figures.peak_mib:>10.0f}",
                    flush=True,
                )
            for name, other, goal in GOALS:
                if name in rates and other in rates:
                    print(f"{name} / {other}: {rates[name] / rates[other]:.2f} (wanted {goal})")
            if options.seconds:
                for client in ("kafka-python", *(["confluent"] if fast else [])):
                    print(latency(at, client, options.seconds), flush=True)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
