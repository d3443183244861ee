"""What a record costs the joiner without a broker: `python -m bench.stream_core [--decisions N] [--profile]`.

Decode, verify, join and encode; the state is durable on the disk (an fsync a step and partition), what is published is
counted and thrown away.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import resource
import tempfile
import time
from pathlib import Path

from bench.stream_rig import KEYS, MemoryLog, traffic
from optimizer.__main__ import COLLECT
from optimizer.arguments import positive
from optimizer.clock import SystemClock
from optimizer.stream.joiner import Joiner


def main() -> None:
    """Fill the log, then join it and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decisions", type=positive, default=50_000)
    parser.add_argument("--partitions", type=positive, default=4)
    parser.add_argument("--poll", type=positive, default=2_000, help="records a step (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="where the time goes; the figures are slower then")
    options = parser.parse_args()

    log = MemoryLog(options.partitions)
    size = 0
    for record in traffic(options.decisions):
        log.append([record])
        size += len(record.value or b"")
    records = sum(map(len, log.records.values()))
    gc.set_threshold(*COLLECT)
    gc.freeze()  # the collector must not walk the measurement's own input
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, Joiner(log, Path(folder), KEYS, SystemClock()) as joiner:
        if options.profile:
            profile.enable()
        cpu, started = time.process_time(), time.perf_counter()
        while joiner.step(options.poll):
            pass
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        profile.disable()
        counts = joiner.counts
    assert counts["outcomes"] == options.decisions, counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{records} records of {size / records:.0f} bytes: {records / seconds:,.0f} records/s, "
        f"{cpu / records * 1e6:.1f} us CPU a record ({records / cpu:,.0f} a CPU second), {log.published} published, "
        f"peak {peak:.0f} MiB"
    )
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(28)


if __name__ == "__main__":
    main()
