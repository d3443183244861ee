"""The sampling distribution and its log-probabilities, in one place, so that what is logged is what was sampled
from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optimizer.types import Decode


def least_kept(scaled: Tensor, decode: Decode) -> Tensor:
    """The smallest value that is kept, float[..., 1], of logits [..., V] already divided by the temperature; -inf
    where nothing is cut."""
    size = scaled.shape[-1]
    if 0 < decode.top_k < size or decode.top_p < 1.0:
        # Only the likeliest are put in order: sorting a whole vocabulary at every position would cost more than the
        # model.
        ordered = scaled.topk(min(decode.top_k or size, size), dim=-1).values
        mass = ordered.softmax(dim=-1)
        kept = (mass.cumsum(dim=-1) - mass < decode.top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        least = ordered.gather(-1, kept - 1)
    else:
        least = scaled.new_full((*scaled.shape[:-1], 1), -math.inf)
    if decode.min_p > 0:
        least = torch.maximum(least, scaled.amax(dim=-1, keepdim=True) + math.log(decode.min_p))
    return least


def decoding_log_probs(logits: Tensor, decode: Decode, barred: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution that is really sampled from, of all tokens: the plain form. The loop uses
    `draw_tokens` and maths/positions.py, which say the same of the tokens that are drawn; tests hold them against this.

    Args:
      logits: float[..., V], unnormalised.
      barred: bool[V], tokens that can't be sampled; None bars none.
    Returns:
      float32[..., V]; -inf outside the kept set; exp sums to one.
    """
    scaled = _scaled(logits, decode, barred)
    if decode.top_k or decode.top_p < 1.0 or decode.min_p:
        scaled = scaled.masked_fill_(scaled < least_kept(scaled, decode), -torch.inf)
    return scaled.log_softmax(dim=-1)


def draw_tokens(
    logits: Tensor, decode: Decode, barred: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One draw from each row's distribution, by inverting the cumulative one: several times as fast as
    `torch.multinomial`.

    Args:
      logits: float[B, V]; at least one token of each row is not barred.
      barred: bool[V], tokens that can't be sampled; None bars none.
    Returns:
      int64[B, 1] tokens, never one of probability zero, and their log-probabilities float64[B].
    """
    scaled = _scaled(logits, decode, barred)
    above = scaled - scaled.amax(dim=-1, keepdim=True)
    # exp of -inf is many times as slow as of a number: what is left out is multiplied away instead. So is what has a
    # probability under e^-80, which no draw of 53 bits can reach.
    kept = (scaled >= least_kept(scaled, decode)).logical_and_(above > -80.0)
    # In double precision, so that the last tokens of a large vocabulary keep their mass.
    cumulative = above.clamp_(min=-80.0).exp().mul_(kept).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device, dtype=torch.float64)
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # The first token whose cumulative mass is above the draw: it has itself a positive one.
    token = torch.searchsorted(cumulative, below, right=True)
    return token, (above.gather(1, token).double() - total.log())[:, 0]


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """float32, a new tensor: the logits divided by the temperature. Raises ValueError for one that is not over 0."""
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, expected > 0; 1 samples as the model says")
    return logits.float() / temperature


def _scaled(logits: Tensor, decode: Decode, barred: Tensor | None) -> Tensor:
    scaled = at_temperature(logits, decode.temperature)
    return scaled if barred is None else scaled.masked_fill_(barred, -torch.inf)
