"""Priors against scipy."""

import math

import numpy as np
import pytest
import torch
from support import SCIPY, said_by
from torch.distributions import Distribution

from rgflow_core import Prior, RGFlowConfig
from rgflow_core.flow import lattice_levels

CONFIG = RGFlowConfig(image_size=16, coupling_layers=1)
TEMPERATURES = (1.0, 0.3, 2, [0.2, 0.8, 1.5], (0.2, 0.8, 1.5))
each_prior = pytest.mark.parametrize("prior", SCIPY, ids=str)


@each_prior
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density(prior, temperature, dtype):
    """A temperature multiplies the scale, of all levels or of each."""
    z = 2 * torch.randn(4, 3, 16, 16, dtype=dtype)
    ours = prior.distribution(CONFIG, temperature, like=z)
    assert isinstance(ours, Distribution)
    log_prob, levels = ours.log_prob(z), lattice_levels(16, 4).numpy()
    scale = np.broadcast_to(temperature, 3)[levels]
    reference = SCIPY[prior]
    expected = reference.logpdf(z.numpy() / scale) - np.log(scale)
    assert log_prob.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    np.testing.assert_allclose(log_prob, expected.sum((1, 2, 3)), rtol=tolerance)
    variance = np.broadcast_to(reference.var() * scale**2, CONFIG.shape)
    np.testing.assert_allclose(ours.variance, variance, rtol=tolerance)


@pytest.mark.parametrize(
    "temperature", [0, -1, math.nan, math.inf, (1, 1), (1, 1, 1, 1), (1, 0, 1), ()], ids=str
)
def test_impossible_temperatures(temperature):
    assert "temperature" in said_by(Prior().distribution, CONFIG, temperature)
