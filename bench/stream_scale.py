"""Whether a step costs the same whatever is open: `python -m bench.stream_scale [--open N] [--measure M]`.

Two joiners, one with 100,000 open decisions and one with N (random ids, impressions with them), are timed in turns on
the same new decisions with impressions and clicks: a machine that is busy at times is so for both. The log is in memory
and forgotten as it is read; the state is on disk. Memory and state are the large one's, by what the process grew.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

from bench.stream_rig import KEYS, MemoryLog, traffic
from optimizer.arguments import positive
from optimizer.clock import ManualClock
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import Append

SMALL = 100_000
CHUNK = 20_000  # decisions made at a time
PARTITIONS = 4
POLL = 8_000
TURN = 5_000  # decisions timed at once


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


def filled(folder: Path, size: int) -> tuple[Joiner, MemoryLog]:
    """A joiner with so many open decisions."""
    log = MemoryLog(PARTITIONS)
    joiner = Joiner(log, folder, KEYS, ManualClock())
    while joiner.open_decisions < size:
        more = min(CHUNK * 10, size - joiner.open_decisions)
        join(joiner, log, traffic(more, seed=joiner.open_decisions))
        print(f"{joiner.open_decisions:,} open", file=sys.stderr)
    return joiner, log


def main() -> None:
    """Print a line for each number of open decisions, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--open", type=positive, default=500_000)
    parser.add_argument("--measure", type=positive, default=100_000, help="decisions timed with each (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the state goes (a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    sizes = (SMALL, options.open)
    try:
        with ExitStack() as stack:
            joiners = [filled(folder / str(size), size) for size in sizes]
            for joiner, _ in joiners:
                stack.enter_context(joiner)
            took: list[list[float]] = [[], []]
            for turn in range(options.measure // TURN):
                for (joiner, log), times in zip(joiners, took, strict=True):
                    cpu, _, count = join(joiner, log, traffic(TURN, seed=-1 - turn))
                    times.append(cpu / count * 1e6)
            each = [median(times) for times in took]
            for size, us in zip(sizes, each, strict=True):
                files = (folder / str(size)).rglob("*")
                mib = sum(path.stat().st_size for path in files if path.is_file()) / 2**20
                print(f"{size:>12,} open: {us:5.1f} us CPU a record, state {mib:,.0f} MiB")
            print(
                f"{(each[1] / each[0] - 1) * 100:+.0f} % (wanted at most +20 %; medians of {len(took[0])} turns), "
                f"resident {resident_mib():,.0f} MiB with both (wanted at most 1,024)",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
