"""The flow: published outputs, exact log-determinants, inverses, lattice causality, sizes."""

from itertools import product

import pytest
import torch
from support import NETWORKS, PRIORS, close, golden, jacobians, lattice_normal, said_by, small_flow

from rgflow_core import LEAN, LEAN8, LEAN_AFFINE, RGFlow, RGFlowConfig
from rgflow_core.flow import LEAN8_AUTOREGRESSIVE, lattice_levels
from rgflow_core.pixels import dequantise, from_logit, to_logit
from study import cones
from study.ablations import ABLATIONS, SUSPECTS

each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
each_order = pytest.mark.parametrize("order", ["code", "paper"])


@pytest.mark.parametrize("name", PRIORS)
def test_golden(name):
    """Published outputs: of pixels, flow and prior, both ways."""
    model, expected = golden(name)
    noise = expected["noise"]
    sample, inverse_log_det = model.flow.inverse(expected["z_sample"])
    shown = from_logit(sample, clip=False)
    ours = {
        **dict(zip(("y", "logit_log_det"), to_logit(dequantise(expected["image"], noise)), strict=True)),
        **dict(zip(("z", "log_det"), model.flow(expected["y"]), strict=True)),
        **{"y_sample": sample, "inverse_log_det": inverse_log_det, "x_sample": shown},
        "log_prob": model.log_prob(expected["image"], noise) - expected["logit_log_det"],
    }  # fmt: skip
    for what, value in ours.items():
        close(value, expected[what], 1e-10)
    assert torch.equal(from_logit(sample), shown.clamp(0, 1))
    assert not torch.equal(from_logit(sample), shown)


SHAPES = [
    {"image_size": 4, "kernel": 2, "channels": 2, "first_parity": "odd"},
    {"image_size": 8, "kernel": 4, "order": "paper", "first_parity": "odd"},
    {"image_size": 8, "kernel": 2, "coupling_layers": (1, (1, 2), 2), "order": "paper"},
    {"image_size": 12, "kernel": 6, "channels": 1, "coupling_layers": ((2, 1), 1),
     "res_blocks": (1, 2), "hidden": (5, 9), "mlp_depth": (2, 1)},
]  # fmt: skip
# The study's own networks are S and T alone, of which one shape is enough.
CASES = [
    (n, s) for n in NETWORKS for s in SHAPES if n not in ABLATIONS | SUSPECTS or s is SHAPES[-1]
]


@pytest.mark.parametrize(("network", "shape"), CASES, ids=str)
def test_density_and_inverse(network, shape):
    """log|det| is that of the Jacobian: of each picture, both ways, in sum over the sites."""
    flow = small_flow(**shape, **NETWORKS[network])
    y = lattice_normal(flow, 2)
    z, log_det = flow(y)
    back, inverse_log_det = flow.inverse(z)
    close(back, y, 1e-10)
    for function, x, ours in ((flow, y, log_det), (flow.inverse, z, inverse_log_det)):
        expected = torch.linalg.slogdet(jacobians(function, x)).logabsdet
        assert expected.abs().min() > 1e-3  # not the identity
        close(ours, expected, 1e-9)
    at_sites = [log_det for *_, log_det in flow.encode(y, sites=True)]
    close(sum(level.sum((1, 2, 3)) for level in at_sites), log_det, 1e-12)
    flow = flow.float()
    for there, again in ((flow, flow.inverse), (flow.inverse, flow)):
        z, log_det = there(y.float())
        close(again(z)[0], y.float(), 1e-3)
        assert z.dtype == log_det.dtype == torch.float32


@each_order
@pytest.mark.parametrize("parity", ["even", "odd"])
@pytest.mark.parametrize("network", ["lean affine", "lean nlsq", "autoregressive nlsq"])
def test_a_flow_that_starts_from_data_gives_them_mean_0_and_deviation_1(order, parity, network):
    fields = {"image_size": 8, "coupling_layers": 1, "hidden": 4, "order": order}
    fields |= {"first_parity": parity, **NETWORKS[network]}
    flow = RGFlow(RGFlowConfig(**fields)).double()
    y = 3 + 0.5 * lattice_normal(flow, 200)
    flow.standardise(y)
    z, _ = flow(y)
    cells = z.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).flatten(0, 2)
    close(cells.mean(0), torch.zeros_like(cells[0]), 0.1)
    close(cells.std(0), torch.ones_like(cells[0]), 0.1)
    close(flow.inverse(z)[0], y, 1e-10)
    assert "lean" in said_by(small_flow().standardise, y)
    single = RGFlow(RGFlowConfig(**fields | {"image_size": 4})).double()
    single.standardise(y[:1, :, :4, :4])
    assert all(p.isfinite().all() for p in single.parameters()), "one block has no deviation"


@each_network
@pytest.mark.parametrize("parity", ["even", "odd"])
def test_log_derivatives_lie_at_their_sites(network, parity):
    """In one layer, the half that moves first is moved value by value."""
    fields = {"image_size": 4, "coupling_layers": 1, "first_parity": parity}
    block = small_flow(**fields, **network).levels[0].disentangler
    y = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    _, at_sites = block(y, sites=True)
    own = jacobians(block, y)[0].diagonal().reshape(4, 4)
    row = torch.arange(4)
    moved_first = (row[:, None] + row) % 2 == (parity == "even")
    close(at_sites[0, 0].exp()[moved_first], own[moved_first], 1e-9)


@pytest.mark.parametrize("coupling", ["affine", "nlsq"])
@pytest.mark.parametrize("parity", ["even", "odd"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_autoregressive_layer_is_triangular_in_the_order_of_positions(coupling, parity, number):
    """Its Jacobian: zero beyond a position, exp(log-derivative) at it, not zero before it."""
    fields = {"image_size": 4, "channels": 2, "hidden": 40, "first_parity": parity}
    flow = small_flow(**fields, subnet="autoregressive", coupling=coupling)
    block = flow.levels[0].decimator
    block.couplings = block.couplings[number : number + 1]

    def rank(position):
        row, column = divmod(position, 4)
        return (row + column) % 2 == (parity == "even"), row // 2, column // 2, row

    order = sorted(range(16), key=rank, reverse=number == 1)
    y = lattice_normal(flow, 1)
    own = block(y, sites=True)[1].exp().reshape(2, 16)[:, order]
    jacobian = jacobians(block, y).reshape(2, 16, 2, 16)[:, order][:, :, :, order]
    for out, into in product(range(2), repeat=2):
        beyond = torch.ones(16, 16, dtype=torch.bool).triu(int(out == into))
        assert torch.equal(jacobian[out, :, into] == 0, beyond)
        if out == into:
            close(jacobian[out, :, out].diag(), own[out], 1e-12)


@each_network
def test_variants_of_the_computation_change_no_result(network):
    """Folded weights, and activations recomputed in the backward pass."""
    flow = small_flow(**network, res_blocks=2, mlp_depth=2)
    y = lattice_normal(flow, 2)
    folded = flow.fold()
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(name.endswith("weight_g") for name in folded.state_dict())
    for copy in (folded, folded.fold()):
        for plain, ours in zip(copy(y) + copy.inverse(y), flow(y) + flow.inverse(y), strict=True):
            close(plain, ours, 1e-12)
    parameters = [p for p in flow.parameters() if p.requires_grad]

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            z, log_det = flow(y)
        return torch.autograd.grad(z.square().sum() - log_det.sum(), parameters), sum(kept)

    plain, much = gradients()
    flow.use_checkpointing()
    again, less = gradients()
    assert less < much
    assert any(g.abs().max() > 0 for g in plain)
    assert all(map(torch.equal, plain, again))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_network
def test_gpu_gives_what_the_cpu_gives(network):
    flow = small_flow(image_size=16, channels=3, **network)
    y = lattice_normal(flow, 3)
    here, there = flow(y), flow.cuda()(y.cuda())
    for ours, theirs in zip((*here, y), (*there, flow.inverse(there[0])[0]), strict=True):
        close(theirs.cpu(), ours, 1e-9)


INFLUENCES = [
    (16, 4, 1, "published"), (16, 2, 1, "lean affine"), (16, 2, 1, "autoregressive nlsq"),
    (12, 6, 3, "lean nlsq"),
]  # fmt: skip


@pytest.mark.parametrize(("size", "kernel", "channels", "network"), INFLUENCES)
@each_order
def test_influence_is_exactly_what_the_cones_say(size, kernel, channels, network, order):
    """Both ways, of every pixel, for all colours alike."""
    fields = {"image_size": size, "kernel": kernel, "channels": channels, "order": order}
    flow = small_flow(**fields, **NETWORKS[network])
    z = lattice_normal(flow, 1)
    changed = torch.eye(size**2, dtype=torch.bool).view(size, size, size, size)
    of_cones = {
        flow.inverse: lambda i, j: cones.generation_cone(flow.config, i, j),
        flow: lambda i, j: cones.inference_cone(flow.config, changed[i, j]),
    }
    for function, cone in of_cones.items():
        reached = jacobians(function, z)[0].view(2 * z.shape[1:]) != 0
        assert torch.equal(reached, reached[:1, :, :, :1].expand_as(reached))
        for i, j in product(range(size), repeat=2):
            assert torch.equal(reached[0, :, :, 0, i, j], cone(i, j)), (i, j)


@each_order
def test_levels_one_by_one_are_the_whole_flow(order):
    flow = small_flow(image_size=16, channels=2, order=order)
    y = lattice_normal(flow, 2)
    z, log_det = flow(y)
    levels, grids, latents, log_dets = zip(*flow.encode(y), strict=True)
    assert levels == (0, 1, 2)
    assert [g if g is None else g.shape[-1] for g in grids] == [8, 4, None]
    assert torch.equal(flow.join(list(latents)), z)
    assert all(map(torch.equal, flow.split(z), latents))
    before = z.clone()
    for part in flow.split(z):
        part.zero_()
    assert torch.equal(z, before), "no part is a view"
    assert "3 levels, not 2" in said_by(flow.join, latents[1:])
    close(sum(log_dets), log_det, 1e-12)

    levels, back, log_dets = zip(*flow.decode(list(latents)), strict=True)
    assert levels == (2, 1, 0)
    for grid, wanted in zip(back, (grids[1], grids[0], y), strict=True):
        close(grid, wanted, 1e-10)
    close(sum(log_dets), -log_det, 1e-10)

    parts = flow.split(lattice_levels(16, 4).double().expand(y.shape))
    assert [tuple(part.shape[2:]) for part in parts] == [(3, 8, 8), (3, 4, 4), (4, 4)]
    assert [part.unique().tolist() for part in parts] == [[0], [1], [2]]


def count(**fields):
    with torch.device("meta"):
        flow = RGFlow(RGFlowConfig(**fields))
    return sum(p.numel() for p in flow.parameters())


def test_parameter_counts():
    assert count(image_size=4, coupling_layers=1) == 2 * 2_516_192
    assert count() == 80_518_144
    assert count(coupling_layers=(8, 6, 4, 2)) == 100_647_680
    assert count(**LEAN_AFFINE) == 1_643_520
    assert count(**LEAN) == 1_826_816
    assert count(**LEAN8) == 2_409_120
    assert count(**LEAN8_AUTOREGRESSIVE) == 2_344_896


def test_initial_weights():
    flow = RGFlow(RGFlowConfig(image_size=8, coupling_layers=1, res_blocks=2))
    for name, value in flow.named_parameters():
        if name.endswith("weight_v"):
            bound = (2.81 * 3 / value.shape[-1]) ** 0.5
            assert value.abs().max() <= bound
            assert value.abs().max() > 0.99 * bound
        elif name.endswith("weight_g"):
            direction = flow.get_parameter(name.replace("weight_g", "weight_v"))
            assert torch.equal(value, direction.norm(dim=-1, keepdim=True))
        else:
            assert torch.all(value == (1 if ".alphas." in name else 0)), name


@pytest.mark.parametrize(("subnet", "bound"), [("published", 1), ("lean", 2)])
def test_log_scales_are_bounded(subnet, bound):
    """Even wild weights scale a value by no more than exp(1), or exp(2) in the lean subnet."""
    flow = small_flow(subnet=subnet, strength=1e4)
    scale_shift = flow.levels[0].decimator.couplings[0].subnet.prepare()
    s, t = scale_shift(torch.randn(200, 8, dtype=torch.float64), 0)
    assert s.abs().max().item() == pytest.approx(bound)
    assert t.abs().max() > 100


BAD = {
    "image_size": (0, -32, 33, 24, 2, 32.0, True, 2**20),
    "channels": (0, "3"),
    "kernel": (0, 3),
    "coupling_layers": ((4, 4, 4), (), 0, (4, 4, 4, 0), (4, 4, 4, (1, 2, 3)), (4, 4, 4, (1, 0))),
    "res_blocks": (0, (4, 4), (4, 4, 4, (4, 4))),
    "hidden": (-1, (512, 512, 512, 1.5)),
    "mlp_depth": (0, True),
    "first_parity": ("both",),
    "order": ("random",),
    "subnet": ("unet", None, ["lean"]),
    "coupling": ("cubic", "nlsq"),  # not with the published subnets
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_impossible_configurations_name_the_field(field, value):
    assert said_by(RGFlowConfig, **{field: value}).startswith(f"{field} must")


def test_config_survives_json():
    config = RGFlowConfig(coupling_layers=(3, (2, 1), 2, (4, 4)), hidden=(9, 8, 7, 6))
    assert RGFlowConfig(**config.to_dict()) == config
    assert RGFlowConfig(coupling_layers=4) == RGFlowConfig(coupling_layers=((4, 4), 4, 4, 4))


def test_wrong_inputs_are_refused():
    flow = small_flow()
    for function in (flow, flow.inverse, lambda x: next(flow.encode(x))):
        for shape in ((1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 16), (0, 1, 8, 8)):
            assert "shape" in said_by(function, torch.zeros(shape, dtype=torch.float64))
        assert "float64 like the weights" in said_by(function, torch.zeros(1, 1, 8, 8))
