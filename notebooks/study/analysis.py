"""Mixtures of latents, and where the bits go."""

import math

import numpy as np
import torch
from torch import Tensor

from rgflow_core.flow import RGFlow
from rgflow_core.model import PictureModel
from rgflow_core.pixels import from_logit, logit_log_derivative, to_bytes


@torch.no_grad()
def mix(flow: RGFlow, fine: Tensor, coarse: Tensor, level: int) -> Tensor:
    """Pictures in [0, 1] with the latents of levels below ``level``, 0 ... n, from one source.

    The rest is from another; all are (B, C, L, L).
    """
    mixed = flow.join(flow.split(fine)[:level] + flow.split(coarse)[level:])
    return from_logit(flow.inverse(mixed)[0])


@torch.no_grad()
def bits_by_site(
    model: PictureModel, images: Tensor, seed: int = 0, batch: int = 200
) -> tuple[Tensor, Tensor]:
    """Where the bits of pictures uint8 (N, C, L, L) go: on the lattice, and by level.

    Every factor of the density belongs to one value at one site: the prior to a latent, the
    derivative of a coupling to the value that it moves, the logit's to a pixel. A site's bits are
    the sum over all levels that it takes part in; a level's are those of its latents and of its
    two layers.

    Returns:
        Bits (N, C, L, L), 8 of each value's byte included, whose sum is that of
        :func:`rgflow_core.evaluate.evaluate` times the dimension; and bits (N, levels) of the
        levels alone, without bytes and logit.
    """
    flow = model.flow.fold()
    prior = model.prior.distribution(flow.config, like=model.noise(torch.arange(1))).base_dist
    sites, levels = [], []
    for which in torch.arange(len(images)).split(batch):
        y, _, log_slope = model.transform(images[which], model.noise(which, seed))
        site, latents, gained = (logit_log_derivative(y) + log_slope).double(), [], []
        for h, _, level_latents, derivative in flow.encode(y, sites=True):
            site[..., :: 2**h, :: 2**h] += derivative
            latents.append(level_latents)
            gained.append(derivative.double().flatten(1).sum(1))
        log_prior = prior.log_prob(flow.join(latents)).double()
        parts = zip(gained, flow.split(log_prior), strict=True)
        nats = torch.stack([g + part.flatten(1).sum(1) for g, part in parts], 1)
        sites.append(8 - (site + log_prior) / math.log(2))
        levels.append(-nats / math.log(2))
    return torch.cat(sites), torch.cat(levels)


def shown(x: Tensor) -> np.ndarray:
    """Pictures in [0, 1], (N, C, L, L), to bytes with the colours last, (N, L, L, C)."""
    return to_bytes(x).permute(0, 2, 3, 1).numpy()


def sheet(pictures: np.ndarray, columns: int, zoom: int = 4) -> np.ndarray:
    """Pictures uint8 (N, l, l, 3 or 1) side by side on white, N a multiple of ``columns``, enlarged."""
    pictures = np.broadcast_to(pictures, (*pictures.shape[:3], 3))
    framed = np.pad(pictures, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    rows = [np.concatenate(list(row), 1) for row in framed.reshape(-1, columns, *framed.shape[1:])]
    return np.concatenate(rows).repeat(zoom, 0).repeat(zoom, 1)
