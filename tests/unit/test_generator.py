"""The generator: what it samples is judged and kept on record, not dropped; a bad version changes nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.ids import campaign_hash, variant_id
from optimizer.learning.base import load_policy
from optimizer.learning.policy import Cancelled, LanguagePolicy
from optimizer.learning.prompt import Prompt, build_prompt
from optimizer.learning.traffic import place_name
from optimizer.learning.view import CriticView
from optimizer.stream.log import Append
from optimizer.types import Campaign, PolicyRecord, Pool, Product, Rules, Slot, to_json
from serving.generator import FRESH_PREFIX, Generator, GeneratorConfig
from tests.learning_rig import SMALL_GENERATOR, Loop, campaign, open_loop


def no_warmth(_: Campaign, slots: Mapping[str, str]) -> str | None:
    return "warm" if any("warm" in text for text in slots.values()) else None


def nothing(_: Campaign, __: Mapping[str, str]) -> str | None:
    return "no"


@pytest.fixture
def loop(tiny_model_folder: Path, tmp_path: Path) -> Iterator[Loop]:
    campaigns = [campaign(segments=("all", "young"))]
    with closing(open_loop(tmp_path / "data", tiny_model_folder, campaigns=campaigns)) as made:
        made.learner()
        yield made


MANY = GeneratorConfig(samples=64, regrown=0, kept=2, most_surprise=1e9, decode=SMALL_GENERATOR.decode)


def test_before_the_first_version_it_writes_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    loop = open_loop(tmp_path / "data", tiny_model_folder, campaigns=[campaign()])
    generator = loop.generator()
    assert not generator.step()
    assert generator.fresh(campaign(), "all", lambda: False) is None
    assert loop.pools() == []


def test_each_segment_gets_one_pool_of_the_live_version(loop: Loop) -> None:
    generator = loop.generator()
    assert generator.step()
    assert not generator.step()
    pools = loop.pools()
    (version,) = loop.store.versions()
    assert [pool.segment for pool in pools] == ["all", "young"]
    for pool in pools:
        assert pool.policy_version == version
        assert pool.campaign_hash == campaign_hash(campaign())
        assert pool.decode == SMALL_GENERATOR.decode
        assert sum(candidate.count for candidate in pool.candidates) == SMALL_GENERATOR.samples
    assert len({pool.pool_id for pool in pools}) == 2
    # A second generator on the same log sees that there is nothing to do.
    assert not loop.generator(seed=1).step()


def test_what_cannot_be_read_stops_no_writing(loop: Loop) -> None:
    bad = [b"{nonsense", b"{}", b"[" * 100_000, b"\xff"]
    topics = ("campaigns", "policies", "candidates")
    loop.log.append([Append(topic, "x", value) for topic in topics for value in bad])
    generator = loop.generator()
    assert generator.step()
    assert generator.sampled > 0


def test_duplicates_are_counted_and_names_filled_in(loop: Loop) -> None:
    generator = loop.generator(MANY)
    generator.step()
    pool = loop.pools()[0]
    assert sum(candidate.count for candidate in pool.candidates) == 64
    assert len({candidate.variant_id for candidate in pool.candidates}) == len(pool.candidates)
    texts = [candidate.text() for candidate in pool.candidates]
    assert len(set(texts)) == len(texts)
    assert any("Trail Runner 3" in text for text in texts)
    assert not any("[product]" in text for text in texts)
    for candidate in pool.candidates:
        assert candidate.variant_id == variant_id("c1", candidate.slots)
        assert candidate.token_ids
        assert candidate.embedding is not None


def test_the_logged_probabilities_are_the_live_versions(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    pool = loop.pools()[1]
    prompts = [build_prompt(campaign(segments=("all", "young")), "young")] * len(pool.candidates)
    with torch.no_grad():
        scored = generator.policy.score(prompts, [candidate.token_ids for candidate in pool.candidates], pool.decode)
    logged = [sum(map(sum, candidate.log_probs)) for candidate in pool.candidates]
    np.testing.assert_allclose(scored.log_prob.double().numpy(), logged, atol=1e-4)


def test_what_the_gate_refuses_is_marked_and_not_dropped(loop: Loop) -> None:
    loop.gate = no_warmth
    generator = loop.generator(MANY)
    generator.step()
    for pool in loop.pools():
        warm = [candidate for candidate in pool.candidates if "warm" in candidate.text()]
        assert warm
        assert all(candidate.rejected in ("warm", "unfinished") for candidate in warm)
        assert all(candidate.token_ids and candidate.log_probs for candidate in warm)
        assert any(candidate.rejected is None for candidate in pool.candidates)
    marked = [candidate.rejected for pool in loop.pools() for candidate in pool.candidates if candidate.rejected]
    assert generator.rejected == {reason: marked.count(reason) for reason in set(marked)}
    assert generator.sampled == sum(len(pool.candidates) for pool in loop.pools())


def test_a_pool_in_which_nothing_passes_is_tried_again_a_few_times(loop: Loop) -> None:
    loop.gate = nothing
    generator = loop.generator()
    generator.step()
    pool = loop.pools()[0]
    assert all(candidate.rejected for candidate in pool.candidates)
    assert sum(candidate.count for candidate in pool.candidates) == SMALL_GENERATOR.samples * SMALL_GENERATOR.attempts
    assert generator.sampled == sum(len(each.candidates) for each in loop.pools())
    assert not generator.step()


def test_a_language_that_the_model_does_not_write_is_left_to_the_controls(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    german, british = campaign("c1", language="de-AT"), campaign("c2", language="EN-gb")
    with closing(open_loop(tmp_path / "data", tiny_model_folder, campaigns=[german, british])) as loop:
        loop.learner()
        loop.base = dataclasses.replace(loop.base, language="en")
        generator = loop.generator()
        while generator.step():
            pass
        assert [pool.campaign_id for pool in loop.pools()] == ["c2"]
        assert generator.fresh(german, "all", lambda: False) is None
        assert generator.fresh(british, "all", lambda: False) is not None
        said = [record.getMessage() for record in caplog.records if "c1" in record.getMessage()]
        assert len(said) == 1, "told once, not ten times a second"
        assert "language de-AT" in said[0]
        # A model that somebody brought may write anything.
        loop.base = dataclasses.replace(loop.base, language=None)
        assert loop.generator().step()
        assert {pool.campaign_id for pool in loop.pools()} == {"c1", "c2"}


def test_a_text_that_is_a_control_is_not_offered(loop: Loop, tiny_model_folder: Path, tmp_path: Path) -> None:
    loop.generator(MANY).step()
    text = max(loop.pools()[0].candidates, key=lambda candidate: candidate.count)
    assert text.rejected is None
    # The same samples once more, for a campaign that has that text among its controls.
    controls = campaign(segments=("all", "young"), controls=(text.slots,))
    twin = open_loop(tmp_path / "twin", tiny_model_folder, campaigns=[controls])
    twin.learner()
    twin.generator(MANY).step()
    found = [c for c in twin.pools()[0].candidates if c.variant_id == text.variant_id]
    twin.close()
    assert [(candidate.rejected, candidate.count) for candidate in found] == [("control", text.count)]


def publish(loop: Loop, change: float, traffic: dict[str, float] | None = None) -> str:
    """A new live version: the reference's weights moved by `change`, its critic with this traffic."""
    reference = loop.store.versions()[0]
    moved = {name: value.detach() + change for name, value in load_policy(loop.base).trainable().items()}
    critic = CriticView.from_bytes(loop.store.critic_bytes(reference), reference)
    told = CriticView(critic._ids, critic._outputs, {"traffic": traffic or {}}).to_bytes()
    manifest = loop.store.publish(moved, told, parent=reference, base=loop.base.digest, created_ts=0, facts={})
    record(loop, manifest.version)
    return manifest.version


def record(loop: Loop, version: str) -> None:
    made = PolicyRecord(version, "", None, "", "live", 0)
    loop.log.append([Append("policies", version, to_json(made))])


def test_a_new_version_gets_new_pools_that_carry_the_best_texts_over(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    # What was written for one segment may be carried over to another.
    offered = {c.variant_id for pool in loop.pools() for c in pool.candidates if c.rejected is None}
    version = publish(loop, 0.0005)
    assert generator.step()
    after = loop.pools()[2:]
    assert {pool.policy_version for pool in after} == {version}
    for pool in after:
        kept = [candidate for candidate in pool.candidates if candidate.kept]
        assert 0 < len(kept) <= SMALL_GENERATOR.kept
        for candidate in kept:
            assert candidate.variant_id in offered
            assert (candidate.count, candidate.token_ids, candidate.log_probs) == (0, (), ())
        variants = [candidate.variant_id for candidate in pool.candidates]
        assert len(set(variants)) == len(variants)


def test_places_with_impressions_are_written_for_first(loop: Loop) -> None:
    made = campaign(segments=("all", "young"))
    generator = loop.generator(dataclasses.replace(SMALL_GENERATOR, pools_per_step=1, rest_ms=0))
    while generator.step():
        pass
    written: list[str] = []
    for at in range(22):
        loop.clock.advance(60_000)
        publish(loop, 0.0001 * (at + 1), {place_name(made, "young"): 1.0})
        assert generator.step()
        written.append(loop.pools()[-1].segment)
    # Equal turns would be eleven each; who has no impressions has a turn in twenty, and is not forgotten.
    assert 1 <= written.count("all") <= 3
    assert written[0] == "young"


def test_texts_are_grown_from_promising_beginnings_and_are_no_samples(loop: Loop) -> None:
    config = GeneratorConfig(samples=8, regrown=16, parents=4, kept=0, most_surprise=1e9, decode=SMALL_GENERATOR.decode)
    generator = loop.generator(config)
    generator.step()
    first = [candidate for pool in loop.pools() for candidate in pool.candidates]
    assert not any(candidate.kept for candidate in first)
    publish(loop, 0.0005)
    assert generator.step()
    starts = {c.token_ids[0][0] for c in first if c.rejected is None}
    new = 0
    for pool in loop.pools()[2:]:
        grown = [candidate for candidate in pool.candidates if candidate.kept]
        assert grown
        assert len({candidate.variant_id for candidate in pool.candidates}) == len(pool.candidates)
        assert sum(candidate.count for candidate in pool.candidates) == config.samples
        for text in grown:
            assert (text.count, text.log_probs, text.embedding, text.rejected) == (0, (), None, None)
            assert text.token_ids[0][0] in starts
        new += len({text.variant_id for text in grown} - {text.variant_id for text in first})
    assert new


def test_a_text_that_the_reference_finds_unlikely_is_refused_and_no_other(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[tuple[int, ...], ...]] = set()

    def surprise(
        self: object, prompts: object, token_ids: list[tuple[tuple[int, ...], ...]], decode: object
    ) -> list[float]:
        asked.update(token_ids)
        return [7.0 if odd(ids) else 5.0 for ids in token_ids]

    def odd(ids: tuple[tuple[int, ...], ...]) -> bool:
        return sum(ids[0]) % 2 == 1

    monkeypatch.setattr(LanguagePolicy, "surprise", surprise)
    config = GeneratorConfig(samples=64, regrown=16, parents=4, kept=0, most_surprise=6.0, decode=MANY.decode)
    generator = loop.generator(config)
    generator.step()
    publish(loop, 0.0005)
    generator.step()
    reasons = set()
    for pool in loop.pools():
        for text in pool.candidates:
            reasons.add(text.rejected)
            if text.token_ids in asked and text.rejected != "control":
                assert text.rejected == ("unlikely" if odd(text.token_ids) else None)
            # Who is refused otherwise is not asked about.
            assert (text.token_ids in asked) == (text.rejected in (None, "unlikely", "control"))
    assert {None, "unlikely"} <= reasons
    # Refused as samples; a text that only grew is left out.
    assert not any(odd(c.token_ids) for pool in loop.pools()[2:] for c in pool.candidates if c.kept)


def test_a_text_is_cut_inside_of_it(loop: Loop) -> None:
    generator, text = loop.generator(), ((1, 2, 3), (4, 5))
    cuts = {generator._cut(text) for _ in range(200)}
    assert cuts == {((1,),), ((1, 2),), ((1, 2, 3), ()), ((1, 2, 3), (4,))}


def test_a_text_that_the_gate_has_come_to_refuse_is_not_carried_over(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    publish(loop, 0.0005)
    generator._gate = nothing
    assert generator.step()
    assert not any(candidate.kept for pool in loop.pools()[2:] for candidate in pool.candidates)


@pytest.mark.parametrize("spoil", ["policy", "critic", "missing", "unknown"])
def test_a_bad_version_keeps_the_old_one_and_is_said_once(
    loop: Loop, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    generator = loop.generator()
    generator.step()
    good = loop.store.versions()[0]
    if spoil == "unknown":
        bad = "000001-abcdefabcdef"
        record(loop, bad)
    else:
        bad = publish(loop, 0.001)
        path = loop.store.root / bad / ("critic.safetensors" if spoil == "critic" else "policy.safetensors")
        if spoil == "missing":
            path.unlink()
        else:
            path.write_bytes(b"\x80\x04" + path.read_bytes()[2:])
    weights = {name: value.clone() for name, value in generator.policy.trainable().items()}
    with caplog.at_level(logging.WARNING):
        assert not generator.step()
        assert not generator.step()
    assert [entry.getMessage().count(bad) for entry in caplog.records] == [1]
    assert generator.policy.version == good
    assert all(torch.equal(weights[name], value) for name, value in generator.policy.trainable().items())
    better = publish(loop, 0.0)
    assert generator.step()
    assert loop.pools()[-1].policy_version == better


def test_a_changed_campaign_gets_new_pools_and_a_deleted_one_none(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    loop.put(campaign(segments=("all", "young"), audience="hikers"))
    assert generator.step()
    assert len(loop.pools()) == 4
    assert not any(candidate.kept for pool in loop.pools()[2:] for candidate in pool.candidates)
    loop.log.append([Append("campaigns", "default/c1", None)])
    publish(loop, 0.0)
    assert not generator.step()
    assert len(loop.pools()) == 4


def delete(loop: Loop, name: str = "c1") -> None:
    loop.log.append([Append("campaigns", f"default/{name}", None)])


def held(generator: Generator) -> set[str]:
    """The campaigns of which the generator holds pools, after another look at the log."""
    assert not generator.step()
    return {campaign_id for _, campaign_id, _ in generator._pools}


def test_pools_of_a_deleted_campaign_are_let_go(loop: Loop) -> None:
    loop.put(campaign("c2"))
    generator = loop.generator()
    assert generator.step()
    assert held(generator) == {"c1", "c2"}
    delete(loop)
    assert held(generator) == {"c2"}
    # Whoever reads the log anew meets the pools after the deletion; so does one that was written during it.
    late = loop.pools()[0]
    loop.log.append([Append("candidates", "late", to_json(late))])
    for each in (generator, loop.generator(seed=1)):
        held(each)
        assert held(each) == {"c2"}


@pytest.mark.parametrize("seen", [True, False], ids=["in-between", "at-once"])
def test_a_campaign_that_is_put_again_gets_pools_anew(loop: Loop, seen: bool) -> None:
    """Serving lets its pools go once it has seen the deletion, also where the generator was at work meanwhile."""
    generator = loop.generator()
    assert generator.step()
    delete(loop)
    if seen:
        assert held(generator) == set()
    loop.put(campaign(segments=("all", "young")))
    assert generator.step()
    assert not generator.step()
    before, after = loop.pools()[:2], loop.pools()[2:]
    assert [pool.segment for pool in after] == ["all", "young"]
    assert {pool.campaign_hash for pool in before} == {pool.campaign_hash for pool in after}


def test_what_a_campaign_asks_for_is_told_once_from_each_of_its_records(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts were read again, and every campaign hashed, ten times a second where there was nothing to do."""
    asked: list[str] = []

    def noted(campaign: Campaign) -> str:
        asked.append(campaign.campaign_id)
        return campaign_hash(campaign)

    fits = LanguagePolicy.fits

    def fitting(self: LanguagePolicy, prompt: Prompt) -> bool:
        asked.append("fits")
        return fits(self, prompt)

    loop.put(campaign("c2"))
    generator = loop.generator()
    while generator.step():
        pass
    monkeypatch.setattr("serving.generator.campaign_hash", noted)
    monkeypatch.setattr(LanguagePolicy, "fits", fitting)
    assert not generator.step()
    assert asked == []
    loop.put(campaign("c2", audience="hikers"))
    assert generator.step()
    assert sorted(set(asked)) == ["c2", "fits"]
    assert asked.count("fits") == 1
    asked.clear()
    loop.clock.advance(SMALL_GENERATOR.rest_ms)
    publish(loop, 0.0005)
    while generator.step():
        loop.clock.advance(SMALL_GENERATOR.rest_ms)
    assert asked.count("fits") == 0
    asked.clear()
    assert not generator.step()
    assert asked == []


def test_where_approval_is_required_none_is_written(loop: Loop) -> None:
    loop.put(campaign(rules=Rules(require_approval=True)), campaign("c2"))
    generator = loop.generator()
    generator.step()
    assert {pool.campaign_id for pool in loop.pools()} == {"c2"}


def test_slots_that_the_model_has_no_room_for_do_not_stop_the_others(loop: Loop) -> None:
    huge = campaign("huge", slots=tuple(Slot(f"a-rather-long-name-{at}", 50) for at in range(30)))
    loop.put(huge, campaign("several", slots=(Slot("headline", 40), Slot("body", 40))))
    generator = loop.generator()
    assert generator.step()
    assert not generator.step()
    assert {pool.campaign_id for pool in loop.pools()} == {"c1", "several"}
    (two,) = [pool for pool in loop.pools() if pool.campaign_id == "several"]
    assert all(list(candidate.slots) == ["headline", "body"] for candidate in two.candidates)


def test_a_fresh_pool_is_for_one_request_alone(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    fresh = generator.fresh(campaign(segments=("all", "young")), "young", lambda: False)
    assert fresh is not None
    assert fresh.pool_id.startswith(FRESH_PREFIX)
    assert len(fresh.pool_id) <= 64
    assert loop.pools()[-1] == fresh
    assert not any(candidate.kept for candidate in fresh.candidates)
    assert not generator.step()


def test_what_the_model_has_no_room_for_gets_no_fresh_pool(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    long = campaign(product=Product(name="Run", facts=("every step is light and dry and warm " * 12,)))
    wide = campaign(slots=tuple(Slot(f"slot-{i}-" + "x" * 50) for i in range(16)))
    for one in (long, wide):
        assert generator.fresh(one, "all", lambda: False) is None
    assert len(loop.pools()) == 2


def test_a_fresh_pool_whose_caller_has_gone_is_not_written(loop: Loop) -> None:
    generator = loop.generator()
    generator.step()
    with pytest.raises(Cancelled):
        generator.fresh(campaign(), "all", lambda: True)
    assert len(loop.pools()) == 2


def test_the_same_seed_writes_the_same_pools(loop: Loop, tiny_model_folder: Path, tmp_path: Path) -> None:
    twin = open_loop(tmp_path / "twin", tiny_model_folder, campaigns=[campaign(segments=("all", "young"))])
    twin.learner()
    for each in (loop, twin):
        each.generator(seed=4).step()
    assert loop.pools() == twin.pools()
    other = open_loop(tmp_path / "other", tiny_model_folder, campaigns=[campaign(segments=("all", "young"))])
    other.learner()
    other.generator(seed=5).step()
    assert texts(other.pools()[0]) != texts(loop.pools()[0])
    twin.close()
    other.close()


def texts(pool: Pool) -> list[str]:
    return [candidate.text() for candidate in pool.candidates]


def test_a_text_cut_off_by_its_limit_is_marked_unfinished(llama_model_folder: Path, tmp_path: Path) -> None:
    # Random weights hardly ever end a line.
    loop = open_loop(tmp_path / "data", llama_model_folder, campaigns=[campaign()])
    loop.learner()
    generator: Generator = loop.generator()
    generator.step()
    reasons = [candidate.rejected for candidate in loop.pools()[0].candidates]
    assert reasons.count("unfinished") >= len(reasons) // 2
    loop.close()
