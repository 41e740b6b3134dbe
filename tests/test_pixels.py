"""Bytes to unbounded values and back, and bits per dimension; test_flow has published outputs."""

import math

import numpy as np
import pytest
import torch
from support import close, said_by

from rgflow_core import pixels


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
        assert torch.equal(x, (every.to(dtype) + u) / 256)
        assert torch.equal(pixels.to_bytes(x), every)
        assert torch.equal(pixels.to_bytes(pixels.from_logit(pixels.to_logit(x)[0])), every)


def test_to_bytes_and_bits_per_dim():
    x = torch.tensor([-0.5, 0.0, 0.00390624, 0.00390625, 0.5, 0.99999, 1.0, 1.7])
    assert pixels.to_bytes(x).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    # A density of 256^D / 2^(3 D) on [0, 1)^D costs three bits per dimension; one of 1, eight.
    for dtype in (torch.float32, torch.float64):
        bits = pixels.bits_per_dim(torch.tensor([math.log(256 / 8), 0.0], dtype=dtype))
        close(bits, torch.tensor([3.0, 8.0], dtype=torch.float64), 1e-7)


BAD = [
    torch.zeros(2, 3, 4, 4),
    torch.zeros(2, 3, 4, 4, dtype=torch.int64),
    np.zeros((2, 3, 4, 4), np.uint8),
    *(torch.zeros(s, dtype=torch.uint8) for s in [(0, 3, 4, 4), (3, 4, 4), (2, 4, 4, 3), (2, 1, 4, 4)]),
]  # fmt: skip


@pytest.mark.parametrize("images", BAD, ids=lambda x: f"{x.dtype}{tuple(x.shape)}")
def test_wrong_images(images):
    assert "images must" in said_by(pixels.check_images, images, (3, 4, 4))
    pixels.check_images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (3, 4, 4))
