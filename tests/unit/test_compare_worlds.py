"""Comparisons in worlds that others write: what is legal and unusual is played, and what it costs is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulators.cli import main
from simulators.compare import Job, Run, apart, run_job
from simulators.compare_report import compare_html
from simulators.notes import apart_notes, row_notes
from simulators.places import Texts
from simulators.results import Apart, CompareCurve, CompareRow, Failed, Setup
from simulators.workers import try_jobs

STRANGE = "tests.fakes.strange_worlds"
POOLS: Texts = {("boots", segment): [{"headline": "Warm"}, {"headline": "Dry"}] for segment in ("young", "old")}


def played(name: str, world: str, folder: Path, impressions: int = 40) -> Run:
    job = Job(name, f"{STRANGE}:{world}", 1, impressions, 10, None, {} if name == "control" else POOLS)
    return run_job(job, folder / name, lambda done, of: None)


def compared(capsys: pytest.CaptureFixture[str], world: str, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, figures and stderr of a comparison of controls."""
    arguments = ["compare", "--world", f"{STRANGE}:{world}", "--impressions", "40", "--only", "control", "--json"]
    status = main([*arguments, *more])
    printed = capsys.readouterr()
    return status, json.loads(printed.out.splitlines()[-1]), printed.err


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "simulators.compare.try_jobs", lambda work, jobs, processes, report, fresh: try_jobs(work, jobs, 1, report)
    )


def test_who_meets_other_arrivals_is_told(tmp_path: Path) -> None:
    for world, differ in (("Plain", False), ("OneStream", True)):
        runs = [played(name, world, tmp_path / world) for name in ("control", "uniform")]
        found = apart(runs)
        assert [(one.seed, one.name, one.than) for one in found] == [(1, "uniform", "control")] * differ
    # It needs a first response to go astray.
    assert 2 <= found[0].start <= 10
    assert apart([runs[0], runs[0]]) == []


def test_a_strangers_runs_share_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status, figures, _ = compared(capsys, "Crowded", "--seeds", "2", "--processes", "1")
    assert status == 0
    assert [row["oracle_ctr"] for row in figures["rows"]] == [0.04, 0.04], "its class counts the responses"


@pytest.mark.usefixtures("in_this_process")
def test_what_failed_is_told_beside_what_did_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.html"
    status, figures, err = compared(capsys, "FailingSecond", "--seeds", "3", "--report", str(report))
    assert status == 1
    assert [row["seed"] for row in figures["rows"]] == [1, 3]
    (failed,) = figures["failed"]
    assert (failed["name"], failed["seed"]) == ("control", 2)
    assert "arrive at arrival 30 raised StopIteration" in failed["why"]
    assert figures["summary"][0]["seeds"] == 2
    assert "adloop: 1 of 3 runs failed, the first of them control, seed 2: world " in err
    assert "(left out of the means)" in err
    assert "1 run failed, left out of the means." in report.read_text()
    assert "failed: control, seed 2" in report.read_text()


@pytest.mark.usefixtures("in_this_process")
def test_where_everything_failed_no_report_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.html"
    status, figures, err = compared(capsys, "FailingSecond", "--first-seed", "2", "--report", str(report))
    assert (status, figures["rows"], len(figures["failed"])) == (1, [], 1)
    assert "1 of 1 runs failed" in err
    assert not report.exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_world_without_an_oracle_keeps_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    status, figures, err = compared(capsys, "NoOracle")
    (row,) = figures["rows"]
    shares = (row["oracle_ctr"], row["share_of_oracle"], row["oracle_reward"], row["share_of_reward"])
    assert (status, shares) == (0, (None,) * 4)
    assert "oracle_rate at arrival 40 gave NaN" in row["oracle_why"]
    assert "NotImplementedError: not known" in row["oracle_why"]
    assert f"no oracle: seed 1: {row['oracle_why']}" in err
    _, figures, _ = compared(capsys, "Nearly")
    assert (figures["rows"][0]["oracle_ctr"], figures["rows"][0]["share_of_oracle"]) == (5e-324, None)


@pytest.mark.usefixtures("in_this_process")
def test_what_reactions_were_worth_counts_where_the_expected_reward_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.html"
    _, figures, err = compared(capsys, "Conversions", "--report", str(report))
    (row,) = figures["rows"]
    assert (figures["ranked_by"], row["reward_is"]) == ("mean_reward", "realised")
    assert row["mean_reward"] == pytest.approx(50.0 * round(row["mean_reward"] / 50.0 * 40) / 40)
    assert row["mean_reward"] > 2.0 > row["mean_ctr"]
    assert figures["summary"][0]["last_tenth_reward"]["mean"] == row["last_tenth_reward"]
    assert figures["summary"][0]["share_of_reward"]["mean"] is None
    assert "reward: what the reactions were worth" in err
    assert "its last tenth" in err
    assert "Reward per impression" in report.read_text()
    _, figures, err = compared(capsys, "Plain")
    assert (figures["ranked_by"], figures["rows"][0]["reward_is"]) == ("mean_ctr", "clicks")
    assert "its last tenth" not in err


def test_what_nobody_was_told_in_time_and_what_was_cut_off_is_counted(tmp_path: Path) -> None:
    row = played("control", "Talkative", tmp_path).row
    assert row.mean_ctr == pytest.approx(0.68 / 3)
    assert (row.keys_cut, row.untold) == (6, 0)
    assert row_notes([row]) == ["contexts: no policy was given the last keys (up to 6) of those with more than 64"]


def row(name: str, seed: int, ctr: float, reward: float) -> CompareRow:
    return CompareRow(
        name, seed, ctr, ctr, None, reward, 0.0, 1.0, 7, 1.0, reward_is="realised", untold=3, halted="it is ill"
    )


def test_a_report_says_what_was_compared_and_ranks_by_what_counts() -> None:
    rows = [row("control", 1, 0.2, 0.1), row("thompson", 1, 0.1, 0.3)]
    curves = [CompareCurve(one.name, 1, ((10, one.mean_ctr),), ((10, one.mean_reward),)) for one in rows]
    setup = Setup("mine:World", 4_000, 128, None, "mean_reward", (Failed("ucb", 1, "<boom>"),))
    html = compare_html(rows, curves, (), setup)
    assert "World mine:World, 4,000 impressions a run, an increment each 128, the tiny model." in html
    assert "2 policies on the same arrivals, 1 seed each." in html
    assert "ranked by reward" in html
    assert html.index("thompson") < html.index("control"), "by reward"
    assert "At the end: thompson 0.3000, control 0.1000." in html
    assert "halted: thompson, seed 1: it is ill" in html
    assert "failed: ucb, seed 1: &lt;boom&gt; (left out of the means)" in html
    assert "reactions still to come when the run ended: 3 (control, seed 1), 3 (thompson, seed 1)" in html
    by_clicks = compare_html(rows, curves)
    assert by_clicks.index("control") < by_clicks.index("thompson")
    assert "Reward per impression" not in by_clicks


def test_a_report_does_not_call_arrivals_the_same_that_were_not() -> None:
    differ = (Apart(1, "thompson", 7, "control"),)
    html = compare_html([row("control", 1, 0.2, 0.1)], [], (), Setup("w", 10, 5, apart=differ))
    assert "same arrivals" not in html
    assert apart_notes(differ)[0].startswith("arrivals differ: seed 1: thompson met others than control from arrival 7")
    assert "Warning, arrivals differ: seed 1: thompson met others than control from arrival 7 on" in html


def test_a_reward_below_nothing_is_a_table_and_no_chart() -> None:
    curves = [CompareCurve("control", 1, ((10, 0.2),), ((10, -0.25),))]
    html = compare_html([row("control", 1, 0.2, -0.25)], curves, (), Setup("w", 10, 5, ranked_by="mean_reward"))
    assert "\N{MINUS SIGN}0.2500" in html
    assert 'id="rewards-chart' not in html
