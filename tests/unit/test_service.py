"""The service without HTTP: draws and logged probabilities, filters at the moment of serving, texts sampled afresh."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from optimizer.ids import variant_id
from optimizer.types import Campaign, Candidate, Pool, Scalar
from serving.problems import Problem
from serving.schemas import GenerateIn
from serving.service import FreshSampler
from serving.views import FRESH_PREFIX
from serving.wire import convert
from tests.serving_rig import CONTROLS, TENANT, TEXTS, Rig, decisions, make_policy, make_pool, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


class FixedCritic:
    """Two heads: one likes the first text, one the second; a mobile device turns the first one round to the third."""

    version = "critic-1"

    def encode(self, campaign: Campaign, segment: str, texts: tuple[Candidate, ...]) -> int:
        return len(texts)

    def score(self, features: int, context: Mapping[str, Scalar]) -> np.ndarray:
        scores = np.zeros((2, features))
        scores[0, 2 if context.get("device") == "mobile" else 0] = 1.0
        scores[1, 1] = 1.0
        return scores


def test_without_a_pool_the_controls_are_drawn_uniformly(rig: Rig) -> None:
    rig.put(controls=CONTROLS)
    answer = rig.generate()
    (variant,) = answer.variants
    assert (variant.source, variant.propensity) == ("control", 0.5)
    assert variant.text in {"Plain one", "Plain two"}
    (decision,) = decisions(rig)
    assert decision.probabilities == [0.5, 0.5]
    assert decision.context == {"segment": "all"}
    assert (decision.pool_id, decision.critic_version, decision.policy_version) == ("", "", answer.policy_version)
    assert decision.variant_id == variant_id("c1", {"headline": variant.text})


def test_the_decision_record_has_the_contracts_shape(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0), TEXTS)
    answer = rig.generate(context={"device": "mobile", "segment": "all"})
    record = json.loads(rig.records("decisions")[0])
    variant = answer.variants[0]
    assert record == {
        "schema": 1,
        "decision_id": variant.decision_id,
        "request_id": answer.request_id,
        "position": 0,
        "tenant": "default",
        "campaign_id": "c1",
        "context": {"device": "mobile", "segment": "all"},
        "pool_id": "p1",
        "candidate": TEXTS.index(variant.text),
        "variant_id": variant.variant_id,
        "propensity": 0.25,
        "probabilities": [0.25] * 4,
        "source": "pool",
        "policy_version": "v1",
        "critic_version": "",
        "ts": rig.clock.now_ms(),
        "reward": {"click": 1.0, "conversion": 0.0, "value": 0.0, "rating": 0.0},
        "attribution": {
            "click_window_ms": 1800000,
            "conversion_window_ms": 604800000,
            "view_through_ms": 0,
            "count": "first",
        },
    }


def test_the_token_carries_the_decision(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0), TEXTS)
    variant = rig.generate().variants[0]
    (decision,) = decisions(rig)
    claims = rig.keys.verify(variant.token)
    assert claims.matches(decision)
    assert claims.exp == -(-(decision.ts + 1_800_000 + 604_800_000 + 604_800_000) // 1000)


def test_every_propensity_is_the_probability_of_that_text_at_that_position(rig: Rig) -> None:
    """`count` draws from a pool: first (1 - holdback) x s, then conditional ones; all from the logged probabilities."""
    rig.views._load_critic = lambda _record: FixedCritic()
    rig.append("policies", "v1", make_policy("v1"))
    rig.add_pool(rig.put(holdback=0.2, controls=CONTROLS), TEXTS)
    seen: Counter[str] = Counter()
    for _ in range(60):
        answer = rig.generate(count=16)
        seen[answer.variants[0].source] += 1
        n = len(answer.variants)
        mine = [d for d in decisions(rig) if d.request_id == answer.request_id]
        assert [d.position for d in mine] == list(range(n))
        assert len({v.variant_id for v in answer.variants}) == n == (2 if mine[0].source == "control" else 4)
        share = 0.2 if mine[0].source == "control" else 0.8
        remaining = None
        for position, (decision, variant) in enumerate(zip(mine, answer.variants, strict=True)):
            p = np.array(decision.probabilities)
            assert p.sum() == pytest.approx(1.0)
            if remaining is not None:
                assert p == pytest.approx(remaining)
            factor = share if position == 0 else 1.0
            assert decision.propensity == variant.propensity == pytest.approx(factor * p[decision.candidate])
            left = np.delete(p, decision.candidate).sum()
            if position < n - 1:
                remaining = p / left
                remaining[decision.candidate] = 0.0
    assert set(seen) == {"pool", "control"}
    first = next(d for d in decisions(rig) if d.source == "pool" and d.position == 0)
    assert first.probabilities == pytest.approx([0.495, 0.495, 0.005, 0.005])
    assert first.critic_version == "critic-1"


def test_logged_propensities_match_frequencies(rig: Rig) -> None:
    """4,000 requests; false alarm by chance below 1e-6 for each of the two tests, seeded besides."""
    rig.views._load_critic = lambda _record: FixedCritic()
    rig.append("policies", "v1", make_policy("v1"))
    rig.add_pool(rig.put(holdback=0.25, controls=CONTROLS), TEXTS)
    requests = [convert({"campaign_id": "c1", "context": {"device": "mobile"}}, GenerateIn)] * 4000
    drawn = [answer.variants[0] for answer in rig.service.generate_many(TENANT, requests)]
    held = sum(variant.source == "control" for variant in drawn)
    assert binomtest(held, 4000, 0.25).pvalue > 1e-6
    counts = Counter(variant.text for variant in drawn)
    propensity = {variant.text: variant.propensity for variant in drawn}
    assert sum(propensity.values()) == pytest.approx(1.0)
    texts = sorted(propensity)
    expected = [4000 * propensity[text] for text in texts]
    assert chisquare([counts[text] for text in texts], expected).pvalue > 1e-6
    assert propensity["Run dry"] == pytest.approx(0.75 * 0.495)


def test_many_requests_at_once_are_those_one_by_one(tmp_path: Path) -> None:
    answers = []
    for name in ("one", "many"):
        rig = make_rig(tmp_path / name, seed=5)
        rig.add_pool(rig.put(controls=CONTROLS, holdback=0.3), TEXTS)
        requests = [convert({"campaign_id": "c1", "count": 1 + i % 3}, GenerateIn) for i in range(20)]
        if name == "many":
            answers.append(rig.service.generate_many(TENANT, requests))
        else:
            answers.append([rig.service.generate(TENANT, request) for request in requests])
        rig.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("holdback", [0.0, 1.0])
def test_holdback_at_its_ends(rig: Rig, holdback: float) -> None:
    rig.add_pool(rig.put(holdback=holdback), TEXTS)
    sources = {rig.generate().variants[0].source for _ in range(30)}
    assert sources == ({"control"} if holdback else {"pool"})


# -- filters at the moment of serving ---------------------------------------------------------------------------------


def served(rig: Rig) -> set[str]:
    return {variant.text for variant in rig.generate(count=16).variants}


def test_a_refused_candidate_a_control_and_a_repeat_are_never_shown(rig: Rig) -> None:
    campaign = rig.put(holdback=0.0, controls=CONTROLS)
    pool = make_pool(campaign, ["Run light", "Bad text", "Plain one", "Run light"])
    marked = list(pool.candidates)
    marked[1] = msgspec.structs.replace(marked[1], rejected="profanity")
    rig.append("candidates", "p1", msgspec.structs.replace(pool, candidates=tuple(marked)))
    assert served(rig) == {"Run light"}
    assert decisions(rig)[0].probabilities == [1.0, 0.0, 0.0, 0.0]


def test_a_rule_that_came_after_the_pool_holds(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0), TEXTS)
    assert served(rig) == set(TEXTS)
    rig.put(holdback=0.0, rules={"banned": ["FAR", "dr"]})
    assert served(rig) == {"Run light", "Run dry", "Run home"}


def test_a_gate_that_refuses_everything_leaves_the_controls(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, gate=lambda _campaign, _slots: "too_long")
    rig.add_pool(rig.put(), TEXTS)
    assert (rig.generate().variants[0].source, rig.generate().variants[0].propensity) == ("control", 1.0)
    rig.close()


def test_texts_that_need_approval_are_not_shown(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0, rules={"require_approval": True}), TEXTS)
    assert rig.generate().variants[0].source == "control"


def test_a_pool_for_an_edited_text_is_not_shown(rig: Rig) -> None:
    rig.add_pool(rig.put(holdback=0.0), TEXTS)
    rig.put(holdback=0.0, product={"name": "Trail Runner 4"})
    assert rig.generate().variants[0].source == "control"
    rig.put(holdback=0.1)
    assert {rig.generate().variants[0].source for _ in range(60)} == {"pool", "control"}


def test_the_newest_pool_of_a_version_that_is_not_rolled_back(rig: Rig) -> None:
    campaign = rig.put(holdback=0.0)
    for version in ("v1", "v2"):
        rig.append("policies", version, make_policy(version))
        rig.add_pool(campaign, [f"Text of {version}"], version=version, pool_id=version)
    assert rig.generate().policy_version == "v2"
    rig.append("policies", "v2", make_policy("v2", "rolled_back"))
    assert served(rig) == {"Text of v1"}


def test_pools_belong_to_their_segment_and_tenant(rig: Rig) -> None:
    campaign = rig.put(holdback=0.0, segments=["a", "b"])
    other = rig.put(holdback=0.0, segments=["a", "b"], tenant="other")
    rig.add_pool(campaign, ["For a"], segment="a", pool_id="pa")
    rig.add_pool(other, ["Theirs"], segment="b", pool_id="pb")
    assert rig.generate().variants[0].text == "For a"  # the first segment where none is named
    assert rig.generate(context={"segment": "b"}).variants[0].source == "control"
    assert rig.generate(tenant="other", context={"segment": "b"}).variants[0].text == "Theirs"


def test_a_deleted_campaign_serves_nothing(rig: Rig) -> None:
    rig.add_pool(rig.put(), TEXTS)
    rig.service.delete_campaign(TENANT, "c1")
    for act in (rig.generate, lambda: rig.service.delete_campaign(TENANT, "c1")):
        with pytest.raises(Problem) as refusal:
            act()
        assert refusal.value.status == 404


# -- fresh ------------------------------------------------------------------------------------------------------------


def test_fresh_samples_for_this_request_alone(rig: Rig) -> None:
    campaign = rig.put(holdback=0.0)

    def sample(_campaign: Campaign, segment: str, _cancelled: object) -> Pool:
        pool = make_pool(campaign, ["Sampled now"], pool_id=FRESH_PREFIX + "1", segment=segment, version="v7")
        rig.append("candidates", pool.pool_id, pool)
        return pool

    rig.service.fresh = sample
    answer = rig.generate(fresh=True)
    assert (answer.policy_version, answer.variants[0].source, answer.variants[0].text) == ("v7", "fresh", "Sampled now")
    assert decisions(rig)[0].pool_id == "fresh.1"
    assert rig.generate().variants[0].source == "control"


@pytest.mark.parametrize("sampler", [None, lambda *_: None])
def test_fresh_where_nothing_can_be_sampled_draws_from_the_controls(rig: Rig, sampler: FreshSampler | None) -> None:
    rig.put(controls=CONTROLS, holdback=0.3)
    rig.add_pool(rig.put(controls=CONTROLS, holdback=0.3), TEXTS)
    rig.service.fresh = sampler
    for _ in range(20):
        answer = rig.generate(fresh=True)
        (variant,) = answer.variants
        assert (variant.source, variant.propensity) == ("control", 1.0 / len(CONTROLS))
    assert {decision.source for decision in decisions(rig)} == {"control"}


def test_fresh_for_a_client_that_has_left_decides_nothing(rig: Rig) -> None:
    rig.put()
    rig.service.fresh = lambda *_: None
    with pytest.raises(Problem) as refusal:
        rig.service.generate(TENANT, GenerateIn("c1", fresh=True), None, lambda: True)
    assert refusal.value.status == 503
    assert decisions(rig) == []
