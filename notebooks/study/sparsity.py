"""How sparse latents are, how they depend on each other, and whether their axes matter."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution


def with_error(values: Tensor) -> dict[str, float]:
    """Mean of per-picture values (N,) and its standard error over pictures."""
    values = values.double()
    return {"value": values.mean().item(), "stderr": (values.std() / math.sqrt(len(values))).item()}


def hoyer(latents: Tensor) -> Tensor:
    """Hoyer's sparsity of each row (N, d): 0 if all are equally large, 1 if only one is not 0.

    (sqrt(d) - |z|_1 / |z|_2) / (sqrt(d) - 1), Hurley and Rickard 2009. A Gaussian density has about
    0.20 for large d, a Laplace density 0.29.
    """
    root = math.sqrt(latents.shape[1])
    ratio = latents.abs().sum(1) / latents.norm(dim=1).clamp_min(1e-30)
    return (root - ratio) / (root - 1)


def near_zero(latents: Tensor, fraction: float = 0.1) -> Tensor:
    """Share of each row (N, d) within ``fraction`` of the whole level's standard deviation of 0.

    For a tenth: 0.080 of a Gaussian density, 0.132 of a Laplace density.
    """
    return (latents.abs() < fraction * latents.std()).double().mean(1)


def kolmogorov(latents: Tensor, prior: Distribution, groups: int = 5) -> dict[str, float]:
    """Largest distance between the cumulative distributions of latents (N, d) and of the prior.

    The mean over disjoint groups of pictures, and its standard error.
    """
    distances = []
    for part in latents.chunk(groups):
        values = part.flatten().double().sort().values
        cdf, n = prior.cdf(values), len(values)
        upper = torch.arange(1, n + 1, dtype=torch.float64) / n - cdf
        distances.append(torch.maximum(upper, 1 / n - upper).max())
    return with_error(torch.stack(distances))


def correlations(levels: list[Tensor], most: int = 192, seed: int = 0) -> np.ndarray:
    """Mean absolute correlation of distinct latents within and between levels, (n, n).

    Args:
        levels: latents (N, d) of each level.
        most: so many latents, drawn at random, stand for a larger level.

    Returns:
        The mean; independent latents give about sqrt(2 / (pi N)).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [z[:, torch.randperm(z.shape[1], generator=generator)[:most]] for z in levels]
    size = [z.shape[1] for z in chosen]
    whole = torch.corrcoef(torch.cat(chosen, 1).double().T).abs()
    whole = whole.fill_diagonal_(torch.nan)
    means = [[block.nanmean().item() for block in row.split(size, 1)] for row in whole.split(size)]
    return np.array(means)


@lru_cache(maxsize=16)
def _rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix, uniform on the group (Mezzadri 2007)."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return q * r.diagonal().sign()


def rotation_test(
    latents: Tensor, prior: Distribution, rotations: int = 2, seed: int = 0
) -> dict[str, float]:
    """How much log p(z) falls, in nats per latent, when a level's latents are rotated at random.

    A Gaussian prior cannot notice. Latents that truly follow a Laplace prior lose 0.13 nats each;
    latents whose axes mean nothing to the prior lose nothing.

    Args:
        latents: (N, d) of a level.
        prior: density of one latent.
        rotations: random orthogonal matrices, the same for all models.
        seed: of the matrices.

    Returns:
        ``value`` and ``stderr`` over pictures.
    """
    before = prior.log_prob(latents).double().mean(1)
    falls = [
        before - prior.log_prob(latents @ _rotation(latents.shape[1], seed + k)).double().mean(1)
        for k in range(rotations)
    ]
    return with_error(torch.stack(falls).mean(0))


def describe(levels: list[Tensor], prior: Distribution, rotations: int = 2) -> list[dict]:
    """All of the above for each level's latents (N, ...), against a prior of one latent."""
    rows = []
    for z in levels:
        flat = z.flatten(1)
        rows.append(
            {
                "hoyer": with_error(hoyer(flat)),
                "near_zero": with_error(near_zero(flat)),
                "kolmogorov": kolmogorov(flat, prior),
                "rotation": rotation_test(flat, prior, rotations),
            }
        )
    return rows
