"""Receptive fields: where in the picture a latent acts, how far, and how that grows by level."""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.func import jvp, vmap

from rgflow_core.flow import BlockBijection, RGFlow, RGFlowConfig, lattice_levels
from rgflow_core.model import PictureModel
from rgflow_core.pixels import logit_log_derivative


def _to_blocks(grid: Tensor, kernel: int, offset: int) -> Tensor:
    """(N, C, l, l) to (N, d, blocks), d = C m^2."""
    return F.unfold(grid.roll((-offset, -offset), (2, 3)), kernel, stride=kernel)


def _to_grid(blocks: Tensor, kernel: int, offset: int) -> Tensor:
    edge = math.isqrt(blocks.shape[2]) * kernel
    return F.fold(blocks, (edge, edge), kernel, stride=kernel).roll((offset, offset), (2, 3))


def _jacobians(layer: BlockBijection, grid: Tensor, kernel: int) -> Tensor:
    """The Jacobian (B, blocks, d, d) of each block of a layer.

    Blocks do not see each other, so that d tangents serve all of them.
    """
    d, count = grid.shape[1] * kernel**2, (grid.shape[-1] // kernel) ** 2
    units = torch.eye(d, dtype=grid.dtype)[..., None].repeat(1, 1, count)

    def along(tangent: Tensor) -> Tensor:
        return jvp(lambda x: layer(x)[0], (grid,), (tangent.repeat(len(grid), 1, 1, 1),))[1]

    with warnings.catch_warnings():
        # torch's own forward-mode rules warn of torch's own deprecations.
        warnings.simplefilter("ignore", FutureWarning)
        columns = vmap(along)(_to_grid(units, kernel, layer.offset)).flatten(0, 1)
    columns = _to_blocks(columns, kernel, layer.offset).unflatten(0, (d, -1))
    return columns.permute(1, 3, 2, 0)


@torch.no_grad()
def tangents(flow: RGFlow, z: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The field y(z), and dy/dz_l.

    Exact: generation undoes the layers one by one, and a tangent is solved for with the Jacobians
    of a layer's blocks, which serve all latents.

    Args:
        flow: the flow.
        z: latents (B, C, L, L).
        positions: channel, row and column of K latents, (K, 3).

    Returns:
        (B, C, L, L) and (K, B, C, L, L).
    """
    kernel = flow.config.kernel
    lattice, change = z.clone(), torch.zeros(len(positions), *z.shape, dtype=z.dtype)
    for k, (c, i, j) in enumerate(positions.tolist()):
        change[k, :, c, i, j] = 1
    for h in reversed(range(flow.config.levels)):
        grid, part = (x[..., :: 2**h, :: 2**h] for x in (lattice, change))
        layers = [flow.levels[h].decimator, flow.levels[h].disentangler]
        for layer in layers if flow.config.order == "paper" else reversed(layers):
            grid.copy_(layer(grid, inverse=True)[0])
            blocks = _to_blocks(part.flatten(0, 1), kernel, layer.offset)
            blocks = blocks.unflatten(0, part.shape[:2]).permute(1, 3, 2, 0)
            blocks = torch.linalg.solve(_jacobians(layer, grid, kernel), blocks)
            blocks = blocks.permute(3, 0, 2, 1).flatten(0, 1)
            part.copy_(_to_grid(blocks, kernel, layer.offset).view_as(part))
    return lattice, change


def derivatives(flow: RGFlow, z: Tensor, positions: Tensor) -> Tensor:
    """dG(z)/dz_l (K, B, C, L, L), G the generator of pictures in [0, 1], not clipped."""
    lattice, change = tangents(flow, z, positions)
    return change * torch.exp(-logit_log_derivative(lattice))


def choose(config: RGFlowConfig, latents: int, seed: int = 0) -> Tensor:
    """Random latents of each level: channel, row and column, (levels, latents, 3)."""
    levels = lattice_levels(config.image_size, config.kernel).expand(config.shape)
    chosen = []
    for h in range(config.levels):
        here, generator = (levels == h).nonzero(), torch.Generator().manual_seed(seed)
        chosen.append(here[torch.randperm(len(here), generator=generator)[:latents]])
    return torch.stack(chosen)


def receptive_fields(
    model: PictureModel, positions: Tensor, samples: int, seed: int = 0, batch: int = 8
) -> Tensor:
    """RF_l = E_z |dG(z)/dz_l|, colour summed (Hu et al., receptive fields).

    Args:
        model: flow and prior.
        positions: of the latents, (..., 3).
        samples: Monte-Carlo samples z from the prior at temperature 1, the same for all latents;
            an even number.
        seed: of the samples.
        batch: samples at a time.

    Returns:
        Maps from each half of the samples, (2, ..., L, L): their mean is the receptive field.
    """
    # float64: a poorly trained flow can leave float32's range at temperature 1.
    flow, latents = model.flow.fold().double(), positions.flatten(0, -2)
    halves = []
    for half in model.latents(samples, seed=seed).double().chunk(2):
        parts = (derivatives(flow, z, latents).abs().sum((1, 2)) for z in half.split(batch))
        halves.append(sum(parts) / len(half))
    return torch.stack(halves).unflatten(1, positions.shape[:-1])


def area(maps: Tensor, fraction: float = 0.9) -> Tensor:
    """Pixels that hold the given fraction of each map's sum, fewest first: (n,) for (n, L, L).

    A map of zeros, from a flow whose pictures are saturated everywhere, has area 0.
    """
    sums = maps.flatten(1).sort(1, descending=True).values.cumsum(1)
    total = sums[:, -1:]
    return torch.where(total[:, 0] > 0, (sums < fraction * total).sum(1) + 1, 0)


def radius(maps: Tensor) -> Tensor:
    """Root mean square distance of each map (n, L, L) from its centre, in pixels: (n,).

    The lattice is periodic: the centre is the circular mean, distances go the shorter way. A map
    spread evenly over the picture has L / sqrt(6); a map of zeros has 0.
    """
    size = maps.shape[-1]
    at = torch.arange(size, dtype=torch.float64)
    squares = 0.0
    for dim in (1, 2):
        weights = maps.double().sum(dim)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-300)
        turn = torch.exp(2j * math.pi * at / size)
        centre = (weights * turn).sum(1).angle() * size / (2 * math.pi)
        away = (at - centre[:, None] + size / 2) % size - size / 2
        squares = squares + (weights * away.square()).sum(1)
    return squares.sqrt()


def growth(sizes: Tensor) -> dict[str, float]:
    """Factor by which a length grows per level, from a weighted fit of its logarithm.

    Args:
        sizes: lengths (levels, n), at each level of n latents.

    Returns:
        ``value``, ``low`` and ``high`` of its 95 % interval, and ``n`` levels; 2 is "doubles each
        level". The interval is of levels - 2 degrees of freedom.
    """
    mean, levels = sizes.mean(1), len(sizes)
    error = sizes.std(1) / math.sqrt(sizes.shape[1]) / mean / math.log(2)
    weights = 1 / error.clamp_min(1e-3)
    (slope, _), covariance = np.polyfit(range(levels), mean.log2(), 1, w=weights, cov=True)
    # The covariance is scaled by what the fit leaves, of as many points less two.
    spread = stats.t.ppf(0.975, levels - 2) * math.sqrt(covariance[0, 0])
    ends = (("value", 0), ("low", -spread), ("high", spread))
    return {name: float(2 ** (slope + d)) for name, d in ends} | {"n": levels}
