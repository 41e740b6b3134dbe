"""Scale separation: the factors of an MSDS picture, who has and who changes which, and one number."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rgflow_core.model import PictureModel
from rgflow_core.pixels import from_logit
from study import statistics


def split_factors(set_name: str, values: Tensor) -> dict[str, Tensor]:
    """Values (N, 7, 4, 4) as of :func:`factors.targets`, into global and local factors (N, k).

    The global factor is the mean over the 16 ellipses, of the colour in MSDS1 and of the direction
    (sine and cosine of twice the angle) in MSDS2; local ones are what is left of each ellipse: its
    colour less the mean, its direction as seen from the mean one.
    """
    own = {"position": values[:, :2], "angle": values[:, 2:4], "colour": values[:, 4:]}
    shared = {"msds1": "colour", "msds2": "angle"}[set_name]
    mean = own[shared].mean((2, 3), keepdim=True)
    if shared == "angle":
        mean = F.normalize(mean, dim=1)
        (sin, cos), (mean_sin, mean_cos) = own["angle"].unbind(1), mean.unbind(1)
        turned_back = sin * mean_cos - cos * mean_sin, cos * mean_cos + sin * mean_sin
        own["angle"] = torch.stack(turned_back, 1)
    else:
        own["colour"] = own["colour"] - mean
    numbers = {f"global {shared}": mean.flatten(1)}
    return numbers | {f"local {name}": value.flatten(1) for name, value in own.items()}


def probe(z: Tensor, known: dict[str, Tensor], seed: int = 0) -> dict[str, dict[str, float]]:
    """R^2 of a ridge regression from latents (N, d) to factors (N, k), as :func:`statistics.bootstrap`.

    Half of the pictures fit it, a quarter chooses the ridge, a quarter is held out.
    """
    x, n = z.double().numpy(), len(z)
    fit, choose, test = slice(0, n // 2), slice(n // 2, 3 * n // 4), slice(3 * n // 4, n)
    x = x - x[fit].mean(0)
    s, u = np.linalg.eigh(x[fit] @ x[fit].T)
    scores = {}
    for factor, value in known.items():
        y = value.double().numpy()
        y = y - y[fit].mean(0)
        weights = [x[fit].T @ (u / (s + 10.0**r) @ (u.T @ y[fit])) for r in range(-3, 6)]
        best = min(weights, key=lambda w, y=y: ((y[choose] - x[choose] @ w) ** 2).sum())
        residual = ((y[test] - x[test] @ best) ** 2).sum(1)
        spread = ((y[test] - y[test].mean(0)) ** 2).sum(1)
        both = np.stack((residual, spread), 1)
        scores[factor] = statistics.bootstrap(both, lambda m: 1 - m[0] / m[1], seed=seed)
    return scores


def each_level(levels: list[Tensor], fresh: list[Tensor]) -> list[list[Tensor]]:
    """Latents with one level after the other drawn anew."""
    return [[*levels[:h], fresh[h], *levels[h + 1 :]] for h in range(len(levels))]


@torch.no_grad()
def intervene(
    model: PictureModel,
    images: Tensor,
    read: Callable[[Tensor], dict[str, Tensor]],
    seed: int = 0,
    cut: Callable[[list[Tensor], list[Tensor]], list[list[Tensor]]] = each_level,
) -> list[dict[str, Tensor]]:
    """What changes when a part of the latents of pictures (N, C, L, L) is drawn anew.

    Args:
        read: pictures in [0, 1] -> factor -> its values (N, k).
        cut: levels of latents, and of others drawn anew -> latents of which a part is of the others,
            part after part.

    Returns:
        Of each part: factor -> change (N,), in units of the mean difference of two pictures.
    """
    flow = model.flow.fold()
    levels = flow.split(model.infer(images, seed))
    fresh = flow.split(model.latents(len(images), seed=seed))
    before, *others = [
        read(from_logit(flow.inverse(flow.join(z))[0])) for z in (levels, *cut(levels, fresh))
    ]
    unit = {k: (v - v.roll(1, 0)).abs().nanmean() for k, v in before.items()}
    return [{k: (v - before[k]).abs().mean(1) / unit[k] for k, v in o.items()} for o in others]


def score(changes: list[dict[str, Tensor]]) -> dict[str, float]:
    """One number for scale separation, between 0 and 1, as :func:`statistics.bootstrap`.

    The mean changes of :func:`intervene` are made, for every factor, a distribution over levels; the
    score is the total-variation distance between that of the global factor and the mean of the local
    ones'. 0: all levels act on all factors alike, in proportion; 1: no level acts on both kinds.
    """
    names = list(changes[0])
    whole = next(k for k, name in enumerate(names) if name.startswith("global"))

    def distance(means: np.ndarray) -> float:
        """Of mean changes (factors, levels)."""
        shares = means / np.maximum(means.sum(1, keepdims=True), 1e-30)
        local = np.delete(shares, whole, 0).mean(0)
        return np.abs(shares[whole] - local).sum() / 2

    values = torch.stack([torch.stack([part[name] for part in changes], 1) for name in names], 1)
    return statistics.bootstrap(values, distance)
