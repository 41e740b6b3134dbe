"""The published network and its ablations compute what they say; test_flow has their laws."""

import math

import pytest
import torch
from support import close, lattice_normal, randomise, said_by, small_flow

from rgflow_core import RGFlow, RGFlowConfig
from rgflow_core.networks import SUBNETS, WeightNormLinear, merge_parity, split_parity
from study.ablations import ABLATIONS, SUSPECTS, grow_


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


def test_the_suspects_change_what_they_say():
    names = ("published", "shared_network", "fixed_activation", *SUSPECTS)
    nets = {name: SUBNETS[name]((3, 4), (2, 8, 2), False) for name in names}
    learned = {
        n: sum(p.numel() for p in net.parameters() if p.requires_grad) for n, net in nets.items()
    }
    assert learned["own_halves"] == 2 * learned["published"] == 2 * learned["open_gain"]
    assert learned["shared_network"] < 0.7 * learned["published"]
    rows, columns = (2 * 2 * n for n in (8 + 8 + 48, 48 + 8 + 8))  # of two blocks, S and T
    assert learned["without_weight_norm"] == learned["published"] - rows
    assert learned["fixed_activation"] == learned["published"] - columns
    half = torch.randn(5, 24)
    s, t = nets["open_gain"].prepare()(half, 0)
    assert min(s.abs().mean(), t.abs().mean()) > 0.01, "the networks are heard from the start"
    plain, normed = nets["without_weight_norm"], randomise(nets["published"])
    plain.load_state_dict(normed.state_dict())
    with torch.no_grad():
        for linear in (m for m in normed.modules() if isinstance(m, WeightNormLinear)):
            linear.weight_g.copy_(linear.weight_v.norm(dim=-1, keepdim=True))
    for a, b in zip(plain.prepare()(half, 1), normed.prepare()(half, 1), strict=True):
        close(a, b, 1e-5)


def test_a_network_grows_without_changing_its_function():
    sizes = {"image_size": 8, "channels": 1, "coupling_layers": 1, "mlp_depth": 2}
    small = small_flow(**sizes, hidden=4)
    large = RGFlow(RGFlowConfig(**sizes, hidden=10, res_blocks=3)).double()
    grow_(large, small)
    y = lattice_normal(small, 5)
    for ours, theirs in zip(large(y), small(y), strict=True):
        close(ours, theirs, 1e-12)
    large(y)[1].sum().backward()
    old, *new = large.levels[0].decimator.couplings[0].subnet.linears
    assert old[1].weight_v.grad[:, :4, 4:].all(), "what is new is learned from at once"
    assert all(linears[-1].weight_g.grad.all() for linears in new)
    for other in (small_flow(**sizes | {"coupling_layers": 2}), small_flow(**sizes, subnet="lean")):
        assert "only published networks grow" in said_by(grow_, large, other)
