"""What a language model's logits say of the tokens that were drawn from them, with its gradient, in one pass.

Log-probability under the sampling distribution, exact KL divergence to a reference and entropy, position by position.
Written out by hand because the vocabulary is by far the largest axis: composed of library functions the same takes a
dozen passes over [P, V] in memory; here each block of positions stays in the processor's cache."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimizer.maths.decoding import at_temperature, least_kept
from optimizer.types import Decode

BLOCK, BLOCK_ON_GPU = 32, 128
# Logits of the same weights differ by some units in the last place of their type between two batches. A drawn token so
# near below the cut was above it when it was drawn: without this, bfloat16 calls what it has just written impossible.
UNITS_OF_ERROR = 8
# Stands in for -inf where differences are taken: its probability is 0 all the same.
NEVER = -1e9


class Positions(NamedTuple):
    """Of P positions, float32[P]: `log_prob` of the drawn token under the truncated distribution (-inf where it is
    outside by more than the logits' own error), `kl` nats to the reference (0 without one) and `entropy` nats of the
    untruncated one. The first two are differentiable."""

    log_prob: Tensor
    kl: Tensor
    entropy: Tensor


def reference_log_probs(logits: Tensor, temperature: float, barred: Tensor) -> Tensor:
    """float32[P, V] of logits [P, V], finite: a barred token (bool[V]) has about `NEVER`. No gradient."""
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    columns = barred.nonzero()[:, 0]
    with torch.no_grad():
        for at in _blocks(logits):
            torch.log_softmax(_scaled(logits[at], temperature, columns), dim=-1, out=out[at])
    return out


def drawn_log_probs(logits: Tensor, targets: Tensor, temperature: float, barred: Tensor) -> Tensor:
    """float32[P], log-probabilities of `targets` int64[P] under logits [P, V], untruncated. No gradient."""
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    columns = barred.nonzero()[:, 0]
    with torch.no_grad():
        for at in _blocks(logits):
            block = _scaled(logits[at], temperature, columns)
            out[at] = block.gather(1, targets[at, None])[:, 0] - block.logsumexp(-1)
    return out


def score_positions(
    logits: Tensor, anchor: Tensor | None, targets: Tensor, decode: Decode, barred: Tensor
) -> Positions:
    """Log-probability, divergence and entropy at each position.

    Args:
      logits: float[P, V].
      anchor: float32[P, V], from `reference_log_probs`; None leaves the divergence out.
      targets: int64[P], the drawn tokens.
      barred: bool[V], tokens that can't be sampled.
    """
    reference = logits.shape if anchor is None else anchor.shape
    if logits.shape != reference or targets.shape != logits.shape[:1] or barred.shape != logits.shape[1:]:
        raise ValueError(f"shapes differ: {logits.shape}, {reference}, {targets.shape}, {barred.shape}")
    return Positions(*_Score.apply(logits, anchor, targets, decode, barred))


def _blocks(logits: Tensor) -> list[slice]:
    """The positions in blocks."""
    size = BLOCK if logits.device.type == "cpu" else BLOCK_ON_GPU
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def _scaled(logits: Tensor, temperature: float, columns: Tensor) -> Tensor:
    """`columns`: the few barred ones by number; a mask would be read once for every position."""
    return at_temperature(logits, temperature).index_fill_(1, columns, NEVER)


def _near(z: Tensor, top: Tensor, least: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """bool[P, 1], whether the drawn token of scaled logits z [P, V] that were computed in `dtype` is inside the cut: at
    `least` [P, 1] or above, or below by no more than such logits' error. `top` [P, 1]: the largest."""
    error = UNITS_OF_ERROR * torch.finfo(dtype).eps * torch.maximum(top.abs(), least.abs())
    return z.gather(1, targets[:, None]) >= least - error


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, anchor: Tensor | None, targets: Tensor, decode: Decode, barred: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(logits)
        log_prob, kl, entropy = torch.empty(3, count, dtype=torch.float32, device=logits.device)
        normal, least, mass = torch.empty(3, count, 1, dtype=torch.float32, device=logits.device)
        columns = barred.nonzero()[:, 0]
        inside = torch.empty(count, 1, dtype=torch.bool, device=logits.device)
        for at in _blocks(logits):
            z = _scaled(logits[at], decode.temperature, columns)
            top = z.amax(-1, keepdim=True)
            least[at] = least_kept(z, decode)
            inside[at] = _near(z, top, least[at], targets[at], logits.dtype)
            kept = (z >= least[at]).scatter_(1, targets[at, None], inside[at])
            p = z.sub_(top).exp()
            total = p.sum(-1, keepdim=True)
            mass[at] = (p * kept).sum(-1, keepdim=True) / total  # exactly 1 where all are kept
            p /= total
            z -= total.log()  # log p
            normal[at] = top + total.log()
            picked = z.gather(1, targets[at, None])
            log_prob[at] = torch.where(inside[at], picked - mass[at].log(), -math.inf)[:, 0]
            entropy[at] = -torch.linalg.vecdot(p, z)
            kl[at] = 0.0 if anchor is None else torch.linalg.vecdot(p, z - anchor[at])
        ctx.save_for_backward(logits, anchor, targets, columns, normal, least, inside, mass, kl)
        ctx.temperature = decode.temperature
        ctx.mark_non_differentiable(entropy)
        return log_prob, kl, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d log_prob / dz = 1{target} - p 1{kept} / mass;  d kl / dz = p (log p - anchor - kl)."""
        logits, anchor, targets, columns, normal, least, inside, mass, kl = ctx.saved_tensors
        by_log_prob, by_kl = grads[0][:, None], grads[1][:, None]
        out = torch.empty_like(logits)
        for at in _blocks(logits):
            z = _scaled(logits[at], ctx.temperature, columns)
            kept = (z >= least[at]).scatter_(1, targets[at, None], inside[at])
            p = z.sub_(normal[at]).exp()
            if anchor is None:
                slope = p.mul_(kept).mul_(-by_log_prob[at] / mass[at])
            else:
                slope = z.sub_(anchor[at]).sub_(kl[at, None]).mul_(by_kl[at])
                slope.sub_(kept * (by_log_prob[at] / mass[at])).mul_(p)
            slope.scatter_add_(1, targets[at, None], by_log_prob[at])
            out[at] = slope.div_(ctx.temperature)
        return out, None, None, None, None
