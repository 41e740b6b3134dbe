"""Ablations of the published network compute what they say, in flows that stay exact."""

import math
from dataclasses import replace

import pytest
import torch
from support import RUN, close, lattice_normal, randomise, small_flow

from rgflow_core import train
from rgflow_core.networks import SUBNETS, merge_parity, split_parity
from study.ablations import ABLATIONS, MODELS


@pytest.mark.parametrize("name", ABLATIONS)
def test_log_det_and_inverse(name):
    flow = small_flow(subnet=name, res_blocks=2, mlp_depth=2)
    x = lattice_normal(flow, 1)
    z, log_det = flow(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0], x)
    wanted = torch.linalg.slogdet(jacobian.reshape(flow.config.dim, -1)).logabsdet
    assert log_det.item() == pytest.approx(wanted.item(), abs=1e-10)
    assert torch.allclose(flow.inverse(z)[0], x, atol=1e-10)
    assert torch.allclose(flow.fold()(x)[0], z, atol=1e-12)


def plain(subnet, name, half, is_odd):
    """S and T as the ablation's sentence says it, from the parameters."""
    zero = torch.zeros_like(half)
    start = merge_parity(*((zero, half) if is_odd else (half, zero)), *subnet.block)
    results = []
    for copy in (0, 1):
        x = start
        for linears, alphas in zip(subnet.linears, subnet.alphas, strict=True):

            def act(v, k, alphas=alphas, copy=copy):
                alpha = alphas[k][min(copy, len(alphas[k]) - 1)]
                return v * torch.sigmoid(alpha * v)

            hidden = x
            for k, linear in enumerate(linears):
                mine = min(copy, len(linear.bias) - 1)
                direction = linear.weight_v[mine]
                weight = linear.weight_g[mine] * direction / direction.norm(dim=1, keepdim=True)
                if k or name != "post_activation":
                    hidden = act(hidden, k)
                hidden = hidden @ weight.T + linear.bias[mine]
            x = (x + hidden) / (1 if name == "without_rescaling" else math.sqrt(2))
            if name == "post_activation":
                x = act(x, 0)
        results.append(split_parity(x * subnet.gain[copy], *subnet.block)[0 if is_odd else 1])
    s, t = results
    return (s if name == "without_tanh" else s.tanh()), t


@pytest.mark.parametrize("name", ["published", *ABLATIONS])
def test_networks_are_the_plain_formula(name):
    torch.manual_seed(0)
    subnet = randomise(SUBNETS[name]((3, 4), (2, 8, 2), False)).double()
    for alphas in subnet.alphas:  # x sigmoid(alpha x) is silu(alpha x) / alpha; alpha may be 0
        alphas[1].data[:, :4] = torch.tensor([0.0, 1e-30, -1e-9, 1e-3])
    half = torch.randn(5, 24, dtype=torch.float64)
    for step in (0, 1):
        got, wanted = subnet.prepare()(half, step), plain(subnet, name, half, bool(step))
        for a, b in zip(got, wanted, strict=True):
            close(a, b, 1e-12)


def test_what_is_not_learned_or_not_there():
    counts = {
        name: sum(p.numel() for p in SUBNETS[name]((3, 4), (2, 8, 2), False).parameters())
        for name in SUBNETS
        if name != "lean"
    }
    assert counts["shared_network"] < 0.7 * counts["published"]
    assert len({v for k, v in counts.items() if k != "shared_network"}) == 1
    fixed = SUBNETS["fixed_activation"]((3, 4), (2, 8, 2), False)
    assert not any(p.requires_grad for p in fixed.alphas.parameters())


def test_an_ablation_is_a_model_to_train(tmp_path):
    assert {f"narrow_{name}" for name in ABLATIONS} < MODELS.keys() < train.MODELS.keys()
    fields = {"model": "narrow_shared_network", "train_images": 2, "val_images": 1, "epochs": 1}
    assert train.train(replace(RUN, **fields), tmp_path / "run", progress=False).exists()
