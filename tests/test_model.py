"""Flow and prior together: a density known in closed form, noise and samples; test_flow has
published outputs."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from scipy import special, stats
from support import NETWORKS, SCIPY, close, said_by, small_flow

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, msds, train
from rgflow_core import model as module
from rgflow_core.evaluate import evaluate, mean_and_error
from rgflow_core.flow import lattice_levels
from rgflow_core.pixels import from_logit

SMALL = {"image_size": 8, "channels": 3, "coupling_layers": 1, "hidden": 4, "res_blocks": 1}
each_prior = pytest.mark.parametrize("prior", SCIPY, ids=str)


def pictures(batch=6, shape=(3, 8, 8)):
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)


def random_model(dtype=torch.float32, prior=None, **config):
    fields = {"channels": 3, "subnet": "lean"} | config
    return PictureModel(small_flow(dtype, **fields), prior or Prior())


CASES = [*product(SCIPY, ["published"]), *product([Prior()], NETWORKS)]


@pytest.mark.parametrize(("prior", "network"), CASES, ids=str)
def test_bits_per_dim_of_the_identity_in_closed_form(prior, network):
    """A fresh flow is the identity: the density is the prior's, of the logit of the picture."""
    model = PictureModel(RGFlow(RGFlowConfig(**SMALL, **NETWORKS[network])).double(), prior)
    images, noise = pictures(), torch.rand(6, 3, 8, 8, dtype=torch.float64)

    x = 0.05 + 0.9 * (images.numpy() + noise.numpy()) / 256
    y = special.logit(x)
    log_density = SCIPY[prior].logpdf(y) + np.log(0.9 / (x * (1 - x)))
    expected = 8 - log_density.mean((1, 2, 3)) / np.log(2)

    result = model.bits_per_dim(images, noise)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.detach(), expected, rtol=1e-12)


def test_noise_is_a_function_of_the_image_not_of_its_batch():
    model = random_model()
    whole = model.noise(torch.arange(20), seed=3, epoch=2)
    assert (whole.shape, whole.dtype) == ((20, 3, 8, 8), torch.float32)
    for index in ([0, 1, 2], [19, 7], [7]):
        assert torch.equal(model.noise(torch.tensor(index), 3, 2), whole[index])
    mixed = model.noise(torch.tensor([0, 1, 2]), 3, torch.tensor([2, 2, 5]))
    assert torch.equal(mixed[:2], whole[:2])
    assert not torch.equal(mixed[2], whole[2])
    assert not torch.equal(model.noise(torch.arange(20), seed=4, epoch=2), whole)
    images = pictures()
    noise = model.noise(torch.arange(6), seed=5)
    assert torch.equal(model.log_prob(images, seed=5), model.log_prob(images, noise))
    assert not torch.equal(model.log_prob(images, seed=6), model.log_prob(images, noise))


def test_evaluation_does_not_depend_on_the_batch():
    model, images = random_model(torch.float64), pictures(11)
    whole = evaluate(model, images, seed=2, batch=200, progress=False)
    assert whole.shape == (11,)
    for batch in (1, 4):
        parts = evaluate(model, images, seed=2, batch=batch, progress=False)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole, model.bits_per_dim(images, seed=2).detach())
    row = mean_and_error(whole)
    assert row["stderr"] == pytest.approx(stats.sem(whole.numpy()))
    assert (row["bpd"], row["images"]) == (whole.mean().item(), 11)
    assert mean_and_error(whole[:1]) == {"bpd": whole[0].item(), "stderr": None, "images": 1}


def test_samples_are_reproducible_in_any_batch():
    model = random_model()
    whole = model.sample(7, seed=1)
    assert whole.shape == (7, 3, 8, 8)
    assert not whole.requires_grad
    torch.testing.assert_close(model.sample(7, seed=1, batch=3), whole)
    torch.testing.assert_close(model.sample(3, seed=1), whole[:3])
    assert (model.sample(7, seed=2) - whole).abs().max() > 0.01
    latents = model.latents(7, seed=1)
    assert torch.equal(model.latents(2, seed=1, start=4), latents[4:6])
    y, _ = model.flow.inverse(latents)
    torch.testing.assert_close(from_logit(y), whole)
    same, errors = model.sample_with_error(7, seed=1, batch=3)
    torch.testing.assert_close(same, whole)
    close(errors, (model.flow(y)[0] - latents).abs().amax((1, 2, 3)).detach(), 1e-5)
    assert 0 < errors.max() < 1e-4


@each_prior
def test_latents_follow_the_prior(prior, monkeypatch):
    """Also the rarest ones are finite, and symmetric."""
    model, rarest = random_model(torch.float64, prior), []
    assert stats.kstest(model.latents(200).flatten().numpy(), SCIPY[prior].cdf).pvalue > 1e-3
    for u in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(
            module, "uniform", lambda k, n, dtype, u=u: torch.full((len(k), n), u, dtype=dtype)
        )
        rarest.append(model.latents(1))
    assert rarest[0].isfinite().all()
    close(rarest[0], -rarest[1], 1e-9)


def test_temperature_scales_the_latents():
    model = random_model(torch.float64)
    z = model.latents(5, seed=3)
    close(model.latents(5, temperature=0.3, seed=3), 0.3 * z, 1e-9)
    per_level = torch.tensor([0.2, 0.8], dtype=torch.float64)
    mixed = model.latents(5, temperature=(0.2, 0.8), seed=3)
    close(mixed, per_level[lattice_levels(8, 4)] * z, 1e-9)
    y, _ = model.flow.inverse(mixed)
    close(model.sample(5, (0.2, 0.8), seed=3), from_logit(y).detach(), 1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_and_samples_are_the_same_on_a_gpu():
    model = random_model(torch.float64)
    noise, sample = model.noise(torch.arange(3)), model.sample(3)
    model = model.cuda()
    assert torch.equal(model.noise(torch.arange(3)).cpu(), noise)
    torch.testing.assert_close(model.sample(3).cpu(), sample)


def test_numpys_numbers_are_taken_and_kept_as_pythons():
    i = np.int64
    config = RGFlowConfig(i(8), np.uint8(1), i(4), ((i(1), i(2)), i(1)), i(1), i(4), (i(1), 1))
    assert config == RGFlowConfig(8, 1, 4, ((1, 2), 1), 1, 4, 1)
    json.dumps(config.to_dict())
    model = PictureModel(RGFlow(config), Prior())
    assert len(model.sample(i(3), seed=i(1), batch=np.uint8(2))) == 3
    assert len(evaluate(model, pictures(3, (1, 8, 8)), batch=i(2), progress=False)) == 3
    labels = msds.labels("msds1", "test", i(2), np.int32(4), np.uint8(3))
    assert np.array_equal(labels, msds.labels("msds1", "test", 2, 4, 3))
    settings = train.Settings(epochs=i(2), lr=np.float32(0.5))
    assert (type(settings.epochs), settings.lr) == (int, 0.5)
    assert "whole number" in said_by(msds.labels, "msds1", "test", 0, 1.5)
    assert "hidden" in said_by(RGFlowConfig, hidden=True)
