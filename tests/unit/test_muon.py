"""Muon: orthogonalised momentum, as torch's own but in the matrix's precision."""

from __future__ import annotations

import pytest
import torch

from optimizer.learning.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ found @ right.T
    torch.testing.assert_close(turned, torch.diag(torch.diagonal(turned)), atol=1e-4, rtol=0.0)


def test_nothing_is_made_of_no_gradient() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight.data, torch.ones(2, 2))


def test_it_steps_as_torchs_own_does() -> None:
    # torch's orthogonalisation is in bfloat16, of eight bits: the steps are alike to about a hundredth.
    generator = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(8, 4, generator=generator), torch.randn(5, 8, 4, generator=generator)
    ended = []
    for kind in (Muon, torch.optim.Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.1, weight_decay=0.05)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ended.append(weight.data)
    assert float((ended[0] - start).norm()) > 0.5
    assert float((ended[0] - ended[1]).norm()) < 0.03 * float((ended[0] - start).norm())


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="1 dimensions, expected a matrix"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)
