"""Scale separation: which level's latents carry which factor of an MSDS picture."""

import numpy as np
import torch
from torch import Tensor

from rgflow_core import pixels
from rgflow_core.model import PictureModel
from study import factors
from study.analysis import mix
from study.factors import FactorNet
from study.sparsity import with_error

_RIDGE = 10.0 ** np.arange(-3, 6)


def _split(set_name: str, values: Tensor) -> dict[str, Tensor]:
    """Values (N, 7, 4, 4) as of :func:`factors.targets`, into global and local factors (N, k)."""
    shared = {"msds1": "colour", "msds2": "angle"}[set_name]
    own = {"position": [0, 1], "angle": [2, 3], "colour": [4, 5, 6]}
    mean = values.mean((2, 3), keepdim=True)
    found = {f"global {shared}": mean[:, own[shared]].flatten(1)}
    for name, rows in own.items():
        rest = values[:, rows] - (mean[:, rows] if name == shared else 0)
        found[f"local {name}"] = rest.flatten(1)
    return found


def known_factors(set_name: str, labels: np.ndarray) -> dict[str, Tensor]:
    """Factor -> numbers (N, k) to be read from latents; of local factors 16 ellipses side by side.

    The global factor is the mean over ellipses, of the colour in MSDS1 and of the direction (sine
    and cosine of twice the angle) in MSDS2; local ones are what is left of each ellipse.
    """
    return _split(set_name, factors.targets(labels))


def probe(
    latents: Tensor, values: dict[str, Tensor], resamples: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Held-out R^2 of linear (ridge) probes from latents (N, d) to factors (N, k).

    Half of the pictures fit, a quarter chooses each factor's ridge, a quarter is held out. 1 is
    perfect; a probe that knows nothing has 0, or a little less.

    Returns:
        Factor -> ``value``, and ``stderr`` bootstrapped over the held-out pictures.
    """
    n, x = len(latents), latents.double().numpy()
    fit, choose, test = slice(0, n // 2), slice(n // 2, 3 * n // 4), slice(3 * n // 4, n)
    x = x - x[fit].mean(0)
    u, s, vt = np.linalg.svd(x[fit], full_matrices=False)
    draws = np.random.default_rng(seed).integers(n - 3 * n // 4, size=(resamples, n - 3 * n // 4))
    found = {}
    for name, value in values.items():
        y = value.double().numpy()
        y = y - y[fit].mean(0)
        uy = u.T @ y[fit]
        weights = [vt.T @ (uy * (s / (s**2 + ridge))[:, None]) for ridge in _RIDGE]
        best = min(weights, key=lambda w, y=y: ((y[choose] - x[choose] @ w) ** 2).sum())
        residual = ((y[test] - x[test] @ best) ** 2).sum(1)
        spread = ((y[test] - y[test].mean(0)) ** 2).sum(1)
        boot = 1 - residual[draws].mean(1) / spread[draws].mean(1)
        mean = 1 - residual.mean() / spread.mean()
        found[name] = {"value": float(mean), "stderr": float(boot.std(ddof=1))}
    return found


def read_factors(net: FactorNet, set_name: str, pictures: Tensor) -> dict[str, Tensor]:
    """The network's readings of :func:`known_factors` for pictures uint8 (N, 3, 32, 32)."""
    with torch.no_grad():
        out = torch.cat([net(part) for part in pictures.split(500)])
    return _split(set_name, out)


@torch.no_grad()
def intervene(
    model: PictureModel,
    net: FactorNet,
    set_name: str,
    latents: Tensor,
    temperature: float,
    seed: int,
) -> list[dict[str, Tensor]]:
    """How much each factor changes when the latents of one level are drawn anew.

    Args:
        model: flow and prior.
        net: reads factors off pictures.
        set_name: "msds1" or "msds2".
        latents: (N, C, L, L) of real pictures.
        temperature: of the new latents.
        seed: of the new latents.

    Returns:
        For each level: factor -> absolute change (N,) of each picture, in units of the mean
        absolute difference between two of the pictures.
    """
    flow = model.flow
    fresh = flow.split(model.latents(len(latents), temperature, seed))
    levels = flow.split(latents)

    def read(parts: list[Tensor]) -> dict[str, Tensor]:
        drawn = pixels.from_logit(flow.inverse(flow.join(parts))[0])
        return read_factors(net, set_name, pixels.to_bytes(drawn))

    before = read(levels)
    unit = {k: (v - v.roll(1, 0)).abs().mean().item() for k, v in before.items()}
    rows = []
    for h in range(len(levels)):
        after = read([*levels[:h], fresh[h], *levels[h + 1 :]])
        rows.append({k: (v - before[k]).abs().mean(1) / unit[k] for k, v in after.items()})
    return rows


def effects(changes: list[dict[str, Tensor]]) -> list[dict[str, dict[str, float]]]:
    """Of each level and factor, from :func:`intervene`: mean change, and its standard error."""
    return [{factor: with_error(change) for factor, change in row.items()} for row in changes]


def score(
    changes: list[dict[str, Tensor]], resamples: int = 200, seed: int = 0
) -> dict[str, float]:
    """One number for scale separation, from :func:`intervene`, between 0 and 1.

    Every factor's mean changes are made a distribution over levels; the score is the
    total-variation distance between that of the global factor and the mean of the local ones'. 0:
    all levels act on all factors alike, in proportion; 1: no level acts on both kinds.

    Returns:
        ``value``, and ``low`` and ``high`` of a 95 % bootstrap interval over pictures.
    """
    names = list(changes[0])
    whole = next(k for k, name in enumerate(names) if name.startswith("global"))
    values = np.array([[row[name].double().numpy() for row in changes] for name in names])

    def distance(means: np.ndarray) -> np.ndarray:
        """Of mean changes (factors, levels, ...)."""
        shares = means / np.maximum(means.sum(1, keepdims=True), 1e-30)
        local = np.delete(shares, whole, 0).mean(0)
        return np.abs(shares[whole] - local).sum(0) / 2

    n = values.shape[-1]
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.quantile(distance(values[..., draws].mean(-1)), (0.025, 0.975))
    return {
        "value": float(distance(values.mean(-1))),
        "low": float(low),
        "high": float(high),
    }


@torch.no_grad()
def resemblance(
    model: PictureModel,
    net: FactorNet,
    set_name: str,
    fine: Tensor,
    coarse: Tensor,
    resamples: int = 200,
    seed: int = 0,
) -> list[dict[str, dict[str, float]]]:
    """Which of its two sources a mixture resembles, factor by factor.

    Args:
        model: flow and prior.
        net: reads factors off pictures.
        set_name: "msds1" or "msds2".
        fine: latents (N, C, L, L) of the pictures that give the levels below h.
        coarse: latents of the pictures that give level h and the coarser ones.

    Returns:
        For each h = 0 (all from the coarse source) ... n (none): factor -> ``value``, how far the
        mixtures have gone from the fine source, 0, to the coarse one, 1, along the line between
        the two; and ``stderr``, bootstrapped over pairs.
    """
    levels = range(model.flow.config.levels + 1)
    read = [
        read_factors(net, set_name, pixels.to_bytes(mix(model.flow, fine, coarse, h)))
        for h in levels
    ]
    draws = np.random.default_rng(seed).integers(len(fine), size=(resamples, len(fine)))
    rows = []
    for h in levels:
        row = {}
        for factor, value in read[h].items():
            start, end = read[-1][factor], read[0][factor]
            along = ((value - start) * (end - start)).sum(1).double().numpy()
            whole = (end - start).square().sum(1).double().numpy()
            boot = along[draws].sum(1) / whole[draws].sum(1)
            mean = along.sum() / whole.sum()
            row[factor] = {"value": float(mean), "stderr": float(boot.std(ddof=1))}
        rows.append(row)
    return rows
