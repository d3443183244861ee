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


def test_log_probs_of_drawn_tokens() -> None:
    logits = torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(COUNT) % 4
    wanted = decoding_log_probs(logits, Decode(0.8), BARRED).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(drawn_log_probs(logits, targets, 0.8, BARRED), wanted)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, SIZE)
    with pytest.raises(ValueError, match="shapes differ"):
        score_positions(logits, logits[:2], torch.zeros(3, dtype=torch.long), Decode(), BARRED)
