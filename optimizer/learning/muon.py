"""Muon for the CPU: momentum whose direction is orthogonalised, for a model's hidden matrices.

`torch.optim.Muon` runs the orthogonalisation in bfloat16, which a CPU without instructions for it emulates: there a
product takes 20 times as long as in float32, and a training step of the tiny model three times (docs/decisions.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix [A, B] with its singular vectors as they are, its singular values drawn to between about 0.7 and 1.2
    (those under a 700th of its norm stay smaller): five steps of the quintic Newton-Schulz iteration of Jordan et al.
    (2024, "Muon: an optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/), in
    the matrix's own precision."""
    a, b, c = COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay. Takes matrices [A, B] alone; a step is
    lr * sqrt(max(1, A / B)) long in each singular direction, as torch's."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim != 2:
                    raise ValueError(f"Muon: got a parameter of {param.ndim} dimensions, expected a matrix")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon: a closure is not supported; call backward before step")
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - momentum)
                update = orthogonalised(param.grad.lerp(state["momentum"], momentum))
                param.mul_(1 - lr * group["weight_decay"])
                param.add_(update, alpha=-lr * math.sqrt(max(1.0, param.size(0) / param.size(1))))
