"""Worlds that others write: what the contract allows plays for every policy, what it does not is told in a sentence."""

from __future__ import annotations

import json
import random
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import AdloopError, BadInput, ConfigError
from optimizer.stream.log import whole
from simulators.cli import main
from simulators.compare import Job, run_job
from simulators.guest import Guest, guest, plain
from simulators.loop import Loop
from simulators.randomness import Randomness
from simulators.worlds import load_world
from tests.fakes.strange_worlds import FailingLate, Generating, Meddling, Silent, Talkative

HERE = "tests.unit.test_guest"


class Numpy:
    """A world that speaks numpy wherever the contract has plain types."""

    interval_ms: Any = np.int64(1000)

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def campaigns(self) -> dict[str, dict[str, Any]]:
        body = {
            "product": {"name": np.str_("Boots"), "facts": ("warm", "dry")},
            "segments": np.array(["a", "e"]),
            "controls": ({"headline": "Boots"},),
            "holdback": np.float64(0.25),
        }
        return {"boots": body}

    def arrive(self) -> Any:
        return np.str_("boots"), {"segment": self._rng.choice(["a", "e"]), "hour": np.int64(7), "vip": np.bool_(True)}

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return ((np.str_("click"), np.int64(1500), np.float32(0.0)), ["conversion", 2500.0, np.float64(20.0)])

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> Any:
        return np.float32(0.5)

    def valid(self, campaign_id: str, slots: dict[str, str]) -> Any:
        return np.bool_(True)

    def oracle_rate(self) -> Any:
        return np.float32(0.5)


def world_with(**members: Any) -> type[Numpy]:
    """A class of such worlds with other members; functions become methods, whatever else is given is returned."""

    def method(given: Any) -> Any:
        return given if callable(given) else lambda self, *_: given

    made = {name: given if name == "interval_ms" else method(given) for name, given in members.items()}
    return type("Odd", (Numpy,), made)


def raising(self: object, *_: object) -> Any:
    raise KeyError("nobody")


def leaving(self: object, *_: object) -> Any:
    sys.exit(0)


BODY = {"product": {"name": "Boots"}, "controls": [{"headline": "Boots"}]}
CLICK = ("click", 1500, 0.0)


def test_what_numpy_gives_is_made_plain() -> None:
    given = {np.str_("a"): (np.int64(1), np.float64(2.5), np.bool_(False), None), "b": np.array([1, 2])}
    made = plain(given)
    assert made == {"a": [1, 2.5, False, None], "b": [1, 2]}
    assert [type(one) for one in made["a"][:3]] == [int, float, bool]
    assert {type(name) for name in made} == {str}


def test_a_world_of_numpy_values_plays_through_the_real_loop(tmp_path: Path) -> None:
    world = Guest(Numpy(1), "numpy")
    with Loop(world.campaigns(), tmp_path / "data", 1) as loop:
        for at in range(20):
            loop.advance(loop.clock.now_ms() + world.interval_ms)
            campaign_id, context = world.arrive()
            shown = loop.serve(campaign_id, context)
            assert world.click_rate(campaign_id, context, shown.variant.slots) == 0.5, at
            loop.feed(shown, world.respond(campaign_id, context, shown.variant.slots))
        loop.advance(loop.clock.now_ms() + 60_000)
        loop.join()
        quarantined, outcomes = (loop.log.reader(whole(loop.log, topic)).poll() for topic in ("quarantine", "outcomes"))
    assert quarantined == []
    assert len({record.key for record in outcomes}) == 20


@pytest.mark.parametrize("name", ["control", "uniform"])
def test_and_through_a_comparison(name: str, tmp_path: Path) -> None:
    pools = {("boots", segment): [{"headline": "Good boots"}] for segment in "ae"}
    job = Job(name, f"{HERE}:Numpy", 1, 20, 5, None, {} if name == "control" else pools)
    row = run_job(job, tmp_path, lambda done, of: None).row
    assert (row.mean_ctr, row.mean_reward, row.share_of_oracle, row.oracle_reward) == (0.5, 0.5, 1.0, None)
    assert row.halted is None


@pytest.mark.parametrize(
    ("member", "given", "said"),
    [
        ("interval_ms", -1, r"interval_ms gave -1, expected a whole number of milliseconds"),
        ("interval_ms", 0, r"interval_ms gave 0, expected a whole number of milliseconds from 1 \(without time"),
        ("interval_ms", 0.5, r"interval_ms gave 0.5"),
        ("campaigns", {}, r"campaigns gave \{\}, expected a dict of campaign_id -> body"),
        ("campaigns", {"a b": BODY}, r"campaigns\['a b'\].campaign_id: got \"a b\""),
        ("campaigns", {"boots": BODY | {"holdback": 2}}, r"campaigns\['boots'\].holdback: got 2, expected a number"),
        ("campaigns", {"boots": BODY | {"holdback": float("nan")}}, r"\['boots'\].holdback: got a number that overfl"),
        ("campaigns", raising, r"campaigns raised KeyError: 'nobody' \(test_guest.py, line \d+\); mend the world"),
        ("arrive", raising, r"arrive raised KeyError"),
        ("arrive", "boots", r"arrive at arrival 1 gave \"boots\", expected \(campaign_id, context\)"),
        ("arrive", ("hats", {}), r"arrive at arrival 1 gave \"hats\", expected a campaign_id of boots"),
        ("arrive", ("boots", {"segment": "x"}), r"arrive at arrival 1.context.segment: got 'x', expected one of a, e"),
        ("arrive", ("boots", {"user": 2**60}), r"arrive at arrival 1.context.user: got 1152921504606846976"),
        ("arrive", ("boots", {"said": "x" * 2049}), r"context.said: got .*a text of at most 2048 characters"),
        ("arrive", ("boots", {"x": [1]}), r"arrive at arrival 1.context.x: got \[1\]"),
        ("arrive", ("boots", {"x": float("nan")}), r"arrive at arrival 1.context.x: got a number that overflows"),
        ("arrive", ("boots", None), r"arrive at arrival 1.context: got null"),
        ("respond", raising, r"respond at arrival 1 raised KeyError"),
        ("respond", None, r"respond at arrival 1 gave null, expected a list of"),
        ("respond", "click", r"respond at arrival 1 gave \"click\", expected a list of"),
        ("respond", {"click": 5}, r"respond at arrival 1 gave .*, expected a list of"),
        ("respond", 7, r"respond at arrival 1 gave 7, expected a list of"),
        ("respond", [("click", 5)], r"respond at arrival 1 gave \[\"click\", 5\], expected"),
        ("respond", [("click", 0.5, 0.0)], r"a whole number and a finite number"),
        ("respond", [("conversion", 5, float("inf"))], r"a whole number and a finite number"),
        ("respond", [("share", 5, 0.0)], r"expected an event type of click, conversion, rating"),
        ("respond", [("conversion", 5, -4.0)], r"expected 0 to 1e\+12 for a conversion"),
        ("respond", [("rating", 5, 7.0)], r"expected 0 to 1 for a rating"),
        ("click_rate", 1.2, r"click_rate at arrival 1 gave 1.2, expected a rate from 0 to 1"),
        ("click_rate", float("nan"), r"click_rate at arrival 1 gave NaN, expected a finite number"),
        ("click_rate", "often", r"click_rate at arrival 1 gave \"often\""),
        ("click_rate", 10**400, r"click_rate at arrival 1 gave 1000"),
        ("click_rate", leaving, r"click_rate at arrival 1 raised SystemExit: 0"),
        ("true_rate", float("-inf"), r"true_rate at arrival 1 gave -Infinity, expected a finite number"),
        ("oracle_rate", -0.5, r"oracle_rate at arrival 1 gave -0.5, expected a rate"),
        ("oracle_reward", float("nan"), r"oracle_reward at arrival 1 gave NaN"),
        ("valid", raising, r"valid at arrival 1 raised"),
        ("valid", np.array([True, False]), r"valid at arrival 1 raised ValueError"),
    ],
)  # fmt: skip
def test_a_world_that_breaks_its_contract_is_told_how(member: str, given: Any, said: str) -> None:
    with pytest.raises(AdloopError, match=said) as caught:
        _ask_everything(Guest(world_with(**{member: given})(1), "odd"))
    assert str(caught.value).startswith("world odd: ")


def _ask_everything(world: Guest) -> None:
    world.campaigns()
    campaign_id, context = world.arrive()
    slots = {"headline": "Boots"}
    world.click_rate(campaign_id, context, slots)
    world.true_rate(campaign_id, context, slots)
    world.valid(campaign_id, slots)
    world.respond(campaign_id, context, slots)
    world.oracle_rate()
    world.oracle_reward()


def test_a_clicks_value_is_nobodys_business() -> None:
    world = Guest(world_with(respond=[("click", 5, -1.0)])(1), "odd")
    assert world.respond("boots", {}, {}) == [("click", 5, -1.0)]


def test_a_good_world_is_asked_everything_without_a_word() -> None:
    _ask_everything(Guest(Numpy(1), "fine"))
    world = guest(f"{HERE}:Numpy", 1)
    assert world.arrive()[0] == "boots", "the campaigns are asked for where nobody has"


def test_a_rate_may_be_a_rounding_beside_one() -> None:
    for beside in (1e-15, np.finfo(np.float32).eps):
        world = Guest(world_with(oracle_rate=np.float32(1.0) + beside, click_rate=-beside)(1), "sum")
        assert (world.oracle_rate(), world.click_rate("boots", {}, {})) == (1.0, 0.0)


STRANGE = "tests.fakes.strange_worlds"
SLOTS = {"headline": "Warm boots"}


def test_reactions_may_come_in_any_iterable() -> None:
    world = Guest(Generating(1), "generating")
    assert world.respond("boots", {}, SLOTS) == [("click", 1_000, 0.0), ("conversion", 2_000, 1.0)]
    for made in (deque, tuple, iter):
        given = made([[*CLICK]])
        assert Guest(world_with(respond=given)(1), "odd").respond("boots", {}, SLOTS) == [CLICK]
    with pytest.raises(
        AdloopError, match=r"world late: respond raised RuntimeError: no more \(strange_worlds.py, line"
    ):
        Guest(FailingLate(1), "late").respond("boots", {}, SLOTS)


def test_a_world_may_do_what_it_likes_with_what_it_is_given() -> None:
    world = Guest(Meddling(1), "meddling")
    campaign_id, context = world.arrive()
    slots = dict(SLOTS)
    assert world.click_rate(campaign_id, context, slots) == 1.0, "True is a rate"
    assert world.valid(campaign_id, slots)
    assert (slots, set(context)) == (SLOTS, {"segment", "device"})


def test_of_a_long_context_every_policy_gets_the_same_part_and_the_world_all() -> None:
    world = Guest(Talkative(1), "talkative")
    campaign_id, context = world.arrive()
    assert list(context) == [*(f"k{at}" for at in range(63)), "segment"]
    assert world.click_rate(campaign_id, dict(context), SLOTS) == pytest.approx(68 / 300)
    assert world.keys_cut == 6


def test_global_generators_go_on_for_the_world_alone() -> None:
    def met(disturbed: bool) -> list[Any]:
        world = guest(f"{STRANGE}:GlobalRandom", 5)
        came = []
        for _ in range(20):
            came.append(world.arrive())
            if disturbed:
                random.seed(1)
                np.random.seed(1)  # noqa: NPY002 - what a player may do
                random.random()
        return came

    assert met(False) == met(True) != [guest(f"{STRANGE}:GlobalRandom", 6).arrive() for _ in range(20)]
    state, drawn = random.getstate(), np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    guest("phrases", 1)
    assert random.getstate() == state
    assert (np.random.get_state(legacy=False)["state"]["key"] == drawn).all()  # noqa: NPY002


def test_a_world_that_seeds_the_global_generators_itself_gets_what_it_asked_for() -> None:
    randomness = Randomness(3)
    with randomness.restored():
        random.seed(8)
        np.random.seed(8)  # noqa: NPY002 - what it does
    with randomness.restored():
        told = random.random(), np.random.rand()  # noqa: NPY002
    assert told == (random.Random(8).random(), np.random.RandomState(8).rand())


def test_the_best_rate_of_a_place_is_passed_on_where_there_is_one() -> None:
    assert Guest(Numpy(1), "none").best_rate is None
    told = Guest(Silent(1), "silent").best_rate
    assert told is not None
    assert told("boots", "old") == 0.0
    wrong = Guest(world_with(best_rate=lambda self, *_: 2.0)(1), "wrong").best_rate
    assert wrong is not None
    with pytest.raises(AdloopError, match=r"best_rate gave 2\.0, expected a rate"):
        wrong("boots", "a")


class Counting(Numpy):
    impressions = 0


@pytest.mark.parametrize("impressions", [4_000, 40_960])
def test_the_run_tells_its_length_to_worlds_that_must_know(impressions: int) -> None:
    drift: Any = load_world("drift", 1, impressions)
    assert drift.impressions == impressions
    cold: Any = load_world("cold", 1, impressions)
    shares = [sum(cold.shares(name).values()) for name in cold.campaigns()]
    assert len(shares) == -(-impressions // 512) + 3
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.0
    mine: Any = load_world(f"{HERE}:Counting", 1, impressions)
    assert mine.impressions == 0, "a world's own counter is no question"


class Fails(Numpy):
    def __init__(self, seed: int) -> None:
        raise RuntimeError("no people left")


class Unfinished:
    interval_ms = 1

    def __init__(self, seed: int) -> None:
        pass


class Seedless(Numpy):
    def __init__(self) -> None:
        super().__init__(1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (":World", "got ':World', expected one of .*market"),
        (".mine:World", "got '.mine:World', expected one of"),
        ("mine", "got 'mine', expected one of"),
        ("no_such_module:World", "cannot be begun with seed 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{HERE}:Nobody", "AttributeError: .*Nobody"),
        (f"{HERE}:Fails", r"RuntimeError: no people left \(test_guest.py, line \d+\)"),
        (f"{HERE}:Seedless", "TypeError: .*positional argument"),
        (f"{HERE}:Unfinished", "has no campaigns, arrive, respond, click_rate, valid, oracle_rate, which every"),
        ("json:decoder", "TypeError: 'module' object is not callable"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_is_told_in_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_world(name, 1)


def test_a_world_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    (tmp_path / "own_world_of_a_test.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry and Path(entry) != tmp_path])
    arguments = ["--impressions", "12", "--increment", "4", "--only", "control", "--json"]
    assert main(["compare", "--world", "own_world_of_a_test:Numpy", *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["mean_ctr"] == 0.5


def test_a_refused_campaign_is_named_by_worker_processes_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--impressions", "10", "--only", "control", "--seeds", "2", "--processes", "2", "--json"]
    assert main(["compare", "--world", f"{HERE}:Greedy", *arguments]) == 1
    error = capsys.readouterr().err
    assert "Greedy: campaigns['boots'].holdback: got 2, expected a number from 0 to 1" in error
    assert "Traceback" not in error


class Greedy(Numpy):
    """Its first seed is well, so that only a worker process meets what is not."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed

    def campaigns(self) -> dict[str, dict[str, Any]]:
        return {"boots": super().campaigns()["boots"] | {"holdback": 0.5 if self._seed == 1 else 2}}


def test_what_can_be_known_to_fail_fails_before_the_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(bars: object) -> None:
        raise AssertionError("the model is being made")

    monkeypatch.setattr("simulators.compare.make_tiny_model", never)
    arguments = ["compare", "--impressions", "10", "--world"]
    assert main([*arguments, f"{HERE}:Fails"]) == 1
    assert "no people left" in capsys.readouterr().err
    assert main([*arguments, f"{HERE}:Greedy", "--first-seed", "2"]) == 1
    assert "holdback: got 2" in capsys.readouterr().err
    assert main([*arguments, f"{HERE}:Numpy", "--report", str(tmp_path)]) == 1
    assert "Is a directory" in capsys.readouterr().err


def test_errors_cross_a_process_border_whole() -> None:
    import pickle

    from serving.problems import Problem

    with pytest.raises(BadInput) as caught:
        Guest(Greedy(2), "greedy").campaigns()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.errors, str(again)) == (BadInput, caught.value.errors, str(caught.value))
    problem = pickle.loads(pickle.dumps(Problem(404, "no such page", caught.value.errors, {"a": "b"})))
    assert (problem.status, problem.detail, problem.errors, problem.headers) == (
        404, "no such page", caught.value.errors, {"a": "b"},
    )  # fmt: skip
