"""Restoring patches: densities by the cone are exact, and searches do not lose."""

import numpy as np
import pytest
import torch
from support import TINY, randomise

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig
from rgflow_core.pixels import to_logit
from study import inpaint


@pytest.fixture
def model() -> PictureModel:
    torch.manual_seed(0)
    return PictureModel(randomise(RGFlow(RGFlowConfig(**TINY))), Prior("laplace")).double().eval()


@pytest.fixture
def missing() -> torch.Tensor:
    marked = torch.zeros(2, 32, 32, dtype=torch.bool)
    marked[0, 3:5, 30:] = marked[1, 8:10, 8:10] = True
    return marked


def log_prob(model, x):
    y, logit = to_logit(x)
    z, log_det = model.flow(y)
    return model.prior.distribution(model.flow.config, like=z).log_prob(z) + log_det + logit


def test_patches_lie_on_ellipses_and_in_the_picture():
    labels = np.zeros((40, 4, 4, 6))
    labels[..., 0], labels[..., 1] = (8 * np.arange(4))[:, None], 8 * np.arange(4)
    marked = inpaint.patches(labels, 4)
    assert marked.flatten(1).sum(1).tolist() == [16] * 40
    assert marked[:, 2:6].any(0).sum() == 64  # columns 2 ... 5 of each tile, no others
    labels[..., :2] += 30
    assert inpaint.patches(labels, 8).flatten(1).sum(1).tolist() == [64] * 40


def test_interpolation_is_exact_for_a_linear_picture(missing):
    x = (torch.arange(32.0) / 64).expand(2, 3, 32, 32).clone()
    filled = inpaint.interpolate(torch.where(missing[:, None], 0.9, x), missing)
    assert torch.allclose(filled[1], x[1], atol=1e-6)
    assert torch.equal(filled[0][:, ~missing[0]], x[0][:, ~missing[0]])


@pytest.mark.parametrize("local", [True, False])
def test_density_by_the_cone_is_exact(model, missing, local):
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    density = inpaint.PatchDensity(model, x, missing, local)
    other = torch.where(missing[:, None], torch.rand_like(x), x)
    expected = log_prob(model, other) - log_prob(model, x)
    torch.testing.assert_close(density(other) - density(x), expected)
    both = torch.stack((x, other), 1).flatten(0, 1)
    assert torch.allclose(density(both, 2)[1::2], density(other))


def test_only_the_cone_is_run(model, missing):
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    layer = next(iter(model.flow.levels)).layers()[0]
    before, whole = layer(x)
    _, log_det, grown = layer.update(x, missing, before)
    assert grown[0].nonzero().unique(dim=0).tolist() == [
        [i, j] for i in range(8) for j in range(28, 32)
    ]
    _, every, all_of_it = layer.update(x, torch.ones_like(missing), before)
    assert all_of_it.all()
    assert torch.allclose(every, whole)
    assert not torch.allclose(log_det, whole)


def test_search_finds_more_probable_patches_and_keeps_the_rest(model, missing):
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    found = inpaint.search(model, x, missing, steps=6)
    keep = ~missing[:, None].expand_as(x)
    assert torch.equal(found[keep], x[keep])
    assert (log_prob(model, found) > log_prob(model, x)).all()
    assert torch.equal(inpaint.search(model, x, missing, 6, local=False), found)


def test_descent_fits_the_known_pixels(model, missing):
    x = model.sample(2, 0.5)
    given = torch.where(missing[:, None], 0.5, x)
    keep = ~missing[:, None].expand_as(x)
    errors = [
        (inpaint.descend(model, given, missing, True, steps) - x)[keep].square().mean()
        for steps in (0, 15)
    ]
    assert errors[1] < errors[0]


def test_comparison_gives_a_row_for_every_way(model, missing):
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    rows, restored = inpaint.compare(model, pictures, missing, steps=2, descent_steps=1)
    of = {row["way"]: row for row in rows}
    assert list(of) == list(restored)
    assert of["search, cone"]["log_prob"] >= of["interpolated"]["log_prob"]
    assert of["search, cone"]["variables"] == 12
    assert of["latents of the cone"]["variables"] < of["all latents"]["variables"] == 3072
    grey = (pictures.double() - 128).square()[missing[:, None].expand_as(pictures)]
    assert of["grey"]["error"]["value"] == pytest.approx(
        grey.reshape(2, -1).mean(1).sqrt().mean().item()
    )
