"""A small network that reads the factors of MSDS pictures: ``python -m study.factors``.

Its hidden features are also those in which samples are compared with real pictures.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from rgflow_core import checkpoints, cli, datasets, msds
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, refusing_damage
from rgflow_core.noise import permutation

FACTORS = ("x", "y", "angle", "red", "green", "blue")
_ORDER_STREAM = 5


def targets(labels: np.ndarray) -> Tensor:
    """Labels (N, 4, 4, 6) to what the network gives, (N, 7, 4, 4) by row and column of the tile.

    Seven numbers of order one: offset x and y of the ellipse in its tile in pixels (-1, 0, 1), sine
    and cosine of twice the angle, and red, green and blue over 127.5, less 1.
    """
    x, y, angle, *colour = torch.from_numpy(labels).float().permute(3, 0, 2, 1)
    column = msds.TILE * torch.arange(msds.GRID)
    turn = torch.deg2rad(2 * angle)
    parts = [x - column, y - column[:, None], torch.sin(turn), torch.cos(turn)]
    return torch.stack(parts + [c / 127.5 - 1 for c in colour], 1)


class FactorNet(nn.Module):
    """Convolutions from pictures uint8 (N, 3, 32, 32) to :func:`targets`, (N, 7, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 48, 5, 2, 2), nn.SiLU()),
            *(nn.Conv2d(48, 96, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(96, 96, 3, 1, 1), nn.SiLU()),
            *(nn.Conv2d(96, 128, 3, 2, 1), nn.SiLU()),
        )
        self.head = nn.Conv2d(128, 7, 1)

    def _hidden(self, images: Tensor) -> Tensor:
        return self.trunk(images.float() / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self._hidden(images))

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 500) -> Tensor:
        """Hidden features (N, 128), averaged over the 16 tiles."""
        return torch.cat([self._hidden(part).mean((2, 3)) for part in images.split(batch)])

    @torch.no_grad()
    def outputs(self, images: Tensor, batch: int = 500) -> Tensor:
        """What the network gives, (N, 7, 4, 4), without gradients."""
        return torch.cat([self(part) for part in images.split(batch)])


def r_squared(net: FactorNet, images: Tensor, labels: np.ndarray) -> dict[str, float]:
    """R^2 of the network's readings of each factor; an angle's is that of its sine and cosine."""
    wanted = targets(labels)
    residual = (net.outputs(images) - wanted).square().mean((0, 2, 3))
    spread = wanted.var((0, 2, 3), correction=0)
    rows = zip(FACTORS, ([0], [1], [2, 3], [4], [5], [6]), strict=True)
    return {factor: 1 - (residual[r].sum() / spread[r].sum()).item() for factor, r in rows}


def load(path: str | Path) -> FactorNet:
    """The trained network; :class:`UserError` if the file is not one, whole."""
    net = FactorNet()
    if not Path(path).is_file():
        raise UserError(f"{path}: no factor network; python -m study.factors makes it")
    with refusing_damage(path, "a factor network; python -m study.factors makes it"):
        state = checkpoints.read_tensors(path)[1]
        net.load_state_dict(state)
        checkpoints.check_finite(state, path)
    return net.eval().requires_grad_(False)


def fit(images: Tensor, labels: np.ndarray, epochs: int = 3, batch: int = 100) -> FactorNet:
    """Train a network: AdamW, one cycle of the learning rate up to 3e-3, Huber loss."""
    torch.manual_seed(0)
    net, wanted, whole = FactorNet(), targets(labels), len(images) // batch * batch
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    orders = (permutation(len(images), _ORDER_STREAM, 0, epoch) for epoch in range(epochs))
    batches = [which for order in orders for which in order[:whole].split(batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, len(batches))
    for which in tqdm(batches, "factors", unit="batch"):
        loss = F.smooth_l1_loss(net(images[which]), wanted[which], beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = cli.Parser("Train the network that reads the factors of both MSDS sets.")
    parser.add_argument("--out", default="weights/factors.safetensors", help="file to write")
    out = cli.new_file(parser.parse_args().out)
    sets = [datasets.load_split(name, "train", "data") for name in msds.SETS]
    net = fit(torch.cat([s.images for s in sets]), np.concatenate([s.labels for s in sets]))
    facts = provenance(seed=0, data=[s.fingerprint for s in sets])
    checkpoints.write_tensors(out, {k: str(v) for k, v in facts.items()}, net.state_dict())
    print(f"Done: {out}")


if __name__ == "__main__":
    cli.run(main)
