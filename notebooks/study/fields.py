"""Receptive fields: where in the picture a latent acts, how far, and how that grows by level."""

import math
from collections.abc import Callable, Iterator

import torch
from scipy import stats
from torch import Tensor

from rgflow_core.flow import RGFlow
from rgflow_core.model import PictureModel
from rgflow_core.pixels import from_logit

_STEP = 1e-7  # of the differences


def choose(flow: RGFlow, latents: int, seed: int = 0) -> Tensor:
    """Random latents of each level: channel, row and column, (levels, latents, 3)."""
    shape, chosen = flow.config.shape, []
    for part in flow.split(torch.arange(flow.config.dim).view(1, *shape)):
        here, generator = part.flatten().sort().values, torch.Generator().manual_seed(seed)
        which = here[torch.randperm(len(here), generator=generator)[:latents]]
        chosen.append(torch.stack(torch.unravel_index(which, shape), -1))
    return torch.stack(chosen)


@torch.no_grad()
def differences(
    function: Callable[[Tensor], Tensor], z: Tensor, positions: Tensor
) -> Iterator[Tensor]:
    """Of each latent l: d function(z) / dz_l, like function(z), by forward differences.

    z is (B, C, L, L), float64; positions are channel, row and column of the latents, (K, 3).
    """
    before = function(z)
    for channel, i, j in positions.tolist():
        moved = z.clone()
        moved[:, channel, i, j] += _STEP
        yield (function(moved) - before) / _STEP


@torch.no_grad()
def receptive_fields(model: PictureModel, positions: Tensor, samples: int, seed: int = 0) -> Tensor:
    """RF_l = E_z |dG(z)/dz_l|, colour summed (Hu et al.), G the generator, not clipped.

    Forward differences in double precision; their error is below 1e-4 of a map's maximum (tests).

    Args:
        positions: channel, row and column of latents, (..., 3).
        samples: Monte-Carlo samples z from the prior at temperature 1, the same for all latents;
            an even number.

    Returns:
        Maps from each half of the samples, (2, ..., L, L): their mean is the receptive field.
    """
    flow = model.flow.fold().double()
    z = model.latents(samples, seed=seed).double()

    def picture(z: Tensor) -> Tensor:
        return from_logit(flow.inverse(z)[0], clip=False)

    maps = [
        change.abs().sum(1).unflatten(0, (2, -1)).mean(1)
        for change in differences(picture, z, positions.flatten(0, -2))
    ]
    return torch.stack(maps, 1).unflatten(1, positions.shape[:-1])


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


def growth(lengths: Tensor) -> dict[str, float]:
    """Factor by which lengths (levels, n) of n latents a level grow per level, first to last.

    The ratio of their means to the power of one over the steps; with three levels a line fitted
    through the logarithms has the same slope. The 95 % interval is of the latents alone: Student's t
    with Welch's degrees of freedom. A middle level off the line is no error of either end.
    """
    steps, n = len(lengths) - 1, lengths.shape[1]
    mean, variance = lengths[[0, -1]].mean(1), lengths[[0, -1]].var(1) / n
    relative = variance / mean.square()  # of the mean's logarithm
    freedom = (n - 1) * relative.sum() ** 2 / relative.square().sum()
    reach = stats.t.ppf(0.975, freedom) * relative.sum().sqrt()
    ends = (("value", 0), ("low", -reach), ("high", reach))
    slope = (mean[1] / mean[0]).log()
    return {name: math.exp((slope + d) / steps) for name, d in ends} | {"n": n}
