"""The learner: the loop on two architectures and with adapters, the same weights from the same log, what teaches whom,
and the KL budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from optimizer.learning import base as base_module
from optimizer.learning.base import load_policy
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import CriticConfig
from optimizer.learning.learner import Learner
from optimizer.learning.update import UpdateConfig
from optimizer.learning.view import CriticView
from optimizer.stream.log import Append, TopicPartition
from optimizer.stream.views import live_policy, policy_table
from optimizer.types import Candidate, to_json
from tests.learning_rig import SMALL_LEARNER, Loop, campaign, likes_short, open_loop, outcome, play, tensors


@pytest.fixture(params=["tiny", "llama", "lora"])
def loop(
    request: pytest.FixtureRequest,
    tiny_model_folder: Path,
    llama_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Loop]:
    if request.param == "lora":
        monkeypatch.setattr(base_module, "WHOLE_PARAMETERS", 0)
    folder = tiny_model_folder if request.param == "tiny" else llama_model_folder
    with closing(open_loop(tmp_path / "data", folder, campaigns=[campaign(segments=("all", "young"))])) as made:
        yield made


@pytest.fixture
def tiny_loop(tiny_model_folder: Path, tmp_path: Path) -> Iterator[Loop]:
    with closing(open_loop(tmp_path / "data", tiny_model_folder, campaigns=[campaign()])) as made:
        yield made


def test_the_loop_runs_on_any_architecture(loop: Loop) -> None:
    learner = loop.learner()
    (reference,) = loop.store.versions()
    first = load_policy(loop.base).trainable()
    assert all(torch.equal(first[name], value) for name, value in tensors(loop, reference).items())
    play(loop, learner, rounds=2)
    versions = loop.store.versions()
    assert len(versions) >= 3
    assert [loop.store.manifest(later).parent for later in versions[1:]] == versions[:-1]
    moved = tensors(loop, versions[-1])
    assert any(not torch.equal(first[name], value) for name, value in moved.items())
    assert learner.last is not None
    assert learner.last.sequences > 0
    assert learner.trainer is not None
    assert learner.trainer.skipped_steps == 0
    view = CriticView.from_bytes(loop.store.critic_bytes(versions[-1]), versions[-1])
    pool = loop.pools()[-1]
    scores = view.score(view.encode(campaign(), "all", pool.candidates), {"segment": "all"})
    assert scores.shape == (SMALL_LEARNER.critic.heads, len(pool.candidates))
    # Another process that loads the version writes with just these weights.
    generator = loop.generator(seed=5)
    assert generator.step()
    assert loop.pools()[-1].policy_version == versions[-1]


def copy_of(loop: Loop, data: Path, topics: tuple[str, ...]) -> Loop:
    """A new data folder on the same base, with the records of some topics."""
    from optimizer.stream.log import whole

    twin = open_loop(data, Path(msgspec.json.decode((loop.data / "base.json").read_bytes())["model"]))
    for topic in topics:
        reader = loop.log.reader(whole(loop.log, topic))
        while records := reader.poll(500):
            twin.log.append([Append(topic, (r.key or b"").decode(), r.value) for r in records])
    return twin


def test_the_same_log_and_seed_give_the_same_weights_bit_for_bit(loop: Loop, tmp_path: Path) -> None:
    play(loop, loop.learner(), rounds=1)
    published = []
    for name in ("one", "two"):
        twin = copy_of(loop, tmp_path / name, ("campaigns", "candidates", "outcomes"))
        # The pools name versions of the first store: the twins take them for their own.
        for version in loop.store.versions():
            (twin.store.root / version).mkdir(parents=True)
            for file in (loop.store.root / version).iterdir():
                (twin.store.root / version / file.name).write_bytes(file.read_bytes())
        learner = twin.learner(dataclasses.replace(SMALL_LEARNER, outcomes_per_poll=25, most_waiting=20))
        while learner.step():
            pass
        assert learner.increments >= 2
        published.append([twin.store.manifest(version).content_hash for version in twin.store.versions()])
        twin.close()
    assert published[0] == published[1]
    assert len(set(published[0])) > 3


def test_few_outcomes_are_waited_on(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    tiny_loop.generator().step()
    (pool,) = tiny_loop.pools()
    tiny_loop.serve(pool, SMALL_LEARNER.min_outcomes - 1, np.random.default_rng(0), likes_short)
    while learner.step():
        pass
    assert learner.increments == 0
    tiny_loop.serve(pool, 1, np.random.default_rng(0), likes_short)
    assert learner.step()
    assert learner.increments == 1
    assert not learner.step()


def test_a_few_outcomes_wait_no_longer_than_they_may(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    tiny_loop.generator().step()
    (pool,) = tiny_loop.pools()
    few, most_wait_ms = SMALL_LEARNER.few_outcomes, SMALL_LEARNER.most_wait_ms
    tiny_loop.serve(pool, few - 1, np.random.default_rng(0), likes_short)
    while learner.step():
        pass
    tiny_loop.clock.advance(most_wait_ms)
    assert not learner.step(), "fewer than a few wait on"
    tiny_loop.serve(pool, 1, np.random.default_rng(0), likes_short)
    assert learner.step()
    assert learner.increments == 1
    tiny_loop.serve(pool, few, np.random.default_rng(0), likes_short)
    while learner.step():
        pass
    tiny_loop.clock.advance(most_wait_ms - 1)
    assert not learner.step()
    tiny_loop.clock.advance(1)
    assert learner.step()
    assert learner.increments == 2
    # Which outcomes a version has read stands in its record.
    policies = policy_table(tiny_loop.log)
    policies.refresh()
    live = live_policy(policies)
    assert live is not None
    assert live.evidence["outcomes_to"] == f"0:{tiny_loop.log.end(TopicPartition('outcomes', 0))}"


def test_what_nothing_can_be_learnt_from_is_counted(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    lost = [
        outcome("a", campaign_id="deleted"),
        outcome("b", variant_id="unknown"),
        outcome("c", source="control", candidate=7),
    ]
    tiny_loop.log.append([Append("outcomes", each.decision_id, to_json(each)) for each in lost])
    assert learner.step()
    assert learner.unused_outcomes == 3
    assert learner.increments == 0
    # The watch for bait takes them all the same: were late conversions left out, the clicks before them would be bait.
    assert len(learner.sentinel.bait) == 2


@pytest.mark.parametrize(
    "drew",
    [
        {"candidate": 99},
        {"candidate": -1},
        {"candidate": 99, "probabilities": [1.0 / 100] * 100},
        {"candidate": 99, "probabilities": []},
        {"probabilities": [0.0] * 99},
        {"probabilities": [-0.5] * 99},
        {"probabilities": [1.5] * 99},
    ],
)
def test_a_draw_that_cannot_be_is_counted_and_taught_to_nobody(tiny_loop: Loop, drew: dict[str, Any]) -> None:
    learner = tiny_loop.learner()
    while tiny_loop.generator().step():
        pass
    (pool, *_) = tiny_loop.pools()
    at = next(at for at, text in enumerate(pool.candidates) if text.rejected is None)
    odd = {"pool_id": pool.pool_id, "candidate": at, "variant_id": pool.candidates[at].variant_id, **drew}
    tiny_loop.serve(pool, SMALL_LEARNER.min_outcomes, np.random.default_rng(0), likes_short)
    tiny_loop.log.append([Append("outcomes", "odd", to_json(outcome("odd", click=True, **odd)))])
    while learner.step():
        pass
    assert learner.unused_outcomes == 1
    assert learner.increments == 1
    assert "odd" not in learner.critic.buffer.entries


def test_what_cannot_be_read_stops_no_learning(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    shown = [
        outcome(f"k{at}", source="control", candidate=0, pool_id="", probabilities=[1.0])
        for at in range(SMALL_LEARNER.min_outcomes)
    ]
    bad = [b"{nonsense", b"{}", b"[" * 100_000, b"\xff"]
    topics = ("campaigns", "policies", "candidates", "outcomes")
    tiny_loop.log.append([Append(topic, "x", value) for topic in topics for value in bad])
    tiny_loop.log.append([Append("outcomes", each.decision_id, to_json(each)) for each in shown])
    assert learner.step()
    assert learner.increments == 1
    assert learner.bad_records == len(topics) * len(bad)


def test_controls_teach_the_critic_but_not_the_policy(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    shown = [
        outcome(f"k{at}", source="control", candidate=0, pool_id="", probabilities=[1.0], click=True, closed=True)
        for at in range(SMALL_LEARNER.min_outcomes)
    ]
    tiny_loop.log.append([Append("outcomes", each.decision_id, to_json(each)) for each in shown])
    assert learner.step()
    first, second = tiny_loop.store.versions()
    assert all(
        torch.equal(value, tensors(tiny_loop, first)[name]) for name, value in tensors(tiny_loop, second).items()
    )
    view = CriticView.from_bytes(tiny_loop.store.critic_bytes(second), second)
    control = Candidate("v0", dict(campaign().controls[0]))
    assert view.score(view.encode(campaign(), "all", [control]), {}).mean() > 0.1


def test_later_positions_teach_the_critic_alone(tiny_loop: Loop) -> None:
    # Their probabilities leave out what was drawn before them: no unbiased residual can be had from one of them alone.
    learner = tiny_loop.learner()
    tiny_loop.generator().step()
    (pool,) = tiny_loop.pools()
    shown = pool.candidates[0]
    for position in (0, 1):
        made = outcome(
            f"d{position}",
            pool_id=pool.pool_id,
            variant_id=shown.variant_id,
            position=position,
            probabilities=[1.0 / len(pool.candidates)] * len(pool.candidates),
        )
        tiny_loop.log.append([Append("outcomes", made.decision_id, to_json(made))])
    learner.step()
    assert set(learner.critic.buffer.entries) == {"d0", "d1"}
    assert learner._shelf.decisions(pool.pool_id) == ["d0"]


def test_the_kl_budget_holds_against_a_learning_rate_that_is_far_too_high(tiny_loop: Loop) -> None:
    budget = 0.5
    config = LearnerConfig(
        kl_budget=budget,
        min_outcomes=16,
        pools_per_increment=2,
        critic=CriticConfig(heads=6, steps=4),
        update=UpdateConfig(learning_rate=1e-2, passes=2),
    )
    learner = tiny_loop.learner(config)
    play(tiny_loop, learner, rounds=4)
    measured = [tiny_loop.store.manifest(version).facts["kl"] for version in tiny_loop.store.versions()]
    assert len(measured) >= 4
    assert all(isinstance(kl, float) and kl <= budget for kl in measured)


def test_what_was_skipped_cut_or_tempered_is_told_with_each_version(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner(
        dataclasses.replace(SMALL_LEARNER, update=dataclasses.replace(SMALL_LEARNER.update, clip=1e-9))
    )
    play(tiny_loop, learner, rounds=2)
    facts = tiny_loop.store.manifest(tiny_loop.store.versions()[-1]).facts
    assert isinstance(facts["clipped_steps"], int)
    assert facts["clipped_steps"] >= 1
    assert facts["skipped_steps"] == facts["tempered_steps"] == facts["bad_records"] == 0


def test_what_taught_nothing_is_told_with_each_version(tiny_loop: Loop) -> None:
    learner = tiny_loop.learner()
    reference = tiny_loop.store.manifest(tiny_loop.store.versions()[0]).facts
    assert reference["unused_outcomes"] == reference["stale_revisions"] == reference["evicted_decisions"] == 0
    learner.critic.buffer.capacity = 25
    play(tiny_loop, learner, rounds=1)
    late = to_json(outcome("d1", 2, click=True, closed=True, source="control", candidate=0))
    tiny_loop.log.append([Append("outcomes", "d1", late)])
    tiny_loop.log.append([Append("outcomes", "lost", to_json(outcome("lost", campaign_id="deleted")))])
    play(tiny_loop, learner, rounds=1)
    facts = tiny_loop.store.manifest(tiny_loop.store.versions()[-1]).facts
    assert (facts["unused_outcomes"], facts["stale_revisions"]) == (1, 1)
    assert facts["evicted_decisions"] == tiny_loop.served - 25


def test_without_a_base_the_critic_learns_alone(tiny_loop: Loop) -> None:
    tiny_loop.learner()
    tiny_loop.generator().step()
    (pool,) = tiny_loop.pools()
    alone_data = tiny_loop.data.parent / "alone"
    twin = copy_of(tiny_loop, alone_data, ("campaigns", "candidates"))
    learner = Learner(
        twin.log, twin.store, None, twin.clock, dataclasses.replace(SMALL_LEARNER, train_policy=False), alone_data
    )
    twin.serve(pool, 30, np.random.default_rng(1), likes_short)
    while learner.step():
        pass
    versions = twin.store.versions()
    assert len(versions) == 2
    assert CriticView.from_bytes(twin.store.critic_bytes(versions[-1]), "v").heads == 6
    learner.close()
    with pytest.raises(ValueError, match="base"):
        Learner(twin.log, twin.store, None, twin.clock, SMALL_LEARNER)
