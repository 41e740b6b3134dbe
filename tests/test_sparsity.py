"""Measures of sparsity against densities whose values are known."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Laplace, Normal

from study import sparsity

DENSITIES = {"gaussian": Normal(0.0, 1.0), "laplace": Laplace(0.0, 0.5**0.5)}


@pytest.fixture
def draws():
    torch.manual_seed(0)
    return {name: density.sample((400, 256)) for name, density in DENSITIES.items()}


def test_known_densities(draws):
    values = {name: sparsity.with_error(sparsity.hoyer(z)) for name, z in draws.items()}
    assert values["gaussian"]["value"] == pytest.approx(1 - math.sqrt(2 / math.pi), abs=0.02)
    assert values["laplace"]["value"] == pytest.approx(1 - math.sqrt(0.5), abs=0.02)
    assert sparsity.near_zero(draws["gaussian"]).mean() == pytest.approx(0.0797, abs=0.003)
    assert sparsity.near_zero(draws["laplace"]).mean() == pytest.approx(0.1319, abs=0.003)


def test_hoyer_at_its_ends():
    one = torch.zeros(1, 16)
    one[0, 3] = -2
    assert sparsity.hoyer(one).item() == pytest.approx(1)
    assert sparsity.hoyer(-torch.ones(1, 16)).item() == pytest.approx(0, abs=1e-6)


def test_kolmogorov_is_scipys(draws):
    from scipy import stats

    for name, density in DENSITIES.items():
        twice = torch.cat([draws["gaussian"]] * 2)
        found = sparsity.kolmogorov(twice, density, groups=2)["value"]
        values = draws["gaussian"].flatten().double().numpy()
        wanted = stats.kstest(values, lambda x, d=density: d.cdf(torch.as_tensor(x)).numpy())
        assert found == pytest.approx(wanted.statistic, abs=1e-6), name


def test_rotation_is_noticed_by_a_laplace_prior_only(draws):
    gaussian = sparsity.rotation_test(draws["gaussian"], DENSITIES["gaussian"])
    assert abs(gaussian["value"]) < 1e-6
    laplace = sparsity.rotation_test(draws["laplace"], DENSITIES["laplace"])
    # E|z| rises from 1/sqrt(2) to sqrt(2/pi): by 0.091 / scale.
    assert laplace["value"] == pytest.approx((math.sqrt(2 / math.pi) - 0.5**0.5) * 2**0.5, abs=0.01)
    none = sparsity.rotation_test(draws["gaussian"], DENSITIES["laplace"])
    assert abs(none["value"]) < 5 * none["stderr"]


def test_correlations_within_and_between():
    torch.manual_seed(0)
    a = torch.randn(5000, 20)
    b = a[:, :10] + 0.1 * torch.randn(5000, 10)
    found = sparsity.correlations([a, b])
    floor = math.sqrt(2 / (math.pi * 5000))
    assert found.shape == (2, 2)
    assert np.allclose(found, found.T)
    assert found[0, 0] == pytest.approx(floor, rel=0.15)
    assert found[0, 1] == pytest.approx(0.995 / 20 + floor * 19 / 20, rel=0.1)


def test_describe_has_every_level(draws):
    rows = sparsity.describe([draws["laplace"], draws["gaussian"]], DENSITIES["laplace"], 1)
    assert [set(row) for row in rows] == [{"hoyer", "near_zero", "kolmogorov", "rotation"}] * 2
    assert rows[0]["kolmogorov"]["value"] < rows[1]["kolmogorov"]["value"]
