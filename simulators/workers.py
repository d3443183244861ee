"""Independent jobs in worker processes, each with a folder of its own, with progress in this process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
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
    work: Callable[[Job, Path, Report], Result],
    jobs: Sequence[Job],
    processes: int,
    report: Report,
    fresh: bool = False,
) -> list[Result]:
    """`work(job, folder, report)` for each job, at most `processes` at once; the results in the jobs' order.

    `folder` is empty and removed at the end. `report(done, of)` gets the sums over all jobs: every job counts the same
    `of`. `work` is a module's function. `fresh`: each job has a process that did nothing before, and Python's hashes
    are the same in all. Raises AdloopError where a worker dies; the first exception of a job stops the others."""
    with _folders(len(jobs)) as folders:
        if not jobs or (not fresh and (processes == 1 or len(jobs) == 1)):
            return list(_here(work, jobs, folders, report))
        with _spread(work, jobs, folders, min(processes, len(jobs)), report, fresh) as futures:
            # Not in their order: a job that fails at once must not wait for those before it.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                _result(future)
            return [_result(future) for future in futures]


def try_jobs(
    work: Callable[[Job, Path, Report], Result],
    jobs: Sequence[Job],
    processes: int,
    report: Report,
    fresh: bool = False,
) -> list[Result | Exception]:
    """`run_jobs`, but a job that fails stops no other: its exception stands in its place. Where a process dies, the
    pool is lost with it: the jobs without a result are done again, each in a process of its own, so that only one that
    dies there has failed."""
    with _folders(2 * len(jobs)) as folders:
        if not jobs or (not fresh and (processes == 1 or len(jobs) == 1)):
            return list(_here(partial(_caught, work), jobs, folders[: len(jobs)], report))
        with _spread(work, jobs, folders[: len(jobs)], min(processes, len(jobs)), report, fresh) as futures:
            done: list[Result | Exception] = [_settled(future) for future in futures]

        def again(number: int) -> Result | Exception:
            with _spread(work, [jobs[number]], [folders[len(jobs) + number]], 1, report, fresh) as (future,):
                settled: Result | Exception = _settled(future)
                return settled

        lost = [number for number, one in enumerate(done) if isinstance(one, Died)] if len(jobs) > 1 else []
        with _same_hashes() if fresh else nullcontext(), ThreadPoolExecutor(processes) as side_by_side:
            for number, one in zip(lost, side_by_side.map(again, lost), strict=True):
                done[number] = one
        return done


def _caught(work: Callable[[Job, Path, Report], Result], job: Job, folder: Path, report: Report) -> Result | Exception:
    try:
        return _stays(work, job, folder, report)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
        return error


def _settled(future: Future[Any]) -> Any:
    try:
        return _result(future)
    except Exception as error:  # noqa: BLE001 - the same
        return error


def why_failed(error: Exception) -> str:
    """What a reader is told of a failed job, in a sentence; of a bug the traceback goes to stderr."""
    if isinstance(error, AdloopError | OSError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


class Died(AdloopError):
    """A worker process is gone, and with it what the others of its pool had not finished."""


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise Died("a worker process died, expected it to finish; there may be too little memory") from error


@contextmanager
def _folders(count: int) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory(prefix="adloop-") as root:
        yield [Path(root) / str(number) for number in range(count)]


def _here(
    work: Callable[[Job, Path, Report], Result], jobs: Sequence[Job], folders: Sequence[Path], report: Report
) -> Iterator[Result]:
    heard: dict[int, int] = {}
    for number, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
        yield _work(work, job, folder, partial(_add_up, heard, len(jobs), report, number))


@contextmanager
def _spread(
    work: Callable[[Job, Path, Report], Result],
    jobs: Sequence[Job],
    folders: Sequence[Path],
    processes: int,
    report: Report,
    fresh: bool,
) -> Iterator[list[Future[Result]]]:
    """The jobs' futures; an exception inside ends the workers."""
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    listener = threading.Thread(target=_listen, args=(queue, len(jobs), report), name="progress", daemon=True)
    listener.start()
    with _same_hashes() if fresh else nullcontext():
        pool = ProcessPoolExecutor(
            processes,
            mp_context=context,
            initializer=_start,
            initargs=(queue,),
            max_tasks_per_child=1 if fresh else None,
        )
        try:
            yield [
                pool.submit(_in_worker, work, number, job, folder)
                for number, (job, folder) in enumerate(zip(jobs, folders, strict=True))
            ]
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


@contextmanager
def _same_hashes() -> Iterator[None]:
    """Processes that begin inside hash texts, and order sets of them, alike; who has set a seed keeps it."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0" if before in (None, "", "random") else before
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONHASHSEED", None)
        else:
            os.environ["PYTHONHASHSEED"] = before


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
    return _stays(work, job, folder, report)


def _stays(work: Callable[[Job, Path, Report], Result], job: Job, folder: Path, report: Report) -> Result:
    try:
        return work(job, folder, report)
    except SystemExit as error:
        # A world's `sys.exit` would end the command without a word.
        raise AdloopError(f"the run asked to exit with {error.code!r}, expected it to go on to its end") from error
