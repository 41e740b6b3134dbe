"""What notebooks 05 and 06 ask of a model, asked of any flow whose latents have levels."""

import math
from collections.abc import Callable
from itertools import accumulate
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
    images, known, rows = data.images[: pictures // 20], {}, []
    fresh = _untrained(model, images)
    if dataset in msds.SETS:
        known = separation.split_factors(dataset, factors.targets(data.labels))
        net = factors.load(root / "weights" / "factors.safetensors")

        def read(x: Tensor) -> dict[str, Tensor]:
            finite = x.isfinite().all(-1).all(-1).all(-1)[:, None]
            values = separation.split_factors(dataset, net.outputs(pixels.to_bytes(x)))
            return {factor: v.where(finite, torch.nan) for factor, v in values.items()}

        for kind, one in (("trained", model), ("untrained", fresh)):
            rows += _redrawn(one, images, read, kind)
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
    torch.manual_seed(0)
    fresh = PictureModel(model.flow.config.build(), model.prior)
    with torch.no_grad():
        fresh.log_prob(images)
    return fresh


def _two_parts(levels: list[Tensor], fresh: list[Tensor]) -> list[list[Tensor]]:
    """The finest levels, up to three quarters of the latents, drawn anew, and the rest.

    A cut that all flows have, but those of a single level.
    """
    sizes = [z[0].numel() for z in levels]
    cut = sum(end <= 0.75 * sum(sizes) for end in accumulate(sizes))
    return [[*fresh[:cut], *levels[cut:]], [*levels[:cut], *fresh[cut:]]] if cut else []


def _means(levels: list[Tensor], fresh: list[Tensor]) -> list[list[Tensor]]:
    """The means over the sites of the coarsest level drawn anew, one a channel, and all else.

    Those are as independent of all else as levels are, if the prior is a Gaussian: a rotation of
    the latents makes them latents of their own.
    """
    change = (fresh[-1] - levels[-1]).flatten(2).mean(2)[..., None, None]
    return [[*levels[:-1], levels[-1] + change], [*fresh[:-1], fresh[-1] - change]]


CUTS = {"separation": separation.each_level, "separation_two_parts": _two_parts}
GAUSSIAN_CUTS = {"separation_means": _means}


def _redrawn(
    model: PictureModel, images: Tensor, read: Callable[[Tensor], dict[str, Tensor]], kind: str
) -> list[list]:
    """What redrawing parts of the latents changes, and how far the parts are apart."""
    cuts = CUTS | (GAUSSIAN_CUTS if model.prior.name == "gaussian" else {})
    asked = {
        quantity: separation.intervene(model, images, read, cut=cut)
        for quantity, cut in cuts.items()
    }
    # A picture that explodes when a level is drawn anew is left out of all, and counted.
    left = _finite(asked["separation"])
    rows = [["finite", None, kind, left.double().mean().item()]]
    for quantity, changes in asked.items():
        if changes and (both := left & _finite(changes)).any():
            score = separation.score([{k: v[both] for k, v in part.items()} for part in changes])
            rows.append([quantity, None, kind, score["value"]])
    if kind == "trained" and left.any():
        rows += [
            ["intervention", h, factor, change[left].mean().item()]
            for h, level in enumerate(asked["separation"])
            for factor, change in level.items()
        ]
    return rows


def _finite(changes: list[dict[str, Tensor]]) -> Tensor:
    """Of which pictures (N,) all changes are finite."""
    return torch.stack([v for part in changes for v in part.values()]).isfinite().all(0)
