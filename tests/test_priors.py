"""Priors against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Distribution

from rgflow_core import Prior, RGFlowConfig
from rgflow_core.flow import lattice_levels

CONFIG = RGFlowConfig(image_size=16, coupling_layers=1)
KINDS = {
    ("laplace", "unit_variance"): stats.laplace(scale=1 / math.sqrt(2)),
    ("laplace", "unit_scale"): stats.laplace(scale=1),
    ("gaussian", "unit_variance"): stats.norm(),
    ("gaussian", "unit_scale"): stats.norm(),
}


def latents(dtype=torch.float64):
    return 2 * torch.randn(4, 3, 16, 16, dtype=dtype)


def at_temperature(reference, temperature):
    return reference.dist(scale=reference.kwds.get("scale", 1) * temperature)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_log_prob(kind):
    z = latents()
    prior = Prior(*kind).distribution(CONFIG, like=z)
    assert isinstance(prior, Distribution)
    expected = KINDS[kind].logpdf(z.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-12)
    variance = np.full((3, 16, 16), KINDS[kind].var())
    np.testing.assert_allclose(prior.variance, variance, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("temperature", [0.3, 2])
def test_temperature_multiplies_the_scale(kind, temperature):
    z = latents()
    prior = Prior(*kind).distribution(CONFIG, temperature, like=z)
    expected = at_temperature(KINDS[kind], temperature).logpdf(z.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_temperature_per_level(kind):
    z, temperatures = latents(), (0.2, 0.8, 1.5)
    prior = Prior(*kind).distribution(CONFIG, temperatures, like=z)
    levels = lattice_levels(16, 4).numpy()
    expected = sum(
        at_temperature(KINDS[kind], t).logpdf(z.numpy()[..., levels == h]).sum((1, 2))
        for h, t in enumerate(temperatures)
    )
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-12)
    as_list = Prior(*kind).distribution(CONFIG, list(temperatures), like=z)
    assert torch.equal(as_list.log_prob(z), prior.log_prob(z))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_samples(kind):
    sample = Prior(*kind).distribution(CONFIG).sample((40,))
    assert sample.shape == (40, 3, 16, 16)
    assert stats.kstest(sample.flatten(), KINDS[kind].cdf).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows(dtype):
    z = latents(dtype)
    assert Prior().distribution(CONFIG, like=z).log_prob(z).dtype == dtype


def test_unit_variance_laplace_is_the_default():
    assert Prior() == Prior("laplace", "unit_variance")
    assert Prior().scale == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("cauchy",), "prior"), (("Laplace",), "prior"), (("laplace", "unit"), "convention")],
)
def test_unknown_priors(arguments, word):
    with pytest.raises(ValueError, match=word):
        Prior(*arguments)


@pytest.mark.parametrize(
    "temperature", [0, -1, math.nan, math.inf, (1, 1), (1, 1, 1, 1), (1, 0, 1), ()], ids=str
)
def test_impossible_temperatures(temperature):
    with pytest.raises(ValueError, match="temperature"):
        Prior().distribution(CONFIG, temperature)
