"""Whether a step costs the same whatever is open: `python -m bench.stream_scale [--open N] [--measure M]`.

Decisions with random ids are let in until N are open (their impressions with them), then M more with impressions and
clicks are timed, beside the same at 100,000. The log is in memory and forgotten as it is read; the state is on disk.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from bench.stream_rig import KEYS, MemoryLog, traffic
from optimizer.clock import ManualClock
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append

SMALL = 100_000
CHUNK = 20_000  # decisions made at a time
PARTITIONS = 4
POLL = 8_000


def join(joiner: Joiner, log: MemoryLog, records: Iterable[Append]) -> tuple[float, float, int]:
    """Append and join; returns the joiner's own CPU and wall-clock seconds, and how many records it read."""
    cpu = wall = 0.0
    count = 0
    rest = iter(records)
    while chunk := list(islice(rest, CHUNK * 2)):
        log.append(chunk)
        gc.freeze()
        started, started_cpu = time.perf_counter(), time.process_time()
        while joiner.step(POLL):
            pass
        wall += time.perf_counter() - started
        cpu += time.process_time() - started_cpu
        count += len(chunk)
        log.forget()
        gc.unfreeze()
    return cpu, wall, count


def resident_mib() -> float:
    """The process's resident memory now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    """Print a line for each number of open decisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--open", type=int, default=500_000)
    parser.add_argument("--measure", type=int, default=50_000, help="decisions timed at each point (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the state goes (a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    log = MemoryLog(PARTITIONS)
    first = 0.0
    made = 0
    try:
        with Joiner(log, folder, KEYS, ManualClock()) as joiner:
            for target in sorted({min(SMALL, options.open), options.open}):
                while joiner.open_decisions < target:
                    more = min(CHUNK * 10, target - joiner.open_decisions)
                    join(joiner, log, traffic(more, seed=made))
                    made += more
                    print(f"{joiner.open_decisions:,} open", file=sys.stderr)
                cpu, wall, count = join(joiner, log, traffic(options.measure, seed=made))
                made += options.measure
                first = first or cpu / count
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
                print(
                    f"{target:>12,} open: {cpu / count * 1e6:5.1f} us CPU a record, {wall / count * 1e6:5.1f} us of "
                    f"wall clock ({(cpu / count / first - 1) * 100:+.0f} % CPU), resident {resident_mib():,.0f} MiB, "
                    f"state {size:,.0f} MiB",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
