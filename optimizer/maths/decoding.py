"""The sampling distribution and its log-probabilities, in one place, so that what is logged is what was sampled
from."""

from __future__ import annotations

import torch
from torch import Tensor


def decoding_log_probs(
    logits: Tensor, temperature: float, top_k: int, top_p: float, barred: Tensor | None = None
) -> Tensor:
    """Log-probabilities of the distribution that is really sampled from.

    Args:
      logits: float[..., V], unnormalised.
      temperature: > 0; divides the logits.
      top_k: keeps the k likeliest tokens; 0 keeps all.
      top_p: of those, keeps the smallest set of likeliest tokens whose mass reaches top_p (Holtzman et al. 2020,
        section 3.1); 1 keeps all.
      barred: bool[V], tokens that can't be sampled; None bars none.
    Returns:
      float32[..., V]; -inf outside the kept set; exp sums to one.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, expected > 0")
    scaled = logits.float() / temperature
    if barred is not None:
        scaled = scaled.masked_fill(barred, -torch.inf)
    if 0 < top_k < scaled.shape[-1] or top_p < 1.0:
        # Only the likeliest are put in order: sorting a whole vocabulary at every position would cost more than the
        # model.
        ordered = scaled.topk(min(top_k or scaled.shape[-1], scaled.shape[-1]), dim=-1).values
        mass = ordered.softmax(dim=-1)
        kept = (mass.cumsum(dim=-1) - mass < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, kept - 1), -torch.inf)
    return scaled.log_softmax(dim=-1)


def drawn_tokens(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row, by inverting the cumulative distribution: several times as fast as `torch.multinomial`.

    Args:
      log_probs: float32[B, V]; at least one finite value in each row.
    Returns:
      int64[B, 1]; never a token of probability zero.
    """
    # In double precision, so that the last tokens of a large vocabulary keep their mass.
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
    uniform = torch.rand(len(log_probs), 1, generator=generator, device=log_probs.device, dtype=torch.float64)
    total = cumulative[:, -1:]
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # The first token whose cumulative mass is above the draw: it has itself a positive one.
    return torch.searchsorted(cumulative, below, right=True)
