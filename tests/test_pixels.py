"""Bytes to unbounded values and back, and bits per dimension."""

import math

import numpy as np
import pytest
import torch
from support import PRIORS, golden

from rgflow_core import pixels


@pytest.mark.parametrize("name", PRIORS)
def test_golden(name):
    expected = golden(name)
    y, log_det = pixels.to_logit(pixels.dequantise(expected["image"], expected["noise"]))
    torch.testing.assert_close(y, expected["y"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, expected["logit_log_det"], rtol=1e-10, atol=1e-10)
    x = pixels.from_logit(expected["y_sample"], clip=False)
    torch.testing.assert_close(x, expected["x_sample"], rtol=1e-10, atol=1e-10)
    clipped = pixels.from_logit(expected["y_sample"])
    assert torch.equal(clipped, x.clamp(0, 1))
    assert not torch.equal(clipped, x)


def test_log_det_is_that_of_autograd():
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    y, log_det = pixels.to_logit(x)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: pixels.to_logit(v)[0], x[i : i + 1])
        jacobian = jacobian.reshape(48, 48)
        assert torch.equal(jacobian, torch.diag(jacobian.diag()))
        assert log_det[i].item() == pytest.approx(torch.slogdet(jacobian)[1].item(), abs=1e-11)
    x_prime = 0.05 + 0.9 * x
    torch.testing.assert_close(y, torch.log(x_prime / (1 - x_prime)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_there_and_back(dtype, tolerance):
    x = torch.rand(2, 3, 8, 8, dtype=dtype)
    y, log_det = pixels.to_logit(x)
    assert (y.dtype, log_det.dtype) == (dtype, torch.float64)
    for clip in (True, False):
        assert (pixels.from_logit(y, clip=clip) - x).abs().max() < tolerance

    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for u in (0.01, 0.5, 0.99):
        x = pixels.dequantise(every, torch.full((1, 1, 16, 16), u, dtype=dtype))
        assert x.dtype == dtype
        assert torch.equal(x, (torch.arange(256, dtype=dtype).reshape(x.shape) + u) / 256)
        assert torch.equal(pixels.to_bytes(x), every)
        assert torch.equal(pixels.to_bytes(pixels.from_logit(pixels.to_logit(x)[0])), every)


def test_to_bytes():
    x = torch.tensor([-0.5, 0.0, 0.00390624, 0.00390625, 0.5, 0.99999, 1.0, 1.7])
    assert pixels.to_bytes(x).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    assert pixels.to_bytes(x).dtype == torch.uint8


def test_bits_per_dim():
    # A density of 256^D / 2^(3 D) on [0, 1)^D costs three bits per dimension; one of 1, eight.
    log_prob = torch.tensor([math.log(256 / 8), 0.0])
    torch.testing.assert_close(
        pixels.bits_per_dim(log_prob), torch.tensor([3.0, 8.0], dtype=torch.float64)
    )
    assert pixels.bits_per_dim(log_prob.float()).dtype == torch.float64


BAD = {
    "float": torch.zeros(2, 3, 4, 4),
    "int64": torch.zeros(2, 3, 4, 4, dtype=torch.int64),
    "numpy": np.zeros((2, 3, 4, 4), np.uint8),
    "none": torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
    "one alone": torch.zeros(3, 4, 4, dtype=torch.uint8),
    "channels last": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
    "grey": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
    "larger": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_images(kind):
    with pytest.raises(ValueError, match="images must"):
        pixels.check_images(BAD[kind], (3, 4, 4))
    pixels.check_images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (3, 4, 4))
