"""Restore a missing patch of a picture, moving only the latents in the patch's inference cone.

With the known pixels held as they are, a patch of P pixels leaves 3 P numbers free, and whatever
they are, only latents in the cone change: so the density of a candidate needs only the blocks of
the cone (:class:`PatchDensity`). :func:`search` looks for the most probable patch that way.
:func:`descend` is the other reading: the latents themselves are free, those of the cone or all,
and the known pixels are held by a penalty.

Gradients are of little use to the first: a trained flow stretches what it has never seen by many
orders of magnitude, until latents lie far outside the prior and rounding spoils their inverse, so
that log p has no useful slope there. :func:`search` does without; :func:`descend` starts at the prior's
mode, where the generator is tame.
"""

import time

import numpy as np
import torch
from scipy.interpolate import griddata
from scipy.ndimage import binary_dilation
from torch import Tensor

from rgflow_core import msds, pixels
from rgflow_core.model import PictureModel
from study import cones
from study.sparsity import with_error

SIGMA = 0.05
"""How far known pixels may be off in :func:`descend`, in units of the whole range."""


def patches(labels: np.ndarray, edge: int, size: int = 32, seed: int = 0) -> Tensor:
    """A square patch per picture, centred on a random ellipse of it, bool (N, L, L).

    Args:
        labels: of an MSDS set, (N, 4, 4, 6).
        edge: of the patch in pixels; it is moved to lie within the picture.
        size: edge of the picture.
        seed: of the choice of ellipse.
    """
    chosen = np.random.default_rng(seed).integers(msds.GRID, size=(len(labels), 2))
    marked = torch.zeros(len(labels), size, size, dtype=torch.bool)
    for k, (i, j) in enumerate(chosen):
        column, row = labels[k, i, j, :2] + msds.TILE / 2 - edge / 2
        a, b = (int(np.clip(round(v), 0, size - edge)) for v in (row, column))
        marked[k, a : a + edge, b : b + edge] = True
    return marked


def interpolate(x: Tensor, missing: Tensor) -> Tensor:
    """Missing pixels from the rim of known ones around them, linearly; black where no rim is."""
    filled = x.clone()
    for k, hole in enumerate(missing.numpy()):
        rim = binary_dilation(hole, np.ones((3, 3))) & ~hole
        known = x[k][:, rim].T.numpy()
        found = griddata(np.argwhere(rim), known, np.argwhere(hole), "linear", fill_value=0.0)
        filled[k][:, hole] = torch.from_numpy(found.T).to(x.dtype)
    return filled


class PatchDensity:
    """log p(x) of pictures that differ from given ones in a patch only, up to a constant.

    Args:
        model: flow and prior.
        x: the given pictures in [0, 1), (N, C, L, L).
        missing: their patches, bool (N, L, L).
        local: run the blocks of the patch's cone only; else all blocks, for comparison.
    """

    def __init__(self, model: PictureModel, x: Tensor, missing: Tensor, local: bool = True) -> None:
        self.flow = model.flow.fold()
        self.prior = model.prior.distribution(self.flow.config, like=x).base_dist
        self.marked = missing if local else torch.ones_like(missing)
        self.before = []
        with torch.no_grad():
            grid, _ = pixels.to_logit(x)
            for h, level in enumerate(self.flow.levels):
                grid = grid if h == 0 else grid[..., ::2, ::2]
                for layer in level.layers():
                    grid, _ = layer(grid)
                    self.before.append(grid)

    @torch.no_grad()
    def __call__(self, x: Tensor, copies: int = 1) -> Tensor:
        """Log-densities (N * copies,) of candidates, ``copies`` of each picture in a row."""
        grid, total = pixels.to_logit(x)
        marked = self.marked.repeat_interleave(copies, 0)
        whole, cone, layers = grid.clone(), marked.clone(), iter(self.before)
        for h, level in enumerate(self.flow.levels):
            if h:
                grid, marked = grid[..., ::2, ::2], marked[:, ::2, ::2]
            for layer in level.layers():
                before = next(layers).repeat_interleave(copies, 0)
                grid, log_det, marked = layer.update(grid, marked, before)
                total = total + log_det
            step = 2**h
            whole[..., ::step, ::step], cone[:, ::step, ::step] = grid, marked
        log_prior = self.prior.log_prob(whole) * cone[:, None]
        return total + log_prior.flatten(1).sum(1, dtype=torch.float64)


def _change(candidates: Tensor, box: tuple[int, ...], generator: torch.Generator) -> None:
    """Change a random rectangle of the box in each candidate (K, C, L, L), in five ways in turn.

    A copy of what is next to it, a mixture with that, black, another colour, another brightness;
    the first candidate stays.
    """
    top, left, edge = box

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def share() -> float:
        return float(torch.rand((), generator=generator))

    height, width = (1 + int(edge * share() ** 3) for _ in range(2))
    a, b = top + draw(edge - height + 1), left + draw(edge - width + 1)
    for k in range(1, len(candidates)):
        part = candidates[k, :, a : a + height, b : b + width]
        way = k % 5
        if way in (0, 1):
            shift = (draw(5) - 2, draw(5) - 2)
            beside = candidates[0].roll(shift, (1, 2))[:, a : a + height, b : b + width]
            part.lerp_(beside, 1.0 if way == 0 else share())
        elif way == 2:
            part.copy_(torch.rand(part.shape, generator=generator) / 256)
        elif way == 3:
            colour = torch.randn(len(part), 1, 1, generator=generator)
            part.add_(colour * 10 ** (2 * share() - 2.5))
        else:
            part.mul_(1.6 * share())
    candidates.clamp_(0, 1 - 2**-20)


def search(
    model: PictureModel,
    x: Tensor,
    missing: Tensor,
    steps: int,
    seed: int = 0,
    local: bool = True,
    copies: int = 16,
) -> Tensor:
    """The most probable patch that a greedy random search finds, the known pixels as they are.

    In each step a random rectangle of the patch is changed in ``copies`` - 1 ways, and the most
    probable picture stays. Nothing is assumed of the pictures but that pixels resemble others
    nearby.

    Args:
        model: flow and prior.
        x: pictures in [0, 1) with the patch filled in somehow, (N, C, L, L).
        missing: square patches, bool (N, L, L).
        steps: of the search.
        seed: of its random choices.
        local: see :class:`PatchDensity`; the result is the same but for rounding.
        copies: candidates in a step.
    """
    density = PatchDensity(model, x, missing, local)
    generator = torch.Generator().manual_seed(seed)
    corners = [hole.nonzero()[0].tolist() for hole in missing]
    edge = round(int(missing[0].sum()) ** 0.5)
    for _ in range(steps):
        candidates = x[:, None].repeat(1, copies, 1, 1, 1)
        for k, corner in enumerate(corners):
            _change(candidates[k], (*corner, edge), generator)
        values = density(candidates.flatten(0, 1), copies).reshape(len(x), copies)
        best = values.nan_to_num(-torch.inf).argmax(1)
        x = candidates[torch.arange(len(x)), best]
    return x


def descend(model: PictureModel, x: Tensor, missing: Tensor, local: bool, steps: int) -> Tensor:
    """Pictures whose latents minimise -log p(z) + |error of known pixels|^2 / (2 SIGMA^2).

    Adam with gradients cut to norm 1 per picture and a rate that falls from 0.1 to 0.01. The free
    latents start at the prior's mode, 0; the others keep those of the picture as it is given.

    Args:
        model: flow and prior.
        x: pictures in [0, 1) with the patch filled in somehow, (N, C, L, L).
        missing: bool (N, L, L).
        local: free the latents in the patch's cone only, else all.
        steps: of Adam.

    Returns:
        Pictures in [0, 1], known pixels as generated.
    """
    flow, config = model.flow.fold(), model.flow.config
    prior = model.prior.distribution(config, like=x)
    free, known = torch.ones_like(missing)[:, None], ~missing[:, None]
    if local:
        free = torch.stack([cones.inference_cone(config, hole) for hole in missing])[:, None]
    with torch.no_grad():
        given = flow(pixels.to_logit(x)[0])[0]
    moved = torch.zeros_like(given, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / max(steps, 1)))
    for _ in range(steps):
        z = torch.where(free, moved, given)
        error = (pixels.from_logit(flow.inverse(z)[0], clip=False) - x) * known
        loss = error.square().sum() / (2 * SIGMA**2) - prior.log_prob(z).sum()
        (gradient,) = torch.autograd.grad(loss, moved)
        norm = gradient.flatten(1).norm(dim=1)[:, None, None, None]
        moved.grad = gradient / norm.clamp_min(1)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return pixels.from_logit(flow.inverse(torch.where(free, moved, given))[0])


def compare(
    model: PictureModel,
    pictures: Tensor,
    missing: Tensor,
    steps: int,
    descent_steps: int,
    seed: int = 0,
) -> tuple[list[dict], dict[str, Tensor]]:
    """Every way to fill square patches in, and how far each is from the true picture.

    Args:
        model: flow and prior.
        pictures: uint8 (N, C, L, L).
        missing: bool (N, L, L).
        steps: of :func:`search`.
        descent_steps: of :func:`descend`.
        seed: of noise and search.

    Returns:
        A row for each way: ``error``, the root mean square error on the patch in bytes, with its
        standard error over pictures; ``log_prob``, by how many nats the restored picture is more
        probable than the true one, the median, and the share of pictures that are ``as_probable``;
        ``variables`` free in a picture, ``steps``, and ``seconds`` per step for all pictures, of the search also
        where all blocks are run instead of the cone's, ``seconds_whole``. And
        the restored pictures in [0, 1].
    """
    config, channels = model.flow.config, model.flow.config.channels
    true = pixels.dequantise(pictures, model.noise(torch.arange(len(pictures)), seed))
    hole = missing[:, None]
    density = PatchDensity(model, true, missing)
    of_true = density(true)
    grey = torch.where(hole, 0.5, true)
    start = interpolate(true, missing)
    cone = torch.stack([cones.inference_cone(config, m) for m in missing]).flatten(1).sum(1)
    in_patch = channels * int(missing[0].sum())
    in_cone = channels * cone.double().mean().item()
    ways = {
        "grey": (lambda: grey, 0, 0),
        "black": (lambda: torch.where(hole, 0.5 / 256, true), 0, 0),
        "interpolated": (lambda: start, 0, 0),
        "search, cone": (lambda: search(model, start, missing, steps, seed), steps, in_patch),
        "latents of the cone": (
            lambda: descend(model, grey, missing, True, descent_steps),
            descent_steps,
            in_cone,
        ),
        "all latents": (
            lambda: descend(model, grey, missing, False, descent_steps),
            descent_steps,
            config.dim,
        ),
    }
    rows, restored = [], {}
    for name, (fill, count, variables) in ways.items():
        began = time.perf_counter()
        filled = fill()
        seconds = (time.perf_counter() - began) / max(count, 1)
        drawn = torch.where(hole, filled.clamp(0, 1 - 2**-20), true)
        gained = density(drawn) - of_true
        wrong = (pixels.to_bytes(drawn).double() - pictures) * hole
        rows.append(
            {
                "way": name,
                "error": with_error((wrong.square().flatten(1).sum(1) / in_patch).sqrt()),
                "log_prob": gained.median().item(),
                "as_probable": (gained >= 0).double().mean().item(),
                "variables": variables,
                "steps": count,
                "seconds": seconds if count else 0.0,
            }
        )
        restored[name] = drawn
    began, few = time.perf_counter(), min(steps, 3)
    search(model, start, missing, few, seed, local=False)
    of_search = next(row for row in rows if row["way"] == "search, cone")
    of_search["seconds_whole"] = (time.perf_counter() - began) / few
    return rows, restored
