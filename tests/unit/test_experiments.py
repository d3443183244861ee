"""The experiments: their measures on made-up traces, the variants of Adloop on a recording one, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from optimizer.errors import AdloopError
from simulators.adloop_agent import AdloopAgent
from simulators.experiments import __main__ as command
from simulators.experiments.measures import beginnings, recovery, shortfall, significance
from simulators.experiments.trace import Trace, Trial, run_trial
from simulators.experiments.variants import KEPT, Alone, AtOnce, AtWindowEnd, Ours, player
from simulators.loop import START_MS, Reaction, Shown
from simulators.stats import finite
from simulators.worlds import load_world
from tests.fakes.toy_world import ToyWorld


def test_significance_counts_only_what_stays() -> None:
    """Control clicks at 2 %. The learner earns 10 % but in the third thousand, where it earns nothing."""
    control = np.arange(8_000) % 2 == 0
    rewards = np.where(control, np.arange(8_000) % 100 == 0, np.arange(8_000) % 20 == 1).astype(float)
    found = significance(control, rewards, 1_000)
    assert found.first is not None
    assert found.first <= 2_000
    assert found.final is not None
    assert found.final.low > 0
    rewards[1_500:4_500] = np.where(control[1_500:4_500], np.arange(3_000) % 20 == 0, 0.0)
    broken = significance(control, rewards, 1_000)
    assert broken.first is None or broken.first > 4_500


def test_significance_of_nothing_is_none() -> None:
    control = np.arange(4_000) % 2 == 0
    same = (np.arange(4_000) // 2 % 25 == 0).astype(float)
    assert significance(control, same, 500).first is None


def test_recovery_measures_both_times_the_same_way() -> None:
    best = np.full(12_000, 0.5)
    share = np.concatenate([np.linspace(0, 0.6, 3_000), np.full(3_000, 0.6)])
    rates = 0.5 * np.concatenate([share, share])
    found = recovery(rates, best, 6_000, window=1_000)
    assert found.share == pytest.approx(0.6)
    # A window of 1,000 has 0.54 on average when it ends at 0.64 on the ramp's line, cut off at 0.6: just after 3,000.
    assert found.at_first == found.after
    assert found.at_first is not None
    assert 3_000 < found.at_first < 3_300
    rates[6_000:] = 0.0
    assert recovery(rates, best, 6_000, window=1_000).after is None
    with pytest.raises(ValueError, match="swap"):
        recovery(rates, best, 1_999, window=1_000)


def test_beginnings_take_each_campaigns_first_ones() -> None:
    campaigns = ["a", "b"] * 3 + ["b"]
    rates = np.array([0.1, 0.5, 0.3, 0.7, 9.0, 9.0, 9.0])
    assert beginnings(campaigns, rates, ["a", "b"], 2) == pytest.approx((0.2 + 0.6) / 2)
    assert beginnings(campaigns, rates, ["b"], 2) == pytest.approx(0.6)


def test_shortfall_is_the_worst_window_before_the_halt() -> None:
    frozen, rewards = np.full(3_000, 0.1), np.full(3_000, 0.12)
    rewards[1_000:1_500] = 0.02
    worst = shortfall(rewards, frozen, 3_000, window=500)
    assert worst is not None
    assert worst.window == pytest.approx(0.8)
    assert worst.so_far == pytest.approx(1 - (0.12 * 1_000 + 0.02 * 500) / 150)
    before = shortfall(rewards, frozen, 1_000, window=500)
    assert before is not None
    assert before.window == pytest.approx(-0.2)
    assert shortfall(rewards, frozen, 499, window=500) is None


class Recorder:
    """Stands in for an AdloopAgent: it notes what it is fed, and when."""

    def __init__(self) -> None:
        self.now = START_MS
        self.fed: list[tuple[int, Sequence[Reaction]]] = []
        self.closed = False

    def advance(self, now_ms: int) -> None:
        assert now_ms >= self.now
        self.now = now_ms

    def serve(self, campaign_id: str, context: dict[str, Any]) -> Shown:
        return Shown(campaign_id, context, cast(Any, None), self.now)

    def feed(self, shown: Shown, reactions: Sequence[Reaction]) -> None:
        self.fed.append((self.now - shown.ts, reactions))

    def increment(self) -> None: ...

    def close(self) -> None:
        self.closed = True


LATE: list[Reaction] = [("click", 2_500, 0.0), ("conversion", 90_000_000, 3.0)]


def shows(some: Ours, at_ms: int, reactions: Sequence[Reaction]) -> None:
    some.advance(at_ms)
    some._shown = cast(Any, some.agent).serve("things", {"segment": "a"})
    some.feed(reactions)


def test_at_once_moves_conversions_to_their_click() -> None:
    recorder = Recorder()
    shows(AtOnce(cast(AdloopAgent, recorder)), 0, LATE)
    assert recorder.fed == [(0, [("click", 2_500, 0.0), ("conversion", 2_500, 3.0)])]


def test_at_window_end_holds_everything_back_and_changes_nothing() -> None:
    recorder = Recorder()
    some = AtWindowEnd(cast(AdloopAgent, recorder), ToyWorld(1).campaigns())
    window = 1_800_000 + 604_800_000
    shows(some, 0, LATE)
    shows(some, 1_000, [])
    some.advance(window - 1)
    assert recorder.fed == []
    some.advance(window + 500)
    assert recorder.fed == [(window, LATE)]
    some.advance(window + 5_000)
    assert recorder.fed == [(window, LATE), (window, [])]


def test_alone_keeps_the_agents_used_last_and_gives_each_its_own_campaign() -> None:
    made: dict[str, Recorder] = {}

    def make(bodies: Any) -> AdloopAgent:
        (name,) = bodies
        made[name] = Recorder()
        return cast(AdloopAgent, made[name])

    names = [f"c{number}" for number in range(KEPT + 2)]
    some = Alone({name: {} for name in names}, make)
    for name in names[:KEPT]:
        some._elapsed = 0
        _serve(some, name)
    _serve(some, names[0])
    _serve(some, names[KEPT])
    assert [name for name, agent in made.items() if agent.closed] == [names[1]]
    some.close()
    assert all(agent.closed for agent in made.values())


def _serve(some: Alone, name: str) -> None:
    # The recording agent answers no slots: what matters is who is asked.
    with pytest.raises(AttributeError):
        some.serve(name, {"segment": "a"})


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at_once"):
        player("nobody", {}, tmp_path, 1, None)


@pytest.mark.parametrize("name", sorted(command.EXPERIMENTS))
def test_every_experiment_has_its_world_and_ours(name: str) -> None:
    asked = command.EXPERIMENTS[name]
    assert "adloop" in asked.variants
    assert asked.most_failures < asked.seeds
    load_world(asked.world, 1)


def test_the_command_sums_up_and_says_whether_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worth = {"adloop": 0.97, "at_once": 1.0, "at_window_end": 0.6}

    def traced(work: Any, trials: Sequence[Trial], processes: int, report: Any, fresh: bool) -> list[Trace]:
        ones = np.ones(4_000)
        return [
            Trace(
                trial=trial,
                campaigns=("a",) * 4_000,
                click_rates=ones,
                rewards=ones * worth[trial.variant],
                frozen=ones,
                best=ones,
                earned=ones,
                control=ones > 2,
                valid_share=1.0,
                kl=0.1,
                halted_at=None,
                halted="",
                seconds=1.0,
            )
            for trial in trials
        ]

    monkeypatch.setattr(command, "try_jobs", traced)
    monkeypatch.setattr(command, "make_tiny_model", lambda bars: None)
    assert command.main(["delay", "--seeds", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["holds"]
    assert [row["adloop"] for row in figures["rows"]] == pytest.approx([0.97, 0.97])
    assert figures["mean"]["adloop"]["mean"] == pytest.approx(0.97)
    # Never halted: the whole run counts.
    assert command.main(["proxy", "--seeds", "1"]) == 0
    assert "\nholds: 0 of 1 seeds" in capsys.readouterr().out
    worth["adloop"] = 0.94
    assert command.main(["proxy", "--seeds", "1"]) == 0
    assert "does not hold: 1 of 1 seeds" in capsys.readouterr().out


def test_a_failing_run_takes_its_seed_alone_and_the_answer_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def traced(work: Any, trials: Sequence[Trial], *_: object) -> list[Trace | Exception]:
        ones = np.ones(4_000)
        found: list[Trace | Exception] = [
            Trace(trial, ("a",) * 4_000, ones, ones * worth, ones, ones, ones, ones > 2, 1.0, 0.1, None, "", 1.0)
            for trial in trials
        ]
        for at in failing:
            found[at] = AdloopError("the world ended")
        return found

    monkeypatch.setattr(command, "try_jobs", traced)
    monkeypatch.setattr(command, "make_tiny_model", lambda bars: None)
    worth, failing = 1.0, [1]
    assert command.main(["proxy", "--seeds", "3", "--json"]) == 1
    told = capsys.readouterr()
    figures = json.loads(told.out.splitlines()[-1])
    assert [row["seed"] for row in figures["rows"]] == [1, 3]
    assert figures["holds"] is None
    assert figures["failed"] == [{"name": "adloop", "seed": 2, "why": "the world ended"}]
    assert "1 of 3 runs failed, the first of them adloop, seed 2: the world ended" in told.err
    worth = 0.5
    assert command.main(["proxy", "--seeds", "3"]) == 1
    assert "does not hold: 2 of 2 seeds" in capsys.readouterr().out
    # One of twenty may fall short: whatever the lost seed would have said, it holds.
    worth = 1.0
    assert command.main(["clean", "--seeds", "3"]) == 1
    assert "\nholds: 0 of 2 seeds" in capsys.readouterr().out
    failing = [0, 1]
    assert command.main(["clean", "--seeds", "3"]) == 1
    assert "\nnot told: 0 of 1 seeds" in capsys.readouterr().out
    # One variant of three: the seed has no answer.
    failing = [2]
    assert command.main(["delay", "--seeds", "1"]) == 1
    told = capsys.readouterr()
    assert "failed: at_window_end, seed 1: the world ended (the seed is left out)" in told.out
    assert "not told: no seed has been played" in told.out
    assert "1 of 3 runs failed" in told.err


STRANGE = "tests.fakes.strange_worlds"


def test_what_cannot_be_asked_is_refused_before_it_is_played(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is being played")

    monkeypatch.setattr(command, "try_jobs", never)
    monkeypatch.setattr(command, "make_tiny_model", never)
    for arguments, said in (
        (["drift", "--impressions", "2000"], "--impressions: got 2000, expected 4096 or more"),
        (["proxy", "--impressions", "999"], "--impressions: got 999, expected 1000 or more"),
        (["drift", "--world", f"{STRANGE}:Plain"], "a world with best_rate(campaign_id, segment)"),
        (["proxy", "--world", f"{STRANGE}:Plain"], "a world with true_rate(campaign_id, context, slots)"),
        (["clean", "--world", "nowhere"], "got 'nowhere', expected one of"),
    ):
        assert command.main(arguments) == 1
        assert said in capsys.readouterr().err


def test_where_nobody_clicks_there_is_no_share_and_nothing_holds(capsys: pytest.CaptureFixture[str]) -> None:
    zeros, nothing = np.zeros(5_000), np.full(5_000, np.nan)
    trial = Trial("adloop", "w", 1, 5_000, 128, None)
    names = tuple(f"c{at // 500}" for at in range(5_000))
    control = zeros > 0
    trace = Trace(trial, names, zeros, zeros, zeros, zeros, zeros, control, 1.0, 0.0, None, "", 1.0)
    every = dict.fromkeys(("adloop", "alone", "at_once", "at_window_end"), trace)
    for name in ("sparse", "drift", "cold", "delay", "proxy"):
        row = command.EXPERIMENTS[name].row(every)
        assert not row["holds"], name
        json.dumps(finite(row), allow_nan=False)
    assert np.isnan(recovery(zeros, nothing, 2_500).share)


def test_a_strangers_world_is_played_as_compare_plays_it(tmp_path: Path, tiny_model_folder: Path) -> None:
    trial = Trial("adloop", f"{STRANGE}:Meddling", 1, 16, 16, str(tiny_model_folder))
    trace = run_trial(trial, tmp_path, lambda done, of: None)
    # "Warm boots" is always clicked, "Dry boots" never; the world lowers what it is given.
    assert trace.frozen.tolist() == [0.5] * 16
    assert np.isnan(trace.best).all()
