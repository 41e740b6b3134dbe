"""What notebooks 05 and 06 ask of a model, asked of any flow whose latents have levels."""

import math
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rgflow_core import PictureModel, datasets, msds, pixels
from study import factors, fields, separation


def answers(model: PictureModel, dataset: str, root: Path, pictures: int = 2000) -> list[list]:
    """Rows (quantity, level, factor, value): interventions, probes, receptive fields.

    Probes are for a set's factors or classes, if it has any, interventions for factors alone. A value
    is ``None`` where generated pictures are not finite; of interventions the finite ones are taken,
    if any, and "finite" is their share. Numbers of latents and samples are in proportion to that of
    the pictures for the probes, which is that of the default profile.
    """
    data = datasets.load_split(dataset, "test", root / "data", pictures)
    fresh, known, rows = _untrained(model, data.images[: pictures // 20]), {}, []
    if dataset in msds.SETS:
        known = separation.split_factors(dataset, factors.targets(data.labels))
        rows += interventions(model, dataset, root, pictures // 20, fresh)
    elif data.labels is not None:
        known = {"class": F.one_hot(torch.from_numpy(data.labels).long()).double()}
    for quantity, one in (("probe", model), ("probe_untrained", fresh)):
        for h, z in enumerate(model.flow.split(one.infer(data.images))):
            scores = separation.probe(z.flatten(1), known)
            rows += [[quantity, h, factor, score["value"]] for factor, score in scores.items()]
    positions = fields.choose(model.flow, pictures // 125)
    maps = fields.receptive_fields(model, positions, samples=pictures // 125 * 2).mean(0)
    radius = torch.stack([fields.radius(level) for level in maps])
    rows += [["radius", h, "", length] for h, length in enumerate(radius.mean(1).tolist())]
    if len(radius) > 2:
        rows.append(["growth", None, "radius", fields.growth(radius[:-1])["value"]])
    return [[*asked, value if math.isfinite(value) else None] for *asked, value in rows]


def _untrained(model: PictureModel, images: Tensor) -> PictureModel:
    """The same flow with random weights; an ActNorm starts from what it sees first."""
    fresh = PictureModel(model.flow.config.build(), model.prior)
    with torch.no_grad():
        fresh.log_prob(images)
    return fresh


def interventions(
    model: PictureModel,
    dataset: str,
    root: Path,
    pictures: int = 100,
    fresh: PictureModel | None = None,
) -> list[list]:
    """Of :func:`answers`, what redrawing levels of a set's latents does; ``fresh`` is untrained."""
    images = datasets.load_split(dataset, "test", root / "data", pictures).images
    untrained = fresh or _untrained(model, images)  # before all else that draws weights
    net = factors.load(root / "weights" / "factors.safetensors")

    def read(x: Tensor) -> dict[str, Tensor]:
        finite = x.isfinite().all(-1).all(-1).all(-1)[:, None]
        values = separation.split_factors(dataset, net.outputs(pixels.to_bytes(x)))
        return {factor: v.where(finite, torch.nan) for factor, v in values.items()}

    rows = _redrawn(model, images, read, "trained")
    return rows + _redrawn(untrained, images, read, "untrained")


def _redrawn(
    model: PictureModel, images: Tensor, read: Callable[[Tensor], dict[str, Tensor]], kind: str
) -> list[list]:
    """What redrawing parts of the latents changes, and how far the parts are apart."""
    # Cuts in two that all flows have: the finest levels, up to three quarters of the latents, and
    # the rest; the means over the coarsest level, and the rest.
    config = model.flow.config
    sizes = [z.numel() for z in model.flow.split(torch.zeros(1, *config.shape))]
    cut = sum(end <= 0.75 * config.dim for end in accumulate(sizes))
    levels, parts = [[h] for h in range(len(sizes))], (range(cut), range(cut, len(sizes)))
    cuts = {"separation_two_parts": parts} if all(parts) else {}
    if model.prior.name == "gaussian":
        cuts["separation_means"] = (_with_means, lambda z, fresh: _with_means(fresh, z))
    changes = separation.intervene(model, images, read, parts=[*levels, *chain(*cuts.values())])
    changes, halves = changes[: len(levels)], changes[len(levels) :]
    # A picture that explodes when a level is drawn anew is left out of all, and counted.
    left = _finite(changes)
    rows = [["finite", None, kind, left.double().mean().item()]]
    if not left.any():
        return rows
    changes = _of(changes, left)
    rows.append(["separation", None, kind, separation.score(changes)["value"]])
    for quantity, *two in zip(cuts, halves[::2], halves[1::2], strict=True):
        if (both := left & _finite(two)).any():
            rows.append([quantity, None, kind, separation.score(_of(two, both))["value"]])
    if kind == "trained":
        rows += [
            ["intervention", h, factor, change.mean().item()]
            for h, level in enumerate(changes)
            for factor, change in level.items()
        ]
    return rows


def _with_means(levels: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Levels with others' means over the sites of the coarsest, one a channel.

    Those are as independent of all else as levels are, if the prior is a Gaussian: a rotation of
    the latents makes them latents of their own.
    """
    *finer, last = levels
    change = (others[-1] - last).flatten(2).mean(2)
    return [*finer, last + change[..., None, None]]


def _finite(changes: list[dict[str, Tensor]]) -> Tensor:
    """Of which pictures (N,) all changes are finite."""
    return torch.stack([v for part in changes for v in part.values()]).isfinite().all(0)


def _of(changes: list[dict[str, Tensor]], which: Tensor) -> list[dict[str, Tensor]]:
    return [{k: v[which] for k, v in part.items()} for part in changes]
