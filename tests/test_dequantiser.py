"""Learned noise: a change of variables of uniform noise, and so a bound for every weight.

test_train saves and loads it."""

import pytest
import torch
from support import jacobians, small_flow

from rgflow_core import PictureModel, Prior
from rgflow_core.dequantiser import Dequantiser
from rgflow_core.noise import HALF_STEP


@torch.no_grad()
def learned(dtype=torch.float64, strength=0.2, channels=3):
    torch.manual_seed(1)
    dequantiser = Dequantiser(channels)
    for parameter in dequantiser.layers[-1].parameters():  # they start at zero
        parameter.normal_(std=strength)
    return dequantiser.to(dtype)


def data(batch=3, edge=4, channels=3):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, edge, edge)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.rand(shape, dtype=torch.float64, generator=generator)


def test_it_starts_as_the_uniform_noise():
    images, noise = data()
    u, log_slope = Dequantiser(3).double()(images, noise)
    torch.testing.assert_close(u, noise, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_slope, torch.zeros_like(noise), rtol=0, atol=1e-13)


def test_log_slope_is_the_jacobian():
    images, noise = data(1)
    dequantiser = learned()
    (jacobian,) = jacobians(lambda v: dequantiser(images, v), noise)
    assert torch.equal(jacobian, jacobian.diag().diag())
    log_slope = dequantiser(images, noise)[1].flatten()
    torch.testing.assert_close(log_slope, jacobian.diag().log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.2, 1e3])
def test_extreme_noise_and_weights_stay_finite(strength):
    images, _ = data(2)
    for dtype in (torch.float32, torch.float64):
        for v in (0.0, HALF_STEP, 0.5, 1 - 2.0**-24):
            noise = torch.full(images.shape, v, dtype=dtype)
            u, log_slope = learned(dtype, strength)(images, noise)
            assert log_slope.isfinite().all()
            assert ((u >= 0) & (u <= 1)).all()


def test_the_noise_cannot_collapse():
    """However large the weights: a tenth of the uniform numbers keeps a part of the byte."""
    images, _ = data(2)
    noise = (torch.full(images.shape, v, dtype=torch.float64) for v in (0.45, 0.55))
    low, high = (learned(strength=1e3)(images, v)[0] for v in noise)
    assert (high - low).min() > 1e-4


def model(dequantiser, dtype=torch.float64):
    flow = small_flow(dtype, subnet="lean", channels=3)
    return PictureModel(flow, Prior("gaussian"), None, dequantiser)


def test_a_model_with_it_is_the_flow_s_density_times_the_slope():
    images, noise = data(edge=8)
    ours = model(learned())
    u, log_slope = ours.dequantiser(images, noise)
    wanted = model(None).log_prob(images, u.clamp_max(1 - 1e-9)) + log_slope.flatten(1).sum(1)
    torch.testing.assert_close(ours.log_prob(images, noise), wanted)
    torch.testing.assert_close(ours.fold()(images, noise), wanted)
    nearly = torch.full(noise.shape, 1 - 2**-30, dtype=torch.float64)  # 1 in float32
    assert ours.float().log_prob(images, nearly).isfinite().all()


def test_float32_agrees_with_float64():
    images, noise = data(8, edge=8)
    bits = [
        model(learned(dtype), dtype).bits_per_dim(images, noise.to(dtype))
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(*bits, rtol=0, atol=2e-4)
