"""Comparisons: the harness counts the world's truth, contenders meet the same arrivals, and the real loop plays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import BadInput
from optimizer.learning.sentinel import Halt
from optimizer.maths.sentinel import Ailment
from optimizer.stream.log import whole
from optimizer.types import Scalar
from simulators.adloop_agent import AdloopAgent
from simulators.cli import main
from simulators.compare import Job, _row, play, run_job
from simulators.compare_table import show
from simulators.contenders import AdloopContender, BanditContender, BestContender, Start, contender
from simulators.guest import Guest
from simulators.loop import START_MS, TENANT, Loop, Reaction
from simulators.payout import Payout
from simulators.peers import ThompsonSampling
from simulators.places import Places, Texts, write_pools
from simulators.report import write_compare_report
from simulators.settings import NAMES, SETTINGS
from simulators.summary import summary
from simulators.workers import try_jobs
from simulators.worlds import load_world

GOOD, PLAIN, CONTROL = "Good boots", "Plain boots", "Boots"
WORLD = "tests.unit.test_compare:Vowels"


class Vowels:
    """One campaign, two segments: segment "a" likes texts with many letters a, "e" with many letters e."""

    interval_ms = 1000

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.calls: list[str] = []
        self.arrivals: list[str] = []

    def campaigns(self) -> dict[str, dict[str, Any]]:
        body = {
            "product": {"name": "Boots"},
            "segments": ["a", "e"],
            "slots": [{"name": "headline", "max_chars": 60}],
            "controls": [{"headline": CONTROL}],
            "attribution": {"click_window_ms": 60_000, "conversion_window_ms": 60_000},
        }
        return {"boots": body}

    def arrive(self) -> tuple[str, dict[str, Any]]:
        segment = str(self._rng.choice(["a", "e"]))
        self.calls.append("arrive")
        self.arrivals.append(segment)
        return "boots", {"segment": segment}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[Reaction]:
        self.calls.append("respond")
        if self._rng.random() >= self.click_rate(campaign_id, context, slots):
            return []
        return [("click", 1500, 0.0), ("conversion", 2500, 20.0)]

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        return min(0.9, 0.05 + 0.05 * slots["headline"].lower().count(context["segment"]))

    def true_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        return 2 * self.click_rate(campaign_id, context, slots)

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        return slots["headline"] != CONTROL

    def oracle_rate(self) -> float:
        return 0.9


class Scripted:
    """Shows texts in turn and writes down what it was told."""

    halted = ""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.told: list[object] = []
        self._shown = 0

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Mapping[str, str]:
        self._shown += 1
        self.told.append("serve")
        return {"headline": self.texts[(self._shown - 1) % len(self.texts)]}

    def feed(self, reactions: Sequence[Reaction]) -> None:
        self.told.append("feed")

    def advance(self, elapsed_ms: int) -> None:
        self.told.append(elapsed_ms)

    def increment(self) -> None:
        self.told.append("increment")

    def kl(self) -> float:
        return 0.0

    def close(self) -> None:
        self.told.append("close")


def test_play_reports_the_worlds_truth_about_what_was_shown() -> None:
    world, player = Vowels(1), Scripted(["aaa", "Boots"])
    shown = play(player, world, 5, increment=2)
    expected = [0.05 + 0.05 * (3 * (s == "a") if at % 2 == 0 else 0) for at, s in enumerate(world.arrivals)]
    assert shown.click_rates == pytest.approx(expected)
    assert shown.rewards == pytest.approx([2 * rate for rate in expected])
    assert shown.valid.tolist() == [True, False, True, False, True]
    assert len(shown.texts) == 2
    assert world.calls == ["arrive", "respond"] * 5
    first, second = ["serve", "feed"], ["serve", "feed", "increment"]
    assert player.told == [0, *first, 1000, *second, 2000, *first, 3000, *second, 4000, *first]


def test_a_row_holds_the_contracts_fields(tmp_path: Path) -> None:
    run = run_job(Job("control", WORLD, 3, 200, 64, None, {}), tmp_path, lambda done, of: None)
    row = run.row
    assert (row.name, row.seed, row.oracle_ctr, row.kl, row.valid_share, row.distinct_texts) == (
        *("control", 3, 0.9, 0.0, 0.0, 1),
    )
    # "Boots" has neither letter.
    assert (row.mean_ctr, row.last_tenth_ctr) == pytest.approx((0.05, 0.05))
    assert row.mean_reward == pytest.approx(0.1)
    assert row.share_of_oracle == pytest.approx(0.05 / 0.9)
    assert (row.oracle_reward, row.share_of_reward) == (None, None)
    assert run.curve.points[-1] == pytest.approx((200, 0.05))


POOLS: Texts = {
    ("boots", "a"): [{"headline": "x"}, {"headline": "aaaaaa"}],
    ("boots", "e"): [{"headline": "x"}, {"headline": "eeeeee"}],
}


def test_bandits_learn_their_pool_place_by_place() -> None:
    world = Vowels(2)
    places = Places(world.campaigns())
    player = BanditContender(ThompsonSampling, places, POOLS, Payout(places.campaigns), seed=1)
    shown = play(player, world, 3000, increment=128)
    # The best texts earn 0.35, the others 0.05.
    assert shown.click_rates[-500:].mean() > 0.3


def test_the_best_of_a_pool_is_best_by_the_worlds_truth() -> None:
    world = Vowels(2)
    shown = play(BestContender(Places(world.campaigns()), POOLS, world.true_rate), world, 50, increment=128)
    assert shown.click_rates == pytest.approx(np.full(50, 0.35))


def test_controls_are_texts_of_every_segment() -> None:
    texts = Places(Vowels(1).campaigns()).controls()
    assert texts == {("boots", "a"): ({"headline": CONTROL},), ("boots", "e"): ({"headline": CONTROL},)}
    with pytest.raises(ValueError, match="expected one of uniform"):
        contender("nobody", start(Path("unused"), None))


def start(folder: Path, model: str | None, pools: Texts | None = None, seed: int = 1) -> Start:
    world = Vowels(seed)
    return Start(world.campaigns(), pools or {}, folder, seed, model, world.true_rate)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> str:
    return str(tiny_model_folder)


def test_the_agent_turns_impressions_into_versions(tmp_path: Path, model: str) -> None:
    world = Vowels(1)
    with closing(AdloopAgent(world.campaigns(), tmp_path, 1, model=model)) as agent:
        first = agent.figures()
        assert first.version
        assert all(agent.views.shelf(c, s) is not None for c in agent.views.campaigns(TENANT) for s in c.segments)
        shown = play(AdloopContender(agent), world, 128, increment=64)
        last = agent.figures()
        assert (first.increments, last.increments) == (0, 2)
        assert last.version != first.version
        assert last.sampled > first.sampled
        counts = {
            topic: sum(agent.log.end(at) for at in whole(agent.log, topic)) for topic in ("decisions", "quarantine")
        }
        assert counts == {"decisions": 128, "quarantine": 0}
        assert agent.clock.now_ms() == START_MS + 127 * world.interval_ms
        joined = agent.joiner.counts
        assert joined["decisions"] == 128
    assert len(shown.texts) > 2


def test_a_halt_is_told_in_the_row_with_the_kl_of_the_version_that_is_live(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Guest(Vowels(1), "vowels")
    with closing(AdloopAgent(world.campaigns(), tmp_path, 1, model=model)) as agent:
        player = AdloopContender(agent)
        play(player, world, 64, increment=64)
        good = agent.figures()
        assert (good.halted, player.halted) == ("", "")
        halt = Halt(Ailment("length", "it looks ill"), agent.clock.now_ms() + 1)
        monkeypatch.setattr(agent.learner.sentinel, "judge", lambda vitals, now_ms: halt)
        shown = play(player, world, 64, increment=64)
        assert agent.learner.trainer is not None
        assert agent.learner.trainer.last is not None
        assert agent.figures().version == good.version
        assert player.kl() == good.kl != agent.learner.trainer.last.kl
        row = _row(Job("adloop", WORLD, 1, 64, 64, model, {}), world, shown, player, 1.0)
    assert (row.halted, row.kl) == ("it looks ill", good.kl)
    assert row.untold == shown.late
    figures = {"world": "w", "impressions": 64, "rows": [asdict(row)], "summary": summary([row]), "skipped": []}
    assert "halted: adloop, seed 1: it looks ill" in show(figures)
    write_compare_report([row], [], tmp_path / "r.html", [])
    page = (tmp_path / "r.html").read_text()
    assert "adloop, seed 1 (halted)" in page
    assert "halted: adloop, seed 1: it looks ill" in page


def test_a_prompt_that_is_too_long_for_the_model_is_refused_for_all(tmp_path: Path, model: str) -> None:
    body = Vowels(1).campaigns()["boots"]
    long = {"long": body | {"product": {"name": "Boots", "facts": [f"fact {number} " * 40 for number in range(8)]}}}
    for name in ("adloop", "reinforce"):
        begin = Start({"boots": body, **long}, {}, tmp_path / name, 1, model, Vowels(1).true_rate)
        with pytest.raises(BadInput, match=r"campaigns\['long'\].product: got a prompt of \d+ tokens, expected"):
            contender(name, begin)


def test_the_same_seed_gives_the_same_run(tmp_path: Path, model: str) -> None:
    def once(folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        world = Vowels(4)
        with closing(contender("adloop", start(folder, model, seed=4))) as player:
            return play(player, world, 96, increment=32).click_rates

    assert (once(tmp_path / "a") == once(tmp_path / "b")).all()


def test_events_are_posted_when_their_time_has_come(tmp_path: Path) -> None:
    world = Vowels(1)
    with Loop(world.campaigns(), tmp_path, 1) as loop:
        (at,) = whole(loop.log, "events")
        shown = loop.serve("boots", {"segment": "a"})
        loop.feed(shown, [("click", 1500, 0.0), ("conversion", 2500, 20.0)])
        assert loop.log.end(at) == 1
        loop.advance(START_MS + 1499)
        assert loop.log.end(at) == 1
        loop.advance(START_MS + 1500)
        assert loop.log.end(at) == 2
        loop.advance(START_MS + 9000)
        assert loop.log.end(at) == 3
        records = loop.log.reader({at: 0}).poll()
        events = [json.loads(record.value or b"") for record in records]
        assert [(e["type"], e["ts"] - START_MS, e["received_ts"] - START_MS, e.get("value")) for e in events] == [
            ("impression", 0, 0, None),
            ("click", 1500, 1500, None),
            ("conversion", 2500, 2500, 20.0),
        ]
        loop.join()
        outcome = json.loads((loop.log.reader(whole(loop.log, "outcomes")).poll()[-1].value) or b"")
        assert outcome["components"] == {"click": 1, "conversion": 1, "value": 20.0, "rating": None}


def test_pools_hold_fifty_distinct_texts_that_pass_the_gate(tmp_path: Path, model: str) -> None:
    pools = write_pools(Vowels(1).campaigns(), tmp_path / "a", 1, model)
    assert set(pools) == {("boots", "a"), ("boots", "e")}
    for texts in pools.values():
        headlines = [slots["headline"] for slots in texts]
        assert len(set(headlines)) == len(headlines) == 50
        assert CONTROL not in headlines
    assert write_pools(Vowels(1).campaigns(), tmp_path / "b", 1, model) == pools
    with closing(contender("uniform", start(tmp_path / "c", model, pools))) as player:
        offered = {player.serve("boots", {"segment": "a"})["headline"] for _ in range(400)}
    assert offered == {slots["headline"] for slots in pools[("boots", "a")][:20]}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the tests' own worlds, which otherwise have a fresh process each."""
    monkeypatch.setattr(
        "simulators.compare.try_jobs", lambda work, jobs, processes, report, fresh: try_jobs(work, jobs, 1, report)
    )


@pytest.mark.usefixtures("in_this_process")
def test_the_command_prints_the_contracts_keys(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    only = ("uniform", "control", "best_of_50", "vw_squarecb_mtr_20", "adloop")
    arguments = ["--world", WORLD, "--impressions", "40", "--seeds", "2", "--increment", "20", "--model", model]
    arguments += ["--only", ",".join(only), "--report", str(report)]
    assert main(["compare", *arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["world"], figures["impressions"], figures["skipped"]) == (WORLD, 40, [])
    assert [(row["name"], row["seed"]) for row in figures["rows"]] == [(name, seed) for seed in (1, 2) for name in only]
    keys = {"name", "seed", "mean_ctr", "last_tenth_ctr", "oracle_ctr", "mean_reward", "kl", "valid_share"}
    assert all(keys | {"distinct_texts", "seconds"} <= set(row) for row in figures["rows"])
    means = {entry["name"]: entry["mean_ctr"] for entry in figures["summary"]}
    assert means["control"]["mean"] == pytest.approx(0.05)
    assert means["control"]["low"] == means["control"]["high"] == pytest.approx(0.05)
    beside = {entry["name"]: entry["mean_ctr"] for entry in figures["beside_adloop"]}
    assert set(beside) == set(only) - {"adloop"}
    assert beside["control"]["mean"] == pytest.approx(means["adloop"]["mean"] / 0.05)
    html = report.read_text()
    assert "best_of_50" in html
    assert f"World {WORLD}, 40 impressions a run, an increment each 20, the model {model}." in html
    assert (figures["failed"], figures["arrivals_differ"], figures["ranked_by"]) == ([], [], "mean_ctr")


@pytest.mark.usefixtures("in_this_process")
def test_who_is_not_installed_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.settings.find_spec", lambda name: None)
    arguments = ["compare", "--world", WORLD, "--impressions", "10", "--processes", "1", "--only"]
    assert main([*arguments, "control,vw_bag_dr_50,trl_grpo", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in figures["rows"]] == ["control"]
    assert [entry["name"] for entry in figures["skipped"]] == ["vw_bag_dr_50", "trl_grpo"]
    assert "vowpalwabbit is not installed" in figures["skipped"][0]["why"]
    assert main([*arguments, "control,trl_grpo"]) == 0
    assert "skipped: trl_grpo: the package trl is not installed" in capsys.readouterr().out
    assert main([*arguments, "trl_grpo"]) == 1
    assert "nobody is left to play" in capsys.readouterr().err


ODD = "tests.fakes.odd_world:OddWorld"


@pytest.fixture(scope="module")
def odd_pools(tmp_path_factory: pytest.TempPathFactory, model: str) -> Texts:
    return write_pools(load_world(ODD, 1).campaigns(), tmp_path_factory.mktemp("odd") / "data", 1, model)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_plays_an_odd_world(name: str, tmp_path: Path, model: str, odd_pools: Texts) -> None:
    assert [len(odd_pools[place]) for place in (("mail-1", "all"), ("bare", "all"), ("edited", "all"))] == [50, 50, 1]
    job = Job(name, ODD, 1, 64, 32, model, odd_pools if SETTINGS[name].size else {})
    row = run_job(job, tmp_path, lambda done, of: None).row
    assert (row.oracle_ctr, row.share_of_oracle, row.valid_share) == (0.0, None, 1.0)
    # It has no true_rate and pays by value and rating: what came of it is what there is to tell.
    assert row.reward_is == "realised"
    assert row.mean_ctr > 0.09
    assert (row.oracle_why, row.keys_cut) == (None, 0)
    # Every text but the 4 controls is the model's own.
    assert row.distinct_texts > 4 or name in ("control", "best_of_50")


def test_unknown_worlds_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--world", "nowhere", "--only", "control", "--processes", "1"]) == 1
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert "market" in err
