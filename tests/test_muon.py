"""Muon against the singular value decomposition and torch's own."""

import pytest
import torch

from rgflow_core.muon import MOMENTUM, Muon, orthogonalise
from rgflow_core.running import precision


def test_orthogonalise_makes_singular_values_near_one():
    matrices = torch.randn(5, 24, 24) * torch.tensor([1e-6, 0.1, 1, 10, 1e4])[:, None, None]
    out = orthogonalise(matrices)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3
    assert (values > 0.3).float().mean() > 0.95  # the smallest of a random matrix lag behind
    u, _, v = torch.linalg.svd(matrices.double())
    cosine = (out * (u @ v)).sum((1, 2)) / (out.norm(dim=(1, 2)) * (u @ v).norm(dim=(1, 2)))
    assert (cosine > 0.95).all()


@pytest.mark.parametrize("shape", [(24, 24), (5, 12, 24), (2, 3, 24, 12)])
def test_matrices_may_be_wide_or_tall_or_stacked(shape):
    matrices = torch.randn(shape)
    out = orthogonalise(matrices, steps=8)
    values = torch.linalg.svdvals(out)
    assert out.shape == shape
    assert 0.6 < values.min() < values.max() < 1.3
    assert torch.linalg.svdvals(orthogonalise(matrices, steps=1)).min() < 0.5
    moved = torch.nn.Parameter(torch.zeros(shape))
    moved.grad = matrices
    Muon([moved], 0.1).step()
    norm = 0.1 * (shape[-2] / shape[-1]) ** 0.5
    assert torch.linalg.svdvals(moved.detach()).max() == pytest.approx(norm, rel=0.3)


def test_its_products_may_be_in_bfloat16():
    matrices = torch.randn(5, 24, 24)
    whole = orthogonalise(matrices)
    with precision("bf16", torch.device("cpu")):
        rounded = orthogonalise(matrices)
    assert 0 < (rounded - whole).norm() < 0.06 * whole.norm()


def test_equals_torch_optim_muon_also_when_its_state_is_restored():
    """Theirs is in bfloat16, hence the tolerance; a matrix at a time."""
    start = [torch.randn(n, n) for n in (16, 16, 32, 16)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    published = torch.optim.Muon(theirs, 0.1, weight_decay=0.0, momentum=MOMENTUM, nesterov=True)
    state = Muon(ours, 0.1).state_dict()
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer = Muon(ours, 0.1)
        optimizer.load_state_dict(state)
        optimizer.step()
        published.step()
        state = optimizer.state_dict()
    for a, b, old in zip(ours, theirs, start, strict=True):
        moved = (a - old).norm()
        assert moved > 0.5
        assert (a - b).norm() < 0.03 * moved
