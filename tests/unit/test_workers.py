"""Jobs in worker processes: order, progress, folders, and what happens when one fails or dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from optimizer.errors import AdloopError
from simulators.progress import Report
from simulators.workers import run_jobs, try_jobs


def square(job: int, folder: Path, report: Report) -> int:
    assert not any(folder.iterdir())
    (folder / "mine").write_text("x")
    report(5, 10)
    report(10, 10)
    return job * job


def fail(job: int, folder: Path, report: Report) -> int:
    raise AdloopError(f"job {job} can't be done")


class Picky(Exception):
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def fail_pickily(job: int, folder: Path, report: Report) -> int:
    raise Picky("job", f"{job} is no good")


def fail_beside_a_slow_one(job: int, folder: Path, report: Report) -> int:
    if job == 0:
        time.sleep(600)
    raise AdloopError(f"job {job} can't be done")


def die(job: int, folder: Path, report: Report) -> int:
    os._exit(9)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_progress_adds_up(processes: int) -> None:
    heard: list[tuple[int, int]] = []
    assert run_jobs(square, [3, 1, 2], processes, lambda done, of: heard.append((done, of))) == [9, 1, 4]
    assert heard[-1] == (30, 30)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_jobs_error_is_the_callers(processes: int) -> None:
    with pytest.raises(AdloopError, match="can't be done"):
        run_jobs(fail, [1, 2], processes, lambda done, of: None)


def test_an_error_that_cannot_leave_its_process_is_told_all_the_same() -> None:
    with pytest.raises(AdloopError, match="Picky: job: 1 is no good"):
        run_jobs(fail_pickily, [1, 1], 2, lambda done, of: None)


def test_a_job_that_fails_does_not_wait_for_those_before_it() -> None:
    with pytest.raises(AdloopError, match="job 1 can't be done"):
        run_jobs(fail_beside_a_slow_one, [0, 1], 2, lambda done, of: None)


def test_a_dead_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(AdloopError, match="a worker process died"):
        run_jobs(die, [1, 2], 2, lambda done, of: None)


class Kept:
    """What a process that did something before would still hold."""

    jobs = 0


def tell(job: int, folder: Path, report: Report) -> tuple[int, int, int]:
    Kept.jobs += 1
    report(1, 1)
    return os.getpid(), hash("the same in every process"), Kept.jobs


@pytest.mark.parametrize("jobs", [[1], [1, 2, 3]])
def test_fresh_workers_share_nothing_and_hash_alike(jobs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    told = run_jobs(tell, jobs, 1, lambda done, of: None, fresh=True)
    assert os.getpid() not in {process for process, _, _ in told}
    assert len({process for process, _, _ in told}) == len(jobs)
    assert len({hashed for _, hashed, _ in told}) == 1
    assert [count for _, _, count in told] == [1] * len(jobs)
    assert "PYTHONHASHSEED" not in os.environ


def test_who_has_set_the_hash_seed_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for seed in ("1", "2", "random", "random"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        seen.append(run_jobs(tell, [1], 1, lambda done, of: None, fresh=True)[0][1])
        assert os.environ["PYTHONHASHSEED"] == seed
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]


def fail_for_two(job: int, folder: Path, report: Report) -> int:
    return fail(job, folder, report) if job == 2 else job


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_is_tried_stops_no_other(processes: int) -> None:
    first, second, third = try_jobs(fail_for_two, [1, 2, 3], processes, lambda done, of: None)
    assert (first, third) == (1, 3)
    assert isinstance(second, AdloopError)
    assert str(second) == "job 2 can't be done"


def die_for_two(job: int, folder: Path, report: Report) -> int:
    if job == 2:
        time.sleep(1.0)
        os._exit(9)
    return job


def test_what_had_finished_and_what_was_under_way_outlive_a_dead_worker() -> None:
    first, second, third = try_jobs(die_for_two, [1, 2, 3], 2, lambda done, of: None)
    assert (first, third) == (1, 3)
    assert isinstance(second, AdloopError)
    assert "a worker process died" in str(second)


def leave(job: int, folder: Path, report: Report) -> int:
    raise SystemExit(3)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_exits_ends_itself_alone(processes: int) -> None:
    for one in try_jobs(leave, [1, 2], processes, lambda done, of: None):
        assert isinstance(one, AdloopError)
        assert "asked to exit with 3" in str(one)


def test_no_jobs_are_no_trouble() -> None:
    assert run_jobs(square, [], 2, lambda done, of: None, fresh=True) == []
    assert try_jobs(square, [], 2, lambda done, of: None) == []
