"""The step towards the critic's favourites: which texts, with which weights, and what it does to the policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.ids import campaign_hash, variant_id
from optimizer.learning.archive import Archive
from optimizer.learning.base import load_policy
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.favourites import WHOLE, Favourites, FavouritesConfig, Turns, favourites, follow
from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.prompt import build_prompt
from optimizer.types import Campaign, Candidate, Decode, Pool
from tests.learning_rig import campaign, settle

CONFIG = FavouritesConfig(texts=4, effective=2.0, best=6, least=3)
FREE = FavouritesConfig(clip=1e9)


def drawn(policy: LanguagePolicy, made: Campaign, count: int) -> list[Candidate]:
    """Distinct texts of the policy's own."""
    generator = torch.Generator().manual_seed(1)
    samples = policy.sample([build_prompt(made, "all")], count, Decode(), generator)[0]
    texts = {str(one.slots): one for one in samples if one.finished}.values()
    return [
        Candidate(variant_id(made.campaign_id, one.slots), one.slots, token_ids=one.token_ids, log_probs=one.log_probs)
        for one in texts
    ]


def critic_that_likes(made: Campaign, texts: list[Candidate], liked: set[int]) -> Critic:
    critic = Critic(CriticConfig(heads=8, steps=10))
    for at, text in enumerate(texts):
        critic.add_counts(made, {}, text.variant_id, text.slots, 200, 100 if at in liked else 2)
    for _ in range(20):
        critic.fit()
    return critic


@pytest.fixture
def policy(tiny_model_folder: Path, tmp_path: Path) -> LanguagePolicy:
    return load_policy(settle(tmp_path, tiny_model_folder))


def archive_of(made: Campaign, texts: list[Candidate]) -> Archive:
    archive = Archive()
    archive.add(Pool("p", made.tenant, made.campaign_id, "all", "v", campaign_hash(made), tuple(texts), Decode(), 0))
    return archive


def test_every_place_has_its_turn() -> None:
    turns = Turns()
    some = [campaign(f"c{at}", segments=("all", "young")) for at in range(3)]
    dealt = [(one.campaign_id, segment) for _ in range(3) for one, segment in turns.next(some, 4, {})]
    assert sorted(dealt) == sorted([(f"c{at}", s) for at in range(3) for s in ("all", "young")] * 2)
    # No place twice in one step, and none that has gone.
    assert len(turns.next(some[:1], 4, {})) == 2
    assert turns.next([], 4, {}) == []


def test_the_critics_favourites_are_found_and_weighted(policy: LanguagePolicy) -> None:
    made = campaign()
    texts = drawn(policy, made, 40)
    view = critic_that_likes(made, texts, {3, 7}).view()
    found = favourites(view, archive_of(made, texts), made, "all", CONFIG)
    assert found is not None
    assert {found.token_ids[0], found.token_ids[1]} == {texts[3].token_ids, texts[7].token_ids}
    assert len(found.token_ids) == CONFIG.texts
    assert found.weights.sum() == pytest.approx(1.0)
    assert found.weights[:2].sum() > 0.8
    assert (np.diff(found.weights) <= 0).all()


def test_a_place_with_few_texts_waits(policy: LanguagePolicy) -> None:
    made = campaign()
    texts = drawn(policy, made, 40)
    view = critic_that_likes(made, texts, {0}).view()
    assert favourites(view, archive_of(made, texts[:2]), made, "all", CONFIG) is None
    # Texts that serving brought back are no samples: they have no tokens.
    bare = [Candidate(text.variant_id, text.slots) for text in texts]
    assert favourites(view, archive_of(made, bare), made, "all", CONFIG) is None


def log_probs(policy: LanguagePolicy, made: Campaign, texts: list[Candidate]) -> np.ndarray:
    prompt = build_prompt(made, "all")
    scored = policy.score([prompt] * len(texts), [text.token_ids for text in texts], WHOLE)
    return scored.log_prob.detach().numpy()


def test_a_step_makes_the_favourites_likelier_and_the_penalty_holds_it_back(policy: LanguagePolicy) -> None:
    made = campaign()
    texts = drawn(policy, made, 40)
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    some = [Favourites(build_prompt(made, "all"), [texts[0].token_ids, texts[1].token_ids], np.array([0.7, 0.3]))]
    start = log_probs(policy, made, texts[:2])
    gained = {}
    for weight in (0.0, 50.0):
        policy.put(before)
        optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=3e-3)
        assert sum(follow(policy, optimizer, some, weight, CONFIG) for _ in range(8)) == 0
        gained[weight] = float((log_probs(policy, made, texts[:2]) - start) @ some[0].weights)
    assert gained[0.0] > 1.0
    assert gained[50.0] < 0.5 * gained[0.0]


@pytest.mark.parametrize("turn", [0, 1])
def test_of_many_texts_every_second_is_compared_and_stands_for_its_place(policy: LanguagePolicy, turn: int) -> None:
    made = campaign()
    prompt = build_prompt(made, "all")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the reference, so that there is a divergence
        for value in policy.trainable().values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.02)
    tokens = [one.token_ids for one in policy.sample([prompt], 2 * FREE.least_compared, WHOLE, generator)[0]]
    # Two places, and one with a single text.
    parts = [tokens[:15], tokens[15:-1], tokens[-1:]]
    weights = [np.random.default_rng(1).dirichlet(np.ones(len(part))) for part in parts]
    parameters = policy.trainable()
    loss = torch.zeros(())
    for place, (part, own) in enumerate(zip(parts, weights, strict=True)):
        scored = policy.score([prompt] * len(part), part, WHOLE)
        weight = torch.tensor(own, dtype=torch.float32)
        beside = (torch.arange(len(part)) + place + turn) % 2 == 0 if len(part) > 1 else torch.ones(1, dtype=torch.bool)
        loss = loss + 5.0 * (weight * scored.kl)[beside].sum() / weight[beside].sum() - (weight * scored.log_prob).sum()
    expected = torch.autograd.grad(loss / 3, list(parameters.values()))
    still = torch.optim.SGD(list(parameters.values()), lr=0.0)
    some = [Favourites(prompt, part, own) for part, own in zip(parts, weights, strict=True)]
    assert follow(policy, still, some, 5.0, FREE, turn) == 0
    for (name, value), wanted in zip(parameters.items(), expected, strict=True):
        assert value.grad is not None
        torch.testing.assert_close(value.grad, wanted, rtol=1e-3, atol=3e-5 * float(wanted.abs().max()), msg=name)


def test_a_gradient_that_is_not_finite_is_skipped(policy: LanguagePolicy) -> None:
    made = campaign()
    text = drawn(policy, made, 10)[0]
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=1e-3)
    broken = [Favourites(build_prompt(made, "all"), [text.token_ids], np.array([np.nan]))]
    assert follow(policy, optimizer, broken, 0.1, CONFIG) == 1
    assert all(torch.equal(before[name], value) for name, value in policy.trainable().items())


def test_a_text_for_other_goods_is_no_favourite(policy: LanguagePolicy) -> None:
    made = campaign()
    texts = drawn(policy, made, 40)
    view = critic_that_likes(made, texts, {0}).view()
    archive = archive_of(made, texts)
    assert favourites(view, archive, campaign(audience="somebody else"), "all", CONFIG) is None
    assert favourites(view, archive, made, "all", CONFIG) is not None
