"""One policy-gradient step: the parameters' gradient is the estimator's, in small cases written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from optimizer.learning import base as base_module
from optimizer.learning.base import load_policy
from optimizer.learning.batches import which_compared
from optimizer.learning.policy import LanguagePolicy, Sample
from optimizer.learning.prompt import build_prompt
from optimizer.learning.update import PoolBatch, UpdateConfig, update_policy
from optimizer.maths.gradient import doubly_robust_factors
from optimizer.maths.weights import tempered
from optimizer.types import Candidate, Decode, Pool
from tests.learning_rig import campaign, settle

PLAIN = UpdateConfig(learning_rate=1e-3, passes=1, ratio_ceiling=np.inf, residual_cap=np.inf, clip=1e9)
PROMPT = build_prompt(campaign(), "all")
PLAIN_DECODE = Decode()


class Still(torch.optim.SGD):
    """An optimizer that never moves anything."""

    def step(self, closure: Any = None) -> Any:
        """Nothing."""


@pytest.fixture(params=["tiny", "llama", "lora"])
def policy(
    request: pytest.FixtureRequest, tiny_model_folder: Path, llama_model_folder: Path, tmp_path: Path
) -> LanguagePolicy:
    folder = tiny_model_folder if request.param == "tiny" else llama_model_folder
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "lora":
            patch.setattr(base_module, "WHOLE_PARAMETERS", 0)
        made = load_policy(settle(tmp_path, folder))
    # Away from the reference, so that there is a divergence and no adapter stands at zero.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in made.trainable().values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.02)
    return made


def samples(policy: LanguagePolicy, n: int, decode: Decode = PLAIN_DECODE) -> list[Sample]:
    return policy.sample([PROMPT], n, decode, torch.Generator().manual_seed(2))[0]


def batch(
    drawn: list[Sample],
    q: list[float],
    shown: list[int],
    rewards: list[float],
    selection: list[float],
    counts: list[int] | None = None,
    decode: Decode = PLAIN_DECODE,
    shift: float = 0.0,
    kept: int = 0,
) -> PoolBatch:
    """`shift` is taken from each sample's logged log-probability: a behaviour policy that is exp(shift) less likely."""
    candidates = [
        Candidate(
            variant_id=f"v{at}",
            slots=sample.slots,
            token_ids=sample.token_ids,
            log_probs=((*sample.log_probs[0][:-1], sample.log_probs[0][-1] - shift),),
            count=counts[at] if counts else 1,
        )
        for at, sample in enumerate(drawn)
    ]
    candidates += [Candidate(variant_id=f"k{at}", slots={"headline": "kept"}, count=0, kept=True) for at in range(kept)]
    pool = Pool("p", "default", "c1", "all", "v", "h", tuple(candidates), decode, 0)
    return PoolBatch(pool, PROMPT, np.array(q), np.array(shown, np.intp), np.array(rewards), np.array(selection))


def gradient_of(
    policy: LanguagePolicy,
    batches: list[PoolBatch],
    kl_weight: float = 0.0,
    scale: float = 1.0,
    config: UpdateConfig = PLAIN,
) -> dict[str, torch.Tensor]:
    """What update_policy hands to the optimizer; the parameters are left as they were."""
    update_policy(policy, Still(list(policy.trainable().values())), batches, kl_weight, scale, config)
    return {name: value.grad.clone() for name, value in policy.trainable().items() if value.grad is not None}


def autograd(policy: LanguagePolicy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = policy.trainable()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    gradients: list[torch.Tensor | None] = list(found)
    return {name: value for name, value in zip(parameters, gradients, strict=True) if value is not None}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-4
    for name, value in expected.items():
        # The ratio to what the sampler logged is off by the float32 rounding of each of a text's up to 96 tokens.
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=3e-5 * max(1.0, largest), msg=name)


def test_without_critic_and_with_one_sample_it_is_reinforce(policy: LanguagePolicy) -> None:
    (drawn,) = samples(policy, 1)
    log_prob = policy.score([PROMPT], [drawn.token_ids], Decode()).log_prob.sum()
    expected = autograd(policy, -0.7 * log_prob)
    assert_same(gradient_of(policy, [batch([drawn], [0.0], [0], [0.7], [1.0])]), expected)


def test_reinforce_off_policy_is_weighted_by_the_ratio(policy: LanguagePolicy) -> None:
    (drawn,) = samples(policy, 1)
    log_prob = policy.score([PROMPT], [drawn.token_ids], Decode()).log_prob.sum()
    off = batch([drawn], [0.0], [0], [1.0], [1.0], shift=1.0)
    assert_same(gradient_of(policy, [off]), autograd(policy, -np.e * log_prob))
    truncated = UpdateConfig(passes=1, ratio_ceiling=2.0, residual_cap=np.inf, clip=1e9)
    assert_same(gradient_of(policy, [off], config=truncated), autograd(policy, -2.0 * log_prob))


@pytest.mark.parametrize("decode", [Decode(), Decode(temperature=0.8), Decode(top_k=50)], ids=str)
def test_it_is_the_gradient_of_the_factors_times_log_probabilities(policy: LanguagePolicy, decode: Decode) -> None:
    drawn = samples(policy, 3, decode)
    q, counts = [0.2, 0.5, 0.1, 0.9], [2, 1, 1]
    made = batch(drawn, q, [1, 0, 3], [1.0, 0.0, 1.0], [0.3, 0.6, 0.1], counts, decode, kept=1)
    number = np.array([2.0, 1.0, 1.0, 0.0])
    factors = doubly_robust_factors(made.q, number, np.ones(4), made.shown, made.rewards, made.selection)
    scored = policy.score([PROMPT] * 3, [sample.token_ids for sample in drawn], decode)
    loss = -(torch.tensor(factors[:3], dtype=torch.float32) * scored.log_prob).sum()
    assert_same(gradient_of(policy, [made]), autograd(policy, loss))


def test_pools_are_averaged_and_the_penalty_is_the_mean_divergence_of_a_sample(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 4)
    one = batch(drawn[:2], [0.3, 0.1], [], [], [], [3, 1])
    two = batch(drawn[2:], [0.2, 0.8], [1], [1.0], [0.5])
    scored = policy.score([PROMPT] * 4, [sample.token_ids for sample in drawn], Decode())
    factors = np.concatenate(
        [
            doubly_robust_factors(each.q, np.array(counts, float), np.ones(2), each.shown, each.rewards, each.selection)
            for each, counts in ((one, [3, 1]), (two, [1, 1]))
        ]
    )
    reward = (torch.tensor(factors, dtype=torch.float32) * scored.log_prob).sum() / (2 * 0.25)
    penalty = (torch.tensor([3.0, 1.0, 1.0, 1.0]) / 6 * scored.kl).sum()
    got = gradient_of(policy, [one, two], kl_weight=0.4, scale=0.25)
    assert_same(got, autograd(policy, 0.4 * penalty - reward))


def test_every_second_sample_is_compared_with_the_reference_and_stands_for_all(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 7)
    counts = [3, 1, 2, 1, 1, 2, 1]
    made = batch(drawn, [0.3, 0.1, 0.2, 0.8, 0.4, 0.0, 0.6], [1, 2], [1.0, 1.0], [0.5, 0.2], counts)
    number = np.array(counts, float)
    factors = doubly_robust_factors(made.q, number, np.ones(7), made.shown, made.rewards, made.selection)
    scored = policy.score([PROMPT] * 7, [sample.token_ids for sample in drawn], Decode())
    reward = (torch.tensor(factors, dtype=torch.float32) * scored.log_prob).sum() / 0.25
    penalty = (torch.tensor(counts[::2]) * scored.kl[::2]).sum() / sum(counts[::2])
    half = replace(PLAIN, compare_every=2, least_compared=3, least_effective=0.0)
    assert_same(gradient_of(policy, [made], 0.4, 0.25, half), autograd(policy, 0.4 * penalty - reward))
    report = update_policy(policy, Still(list(policy.trainable().values())), [made], 0.4, 0.25, half)
    assert report.kl == pytest.approx(float(penalty.detach()), rel=1e-3)
    assert report.entropy == pytest.approx(float((torch.tensor(number) * scored.entropy).sum() / 11), rel=1e-3)
    few = replace(half, least_compared=4)
    of_all = (torch.tensor(number) * scored.kl).sum() / 11
    report = update_policy(policy, Still(list(policy.trainable().values())), [made], 0.4, 0.25, few)
    assert report.kl == pytest.approx(float(of_all.detach()), rel=1e-3)


@pytest.mark.parametrize("every", [1, 2])
def test_the_floor_of_effective_samples_is_of_those_that_are_compared(policy: LanguagePolicy, every: int) -> None:
    """Every second text is one that the present policy would hardly write: all others are near it."""
    drawn = samples(policy, 64)
    made = batch(drawn, [0.0] * 64, [0], [0.0], [1.0])
    unlikely = tuple(
        msgspec.structs.replace(one, log_probs=((one.log_probs[0][0] + 40.0, *one.log_probs[0][1:]),))
        if at % 2 == 0
        else one
        for at, one in enumerate(made.pool.candidates)
    )
    made = made._replace(pool=msgspec.structs.replace(made.pool, candidates=unlikely))
    config = UpdateConfig(compare_every=every)
    report = update_policy(policy, Still(list(policy.trainable().values())), [made], 0.1, 1.0, config)
    assert report.effective_sample_size == pytest.approx(32.0, rel=0.2)
    with torch.no_grad():
        kl = policy.score([PROMPT] * 64, [sample.token_ids for sample in drawn], Decode()).kl
    assert report.kl == pytest.approx(float(kl[1::2].mean() if every == 1 else kl[::2].mean()), rel=0.2)
    assert report.gradient_norm > 0.0


def test_what_the_reference_said_is_used_again(policy: LanguagePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = samples(policy, 6)
    made = batch(drawn, [0.1] * 6, [0], [1.0], [0.5])
    half = replace(PLAIN, compare_every=2, least_compared=2, passes=2)
    asked: list[bool] = []
    read = LanguagePolicy._read

    def counted(self: LanguagePolicy, rows: Any, reference: bool) -> Any:
        asked.append(reference)
        return read(self, rows, reference)

    monkeypatch.setattr(LanguagePolicy, "_read", counted)
    anchors: dict[object, Any] = {}
    for _ in range(2):
        update_policy(policy, Still(list(policy.trainable().values())), [made], 0.1, 1.0, half, anchors)
    assert asked.count(True) == 1
    assert asked.count(False) == 4


def test_one_in_so_many_is_compared_but_never_too_few() -> None:
    assert which_compared([6], 2, 3)[0].tolist() == [True, False] * 3
    assert which_compared([5], 2, 3)[0].all()
    assert which_compared([9], 3, 3)[0].tolist() == [True, False, False] * 3
    groups = [[False, True, False], [True, False, True], [True]]
    assert [one.tolist() for one in which_compared([3, 3, 1], 2, 3, turn=1)] == groups
    with pytest.raises(ValueError, match="every: got 0, expected 1 or more"):
        which_compared([4], 0, 1)


def test_pools_of_different_decodings_each_keep_their_own(policy: LanguagePolicy) -> None:
    hot, cold = Decode(temperature=1.5), Decode(temperature=0.7)
    first, second = samples(policy, 1, hot), samples(policy, 1, cold)
    logs = [
        policy.score([PROMPT], [drawn[0].token_ids], decode).log_prob.sum()
        for drawn, decode in ((first, hot), (second, cold))
    ]
    pools = [
        batch(first, [0.0], [0], [1.0], [1.0], decode=hot),
        batch(second, [0.0], [0], [0.5], [1.0], decode=cold),
    ]
    assert_same(gradient_of(policy, pools), autograd(policy, -(1.0 * logs[0] + 0.5 * logs[1]) / 2))


def test_the_cap_is_in_units_of_the_pools_size(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 2)
    capped = UpdateConfig(passes=1, ratio_ceiling=np.inf, residual_cap=1.0, clip=1e9)
    rare = batch(drawn, [0.0, 0.0], [0], [1.0], [0.01])
    as_if = batch(drawn, [0.0, 0.0], [0], [1.0], [0.5])
    assert_same(gradient_of(policy, [rare], config=capped), gradient_of(policy, [as_if]))


def test_a_pool_without_samples_teaches_nothing(policy: LanguagePolicy) -> None:
    pool = Pool(
        "p", "default", "c1", "all", "v", "h", (Candidate("k", {"headline": "x"}, count=0, kept=True),), Decode(), 0
    )
    only_kept = PoolBatch(pool, PROMPT, np.zeros(1), np.zeros(1, np.intp), np.ones(1), np.ones(1))
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=0.1)
    report = update_policy(policy, optimizer, [only_kept], 0.1, 1.0, PLAIN)
    assert report.sequences == 0
    assert all(torch.equal(before[name], value) for name, value in policy.trainable().items())


def test_one_sample_that_outweighs_all_others_is_tempered_and_counted(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 4)
    log_prob = policy.score([PROMPT] * 4, [one.token_ids for one in drawn], Decode()).log_prob
    q = [0.4, 0.1, 0.2, 0.3]
    pools = [batch(drawn[:1], q[:1], [], [], []), batch(drawn[1:], q[1:], [], [], [], shift=-3.0)]
    optimizer = Still(list(policy.trainable().values()))
    config = replace(PLAIN, ratio_floor=0.5)
    assert update_policy(policy, optimizer, pools, 0.0, 1.0, PLAIN).tempered == 0
    report = update_policy(policy, optimizer, pools, 0.0, 1.0, config)
    assert report.tempered == 4
    assert report.effective_sample_size == pytest.approx(2.0, rel=1e-3)
    weights = tempered(np.exp([0.0, -3.0, -3.0, -3.0]), 2.0)
    # Of each pool the mean over its samples of ratio x (q - the others' mean), and the mean of the pools.
    beside = np.array([0.4, *(np.array(q[1:]) - [0.25, 0.2, 0.15])])
    factors = torch.tensor(weights * beside * [0.5, 1 / 6, 1 / 6, 1 / 6], dtype=torch.float32)
    assert_same(gradient_of(policy, pools, config=config), autograd(policy, -(factors * log_prob).sum()))


def test_a_pool_counts_in_prices_of_its_campaign(policy: LanguagePolicy) -> None:
    cheap = batch(samples(policy, 2), [0.1, 0.2], [0], [1.0], [0.5])
    dear = cheap._replace(q=50.0 * cheap.q, rewards=50.0 * cheap.rewards, price=50.0)
    assert_same(gradient_of(policy, [dear]), gradient_of(policy, [cheap]))


def test_a_step_that_is_cut_is_counted(policy: LanguagePolicy) -> None:
    made = batch(samples(policy, 1), [0.0], [0], [1.0], [1.0])
    optimizer = Still(list(policy.trainable().values()))
    assert update_policy(policy, optimizer, [made], 0.0, 1.0, replace(PLAIN, clip=1e-6)).clipped == 1
    assert update_policy(policy, optimizer, [made], 0.0, 1.0, PLAIN).clipped == 0


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 1)
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=0.1)
    broken = batch(drawn, [0.0], [0], [np.nan], [1.0])
    assert update_policy(policy, optimizer, [broken], 0.0, 1.0, PLAIN).skipped == 1
    assert all(torch.equal(before[name], value) for name, value in policy.trainable().items())


def test_steps_raise_the_rewarded_text_and_report_their_divergence(policy: LanguagePolicy) -> None:
    drawn = samples(policy, 2)
    made = batch(drawn, [0.0, 0.0], [0, 1], [1.0, 0.0], [0.5, 0.5])

    def log_probs() -> list[float]:
        with torch.no_grad():
            return policy.score([PROMPT] * 2, [s.token_ids for s in drawn], Decode()).log_prob.tolist()

    before = log_probs()
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=3e-4)
    config = UpdateConfig(passes=8, clip=1.0, ratio_ceiling=2.0)
    report = update_policy(policy, optimizer, [made], 0.0, 1.0, config)
    assert log_probs()[0] > before[0] + 0.2
    assert report.kl > 0
    assert report.sequences == 2
    assert 0 < report.effective_sample_size <= 2 + 1e-6
