"""Receptive fields are the derivatives they say, and sizes those of maps that are known."""

import numpy as np
import pytest
import torch
from support import small_flow

from rgflow_core import PictureModel, Prior, RGFlowConfig
from rgflow_core.flow import lattice_levels
from rgflow_core.pixels import from_logit
from study import cones, fields


@pytest.mark.parametrize(
    "config",
    [
        {"subnet": "lean", "coupling": "nlsq", "channels": 3},
        {"subnet": "published", "order": "paper", "first_parity": "odd"},
    ],
)
def test_a_receptive_field_is_the_mean_absolute_derivative(config):
    flow = small_flow(image_size=16, **config)
    model = PictureModel(flow, Prior("gaussian"))
    positions = fields.choose(flow.config, 3, seed=1)
    halves = fields.receptive_fields(model, positions, samples=4, seed=1, batch=1)
    z, step = model.latents(4, seed=1), 1e-6
    for h, level in enumerate(positions.tolist()):
        for k, position in enumerate(level):
            shift = torch.zeros_like(z)
            shift[(slice(None), *position)] = step
            up, down = (from_logit(flow.inverse(z + s)[0], clip=False) for s in (shift, -shift))
            wanted = ((up - down) / (2 * step)).abs().sum(1).unflatten(0, (2, 2)).mean(1)
            torch.testing.assert_close(halves[:, h, k], wanted, rtol=1e-4, atol=1e-7)
            cone = cones.generation_cone(flow.config, *position[1:])
            assert (halves[:, h, k, ~cone] == 0).all()


def test_latents_chosen_are_of_their_level_and_distinct():
    config = RGFlowConfig()
    positions = fields.choose(config, 48)
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
        lengths = 5 * 1.8 ** np.arange(4) * (1 + 0.025 * random.normal(size=4))
        # Two latents at each level whose mean and standard error are these.
        pair = lengths[:, None] * (1 + 0.025 * np.array([1, -1]))
        row = fields.growth(torch.from_numpy(pair))
        held += row["low"] <= 1.8 <= row["high"]
    assert 920 < held < 980  # two standard errors are 14
