"""The sampling distribution: temperature, top-k, top-p and barred tokens."""

from __future__ import annotations

import pytest
import torch

from optimizer.maths.decoding import decoding_log_probs, draw_tokens
from optimizer.types import Decode

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def kept(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    barred: torch.Tensor | None = None,
) -> list[int]:
    logs = decoding_log_probs(LOGITS, Decode(temperature, top_k, top_p, min_p), barred)
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    return [index for index, value in enumerate(logs.tolist()) if value > -torch.inf]


def test_plain_is_the_softmax() -> None:
    torch.testing.assert_close(decoding_log_probs(LOGITS, Decode(1.0, 0, 1.0)), LOGITS.log_softmax(-1))


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(decoding_log_probs(LOGITS, Decode(0.5, 0, 1.0)), (LOGITS * 2).log_softmax(-1))


def test_top_k_keeps_k_and_renormalises() -> None:
    assert kept(top_k=2) == [0, 1]
    torch.testing.assert_close(decoding_log_probs(LOGITS, Decode(1.0, 2, 1.0))[:2], LOGITS[:2].log_softmax(-1))
    assert kept(top_k=9) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    mass = LOGITS.softmax(-1).cumsum(-1)
    assert kept(top_p=float(mass[1]) - 0.001) == [0, 1]
    assert kept(top_p=float(mass[1]) + 0.001) == [0, 1, 2]
    # The likeliest token always stays.
    assert kept(top_p=1e-9) == [0]


def test_barred_tokens_take_no_part_in_the_decode() -> None:
    barred = torch.tensor([True, False, False, False, False])
    assert kept(top_k=2, barred=barred) == [1, 2]
    assert kept(top_p=0.01, barred=barred) == [1]


def test_each_row_of_a_batch_is_judged_by_itself() -> None:
    batch = torch.stack([LOGITS, LOGITS.flip(0)])
    logs = decoding_log_probs(batch, Decode(0.8, 3, 0.9))
    for row in range(2):
        torch.testing.assert_close(logs[row], decoding_log_probs(batch[row], Decode(0.8, 3, 0.9)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        decoding_log_probs(LOGITS, Decode(temperature))
    with pytest.raises(ValueError, match="temperature"):
        draw_tokens(LOGITS[None], Decode(temperature), None, torch.Generator())


def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest() -> None:
    ratio = float((LOGITS[2] - LOGITS[0]).exp())
    assert kept(min_p=ratio * 1.001) == [0, 1]
    assert kept(min_p=ratio * 0.999) == [0, 1, 2]
    # The likeliest of those that may be drawn is the measure.
    assert kept(min_p=0.99, barred=torch.tensor([True, False, False, False, False])) == [1]


@pytest.mark.parametrize("decode", [Decode(), Decode(0.7, 3), Decode(1.2, 0, 0.8), Decode(min_p=0.2)])
def test_draws_follow_the_distribution_and_never_leave_it(decode: Decode) -> None:
    """8,000 draws, seeded; five standard deviations (false alarms: 6 values a case, under 4e-6), and no token of
    probability zero. The log-probabilities are those of the distribution."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -torch.inf, 9.0])
    barred = torch.tensor([False] * 6 + [True])
    exact = decoding_log_probs(logits, decode, barred)
    token, logs = draw_tokens(logits.repeat(8_000, 1), decode, barred, torch.Generator().manual_seed(3))
    assert token.shape == (8_000, 1)
    share, mass = torch.bincount(token[:, 0], minlength=7) / 8_000, exact.exp()
    assert bool((share[mass == 0] == 0).all())
    assert bool(((share - mass).abs() <= 5 * (mass * (1 - mass) / 8_000).sqrt()).all())
    torch.testing.assert_close(logs.float(), exact[token[:, 0]])
