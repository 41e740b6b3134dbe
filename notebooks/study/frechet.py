"""Frechet distances between sets of pictures, by torchmetrics."""

from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from rgflow_core.errors import UserError
from study.factors import FactorNet

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


class _Features(torch.nn.Module):
    def __init__(self, net: FactorNet) -> None:
        super().__init__()
        self.net, self.num_features = net, net.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.net.features(images)


def _distance(metric: FrechetInceptionDistance, real: Tensor, fake: Tensor, batch: int) -> float:
    for images, is_real in ((real, True), (fake, False)):
        if len(images) < 2:
            raise ValueError("a Frechet distance needs two pictures or more on either side")
        for part in images.split(batch):
            metric.update(part, real=is_real)
    return metric.compute().item()


def distance(net: FactorNet, real: Tensor, fake: Tensor) -> float:
    """Frechet distance in the features of our own network; NOT comparable with FID values.

    Args:
        net: see :mod:`study.factors`.
        real, fake: uint8 (N, 3, 32, 32).
    """
    return _distance(FrechetInceptionDistance(_Features(net)), real, fake, 500)


def fid(real: Tensor, fake: Tensor, folder: str | Path) -> float:
    """FID (Heusel et al. 2017), 2048 features of Inception-v3.

    Args:
        real, fake: uint8 (N, 3, 32, 32).
        folder: where the Inception weights are, ``INCEPTION``.

    Raises:
        UserError: if they are not there; they are 91 MB and not ours to ship.
    """
    path = Path(folder) / INCEPTION
    if not path.exists():
        raise UserError(
            f"{path} is missing, so there is no FID; download it from the releases of "
            "torch-fidelity (toshas/torch-fidelity on GitHub)"
        )
    return _distance(
        FrechetInceptionDistance(feature_extractor_weights_path=str(path)), real, fake, 50
    )
