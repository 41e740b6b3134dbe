"""The flow: published outputs, exact log-determinants, inverses, lattice causality, sizes."""

import dataclasses
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    GOLDEN,
    NETWORKS,
    PRIORS,
    close,
    golden,
    lattice_normal,
    randomise,
    small_flow,
)

from rgflow_core import LEAN, LEAN_AFFINE, RGFlow, RGFlowConfig, load_published
from rgflow_core.errors import UserError
from rgflow_core.flow import lattice_levels
from study import cones

ORDERS, PARITIES = ("code", "paper"), ("even", "odd")
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
each_order = pytest.mark.parametrize("order", ORDERS)


def jacobians(function, x):
    """Of each picture (B, C, L, L): (B, D, D), by autograd."""
    one = torch.func.jacrev(lambda x: function(x[None])[0][0])
    return torch.func.vmap(one)(x).reshape(len(x), x[0].numel(), -1)


# Published outputs


@pytest.mark.parametrize("name", PRIORS)
def test_golden(name):
    flow, expected = load_published(GOLDEN / name), golden(name)
    z, log_det = flow(expected["y"])
    close(z, expected["z"], 1e-10)
    close(log_det, expected["log_det"], 1e-10)
    y, log_det = flow.inverse(expected["z_sample"])
    close(y, expected["y_sample"], 1e-10)
    close(log_det, expected["inverse_log_det"], 1e-10)


@pytest.mark.parametrize(("field", "other"), [("order", "paper"), ("first_parity", "odd")])
def test_golden_vectors_tell_the_conventions_apart(field, other):
    name = "authors_L16_laplace.state"
    right, expected = load_published(GOLDEN / name), golden(name)
    wrong = RGFlow(dataclasses.replace(right.config, **{field: other})).double()
    wrong.load_state_dict(right.state_dict())
    assert (wrong(expected["y"])[0] - expected["z"]).abs().max() > 1e-3


# Laws


@each_network
@each_order
@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize(("kernel", "channels"), [(2, 2), (4, 1)])
def test_density(network, order, parity, kernel, channels):
    """log|det| is that of the Jacobian: of each picture, both ways, in sum over the sites."""
    fields = {"image_size": 2 * kernel, "kernel": kernel, "channels": channels, "order": order}
    flow = small_flow(**fields, first_parity=parity, **network)
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


@each_order
@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize("coupling", ["affine", "nlsq"])
def test_a_flow_that_starts_from_data_gives_them_mean_0_and_deviation_1(order, parity, coupling):
    fields = {"image_size": 8, "subnet": "lean", "coupling": coupling, "hidden": 4}
    config = RGFlowConfig(coupling_layers=1, order=order, first_parity=parity, **fields)
    flow = RGFlow(config).double()
    y = 3 + 0.5 * lattice_normal(flow, 200)
    flow.standardise(y)
    z, _ = flow(y)
    cells = z.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).flatten(0, 2)
    close(cells.mean(0), torch.zeros_like(cells[0]), 0.1)
    close(cells.std(0), torch.ones_like(cells[0]), 0.1)
    close(flow.inverse(z)[0], y, 1e-10)
    with pytest.raises(UserError, match="lean"):
        RGFlow(
            RGFlowConfig(
                **fields | {"subnet": "published", "coupling": "affine"}, coupling_layers=1
            )
        ).standardise(y)


@each_network
@pytest.mark.parametrize("parity", PARITIES)
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


@st.composite
def configs(draw):
    kernel = draw(st.sampled_from([2, 4, 6]))
    levels = draw(st.integers(1, 4 if kernel == 2 else 3))

    def per_level(low, high):
        values = st.integers(low, high)
        return draw(values | st.lists(values, min_size=levels, max_size=levels).map(tuple))

    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    pairs = st.lists(st.integers(1, 2) | pair, min_size=levels, max_size=levels).map(tuple)
    return RGFlowConfig(
        image_size=kernel * 2 ** (levels - 1),
        channels=draw(st.integers(1, 4)),
        kernel=kernel,
        coupling_layers=draw(pairs),
        res_blocks=per_level(1, 2),
        hidden=per_level(1, 9),
        mlp_depth=per_level(1, 2),
        first_parity=draw(st.sampled_from(PARITIES)),
        order=draw(st.sampled_from(ORDERS)),
        **draw(st.sampled_from(list(NETWORKS.values()))),
    )


@settings(max_examples=20)
@given(configs(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
@torch.no_grad()
def test_inverse(config, dtype, seed):
    """Both ways round, in both types."""
    flow = randomise(RGFlow(config), seed, strength=0.1).to(dtype)
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-10}[dtype]
    x = lattice_normal(flow, 2, seed)
    for there, back in ((flow, flow.inverse), (flow.inverse, flow)):
        z, log_det = there(x)
        again, inverse_log_det = back(z)
        assert z.shape == x.shape
        assert log_det.shape == (2,)
        assert z.dtype == log_det.dtype == again.dtype == dtype
        assert (z - x).abs().max() > 1e-4  # not the identity
        close(again, x, tolerance)
        close(inverse_log_det, -log_det, tolerance)


@each_network
def test_variants_of_the_computation_change_no_result(network):
    """Folded weights, and activations recomputed in the backward pass."""
    flow = small_flow(**network, res_blocks=2, mlp_depth=2)
    y = lattice_normal(flow, 2)
    folded = flow.fold()
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in flow.parameters())
    assert not any(name.endswith("weight_g") for name in folded.state_dict())
    for copy in (folded, folded.fold()):
        for plain, ours in zip(copy(y) + copy.inverse(y), flow(y) + flow.inverse(y), strict=True):
            close(plain, ours, 1e-12)

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            z, log_det = flow(y)
        loss = z.square().sum() - log_det.sum()
        return torch.autograd.grad(loss, list(flow.parameters())), sum(kept)

    plain, much = gradients()
    flow.use_checkpointing()
    again, less = gradients()
    assert less < much
    assert any(g.abs().max() > 0 for g in plain)
    assert all(map(torch.equal, plain, again))
    flow.use_checkpointing(False)
    assert gradients()[1] == much


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_network
def test_gpu_gives_what_the_cpu_gives(network):
    flow = small_flow(image_size=16, channels=3, **network)
    y = lattice_normal(flow, 3)
    z, log_det = flow(y)
    flow = flow.cuda()
    close(flow(y.cuda())[0].cpu(), z, 1e-9)
    close(flow(y.cuda())[1].cpu(), log_det, 1e-9)
    close(flow.inverse(z.cuda())[0].cpu(), y, 1e-9)


# Causal structure, from the facts alone


def level_of(row, column, size, kernel):
    """The coarsest level whose sub-lattice holds a pixel: there it is left as a latent."""
    level = 0
    while (
        size // 2 ** (level + 1) >= kernel
        and row % 2 ** (level + 1) == column % 2 ** (level + 1) == 0
    ):
        level += 1
    return level


def influenced(row, column, size, kernel, order):
    """Pixels, bool (size, size), that the latent left at a pixel can reach in generation."""
    reached = {(row, column)}
    for h in range(level_of(row, column, size, kernel), -1, -1):
        step = 2**h
        lattice = list(product(range(0, size, step), repeat=2))
        generation = [kernel // 2 * step, 0] if order == "code" else [0, kernel // 2 * step]
        for offset in generation:

            def block(pixel, offset=offset, edge=kernel * step):
                return tuple((x - offset) % size // edge for x in pixel)

            blocks = {block(pixel) for pixel in reached}
            reached = {pixel for pixel in lattice if block(pixel) in blocks}
    out = torch.zeros(size, size, dtype=torch.bool)
    out[tuple(zip(*reached, strict=True))] = True
    return out


@pytest.mark.parametrize(
    ("size", "kernel", "channels", "network"),
    [(16, 4, 1, "published"), (16, 2, 1, "lean affine"), (12, 6, 3, "lean nlsq")],
)
@each_order
def test_influence_is_exactly_what_the_lattice_allows(size, kernel, channels, network, order):
    """And so say the study's cones, which follow from the configuration alone."""
    fields = {"image_size": size, "kernel": kernel, "channels": channels, "order": order}
    flow = small_flow(**fields, **NETWORKS[network])
    z = lattice_normal(flow, 1)
    reached = [(jacobians(f, z)[0] != 0).unflatten(0, z.shape[1:]).unflatten(3, z.shape[1:])
               for f in (flow.inverse, flow)]  # fmt: skip
    for colours in product(range(channels), repeat=2):  # all alike
        for each in reached:
            assert torch.equal(each[colours[0], :, :, colours[1]], each[0, :, :, 0])
    generation, inference = (each[0, :, :, 0] for each in reached)
    for row, column in product(range(size), repeat=2):
        allowed = influenced(row, column, size, kernel, order)
        assert torch.equal(generation[:, :, row, column], allowed), (row, column)
        assert torch.equal(cones.generation_cone(flow.config, row, column), allowed)
        if (row * size + column) % (size + 3) == 0:
            changed = torch.zeros(size, size, dtype=torch.bool)
            changed[row, column] = True
            touched = inference[:, :, row, column]
            assert torch.equal(cones.inference_cone(flow.config, changed), touched)


def test_the_orders_allow_different_influence():
    code, paper = (influenced(1, 1, 16, 4, order) for order in ORDERS)
    assert not torch.equal(code, paper)
    assert code.sum() == 8 * 8


# Levels one at a time


def test_lattice_levels():
    levels = lattice_levels(32, 4)
    assert levels.tolist() == [[level_of(r, c, 32, 4) for c in range(32)] for r in range(32)]
    assert levels.unique(return_counts=True)[1].tolist() == [768, 192, 48, 16]


def test_split_and_join():
    flow = small_flow(image_size=16, channels=3)
    levels = lattice_levels(16, 4).double().expand(2, 3, 16, 16)
    latents = flow.split(levels)
    assert [tuple(part.shape[2:]) for part in latents] == [(3, 8, 8), (3, 4, 4), (4, 4)]
    assert [part.unique().tolist() for part in latents] == [[0], [1], [2]]
    z = lattice_normal(flow, 2)
    assert torch.equal(flow.join(flow.split(z)), z)
    for wants_all in (flow.join, lambda latents: next(flow.decode(latents))):
        with pytest.raises(ValueError, match="3"):
            wants_all(latents[:2])


@each_order
def test_levels_one_by_one_are_the_whole_flow(order):
    flow = small_flow(image_size=16, channels=2, order=order)
    y = lattice_normal(flow, 2)
    z, log_det = flow(y)
    levels, grids, latents, log_dets = zip(*flow.encode(y), strict=True)
    assert levels == (0, 1, 2)
    assert [g.shape[-1] for g in grids[:2]] == [8, 4]
    assert grids[2] is None
    assert torch.equal(flow.join(list(latents)), z)
    close(sum(log_dets), log_det, 1e-12)

    levels, back, log_dets = zip(*flow.decode(list(latents)), strict=True)
    assert levels == (2, 1, 0)
    for grid, wanted in zip(back, (grids[1], grids[0], y), strict=True):
        close(grid, wanted, 1e-10)
    close(sum(log_dets), -log_det, 1e-10)


# Networks


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
    flow = randomise(small_flow(subnet=subnet), strength=1e4)
    scale_shift = flow.levels[0].decimator.couplings[0].subnet.prepare()
    s, t = scale_shift(torch.randn(200, 8, dtype=torch.float64), 0)
    assert s.abs().max().item() == pytest.approx(bound)
    assert t.abs().max() > 100


# Bad configurations and inputs

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
    with pytest.raises(ValueError, match=f"^{field} must"):
        RGFlowConfig(**{field: value})


def test_config_is_frozen_and_survives_json():
    config = RGFlowConfig(coupling_layers=(3, (2, 1), 2, (4, 4)), hidden=(9, 8, 7, 6))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.channels = 1
    assert RGFlowConfig(**config.to_dict()) == config
    assert RGFlowConfig(coupling_layers=4) == RGFlowConfig(coupling_layers=((4, 4), 4, 4, 4))
    assert hash(config) == hash(RGFlowConfig(**config.to_dict()))


def test_wrong_inputs_are_refused():
    flow = small_flow()
    for function in (flow, flow.inverse, lambda x: next(flow.encode(x))):
        for shape in ((1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 16), (0, 1, 8, 8)):
            with pytest.raises(ValueError, match="shape"):
                function(torch.zeros(shape, dtype=torch.float64))
        with pytest.raises(ValueError, match="float64 like the weights"):
            function(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="config"):
        RGFlow(32)
