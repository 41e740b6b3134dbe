"""What the latents do: their statistics, their receptive fields, and pictures made from them."""

import math
import warnings

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rgflow_core.flow import RGFlow, lattice_levels
from rgflow_core.model import PictureModel
from rgflow_core.pixels import dequantise, from_logit, logit_log_derivative, to_logit


@torch.no_grad()
def encode(model: PictureModel, images: Tensor, seed: int = 0, batch: int = 200) -> Tensor:
    """Latents (N, C, L, L) of pictures uint8 (N, C, L, L), dequantised with the given seed."""
    flow = model.flow.fold()
    parts = []
    for start in range(0, len(images), batch):
        index = torch.arange(start, min(start + batch, len(images)))
        y, _ = to_logit(
            dequantise(images[index].to(model.noise(index[:1]).device), model.noise(index, seed))
        )
        parts.append(flow(y)[0])
    return torch.cat(parts)


@torch.no_grad()
def bits_by_site(
    model: PictureModel, images: Tensor, seed: int = 0, batch: int = 200
) -> tuple[Tensor, Tensor]:
    """Where the bits go: on the lattice, and by level.

    Every factor of the density belongs to one value at one site: the prior to a latent, the
    derivative of a coupling to the value that it moves, the logit's to a pixel. A site's bits are
    the sum over all levels that it takes part in; a level's are those of its latents and of its
    two layers.

    Args:
        model: flow and prior.
        images: uint8 (N, C, L, L).
        seed: of the dequantisation noise.

    Returns:
        Bits (N, C, L, L), 8 of each value's byte included, whose sum is that of
        :func:`evaluate.evaluate` times the dimension; and bits (N, levels) of the levels
        alone, without bytes and logit.
    """
    flow = model.flow.fold()
    config = flow.config
    levels = lattice_levels(config.image_size, config.kernel)
    prior = model.prior.distribution(config, like=model.noise(torch.arange(1))).base_dist
    sites, by_level = [], []
    for which in torch.arange(len(images)).split(batch):
        x = dequantise(images[which], model.noise(which, seed))
        y, _ = to_logit(x)
        site = logit_log_derivative(y).double()
        gained, grid = [], y
        for h in range(config.levels):
            grid, log_derivative = flow.levels[h].site_log_derivatives(grid)
            site[..., :: 2**h, :: 2**h] += log_derivative
            gained.append(log_derivative.flatten(1).sum(1))
            y[..., :: 2**h, :: 2**h] = grid
            grid = grid[..., ::2, ::2]
        log_prior = prior.log_prob(y).double()
        site += log_prior
        gained = [g + log_prior[..., levels == h].flatten(1).sum(1) for h, g in enumerate(gained)]
        sites.append(8 - site / math.log(2))
        by_level.append(-torch.stack(gained, 1) / math.log(2))
    return torch.cat(sites), torch.cat(by_level)


def excess_kurtosis(latents: Tensor, resamples: int = 200, seed: int = 0) -> dict:
    """Pooled excess kurtosis of latents (N, ...): 0 for a Gaussian, 3 for a Laplace density.

    Returns:
        ``value``, and ``stderr`` bootstrapped over the N pictures.
    """
    flat = latents.flatten(1).double()
    moments = torch.stack([flat.pow(k).mean(1) for k in (1, 2, 3, 4)], 1).numpy()

    def kurtosis(mean: np.ndarray) -> np.ndarray:
        m1, m2, m3, m4 = np.moveaxis(mean, -1, 0)
        variance = m2 - m1**2
        return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3

    draws = np.random.default_rng(seed).integers(len(moments), size=(resamples, len(moments)))
    boot = kurtosis(np.stack([moments[d].mean(0) for d in draws]))
    return {"value": float(kurtosis(moments.mean(0))), "stderr": float(boot.std(ddof=1))}


def effect(flow: RGFlow, z: Tensor, position: tuple[int, int, int]) -> Tensor:
    """|dG(z)/dz_l|, colour summed, of the latent l at (channel, row, column): (B, L, L).

    G gives the picture in [0, 1], not clipped; the derivative is forward mode and exact.
    """
    tangent = torch.zeros_like(z)
    tangent[(slice(None), *position)] = 1

    def generate(z: Tensor) -> Tensor:
        return from_logit(flow.inverse(z)[0], clip=False)

    with warnings.catch_warnings():
        # torch's own forward-mode rules warn of torch's own deprecations.
        warnings.simplefilter("ignore", FutureWarning)
        _, derivative = torch.func.jvp(generate, (z,), (tangent,))
    return derivative.abs().sum(1)


def receptive_fields(
    model: PictureModel, level: int, latents: int, samples: int, seed: int = 0, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """RF_l = E_z |dG(z)/dz_l| (:func:`effect`) for a random part of a level's latents.

    The mean is over latents drawn from the prior at temperature 1, anew for each latent (Hu et
    al., receptive fields).

    Args:
        model: flow and prior.
        level: RG level, 0 the finest.
        latents: how many latents of the level, drawn without replacement.
        samples: Monte-Carlo samples z for each, an even number.
        seed: of both choices.
        batch: derivatives at a time.

    Returns:
        Maps from each half of the samples, (2, latents, L, L): their mean is the receptive field,
        their difference its Monte-Carlo error. And the latents' positions (latents, 3): channel,
        row, column.
    """
    # float64: a poorly trained flow can leave float32's range at temperature 1.
    flow, config = model.flow.fold().double(), model.flow.config
    here = lattice_levels(config.image_size, config.kernel) == level
    candidates = here.expand(config.shape).nonzero()
    generator = torch.Generator().manual_seed(seed)
    positions = candidates[torch.randperm(len(candidates), generator=generator)[:latents]]

    maps = []
    for k, position in enumerate(positions.tolist()):
        draws = model.latents(samples, seed=seed, start=k * samples).double()
        rows = [effect(flow, part, position) for part in draws.split(batch)]
        maps.append(torch.cat(rows).unflatten(0, (2, -1)).mean(1))
    return torch.stack(maps, 1), positions


@torch.no_grad()
def difference_fields(model: PictureModel, level: int, latents: int, seed: int = 0) -> Tensor:
    """IGF23's stand-in for receptive fields: one difference at z = 0, (latents, L, L).

    All channels of one position are raised by 1; the map is the absolute difference of the two
    pictures in [0, 1], colour summed. Its code takes only positions whose two indices are odd
    multiples of 2^h; so does this, at random among them.
    """
    flow, config = model.flow.fold().double(), model.flow.config
    step, size = 2**level, config.image_size
    odd = torch.arange(step, size, 2 * step)
    candidates = torch.cartesian_prod(odd, odd)
    generator = torch.Generator().manual_seed(seed)
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:latents]]
    z = torch.zeros(len(chosen) + 1, *config.shape, dtype=torch.float64)
    for k, (i, j) in enumerate(chosen.tolist()):
        z[k, :, i, j] = 1
    pictures = from_logit(flow.inverse(z)[0])
    return (pictures[:-1] - pictures[-1]).abs().sum(1)


def growth(areas: list[dict]) -> dict[str, float]:
    """Factor by which a receptive field's edge grows per level, from a weighted fit of its log.

    Args:
        areas: ``area`` and ``stderr`` of each level.

    Returns:
        ``factor``, and ``low`` and ``high`` of its 95 % interval; 2 is "doubles each level".
    """
    log_edge = np.array([math.log2(row["area"]) / 2 for row in areas])
    error = np.array([row["stderr"] / row["area"] / (2 * math.log(2)) for row in areas])
    weights = 1 / np.maximum(error, 1e-3)
    (slope, _), covariance = np.polyfit(range(len(areas)), log_edge, 1, w=weights, cov=True)
    # The covariance is scaled by what the fit leaves, of as many points less two.
    spread = stats.t.ppf(0.975, len(areas) - 2) * math.sqrt(covariance[0, 0])
    return {name: float(2 ** (slope + d)) for name, d in
            (("factor", 0), ("low", -spread), ("high", spread))}  # fmt: skip


def centred(maps: Tensor, positions: Tensor) -> Tensor:
    """Roll each map (n, L, L) periodically so that its latent's pixel is at (L/2, L/2)."""
    middle = maps.shape[-1] // 2
    shifted = [
        torch.roll(m, (middle - int(i), middle - int(j)), (0, 1))
        for m, (_, i, j) in zip(maps, positions, strict=True)
    ]
    return torch.stack(shifted)


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


@torch.no_grad()
def generation_steps(flow: RGFlow, z: Tensor) -> list[Tensor]:
    """Pictures in [0, 1] after each level of generation, coarse to fine: (B, C, l, l) each."""
    return [from_logit(grid) for _, grid, _ in flow.inverse_steps(z)]


@torch.no_grad()
def mix(flow: RGFlow, fine: Tensor, coarse: Tensor, level: int) -> Tensor:
    """Pictures with the latents of levels below ``level`` from one source, the rest from another.

    Args:
        flow: the flow.
        fine: latents (B, C, L, L) that give levels 0 ... level-1.
        coarse: latents (B, C, L, L) that give levels level ... n-1.
        level: 0 ... n.

    Returns:
        Pictures in [0, 1], (B, C, L, L).
    """
    if not 0 <= level <= flow.config.levels:
        raise ValueError(f"level must be from 0 to {flow.config.levels}, not {level}")
    mixed = flow.join(flow.split(fine)[:level] + flow.split(coarse)[level:])
    return from_logit(flow.inverse(mixed)[0])


@torch.no_grad()
def traverse(
    flow: RGFlow, z: Tensor, positions: list[tuple[int, int, int]], values: Tensor
) -> Tensor:
    """Pictures in which one latent takes given values, all others staying.

    Args:
        flow: the flow.
        z: latents (C, L, L) of one picture.
        positions: channel, row and column of n latents.
        values: (k,), one after the other in place of the latent.

    Returns:
        Pictures in [0, 1], (n, k, C, L, L).
    """
    moved = z.repeat(len(positions), len(values), 1, 1, 1)
    for k, position in enumerate(positions):
        moved[(k, slice(None), *position)] = values.to(z.dtype)
    pictures = [from_logit(flow.inverse(part)[0]) for part in moved.flatten(0, 1).split(256)]
    return torch.cat(pictures).unflatten(0, (len(positions), len(values)))


def strongest(
    flow: RGFlow, z: Tensor, level: int, count: int, reach: float = 2.0
) -> list[tuple[int, int, int]]:
    """The latents of a level along which pictures change most, strongest first.

    Args:
        flow: the flow.
        z: latents (N, C, L, L) of the pictures that judge.
        level: whose latents are compared.
        count: how many of them to name.
        reach: the change is the mean absolute difference of the pictures in which the latent is
            ``reach`` and ``-reach``.

    Returns:
        Channel, row and column of each.
    """
    config = flow.config
    here = lattice_levels(config.image_size, config.kernel) == level
    positions = [tuple(p) for p in here.expand(config.shape).nonzero().tolist()]
    ends = torch.tensor([-reach, reach])
    change = sum(
        traverse(flow, one, positions, ends).diff(dim=1).abs().flatten(1).mean(1) for one in z
    )
    return [positions[k] for k in change.argsort(descending=True, stable=True)[:count]]
