"""Scores of drawn tokens and their hand-written gradient, against what library functions compose."""

from __future__ import annotations

import pytest
import torch

from optimizer.maths.decoding import decoding_log_probs
from optimizer.maths.positions import BLOCK, drawn_log_probs, reference_log_probs, score_positions
from optimizer.types import Decode

SIZE = 11
COUNT = BLOCK + 5
BARRED = torch.arange(SIZE) == 4
TRUNCATIONS = [Decode(), Decode(0.7, 4), Decode(1.3, 0, 0.8), Decode(0.8, 6, 0.9, 0.1)]


def composed(
    logits: torch.Tensor, first: torch.Tensor, targets: torch.Tensor, decode: Decode
) -> tuple[torch.Tensor, ...]:
    drawn = decoding_log_probs(logits, decode, BARRED).gather(1, targets[:, None])[:, 0]
    plain = Decode(decode.temperature)
    allowed = torch.nonzero(~BARRED)[:, 0]
    logs = decoding_log_probs(logits, plain, BARRED)[:, allowed]
    anchor = decoding_log_probs(first, plain, BARRED)[:, allowed]
    return drawn, (logs.exp() * (logs - anchor)).sum(-1), -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("decode", TRUNCATIONS, ids=str)
def test_values_and_gradient_are_those_of_the_composed_functions(decode: Decode) -> None:
    made = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(COUNT, SIZE, generator=made)).requires_grad_()
    first = 2 * torch.randn(COUNT, SIZE, generator=made)
    targets = torch.randint(0, 4, (COUNT,), generator=made)
    by_log_prob, by_kl = torch.randn(2, COUNT, generator=made)
    found = score_positions(logits, reference_log_probs(first, decode.temperature, BARRED), targets, decode, BARRED)
    wanted = composed(logits, first, targets, decode)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

    def gradient(log_prob: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
        reached = torch.where(torch.isfinite(log_prob), log_prob, torch.zeros_like(log_prob))
        return torch.autograd.grad((by_log_prob * reached + by_kl * kl).sum(), logits)[0]

    torch.testing.assert_close(gradient(*found[:2]), gradient(*wanted[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decode", TRUNCATIONS, ids=str)
def test_without_a_reference_the_rest_is_the_same_and_the_divergence_0(decode: Decode) -> None:
    made = torch.Generator().manual_seed(4)
    logits = (2 * torch.randn(COUNT, SIZE, generator=made)).requires_grad_()
    targets = torch.randint(0, 4, (COUNT,), generator=made)
    beside = score_positions(logits, reference_log_probs(logits, decode.temperature, BARRED), targets, decode, BARRED)
    alone = score_positions(logits, None, targets, decode, BARRED)
    assert torch.equal(alone.log_prob, beside.log_prob)
    assert torch.equal(alone.entropy, beside.entropy)
    assert not alone.kl.any()
    mine, theirs = (
        torch.autograd.grad(torch.nan_to_num(one.log_prob, neginf=0.0).sum(), logits)[0] for one in (alone, beside)
    )
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("decode", [Decode(1.0, 2), Decode(1.0, 0, 0.5), Decode(1.0, 0, 1.0, 0.9394)], ids=str)
def test_a_token_that_rounding_put_below_the_cut_is_still_possible(dtype: torch.dtype, decode: Decode) -> None:
    """It was above when it was drawn: the same weights give logits that differ in their last places. A token that is
    further below is out, and has no gradient."""
    logits = torch.full((2, SIZE), -4.0, dtype=dtype)
    logits[:, 0], logits[:, 1] = 5.0, 4.9375
    # Two tokens make the cut; the third is next to it.
    logits[0, 2] = 4.9375 * (1 - 2 * torch.finfo(dtype).eps)
    logits[1, 2] = 4.9375 * (1 - 60 * torch.finfo(dtype).eps)
    logits.requires_grad_()
    targets = torch.tensor([2, 2])
    found = score_positions(logits, reference_log_probs(logits, 1.0, BARRED), targets, decode, BARRED)
    p = logits[0, :3].detach().float().softmax(0)
    assert float(found.log_prob[0].detach()) == pytest.approx(float(p[2].log()), abs=1e-5)
    assert float(found.log_prob[1].detach()) == -torch.inf
    (slope,) = torch.autograd.grad(found.log_prob[0], logits)
    torch.testing.assert_close(slope[0, :3].float(), torch.tensor([0.0, 0.0, 1.0]) - p, atol=5e-3, rtol=0)
    assert slope[0, 3:].float().abs().max() == 0


def test_log_probs_of_drawn_tokens() -> None:
    logits = torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(COUNT) % 4
    wanted = decoding_log_probs(logits, Decode(0.8), BARRED).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(drawn_log_probs(logits, targets, 0.8, BARRED), wanted)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, SIZE)
    with pytest.raises(ValueError, match="shapes differ"):
        score_positions(logits, logits[:2], torch.zeros(3, dtype=torch.long), Decode(), BARRED)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    logits, targets = torch.zeros(3, SIZE), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="temperature"):
        score_positions(logits, None, targets, Decode(temperature), BARRED)
    with pytest.raises(ValueError, match="temperature"):
        reference_log_probs(logits, temperature, BARRED)
    with pytest.raises(ValueError, match="temperature"):
        drawn_log_probs(logits, targets, temperature, BARRED)
