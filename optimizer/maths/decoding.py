"""The sampling distribution and its log-probabilities, in one place, so that what is logged is what was sampled
from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Truncation(NamedTuple):
    """How a distribution over tokens is cut before one is drawn.

    `temperature` > 0 divides the logits. `top_k` keeps the k likeliest tokens (0: all). `top_p`: of those, the smallest
    set of likeliest tokens whose mass reaches it (Holtzman et al. 2020, section 3.1; 1: all). `min_p`: tokens at least
    that share as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082, section 3; 0: all); the only cut that
    needs no sorting."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def least_kept(scaled: Tensor, truncation: Truncation) -> Tensor:
    """The smallest value that is kept, float[..., 1], of logits [..., V] already divided by the temperature; -inf
    where nothing is cut."""
    size = scaled.shape[-1]
    if 0 < truncation.top_k < size or truncation.top_p < 1.0:
        # Only the likeliest are put in order: sorting a whole vocabulary at every position would cost more than the
        # model.
        ordered = scaled.topk(min(truncation.top_k or size, size), dim=-1).values
        mass = ordered.softmax(dim=-1)
        kept = (mass.cumsum(dim=-1) - mass < truncation.top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        least = ordered.gather(-1, kept - 1)
    else:
        least = scaled.new_full((*scaled.shape[:-1], 1), -math.inf)
    if truncation.min_p > 0:
        least = torch.maximum(least, scaled.amax(dim=-1, keepdim=True) + math.log(truncation.min_p))
    return least


def decoding_log_probs(logits: Tensor, truncation: Truncation, barred: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution that is really sampled from.

    Args:
      logits: float[..., V], unnormalised.
      barred: bool[V], tokens that can't be sampled; None bars none.
    Returns:
      float32[..., V]; -inf outside the kept set; exp sums to one.
    """
    if not truncation.temperature > 0:
        raise ValueError(f"temperature: got {truncation.temperature}, expected > 0")
    scaled = logits.float() / truncation.temperature
    if barred is not None:
        scaled = scaled.masked_fill_(barred, -torch.inf)
    if truncation.top_k or truncation.top_p < 1.0 or truncation.min_p:
        scaled = scaled.masked_fill_(scaled < least_kept(scaled, truncation), -torch.inf)
    return scaled.log_softmax(dim=-1)


def draw_tokens(
    logits: Tensor, truncation: Truncation, barred: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One draw from each row's distribution, by inverting the cumulative one: several times as fast as
    `torch.multinomial`.

    Args:
      logits: float[B, V]; at least one token of each row is not barred.
      barred: bool[V], tokens that can't be sampled; None bars none.
    Returns:
      int64[B, 1] tokens, never one of probability zero, and their log-probabilities float64[B].
    """
    scaled = logits.float() / truncation.temperature
    if barred is not None:
        scaled = scaled.masked_fill_(barred, -torch.inf)
    above = scaled - scaled.amax(dim=-1, keepdim=True)
    # exp of -inf is many times as slow as of a number: what is left out is multiplied away instead. So is what has a
    # probability under e^-80, which no draw of 53 bits can reach.
    kept = (scaled >= least_kept(scaled, truncation)).logical_and_(above > -80.0)
    # In double precision, so that the last tokens of a large vocabulary keep their mass.
    cumulative = above.clamp_(min=-80.0).exp().mul_(kept).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device, dtype=torch.float64)
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # The first token whose cumulative mass is above the draw: it has itself a positive one.
    token = torch.searchsorted(cumulative, below, right=True)
    return token, (above.gather(1, token).double() - total.log())[:, 0]
