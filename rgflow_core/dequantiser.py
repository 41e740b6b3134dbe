"""Dequantisation noise that is learned with the flow (Ho et al. 2019, arXiv:1902.00275)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgflow_core.noise import HALF_STEP
from rgflow_core.pixels import logit_log_slope


class Dequantiser(nn.Module):
    """Uniform noise to noise u whose density depends on the picture: log p(x) stays a bound.

    u = sigmoid(m + e^l logit(v)), v uniform, with m and l of each value from a small network of
    the picture. It starts as u = v. m and l are bounded, so that the noise cannot collapse onto
    the grid of floating-point numbers, where it would buy bits that do not exist.

    ``channels`` are the colours C of a pixel, ``hidden`` is the width of two hidden layers.
    """

    LARGEST_SHIFT, LARGEST_LOG_SCALE = 4.0, 2.0

    def __init__(self, channels: int, hidden: int = 32) -> None:
        super().__init__()
        widths = (channels, hidden, hidden, 2 * channels)
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise for pictures, uint8, from v in [0, 1), both (B, C, L, L).

        Returns:
            u in [0, 1] and log du/dv, whose sum is -log q(u | picture), both of the same shape.
        """
        x = images.to(noise.dtype) / 127.5 - 1
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        shift, log_scale = self.layers[-1](x).to(noise.dtype).chunk(2, 1)
        shift = self.LARGEST_SHIFT * torch.tanh(shift / self.LARGEST_SHIFT)
        log_scale = self.LARGEST_LOG_SCALE * torch.tanh(log_scale / self.LARGEST_LOG_SCALE)
        start = torch.logit(noise.clamp_min(HALF_STEP))
        end = shift + log_scale.exp() * start
        log_slope = log_scale - logit_log_slope(end) + logit_log_slope(start)
        return torch.sigmoid(end), log_slope
