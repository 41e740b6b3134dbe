"""Receptive fields are the derivatives they say, and sizes those of maps that are known."""

import numpy as np
import pytest
import torch
from support import jacobians, small_flow

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig
from rgflow_core.flow import lattice_levels
from rgflow_core.pixels import logit_log_derivative
from study import fields


@pytest.mark.parametrize(
    "config",
    [
        {"subnet": "lean", "coupling": "nlsq", "channels": 3, "image_size": 8},
        {"subnet": "published", "order": "paper", "first_parity": "odd", "image_size": 16},
    ],
)
def test_a_receptive_field_is_the_mean_absolute_derivative(config):
    flow = small_flow(**config)
    model = PictureModel(flow, Prior("gaussian"))
    positions = fields.choose(flow, 3, seed=1)
    halves = fields.receptive_fields(model, positions, samples=2, seed=1)
    exact = []
    for y in flow.inverse(model.latents(2, seed=1))[0]:
        # Generation's Jacobian is the inverse of that of inference.
        jacobian = torch.linalg.inv(jacobians(flow, y[None])[0])
        jacobian *= torch.exp(-logit_log_derivative(y)).reshape(-1, 1)
        exact.append(jacobian.abs().unflatten(0, y.shape).sum(0).unflatten(2, y.shape))
    exact = torch.stack(exact)  # half, row and column, latent
    for h, level in enumerate(positions.tolist()):
        for k, position in enumerate(level):
            wanted = exact[(..., *position)]
            torch.testing.assert_close(halves[:, h, k], wanted, rtol=1e-4, atol=1e-7)


def test_latents_chosen_are_of_their_level_and_distinct():
    positions = fields.choose(RGFlow(RGFlowConfig(hidden=1)), 48)
    for h, level in enumerate(positions):
        assert len(level.unique(dim=0)) == 48
        assert (lattice_levels(32, 4)[level[:, 1], level[:, 2]] == h).all()


def test_area_and_radius_of_known_maps():
    maps = torch.zeros(6, 32, 32)
    maps[0, 31, 5] = 3.0  # one pixel
    maps[1, [0, 31], 7] = 1.0  # two pixels across the edge
    maps[2] = 1.0
    maps[4, :8, :8] = 1.0
    maps[5] = maps[4].roll((-3, -3), (0, 1))
    assert fields.area(maps).tolist() == [1, 2, 922, 0, 58, 58]
    radius = fields.radius(maps)
    assert radius[:2].tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert radius[2].item() == pytest.approx(32 / 6**0.5, rel=0.01)
    assert radius[3] == 0
    assert radius[4] == pytest.approx(radius[5])


def test_the_interval_of_growth_holds_the_truth_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for _ in range(1000):
        # A middle level off the line, and a wider spread at the coarsest.
        spread = 1 + np.array([[0.1], [0.2], [0.3]]) * random.normal(size=(3, 16))
        row = fields.growth(torch.from_numpy(np.array([[5], [11], [5 * 1.8**2]]) * spread))
        held += row["low"] <= 1.8 <= row["high"]
    assert 930 < held < 970  # three standard errors are 20
    assert row["n"] == 16
