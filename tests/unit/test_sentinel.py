"""When learning stops by itself: the figures that say so, and what the learner does then."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from optimizer.control import HALT_FILE, RESUME_FILE, HaltNote, halt_reason, read_halt, write_halt
from optimizer.learning.learner import Learner
from optimizer.learning.sentinel import Sentinel, SentinelConfig
from optimizer.maths.sentinel import Conversions, Limits, Vitals, ails, baits
from optimizer.stream.views import live_policy, policy_table
from optimizer.types import HALT_REASONS, Candidate, Decode, Pool
from serving.operate import Operator
from serving.views import Views
from tests.learning_rig import SMALL_LEARNER, Loop, campaign, candidate, open_loop

WELL = Vitals(
    kl=5.0,
    kl_budget=8.0,
    kl_before=5.0,
    kl_step=0.2,
    entropy=1.0,
    length=1.1,
    duplicates=0.5,
    rejected=0.1,
    rejected_first=0.1,
)
NEVER = Vitals(*[math.nan] * 9)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kl", 8.5, "8.5 nats"),
        ("kl_step", 3.5, "moved by 3.5"),
        ("entropy", 0.05, "entropy of 0.05"),
        ("length", 0.4, "0.4 times as long"),
        ("length", 2.5, "2.5 times as long"),
        ("duplicates", 0.99, "99% of the samples repeat"),
        ("rejected", 0.7, "refuses 70%"),
    ],
)
def test_each_ill_has_its_phrase(field: str, value: float, said: str) -> None:
    assert ails(WELL, Limits()) is None
    found = ails(WELL._replace(**{field: value}), Limits())
    assert found is not None
    assert found.reason == field
    assert said in found.why


def test_bait_is_a_reason_like_the_others() -> None:
    found = baits(Conversions(1e-6, 0.5, 2.0))
    assert found is not None
    assert found.reason == "bait"


# -- the file that says so ---------------------------------------------------------------------------------------------


def test_a_halt_file_gives_back_reason_and_sentence(tmp_path: Path) -> None:
    assert read_halt(tmp_path) is None
    assert halt_reason(tmp_path) == ""
    for reason in HALT_REASONS:
        # Whatever the sentence is, also one that sounds like another reason's.
        for why in ("entropy of 3: the gate refuses, clicks are up", "x"):
            write_halt(tmp_path, reason, why)
            assert read_halt(tmp_path) == HaltNote(reason, why)
            assert halt_reason(tmp_path) == why
    # What an operator's `cat` shows.
    assert (tmp_path / HALT_FILE).read_text() == "bait: x\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("divergence of 8.5 nats from the reference, over its budget of 8", "kl"),
        ("a single version moved by 3.5 nats (at most 3)", "kl_step"),
        ("entropy of 0.05 nats a token (at least 0.1): always the same text", "entropy"),
        ("texts are 0.4 times as long as the first model's (0.5 to 2 is usual)", "length"),
        ("99% of the samples repeat another (at most 97%)", "duplicates"),
        ("the gate refuses 70% of the samples (at most 60%; 10% at first)", "rejected"),
        ("clicks are up +100% and conversions down -50% per impression (so few ...)", "bait"),
        ("moon: the moon is full", "other"),
        ("the moon is full", "other"),
        ("kl:", "other"),
    ],
)
def test_a_halt_file_of_an_earlier_version_has_a_reason_too(tmp_path: Path, said: str, reason: str) -> None:
    (tmp_path / HALT_FILE).write_text(said + "\n")
    assert read_halt(tmp_path) == HaltNote(reason, said)


def test_a_halt_file_halts_whatever_it_says(tmp_path: Path) -> None:
    (tmp_path / HALT_FILE).write_bytes(b"")
    assert read_halt(tmp_path) == HaltNote("other", "no reason was kept")
    (tmp_path / HALT_FILE).write_bytes(b"caf\xe9\n")
    assert read_halt(tmp_path) == HaltNote("other", "caf\ufffd")


def test_what_is_not_known_ails_nothing() -> None:
    assert ails(NEVER, Limits()) is None


def test_a_lowered_budget_that_is_approached_is_no_illness() -> None:
    assert ails(WELL._replace(kl=9.0, kl_before=9.5), Limits()) is None
    assert ails(WELL._replace(kl=9.0, kl_before=9.0), Limits()) is not None


def test_a_gate_that_always_refuses_much_is_no_illness() -> None:
    assert ails(WELL._replace(rejected=0.7, rejected_first=0.5), Limits()) is None


# -- the watch over records --------------------------------------------------------------------------------------------

SMALL = SentinelConfig(samples=40, first_samples=40)


def pool(texts: int, count: int, rejected: bool = False, tokens: int = 5, campaign_id: str = "c1") -> Pool:
    some = tuple(
        candidate(f"text {at}", count=count, token_ids=((1,) * tokens,), rejected="gate" if rejected else None)
        for at in range(texts)
    )
    return Pool("p", "default", campaign_id, "all", "v", "h", (*some, kept("old")), Decode(), 0)


def kept(text: str) -> Candidate:
    return candidate(text, count=0, kept=True)


def test_samples_are_compared_with_their_campaigns_first_ones() -> None:
    sentinel = Sentinel(SMALL)
    unknown = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert math.isnan(unknown.length)
    for _ in range(8):
        sentinel.note_pool(pool(10, 1))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.duplicates, found.rejected) == (1.0, 0.0, 0.0)
    # Another campaign, whose texts are longer and often refused from the start, is no illness.
    for _ in range(8):
        sentinel.note_pool(pool(10, 1, rejected=True, tokens=15, campaign_id="c2"))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.rejected, found.rejected_first) == (1.0, 1.0, 1.0)
    for _ in range(4):
        sentinel.note_pool(pool(1, 10, rejected=True, tokens=15))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.duplicates, found.rejected, found.rejected_first) == (3.0, 0.9, 1.0, 0.0)
    sentinel.forgive()
    assert math.isnan(sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0).length)


def test_an_ill_must_last_and_dates_from_its_beginning() -> None:
    sentinel = Sentinel(SMALL)
    ill = WELL._replace(entropy=0.01)
    seen = [sentinel.judge(one, at) for at, one in enumerate((ill, ill, WELL, ill, ill, ill))]
    assert seen[:5] == [None] * 5
    assert seen[5] is not None
    assert seen[5].since_ms == 3
    # What nothing new is known of is no second time.
    assert [sentinel.judge(one, 9) is None for one in (WELL, ill, None, ill, ill)] == [True] * 5


# -- the learner -------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tiny_model_folder: Path, tmp_path: Path) -> Iterator[Loop]:
    with closing(open_loop(tmp_path / "data", tiny_model_folder, campaigns=[campaign()])) as made:
        yield made


def learn(loop: Loop, learner: Learner, rounds: int) -> None:
    generator, rng = loop.generator(), np.random.default_rng(0)
    for _ in range(rounds):
        while generator.step():
            pass
        loop.serve(loop.pools()[-1], 30, rng, lambda shown: 0.3)
        while learner.step():
            pass


def live(loop: Loop) -> str:
    table = policy_table(loop.log)
    table.refresh()
    found = live_policy(table)
    assert found is not None
    return found.version


def test_an_ill_policy_halts_the_learner_and_the_healthy_version_comes_back(loop: Loop) -> None:
    config = dataclasses.replace(SMALL_LEARNER, sentinel=SentinelConfig(limits=Limits(entropy=0.0), patience=2))
    learner = loop.learner(config)
    learn(loop, learner, 2)
    good = live(loop)
    assert not learner.halted
    # From here on every policy is called too narrow: the first ill version goes out, the second halts.
    learner.sentinel.config = SentinelConfig(limits=Limits(entropy=99.0), patience=2)
    loop.clock.advance(1_000)
    learn(loop, learner, 1)
    ill = live(loop)
    assert ill != good
    learn(loop, learner, 2)
    assert "always the same text" in learner.halted
    assert live(loop) == good
    table = policy_table(loop.log)
    table.refresh()
    assert table.rows[ill].stage == "rolled_back"
    assert table.rows[ill].evidence["by"] == "sentinel"
    assert table.rows[ill].evidence["reason"] == table.rows[good].evidence["halted_by"] == "entropy"
    assert table.rows[ill].evidence["why"] == table.rows[good].evidence["halted"] == learner.halted
    assert read_halt(loop.data) == HaltNote("entropy", learner.halted)
    increments = learner.increments
    learn(loop, learner, 1)
    assert learner.increments == increments
    # Neither does a learner that is started anew, until somebody resumes it.
    again = loop.learner(SMALL_LEARNER)
    assert again.halted == learner.halted
    learn(loop, again, 1)
    assert again.halted
    assert live(loop) == good
    operator = Operator(loop.log, loop.clock, Views(loop.log), loop.data)
    assert operator.halted() == again.halted
    assert operator.idle()
    operator.resume()
    assert not operator.idle()
    assert (loop.data / RESUME_FILE).exists()
    learn(loop, again, 1)
    assert not again.halted
    assert live(loop) not in (good, ill)


def test_what_an_operator_made_live_is_not_taken_back(loop: Loop) -> None:
    config = dataclasses.replace(SMALL_LEARNER, sentinel=SentinelConfig(limits=Limits(entropy=99.0), patience=2))
    learner = loop.learner(config)
    first = live(loop)
    learn(loop, learner, 1)
    views = Views(loop.log)
    views.refresh_tables()
    Operator(loop.log, loop.clock, views, loop.data).promote(first)
    learn(loop, learner, 4)
    assert learner.halted
    assert live(loop) == first


def test_who_only_asks_whether_learning_is_halted_changes_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    (loop.data / HALT_FILE).touch()
    learner = loop.learner(SMALL_LEARNER)
    forgiven: list[int | None] = []
    monkeypatch.setattr(learner.sentinel, "forgive", forgiven.append)
    learner.step()
    Operator(loop.log, loop.clock, Views(loop.log), loop.data).resume()
    assert learner.halted  # as it was when it stepped last
    assert forgiven == []
    loop.clock.advance(1_000)
    learner.step()
    assert not learner.halted
    assert forgiven == [loop.clock.now_ms() - 1_000]


def test_an_empty_halt_file_still_halts(loop: Loop) -> None:
    (loop.data / HALT_FILE).touch()
    learner = loop.learner(SMALL_LEARNER)
    learn(loop, learner, 1)
    assert learner.halted
    assert learner.increments == 0


def test_the_optimizers_state_outlives_a_restart(loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner = loop.learner(SMALL_LEARNER)
    learn(loop, learner, 2)
    assert learner.trainer is not None
    path = tmp_path / "kept"
    learner.trainer.save(path)
    other_config = dataclasses.replace(SMALL_LEARNER, kl_aim=0.5)
    again = loop.learner(other_config)
    assert again.trainer is not None
    again.trainer.kl = again.trainer.kl.updated(0.0)
    assert not again.trainer.restore(tmp_path / "missing", [live(loop)])
    assert not again.trainer.restore(path, ["another"])
    assert again.trainer.kl.weight != learner.trainer.kl.weight
    assert again.trainer.restore(path, [live(loop)])
    assert again.trainer.kl.weight == learner.trainer.kl.weight
    for (_, one), (_, other) in zip(again.trainer.moments(), learner.trainer.moments(), strict=True):
        np.testing.assert_array_equal(one, other)
    path.write_bytes(b"no such state")
    assert not again.trainer.restore(path, [live(loop)])
    assert "not an optimizer's state" in caplog.text
