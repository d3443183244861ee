"""Independent jobs in worker processes, each with a folder of its own, with progress in this process."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import AdloopError
from simulators.progress import Report

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Path, Report], Result]


def one_thread() -> None:
    """Let torch compute with one thread in this process: jobs share the cores, and how many there are must not show in
    the results. For a job that uses torch to call first."""
    # Imported here: the parent, and jobs without torch, do without it.
    import torch

    torch.set_num_threads(1)


def run_jobs(
    work: Callable[[Job, Path, Report], Result], jobs: Sequence[Job], processes: int, report: Report
) -> list[Result]:
    """`work(job, folder, report)` for each job, at most `processes` at once; the results in the jobs' order.

    `folder` is empty and removed at the end. `report(done, of)` gets the sums over all jobs: every job counts the same
    `of`. `work` is a module's function. Raises AdloopError where a worker dies; the first exception of a job stops the
    others."""
    with tempfile.TemporaryDirectory(prefix="adloop-") as root:
        folders = [Path(root) / str(number) for number in range(len(jobs))]
        if processes == 1 or len(jobs) == 1:
            heard: dict[int, int] = {}
            return [
                _work(work, job, folder, partial(_add_up, heard, len(jobs), report, number))
                for number, (job, folder) in enumerate(zip(jobs, folders, strict=True))
            ]
        return _spread(work, jobs, folders, min(processes, len(jobs)), report)


def _spread(
    work: Callable[[Job, Path, Report], Result],
    jobs: Sequence[Job],
    folders: Sequence[Path],
    processes: int,
    report: Report,
) -> list[Result]:
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    listener = threading.Thread(target=_listen, args=(queue, len(jobs), report), name="progress", daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(queue,))
    try:
        futures = [
            pool.submit(_in_worker, work, number, job, folder)
            for number, (job, folder) in enumerate(zip(jobs, folders, strict=True))
        ]
        # Not in their order: a job that fails at once must not wait for those before it.
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        results = [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise AdloopError("a worker process died, expected it to finish; there may be too little memory") from error
    except BaseException:
        # A job may have minutes to go; nobody waits for its result any more.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        queue.put(None)
        listener.join(timeout=5.0)
        queue.cancel_join_thread()
    return results


def _listen(queue: Any, jobs: int, report: Report) -> None:
    heard: dict[int, int] = {}
    # The queue closes under the listener when the command is interrupted.
    with suppress(EOFError, OSError):
        while (message := queue.get()) is not None:
            _add_up(heard, jobs, report, *message)


def _add_up(heard: dict[int, int], jobs: int, report: Report, number: int, done: int, of: int) -> None:
    heard[number] = done
    report(sum(heard.values()), of * jobs)


class _Worker:
    """What a worker process is started with; set once, by the pool's initializer."""

    queue: Any = None


def _start(queue: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone says what it means.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _Worker.queue = queue


def _in_worker(work: Callable[[Job, Path, Report], Result], number: int, job: Job, folder: Path) -> Result:
    try:
        return _work(work, job, folder, lambda done, of: _Worker.queue.put((number, done, of)))
    except Exception as error:
        if _crosses(error):
            raise
        # The parent could not read it, and would take the pool for broken.
        raise AdloopError(f"{type(error).__name__}: {error}") from error


def _crosses(error: Exception) -> bool:
    """Whether an exception can be told to another process."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - whatever goes wrong on the way, it does not get there
        return False


def _work(work: Callable[[Job, Path, Report], Result], job: Job, folder: Path, report: Report) -> Result:
    folder.mkdir()
    return work(job, folder, report)
