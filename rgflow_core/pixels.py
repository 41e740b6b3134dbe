"""Pictures of bytes to unbounded values and back, and bits per dimension.

x = (x8 + u) / 256 with u uniform in [0, 1); x' = 0.05 + 0.9 x; y = logit(x').
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rgflow_core.errors import UserError

MARGIN = 0.05


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise :class:`UserError` unless ``images`` is uint8 of shape (B >= 1, *shape)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"images must be a torch.uint8 tensor with values 0 ... 255, not {kind}")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape) or not len(images):
        raise UserError(f"images must have shape (B >= 1, {shape}), not {tuple(images.shape)}")


def dequantise(images: Tensor, noise: Tensor) -> Tensor:
    """Bytes and noise u in [0, 1), both (B, C, L, L), to (x8 + u) / 256 in [0, 1)."""
    return (images.to(noise.dtype) + noise) / 256


def to_logit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values in [0, 1], (B, C, L, L), to y = logit(0.05 + 0.9 x) and log|det dy/dx| (B,), float64."""
    y = torch.logit(MARGIN + (1 - 2 * MARGIN) * x)
    return y, logit_log_derivative(y).flatten(1).sum(1, dtype=torch.float64)


def logit_log_slope(y: Tensor) -> Tensor:
    """Log-derivative of the logit where it is y."""
    return F.softplus(y) + F.softplus(-y)


def logit_log_derivative(y: Tensor) -> Tensor:
    """log dy/dx of each value of :func:`to_logit`, a function of y."""
    return logit_log_slope(y) + math.log(1 - 2 * MARGIN)


def from_logit(y: Tensor, clip: bool = True) -> Tensor:
    """Inverse of :func:`to_logit`: y to x, by default clipped to [0, 1]."""
    x = (torch.sigmoid(y) - MARGIN) / (1 - 2 * MARGIN)
    return x.clamp(0, 1) if clip else x


def to_bytes(x: Tensor) -> Tensor:
    """Values in [0, 1] to the bytes 0 ... 255 whose cells [x8, x8 + 1) / 256 they lie in."""
    return (x * 256).floor().clamp(0, 255).to(torch.uint8)


def bits_per_dim(log_prob: Tensor) -> Tensor:
    """Bits per dimension, given the log-density of x = (x8 + u) / 256 *per dimension*.

    (-log p(x) / D + log 256) / log 2; log p(x) is that of the prior plus both log-determinants.
    """
    return (math.log(256) - log_prob.double()) / math.log(2)
