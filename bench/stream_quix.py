"""Quix Streams' `join_interval` over the same topics, for bench.stream. Imports nothing of this project, since it runs
in a virtual environment of its own: it pins an older confluent-kafka.

Events on the left, decisions on the right, joined by key where the decision came within the last day; JSON decoded and
encoded, state in RocksDB with its changelog topics; no tokens. All settings are its defaults: at-least-once.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found, unused-ignore]

DAY_MS = 24 * 3_600_000


def main() -> None:
    """Join until every event has met its decision, and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--exactly-once", action="store_true")
    options = parser.parse_args()
    first: list[tuple[float, float]] = []

    def started(value: Any) -> None:
        if not first:
            first.append((time.monotonic(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            options.bootstrap,
            consumer_group=f"quix-{options.exactly_once}",
            auto_offset_reset="earliest",
            state_dir=folder,
            loglevel="WARNING",
            processing_guarantee="exactly-once" if options.exactly_once else "at-least-once",
        )
        decisions, events = (
            app.dataframe(app.topic(f"{options.prefix}{name}", value_deserializer="json"))
            for name in ("decisions", "events")
        )
        joined = events.update(started).join_interval(
            decisions, on_merge=lambda event, decision: {"event": event, "decision": decision}, backward_ms=DAY_MS
        )
        joined.to_topic(app.topic("quix-once" if options.exactly_once else "quix", value_serializer="json"))
        app.run(count=options.events, timeout=30.0, collect=False)
        last = time.monotonic(), time.process_time()
    (began, cpu_before), (ended, cpu) = first[0], last
    print(json.dumps([began, ended, cpu - cpu_before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


if __name__ == "__main__":
    main()
