"""Muon against the singular value decomposition and torch's own."""

import torch

from rgflow_core.muon import MOMENTUM, Muon, orthogonalise


def test_orthogonalise_makes_singular_values_near_one():
    matrices = torch.randn(5, 24, 24) * torch.tensor([1e-6, 0.1, 1, 10, 1e4])[:, None, None]
    out = orthogonalise(matrices)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3
    assert (values > 0.3).float().mean() > 0.95  # the smallest of a random matrix lag behind
    u, _, v = torch.linalg.svd(matrices.double())
    cosine = (out * (u @ v)).sum((1, 2)) / (out.norm(dim=(1, 2)) * (u @ v).norm(dim=(1, 2)))
    assert (cosine > 0.95).all()


def test_equals_torch_optim_muon():
    """Theirs is in bfloat16, hence the tolerance; a matrix at a time."""
    start = [torch.randn(n, n) for n in (16, 16, 32, 16)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    published = torch.optim.Muon(theirs, 0.1, weight_decay=0.0, momentum=MOMENTUM, nesterov=True)
    optimizers = (Muon(ours, 0.1), published)
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in start]
        for parameters in (ours, theirs):
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, old in zip(ours, theirs, start, strict=True):
        moved = (a - old).norm()
        assert moved > 0.5
        assert (a - b).norm() < 0.03 * moved


def test_state_is_restored():
    p = torch.nn.Parameter(torch.randn(8, 8))
    q = torch.nn.Parameter(p.detach().clone())
    one, two = Muon([p], 0.1), Muon([q], 0.1)
    for optimizer, parameter in ((one, p), (two, q)):
        parameter.grad = torch.ones(8, 8).tril()
        optimizer.step()
    fresh = Muon([q], 0.1)
    fresh.load_state_dict(two.state_dict())
    for optimizer, parameter in ((one, p), (fresh, q)):
        parameter.grad = torch.eye(8)
        optimizer.step()
    assert torch.equal(p, q)
