"""The flow: published outputs, exact log-determinants, inverses, lattice causality, sizes."""

import dataclasses
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import GOLDEN, PRIORS, golden, lattice_normal, randomise, small_flow

from rgflow_core import LEAN, LEAN_AFFINE, RGFlow, RGFlowConfig, load_published
from rgflow_core.flow import decimate, lattice_levels, undecimate
from rgflow_core.networks import merge_parity, split_parity
from study import cones

SUBNETS, ORDERS, PARITIES = ("published", "lean"), ("code", "paper"), ("even", "odd")
VARIANTS = list(product(SUBNETS, ORDERS, PARITIES))


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Published outputs


@pytest.mark.parametrize("name", PRIORS)
def test_golden_inference(name):
    flow, expected = load_published(GOLDEN / name), golden(name)
    z, log_det = flow(expected["y"])
    close(z, expected["z"], 1e-9)
    close(log_det, expected["log_det"], 1e-9)


@pytest.mark.parametrize("name", PRIORS)
def test_golden_generation(name):
    flow, expected = load_published(GOLDEN / name), golden(name)
    y, log_det = flow.inverse(expected["z_sample"])
    close(y, expected["y_sample"], 1e-9)
    close(log_det, expected["inverse_log_det"], 1e-9)


@pytest.mark.parametrize("field", ["order", "first_parity"])
def test_golden_vectors_tell_the_conventions_apart(field):
    name = "authors_L16_laplace.state"
    right, expected = load_published(GOLDEN / name), golden(name)
    other = {"order": "paper", "first_parity": "odd"}[field]
    wrong = RGFlow(dataclasses.replace(right.config, **{field: other})).double()
    wrong.load_state_dict(right.state_dict())
    assert (wrong(expected["y"])[0] - expected["z"]).abs().max() > 1e-3


# Log-determinants


@pytest.mark.parametrize(("subnet", "order", "parity"), VARIANTS)
@pytest.mark.parametrize("kernel", [2, 4])
def test_log_det_is_that_of_the_jacobian(subnet, order, parity, kernel):
    flow = small_flow(
        image_size=8, kernel=kernel, channels=2, subnet=subnet, order=order, first_parity=parity
    )
    y = lattice_normal(flow, 1)
    z, log_det = flow(y)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0], y, vectorize=True)
    size = flow.config.dim
    _, expected = torch.linalg.slogdet(jacobian.reshape(size, size))
    assert expected.abs() > 1e-3  # not the identity
    close(log_det[0], expected, 1e-9)

    jacobian = torch.autograd.functional.jacobian(lambda x: flow.inverse(x)[0], z, vectorize=True)
    _, expected = torch.linalg.slogdet(jacobian.reshape(size, size))
    close(flow.inverse(z)[1][0], expected, 1e-9)


def test_each_picture_has_a_log_det_of_its_own():
    flow = small_flow(image_size=16)
    y = lattice_normal(flow, 3)
    z, log_det = flow(y)
    assert log_det.shape == (3,)
    assert log_det.unique().numel() == 3
    for i in range(3):
        alone, alone_log_det = flow(y[i : i + 1])
        close(alone[0], z[i], 1e-12)
        close(alone_log_det[0], log_det[i], 1e-12)


# Inverses


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
        subnet=draw(st.sampled_from(SUBNETS)),
    )


@given(
    configs(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_round_trips(config, dtype, batch, seed):
    flow = randomise(RGFlow(config), seed, strength=0.1).to(dtype)
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-10}[dtype]
    x = lattice_normal(flow, batch, seed)
    with torch.no_grad():
        z, log_det = flow(x)
        back, inverse_log_det = flow.inverse(z)
        y, _ = flow.inverse(x)
        there, _ = flow(y)
    assert z.shape == x.shape
    assert log_det.shape == (batch,)
    assert z.dtype == log_det.dtype == back.dtype == dtype
    assert (z - x).abs().max() > 1e-4  # not the identity
    close(back, x, tolerance)
    close(there, x, tolerance)
    close(log_det + inverse_log_det, torch.zeros(batch, dtype=dtype), tolerance)


@pytest.mark.parametrize("subnet", SUBNETS)
def test_a_fresh_flow_is_the_identity(subnet):
    flow = RGFlow(RGFlowConfig(coupling_layers=1, hidden=8, subnet=subnet))
    y = lattice_normal(flow, 2)
    z, log_det = flow(y)
    assert torch.equal(z, y)
    assert torch.equal(log_det, torch.zeros(2))


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
    """Pixels that the latent left at a pixel can reach in generation, by spreading over blocks."""
    reached = {(row, column)}
    for h in range(level_of(row, column, size, kernel), -1, -1):
        step = 2**h
        lattice = list(product(range(0, size, step), repeat=2))
        inference = [0, kernel // 2 * step]
        if order == "paper":
            inference.reverse()
        for offset in reversed(inference):

            def block(pixel, offset=offset, edge=kernel * step):
                return tuple((x - offset) % size // edge for x in pixel)

            blocks = {block(pixel) for pixel in reached}
            reached = {pixel for pixel in lattice if block(pixel) in blocks}
    return reached


@pytest.mark.parametrize(("size", "kernel"), [(16, 4), (16, 2), (12, 6)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("subnet", SUBNETS)
def test_latents_influence_exactly_what_the_lattice_allows(size, kernel, order, subnet):
    flow = small_flow(image_size=size, kernel=kernel, order=order, subnet=subnet)
    z = lattice_normal(flow, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.inverse(x)[0], z, vectorize=True)
    jacobian = jacobian.reshape(size, size, size, size)
    for row, column in product(range(size), repeat=2):
        allowed = torch.zeros(size, size, dtype=torch.bool)
        for pixel in influenced(row, column, size, kernel, order):
            allowed[pixel] = True
        assert torch.equal(jacobian[:, :, row, column] != 0, allowed), (row, column)


@pytest.mark.parametrize("order", ORDERS)
def test_influence_at_full_size_in_colour(order):
    flow = small_flow(image_size=32, channels=3, order=order)
    z = lattice_normal(flow, 1)
    # One latent per level, at odd and even positions, next to an edge and inside.
    for row, column in [(31, 0), (13, 6), (2, 28), (4, 4), (24, 8), (12, 20), (0, 16), (8, 24)]:
        one = torch.zeros_like(z)
        one[:, 1, row, column] = 1
        _, change = torch.func.jvp(lambda x: flow.inverse(x)[0], (z,), (one,))
        allowed = torch.zeros(32, 32, dtype=torch.bool)
        for pixel in influenced(row, column, 32, 4, order):
            allowed[pixel] = True
        assert torch.equal(change[0] != 0, allowed.expand(3, -1, -1)), (row, column)


def test_the_orders_allow_different_influence():
    assert influenced(1, 1, 16, 4, "code") != influenced(1, 1, 16, 4, "paper")
    assert len(influenced(1, 1, 16, 4, "code")) == 8 * 8


def test_lattice_levels():
    levels = lattice_levels(32, 4)
    expected = [[level_of(r, c, 32, 4) for c in range(32)] for r in range(32)]
    assert levels.tolist() == expected
    assert [(levels == h).sum().item() for h in range(4)] == [768, 192, 48, 16]


# Levels one at a time


def test_split_leaves_latents_where_they_were():
    flow = small_flow(image_size=16, channels=3)
    levels = lattice_levels(16, 4)
    z = levels.double().expand(2, 3, 16, 16)
    latents = flow.split(z)
    assert [tuple(part.shape[2:]) for part in latents] == [(3, 8, 8), (3, 4, 4), (4, 4)]
    assert [part.unique().tolist() for part in latents] == [[0], [1], [2]]


def test_split_and_join_are_inverse():
    flow = small_flow(image_size=16, channels=3)
    z = lattice_normal(flow, 2)
    latents = flow.split(z)
    assert torch.equal(flow.join(latents), z)
    latents[1] = torch.zeros_like(latents[1])
    changed = flow.join(latents) != z
    assert torch.equal(changed, (lattice_levels(16, 4) == 1).expand_as(changed))
    with pytest.raises(ValueError, match="3"):
        flow.join(latents[:2])


def test_decimate_and_parity_are_inverse():
    x = torch.randn(2, 3, 8, 8)
    coarse, latents = decimate(x)
    assert torch.equal(coarse, x[..., ::2, ::2])
    assert torch.equal(undecimate(coarse, latents), x)

    blocks = torch.arange(2 * 36).reshape(1, 72)
    even, odd = split_parity(blocks, 2, 6)
    position = blocks % 36
    parity = (position // 6 + position % 6) % 2
    assert even.tolist() != odd.tolist()
    assert set(even.flatten().tolist()) == set(blocks[parity == 0].tolist())
    assert set(odd.flatten().tolist()) == set(blocks[parity == 1].tolist())
    assert torch.equal(merge_parity(even, odd, 2, 6), blocks)


@pytest.mark.parametrize("order", ORDERS)
def test_levels_one_by_one_are_the_whole_flow(order):
    flow = small_flow(image_size=16, channels=2, order=order)
    y = lattice_normal(flow, 2)
    z, log_det = flow(y)

    grid, latents, total = y, [], 0
    for h in range(3):
        grid, part, level_log_det = flow.level_forward(h, grid)
        latents.append(part)
        total = total + level_log_det
    assert grid is None
    assert torch.equal(flow.join(latents), z)
    close(total, log_det, 1e-12)

    whole, inverse_log_det = flow.inverse(z)
    steps = list(flow.inverse_steps(z))
    assert [h for h, _, _ in steps] == [2, 1, 0]
    assert [tuple(grid.shape) for _, grid, _ in steps] == [(2, 2, e, e) for e in (4, 8, 16)]
    assert torch.equal(steps[-1][1], whole)
    close(sum(log_det for _, _, log_det in steps), inverse_log_det, 1e-12)

    grid = None
    for h, expected, _ in steps:
        grid, _ = flow.level_inverse(h, grid, latents[h])
        close(grid, expected, 1e-12)


# Sizes


def count(config):
    with torch.device("meta"):
        flow = RGFlow(config)
    return sum(p.numel() for p in flow.parameters())


def test_parameter_counts():
    assert count(RGFlowConfig(image_size=4, coupling_layers=1)) == 2 * 2 * 1_258_096
    assert count(RGFlowConfig(image_size=4, coupling_layers=1)) // 2 == 2_516_192
    assert count(RGFlowConfig()) == 80_518_144
    assert count(RGFlowConfig(coupling_layers=(8, 6, 4, 2))) == 100_647_680
    assert count(RGFlowConfig(**LEAN_AFFINE)) == 1_643_520
    assert count(RGFlowConfig(**LEAN)) == 1_826_816


def test_initial_weights():
    flow = RGFlow(RGFlowConfig(coupling_layers=1, res_blocks=2))
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


@pytest.mark.parametrize("alpha", [0.0, 1e-30, -1e-9, 1e-3])
def test_activation_with_small_alpha(alpha):
    """x sigmoid(alpha x) is computed as silu(alpha x) / alpha; alpha may still be 0."""
    flow = randomise(small_flow(subnet="published"), strength=0.5)
    subnet = flow.levels[0].decimator.couplings[0].subnet
    for alphas in subnet.alphas:
        alphas[1].data[:, 0] = alpha
    half = torch.randn(20, subnet.gain.shape[1] // 2, dtype=torch.float64)
    x = merge_parity(half, torch.zeros_like(half), *subnet.block)
    s, t = subnet.prepare()(half, 0)
    for net, ours in ((0, s), (1, t)):
        out = x
        for linears, alphas in zip(subnet.linears, subnet.alphas, strict=True):
            hidden = out
            for linear, a in zip(linears, alphas, strict=True):
                v, g = linear.weight_v[net], linear.weight_g[net]
                weight = g * v / v.norm(dim=1, keepdim=True)
                hidden = hidden * torch.sigmoid(a[net] * hidden)
                hidden = hidden @ weight.T + linear.bias[net]
            out = (out + hidden) / 2**0.5
        expected = split_parity(out * subnet.gain[net], *subnet.block)[1]
        close(ours, torch.tanh(expected) if net == 0 else expected, 1e-12)


@pytest.mark.parametrize(("subnet", "bound"), [("published", 1), ("lean", 2)])
def test_log_scales_are_bounded(subnet, bound):
    """Even wild weights scale a value by no more than exp(1), or exp(2) in the lean subnet."""
    flow = randomise(small_flow(subnet=subnet), strength=1e4)
    scale_shift = flow.levels[0].decimator.couplings[0].subnet.prepare()
    s, t = scale_shift(torch.randn(200, 8, dtype=torch.float64), 0)
    assert s.abs().max().item() == pytest.approx(bound)
    assert t.abs().max() > 100


# Bad configurations and inputs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("image_size", -32),
        ("image_size", 33),
        ("image_size", 24),
        ("image_size", 2),
        ("image_size", 32.0),
        ("image_size", True),
        ("channels", 0),
        ("channels", "3"),
        ("kernel", 0),
        ("kernel", 3),
        ("coupling_layers", (4, 4, 4)),
        ("coupling_layers", ()),
        ("coupling_layers", 0),
        ("coupling_layers", (4, 4, 4, 0)),
        ("coupling_layers", (4, 4, 4, (1, 2, 3))),
        ("coupling_layers", (4, 4, 4, (1, 0))),
        ("res_blocks", 0),
        ("res_blocks", (4, 4)),
        ("hidden", -1),
        ("hidden", (512, 512, 512, 1.5)),
        ("mlp_depth", 0),
        ("first_parity", "both"),
        ("order", "random"),
        ("subnet", "unet"),
        ("subnet", None),
    ],
)
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


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 16), (0, 1, 8, 8)])
def test_wrong_shapes_are_refused(shape):
    flow = small_flow()
    for function in (flow, flow.inverse, lambda x: next(flow.inverse_steps(x))):
        with pytest.raises(ValueError, match="shape"):
            function(torch.zeros(shape, dtype=torch.float64))


def test_flow_wants_a_config():
    with pytest.raises(ValueError, match="config"):
        RGFlow(32)


# Variants of the computation that change no result


@pytest.mark.parametrize("subnet", SUBNETS)
def test_folding_changes_nothing_but_trainability(subnet):
    flow = small_flow(subnet=subnet, res_blocks=2, mlp_depth=2)
    y = lattice_normal(flow, 2)
    folded = flow.fold()
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in flow.parameters())
    for ours, plain in zip(flow(y) + flow.inverse(y), folded(y) + folded.inverse(y), strict=True):
        close(plain, ours, 1e-12)
    if subnet == "published":
        assert not any(name.endswith("weight_g") for name in folded.state_dict())
    close(folded.fold()(y)[0], flow(y)[0], 1e-12)


@pytest.mark.parametrize("subnet", SUBNETS)
def test_checkpointing_gives_the_same_gradients(subnet):
    flow = small_flow(subnet=subnet)
    y = lattice_normal(flow, 2)

    def gradients():
        z, log_det = flow(y)
        loss = z.square().sum() - log_det.sum()
        return torch.autograd.grad(loss, list(flow.parameters()))

    def saved_bytes():
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            flow(y)
        return total

    plain, plain_bytes = gradients(), saved_bytes()
    flow.use_checkpointing()
    again, fewer_bytes = gradients(), saved_bytes()
    assert fewer_bytes < plain_bytes
    assert any(g.abs().max() > 0 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    flow.use_checkpointing(False)
    assert saved_bytes() == plain_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("subnet", SUBNETS)
def test_gpu_gives_what_the_cpu_gives(subnet):
    flow = small_flow(image_size=16, channels=3, subnet=subnet)
    y = lattice_normal(flow, 3)
    z, log_det = flow(y)
    flow = flow.cuda()
    close(flow(y.cuda())[0].cpu(), z, 1e-9)
    close(flow(y.cuda())[1].cpu(), log_det, 1e-9)
    close(flow.inverse(z.cuda())[0].cpu(), y, 1e-9)


@pytest.mark.parametrize(("size", "kernel"), [(16, 4), (16, 2), (12, 6)])
@pytest.mark.parametrize("order", ORDERS)
def test_cones_are_those_of_the_lattice(size, kernel, order):
    config = RGFlowConfig(image_size=size, kernel=kernel, coupling_layers=1, order=order)
    pixels = list(product(range(size), repeat=2))
    reach = {pixel: cones.generation_cone(config, *pixel) for pixel in pixels}
    for pixel in pixels:
        wanted = influenced(*pixel, size, kernel, order)
        assert {tuple(p) for p in reach[pixel].nonzero().tolist()} == wanted
    # What a pixel touches in inference: by the flow's Jacobian.
    flow = small_flow(image_size=size, kernel=kernel, order=order)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow(x)[0], lattice_normal(flow, 1), vectorize=True
    ).reshape(size, size, size, size)
    for row, column in pixels[:: size + 3]:
        changed = torch.zeros(size, size, dtype=torch.bool)
        changed[row, column] = True
        touched = jacobian[:, :, row, column] != 0
        assert torch.equal(cones.inference_cone(config, changed), touched), (row, column)
