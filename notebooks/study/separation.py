"""Scale separation: the factors of an MSDS picture, and one number for who changes which."""

import numpy as np
import torch
from torch import Tensor

from study import factors, statistics
from study.factors import FactorNet


def _split(set_name: str, values: Tensor) -> dict[str, Tensor]:
    """Values (N, 7, 4, 4) as of :func:`factors.targets`, into global and local factors (N, k)."""
    shared = {"msds1": "colour", "msds2": "angle"}[set_name]
    own = {"position": [0, 1], "angle": [2, 3], "colour": [4, 5, 6]}
    mean = values.mean((2, 3), keepdim=True)
    numbers = {f"global {shared}": mean[:, own[shared]].flatten(1)}
    for name, rows in own.items():
        rest = values[:, rows] - (mean[:, rows] if name == shared else 0)
        numbers[f"local {name}"] = rest.flatten(1)
    return numbers


def known_factors(set_name: str, labels: np.ndarray) -> dict[str, Tensor]:
    """Factor -> numbers (N, k) to be read from latents; of local factors 16 ellipses side by side.

    The global factor is the mean over ellipses, of the colour in MSDS1 and of the direction (sine
    and cosine of twice the angle) in MSDS2; local ones are what is left of each ellipse.
    """
    return _split(set_name, factors.targets(labels))


def read_factors(net: FactorNet, set_name: str, pictures: Tensor) -> dict[str, Tensor]:
    """The network's readings of :func:`known_factors` for pictures uint8 (N, 3, 32, 32)."""
    return _split(set_name, net.outputs(pictures))


def score(changes: list[dict[str, Tensor]]) -> dict[str, float]:
    """One number for scale separation, between 0 and 1.

    Every factor's mean changes are made a distribution over levels; the score is the
    total-variation distance between that of the global factor and the mean of the local ones'. 0:
    all levels act on all factors alike, in proportion; 1: no level acts on both kinds.

    Args:
        changes: of each level whose latents were drawn anew: factor -> change (N,).

    Returns:
        As :func:`statistics.bootstrap` over the N pictures.
    """
    names = list(changes[0])
    whole = next(k for k, name in enumerate(names) if name.startswith("global"))

    def distance(means: np.ndarray) -> float:
        """Of mean changes (factors, levels)."""
        shares = means / np.maximum(means.sum(1, keepdims=True), 1e-30)
        local = np.delete(shares, whole, 0).mean(0)
        return np.abs(shares[whole] - local).sum() / 2

    values = torch.stack([torch.stack([row[name] for row in changes], 1) for name in names], 1)
    return statistics.bootstrap(values, distance)
