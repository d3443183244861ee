"""The learner from version to version: restarts, damaged versions, and what operators do (promotions, the pause file,
another KL budget)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.control import PAUSE_FILE
from optimizer.errors import ConfigError, StoreError
from optimizer.learning.learner import Learner
from optimizer.learning.reference import LureText
from optimizer.stream.log import Append
from optimizer.stream.views import live_policy, policy_table
from optimizer.types import PolicyRecord, Stage, to_json
from tests.learning_rig import SMALL_LEARNER, Loop, campaign, likes_short, open_loop, play, tensors


def record(loop: Loop, version: str, stage: Stage) -> None:
    """What serving appends when an operator promotes or rolls back."""
    manifest = loop.store.manifest(version)
    made = PolicyRecord(
        version, manifest.content_hash, manifest.parent, loop.store.uri(version), stage, 0, {"by": "operator"}
    )
    loop.log.append([Append("policies", version, to_json(made))])


@pytest.fixture
def tiny_loop(tiny_model_folder: Path, tmp_path: Path) -> Iterator[Loop]:
    with closing(open_loop(tmp_path / "data", tiny_model_folder, campaigns=[campaign()])) as made:
        yield made


def test_what_was_found_about_conversions_outlives_a_restart(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    found = LureText({"default/c1": 1.5}, {"default/c1": -2.0})
    learner.critic.resume(found)
    learner.increment()
    assert tiny_loop.learner().critic.view().evidence == found


def test_a_restart_continues_from_the_live_version(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=2)
    live = tiny_loop.store.versions()[-1]
    weights = tensors(tiny_loop, live)
    again = tiny_loop.learner()
    assert tiny_loop.store.versions()[-1] == live
    assert again.trainer is not None
    assert again.trainer.policy.version == live
    assert all(torch.equal(weights[name], value) for name, value in again.trainer.policy.trainable().items())
    # It reads the whole history before it publishes, and what it publishes descends from the live version.
    before = len(tiny_loop.store.versions())
    while again.step():
        pass
    after = tiny_loop.store.versions()
    assert len(after) == before + 1
    assert tiny_loop.store.manifest(after[-1]).parent == live
    assert len(again.critic.buffer.entries) == tiny_loop.served


def test_an_operators_rollback_is_adopted(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=2)
    reference, latest = tiny_loop.store.versions()[0], tiny_loop.store.versions()[-1]
    record(tiny_loop, latest, "rolled_back")
    record(tiny_loop, reference, "live")
    pool = tiny_loop.pools()[-1]
    tiny_loop.serve(pool, 40, np.random.default_rng(9), likes_short)
    assert learner.step()
    newest = tiny_loop.store.versions()[-1]
    assert tiny_loop.store.manifest(newest).parent == reference
    # One small step from the reference's weights, not from those that were rolled back.
    first, last, made = (tensors(tiny_loop, version) for version in (reference, latest, newest))

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[name] - b[name]).abs().max()) for name in a)

    assert distance(made, first) <= SMALL_LEARNER.update.learning_rate * 7 * 1.01
    assert distance(made, first) > 0
    assert distance(made, last) > 0


def damage(loop: Loop, version: str) -> None:
    path = loop.store.root / version / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_live_version_is_refused_by_name_and_the_one_before_goes_on(
    tiny_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=2)
    before, latest = tiny_loop.store.versions()[-2:]
    damage(tiny_loop, latest)
    again = tiny_loop.learner()
    assert latest in caplog.text
    play(tiny_loop, again, rounds=1, seed=5)
    assert tiny_loop.store.manifest(tiny_loop.store.versions()[-1]).parent == before


def test_a_damaged_version_that_is_promoted_does_not_stop_a_running_learner(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=2)
    first, head = tiny_loop.store.versions()[0], tiny_loop.store.versions()[-1]
    damage(tiny_loop, first)
    record(tiny_loop, first, "live")
    tiny_loop.serve(tiny_loop.pools()[-1], 40, np.random.default_rng(9), likes_short)
    assert learner.step()
    assert tiny_loop.store.manifest(tiny_loop.store.versions()[-1]).parent == head


def test_a_version_that_nobody_has_does_not_bar_the_way_for_those_to_come(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=1)
    ghost = PolicyRecord("999999-aaaaaaaaaaaa", "a" * 64, None, "policies/999999-aaaaaaaaaaaa", "live", 0)
    tiny_loop.log.append([Append("policies", ghost.version, to_json(ghost))])
    play(tiny_loop, learner, rounds=1, seed=3)
    newest = tiny_loop.store.versions()[-1]
    assert newest.startswith("1000000-")
    assert live_policy_of(tiny_loop) == newest


def live_policy_of(loop: Loop) -> str:
    table = policy_table(loop.log)
    table.refresh()
    live = live_policy(table)
    assert live is not None
    return live.version


def test_where_no_version_can_be_used_the_learner_says_which(tiny_loop: Loop) -> None:
    play(tiny_loop, tiny_loop.learner(), rounds=1)
    for version in tiny_loop.store.versions():
        damage(tiny_loop, version)
    with pytest.raises(StoreError, match=tiny_loop.store.versions()[-1]):
        tiny_loop.learner()


def test_a_second_learner_on_the_same_folder_is_refused_until_the_first_is_gone(tiny_loop: Loop) -> None:
    first = tiny_loop.learner()

    def another() -> Learner:
        return Learner(tiny_loop.log, tiny_loop.store, tiny_loop.base, tiny_loop.clock, SMALL_LEARNER, tiny_loop.data)

    for _ in range(2):  # what is refused holds nothing
        with pytest.raises(ConfigError, match="another learner is using it"):
            another()
    first.close()
    damage(tiny_loop, tiny_loop.store.versions()[-1])
    with pytest.raises(StoreError):
        another()
    tiny_loop.log.append([Append("policies", tiny_loop.store.versions()[-1], None)])
    another().close()


def test_the_pause_file_holds_learning_but_not_reading(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    (tiny_loop.data / PAUSE_FILE).touch()
    play(tiny_loop, learner, rounds=1)
    assert learner.paused
    assert len(tiny_loop.store.versions()) == 1
    assert len(learner.critic.buffer.entries) == tiny_loop.served == 30
    (tiny_loop.data / PAUSE_FILE).unlink()
    assert learner.step()
    assert len(tiny_loop.store.versions()) == 2


def test_a_lowered_budget_is_approached_and_not_a_dead_end(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=3)
    assert learner.last is not None
    far = learner.last.kl
    assert far > 0.01
    strict = tiny_loop.learner(dataclasses.replace(SMALL_LEARNER, kl_budget=far / 50))
    play(tiny_loop, strict, rounds=6, seed=1)
    assert strict.last is not None
    assert strict.last.kl < 0.8 * far


def test_the_budget_holds_from_the_first_increment_after_a_restart(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    play(tiny_loop, learner, rounds=3)
    assert learner.last is not None
    far, before = learner.last.kl, set(tiny_loop.store.versions())
    # Steps so long that the penalty's six do not undo them: no version may be further away than the one before.
    wild = dataclasses.replace(SMALL_LEARNER.update, learning_rate=3e-2)
    play(
        tiny_loop,
        tiny_loop.learner(dataclasses.replace(SMALL_LEARNER, kl_budget=far / 50, update=wild)),
        rounds=3,
        seed=1,
    )
    later = [name for name in tiny_loop.store.versions() if name not in before]
    measured = [tiny_loop.store.manifest(name).facts["kl"] for name in later]
    assert len(measured) >= 2
    assert all(isinstance(kl, float) and kl <= far for kl in measured)
