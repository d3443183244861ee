"""What a language model's logits say of the tokens that were drawn from them, with its gradient, in one pass.

Log-probability under the sampling distribution, exact KL divergence to a reference and entropy, position by position.
Written out by hand because the vocabulary is by far the largest axis: composed of library functions the same takes a
dozen passes over [P, V] in memory; here each block of positions stays in the processor's cache."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimizer.maths.decoding import least_kept
from optimizer.types import Decode

BLOCK = 128
# Stands in for -inf where differences are taken: its probability is 0 all the same.
NEVER = -1e9


class Positions(NamedTuple):
    """Of P positions, float32[P]: `log_prob` of the drawn token under the truncated distribution (-inf where it is
    outside), `kl` nats to the reference and `entropy` nats of the untruncated one. The first two are differentiable."""

    log_prob: Tensor
    kl: Tensor
    entropy: Tensor


def reference_log_probs(logits: Tensor, temperature: float, barred: Tensor) -> Tensor:
    """float32[P, V] of logits [P, V], finite: a barred token (bool[V]) has about `NEVER`. No gradient."""
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    with torch.no_grad():
        for start in range(0, len(logits), BLOCK):
            block = _scaled(logits[start : start + BLOCK], temperature, barred)
            torch.log_softmax(block, dim=-1, out=out[start : start + BLOCK])
    return out


def drawn_log_probs(logits: Tensor, targets: Tensor, temperature: float, barred: Tensor) -> Tensor:
    """float32[P], log-probabilities of `targets` int64[P] under logits [P, V], untruncated. No gradient."""
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.no_grad():
        for start in range(0, len(logits), BLOCK):
            at = slice(start, start + BLOCK)
            block = _scaled(logits[at], temperature, barred)
            out[at] = block.gather(1, targets[at, None])[:, 0] - block.logsumexp(-1)
    return out


def score_positions(logits: Tensor, anchor: Tensor, targets: Tensor, decode: Decode, barred: Tensor) -> Positions:
    """Log-probability, divergence and entropy at each position.

    Args:
      logits: float[P, V].
      anchor: float32[P, V], from `reference_log_probs`.
      targets: int64[P], the drawn tokens.
      barred: bool[V], tokens that can't be sampled.
    """
    if logits.shape != anchor.shape or targets.shape != logits.shape[:1] or barred.shape != logits.shape[1:]:
        raise ValueError(f"shapes differ: {logits.shape}, {anchor.shape}, {targets.shape}, {barred.shape}")
    return Positions(*_Score.apply(logits, anchor, targets, decode, barred))


def _scaled(logits: Tensor, temperature: float, barred: Tensor) -> Tensor:
    return (logits.float() / temperature).masked_fill_(barred, NEVER)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, anchor: Tensor, targets: Tensor, decode: Decode, barred: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(logits)
        log_prob, kl, entropy = torch.empty(3, count, dtype=torch.float32, device=logits.device)
        normal, least, mass = torch.empty(3, count, 1, dtype=torch.float32, device=logits.device)
        for start in range(0, count, BLOCK):
            at = slice(start, start + BLOCK)
            z = _scaled(logits[at], decode.temperature, barred)
            normal[at] = z.logsumexp(-1, keepdim=True)
            least[at] = least_kept(z, decode)
            kept = z >= least[at]
            z -= normal[at]
            p = z.exp()
            mass[at] = (p * kept).sum(-1, keepdim=True)
            picked = z.gather(1, targets[at, None])
            inside = kept.gather(1, targets[at, None])
            log_prob[at] = torch.where(inside, picked - mass[at].log(), -math.inf)[:, 0]
            entropy[at] = -torch.linalg.vecdot(p, z)
            kl[at] = torch.linalg.vecdot(p, z - anchor[at])
        ctx.save_for_backward(logits, anchor, targets, barred, normal, least, mass, kl)
        ctx.temperature = decode.temperature
        ctx.mark_non_differentiable(entropy)
        return log_prob, kl, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d log_prob / dz = 1{target} - p 1{kept} / mass;  d kl / dz = p (log p - anchor - kl)."""
        logits, anchor, targets, barred, normal, least, mass, kl = ctx.saved_tensors
        by_log_prob, by_kl = grads[0][:, None], grads[1][:, None]
        out = torch.empty_like(logits)
        for start in range(0, len(logits), BLOCK):
            at = slice(start, start + BLOCK)
            z = _scaled(logits[at], ctx.temperature, barred)
            kept = z >= least[at]
            z -= normal[at]
            p = z.exp()
            slope = z.sub_(anchor[at]).sub_(kl[at, None]).mul_(by_kl[at])
            slope.sub_(kept * (by_log_prob[at] / mass[at])).mul_(p)
            slope.scatter_add_(1, targets[at, None], by_log_prob[at])
            out[at] = slope.div_(ctx.temperature)
        return out, None, None, None, None
