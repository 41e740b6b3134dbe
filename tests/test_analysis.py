"""Where the bits go, and mixtures of latents."""

import math

import pytest
import torch
from support import TINY, randomise

from rgflow_core import LEAN, PictureModel, Prior, RGFlow, RGFlowConfig, evaluate
from rgflow_core.pixels import dequantise, to_logit
from study import analysis


@pytest.fixture
def model() -> PictureModel:
    """A small random model, not the identity."""
    flow = RGFlow(RGFlowConfig(**TINY | {"image_size": 8, "coupling": "nlsq"}))
    return PictureModel(randomise(flow), Prior("gaussian")).double()


def test_pictures_come_back_from_their_latents_in_any_batches(model):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    whole, parts = (model.infer(images, seed=1, batch=b) for b in (5, 2))
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(
        model.generate(whole), dequantise(images, model.noise(torch.arange(5), seed=1))
    )


def test_mixing_none_and_all(model):
    a, b = model.latents(2, seed=0), model.latents(2, seed=1)
    of_a, of_b = map(model.generate, (a, b))
    torch.testing.assert_close(analysis.mix(model.flow, a, b, 0), of_b)
    torch.testing.assert_close(analysis.mix(model.flow, a, b, 2), of_a)
    assert not torch.allclose(analysis.mix(model.flow, a, b, 1), of_a)


@pytest.mark.parametrize(
    "fields",
    [{}, LEAN, LEAN | {"coupling": "affine", "order": "paper", "first_parity": "odd"}],
)
def test_bits_by_site_and_by_level_add_up(fields):
    flow = RGFlow(RGFlowConfig(image_size=16, coupling_layers=1, **fields | {"hidden": 8})).double()
    model = PictureModel(randomise(flow, strength=0.05), Prior("laplace"))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    sites, levels = analysis.bits_by_site(model, images, seed=3, batch=2)
    bits = evaluate.evaluate(model, images, seed=3, progress=False)
    torch.testing.assert_close(sites.mean((1, 2, 3)), bits, rtol=1e-12, atol=1e-12)

    # A level by itself: its latents' density and its log-determinant.
    y, logit = to_logit(dequantise(images, model.noise(torch.arange(5), 3)))
    log_prior = model.prior.distribution(flow.config, like=y).base_dist.log_prob(flow(y)[0])
    for (h, _, _, log_det), part in zip(flow.encode(y), flow.split(log_prior), strict=True):
        wanted = -(part.flatten(1).sum(1) + log_det) / math.log(2)
        torch.testing.assert_close(levels[:, h], wanted, rtol=1e-10, atol=1e-10)
    whole = levels.sum(1) - logit / math.log(2) + 8 * flow.config.dim
    torch.testing.assert_close(whole, bits * flow.config.dim, rtol=1e-12, atol=1e-10)
