"""Latent statistics, receptive fields, generation steps and mixing."""

import math

import numpy as np
import pytest
import torch

from rgflow_core import LEAN, PictureModel, Prior, RGFlow, RGFlowConfig, evaluate
from rgflow_core.pixels import dequantise, from_logit, to_logit
from study import analysis


@pytest.fixture
def model() -> PictureModel:
    """A small random model, not the identity."""
    torch.manual_seed(0)
    config = RGFlowConfig(image_size=8, coupling_layers=1, **LEAN | {"hidden": 8})
    flow = RGFlow(config)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return PictureModel(flow, Prior("gaussian"))


@pytest.mark.parametrize(("family", "expected"), [("normal", 0.0), ("laplace", 3.0)])
def test_kurtosis_of_known_densities(family, expected):
    draws = getattr(np.random.default_rng(0), family)(size=(2000, 500))
    result = analysis.excess_kurtosis(torch.from_numpy(draws))
    assert abs(result["value"] - expected) < 5 * result["stderr"]
    assert 0 < result["stderr"] < 0.1


def test_encode_does_not_depend_on_batching(model):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    whole, parts = (analysis.encode(model.double(), images, batch=b) for b in (5, 2))
    torch.testing.assert_close(whole, parts)


def test_receptive_field_is_the_mean_absolute_derivative(model):
    halves, positions = analysis.receptive_fields(model, 1, latents=3, samples=4, seed=1)
    draws = model.latents(12, seed=1).double().split(4)
    flow = model.flow.double()
    step = 1e-6
    for k, (c, i, j) in enumerate(positions.tolist()):
        z = draws[k]
        assert i % 2 == 0
        assert j % 2 == 0
        shift = torch.zeros_like(z)
        shift[:, c, i, j] = step
        up, down = (from_logit(flow.inverse(z + s)[0], clip=False) for s in (shift, -shift))
        difference = ((up - down) / (2 * step)).abs().sum(1)
        expected = torch.stack((difference[:2].mean(0), difference[2:].mean(0)))
        torch.testing.assert_close(halves[:, k], expected, rtol=1e-4, atol=1e-7)


def test_receptive_fields_are_of_the_level_asked_for(model):
    _, positions = analysis.receptive_fields(model, 0, latents=64, samples=2)
    assert len(positions.unique(dim=0)) == 64
    assert ((positions[:, 1] % 2 == 1) | (positions[:, 2] % 2 == 1)).all()


def test_centred_and_area():
    maps = torch.zeros(2, 8, 8)
    maps[0, 7, 0] = 1.0
    maps[1, 2, 2:6] = 1.0
    moved = analysis.centred(maps, torch.tensor([[0, 7, 0], [1, 2, 2]]))
    assert moved[0].argmax() == 4 * 8 + 4
    assert analysis.area(maps, 0.9).tolist() == [1, 4]
    assert analysis.area(torch.zeros(1, 8, 8)).tolist() == [0]


def test_generation_steps_end_with_the_picture(model):
    z = model.latents(2)
    steps = analysis.generation_steps(model.flow, z)
    assert [step.shape[-1] for step in steps] == [4, 8]
    torch.testing.assert_close(steps[-1], from_logit(model.flow.inverse(z)[0]))


def test_mixing_none_and_all(model):
    a, b = model.latents(2, seed=0), model.latents(2, seed=1)
    picture = {k: from_logit(model.flow.inverse(z)[0]) for k, z in (("a", a), ("b", b))}
    torch.testing.assert_close(analysis.mix(model.flow, a, b, 0), picture["b"])
    torch.testing.assert_close(analysis.mix(model.flow, a, b, 2), picture["a"])
    assert not torch.allclose(analysis.mix(model.flow, a, b, 1), picture["a"])
    with pytest.raises(ValueError, match="level must be from 0 to 2"):
        analysis.mix(model.flow, a, b, 3)


@pytest.mark.parametrize(
    "fields",
    [{}, LEAN, LEAN | {"coupling": "affine", "order": "paper", "first_parity": "odd"}],
)
def test_bits_by_site_add_up(fields):
    torch.manual_seed(0)
    flow = RGFlow(RGFlowConfig(image_size=16, coupling_layers=1, **fields | {"hidden": 8})).double()
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model = PictureModel(flow, Prior("laplace"))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    sites, levels = analysis.bits_by_site(model, images, seed=3, batch=2)
    bits = evaluate.evaluate(model, images, seed=3, progress=False)
    torch.testing.assert_close(sites.mean((1, 2, 3)), bits, rtol=1e-12, atol=1e-12)

    # A level by itself: its latents' density and its log-determinant.
    y, logit = to_logit(dequantise(images, model.noise(torch.arange(5), 3)))
    z, _ = flow(y)
    log_prior = flow.split(model.prior.distribution(flow.config, like=z).base_dist.log_prob(z))
    grid = y
    for h in range(flow.config.levels):
        grid, _, log_det = flow.level_forward(h, grid)
        wanted = -(log_prior[h].flatten(1).sum(1) + log_det) / math.log(2)
        torch.testing.assert_close(levels[:, h], wanted, rtol=1e-10, atol=1e-10)
    whole = levels.sum(1) - logit / math.log(2) + 8 * flow.config.dim
    torch.testing.assert_close(whole, bits * flow.config.dim, rtol=1e-12, atol=1e-10)


def test_traversal_changes_one_latent(model):
    z = model.latents(1, 0.5)[0]
    values = torch.tensor([-1.0, 0.0, 2.0])
    found = analysis.traverse(model.flow, z, [(0, 0, 0), (2, 4, 2)], values)
    assert found.shape == (2, 3, 3, 8, 8)
    moved = z.clone()
    moved[2, 4, 2] = 2.0
    torch.testing.assert_close(found[1, 2], from_logit(model.flow.inverse(moved[None])[0])[0])


def test_strongest_latents_change_the_picture_most(model):
    z = model.latents(2, 0.5)
    found = analysis.strongest(model.flow, z, level=1, count=48)
    assert len(set(found)) == 48
    assert all(i % 2 == 0 and j % 2 == 0 for _, i, j in found)
    ends = torch.tensor([-2.0, 2.0])
    change = [
        analysis.traverse(model.flow, one, found, ends).diff(dim=1).abs().flatten(1).mean(1)
        for one in z
    ]
    assert (sum(change).diff() <= 0).all()


def test_radius_of_known_maps():
    maps = torch.zeros(4, 32, 32)
    maps[0, 31, 5] = 3.0  # one pixel
    maps[1, [0, 31], 7] = 1.0  # two pixels across the edge
    maps[2] = 1.0
    assert analysis.radius(maps)[:2].tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert analysis.radius(maps)[2].item() == pytest.approx(32 / 6**0.5, rel=0.01)
    assert analysis.radius(maps)[3] == 0
    square = torch.zeros(1, 32, 32)
    square[0, :8, :8] = 1.0
    assert torch.allclose(analysis.radius(square.roll((-3, -3), (1, 2))), analysis.radius(square))


def test_the_interval_of_growth_holds_the_truth_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for _ in range(1000):
        areas = 30 * 1.8 ** (2 * np.arange(4))
        rows = [{"area": a * (1 + 0.05 * random.normal()), "stderr": 0.05 * a} for a in areas]
        found = analysis.growth(rows)
        held += found["low"] <= 1.8 <= found["high"]
    assert 920 < held < 980  # two standard errors are 14
