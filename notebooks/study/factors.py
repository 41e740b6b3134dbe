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
from rgflow_core.files import check_writable, provenance, refusing_damage
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

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 48, 5, 2, 2), nn.SiLU()),
            *(nn.Conv2d(48, 96, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(96, 96, 3, 1, 1), nn.SiLU()),
            *(nn.Conv2d(96, self.num_features, 3, 2, 1), nn.SiLU()),
        )
        self.head = nn.Conv2d(self.num_features, 7, 1)

    def _hidden(self, images: Tensor) -> Tensor:
        return self.trunk(images.float() / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self._hidden(images))

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 500) -> Tensor:
        """Hidden features (N, 128), averaged over the 16 tiles."""
        return torch.cat([self._hidden(part).mean((2, 3)) for part in images.split(batch)])

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 500) -> dict[str, Tensor]:
        """Factor -> (N, 4, 4): offsets in pixels, angle in degrees [0, 180), colours 0 ... 255."""
        x, y, sine, cosine, *colour = torch.cat([self(p) for p in images.split(batch)]).unbind(1)
        angle = torch.rad2deg(torch.atan2(sine, cosine)) / 2 % 180
        values = (x, y, angle, *(127.5 * (c + 1) for c in colour))
        return dict(zip(FACTORS, values, strict=True))


def error(read: Tensor, true: Tensor, factor: str) -> Tensor:
    """Absolute difference of a factor's values; of angles modulo 180 degrees."""
    difference = (read - true).abs()
    return torch.minimum(difference, 180 - difference) if factor == "angle" else difference


def accuracy(net: FactorNet, images: Tensor, labels: np.ndarray) -> dict[str, dict]:
    """Of each factor: mean and median absolute error, in its unit, and R^2 of the network's output.

    The R^2 of an angle is that of its sine and cosine together.
    """
    with torch.no_grad():
        out = torch.cat([net(part) for part in images.split(500)])
    wanted = targets(labels)
    residual = (out - wanted).square().mean((0, 2, 3))
    spread = wanted.var((0, 2, 3), correction=0)
    read, (x, y, turn, *colour) = net.read(images), [[0], [1], [2, 3], [4], [5], [6]]
    true = torch.from_numpy(labels).float().permute(3, 0, 2, 1)
    column = msds.TILE * torch.arange(msds.GRID)
    true = dict(zip(FACTORS, (true[0] - column, true[1] - column[:, None], *true[2:]), strict=True))
    true["angle"] = true["angle"] % 180
    result = {}
    for factor, rows in zip(FACTORS, (x, y, turn, *colour), strict=True):
        wrong = error(read[factor], true[factor], factor)
        result[factor] = {
            "mean_error": wrong.mean().item(),
            "median_error": wrong.median().item(),
            "r2": 1 - (residual[rows].sum() / spread[rows].sum()).item(),
        }
    return result


def load(path: str | Path) -> FactorNet:
    """The trained network.

    Raises:
        UserError: if the file is missing, damaged, or of something else.
    """
    if not Path(path).exists():
        raise UserError(f"{path} is missing; python -m study.factors makes it")
    net = FactorNet()
    with refusing_damage(path, "a factor network"):
        state = checkpoints.read_tensors(path)[1]
        net.load_state_dict(state)
        checkpoints.check_finite(state, path)
    return net.eval().requires_grad_(False)


def card(path: str | Path) -> dict[str, str]:
    """The provenance in the file's header."""
    return checkpoints.read_tensors(path)[0]


def fit(
    images: Tensor,
    labels: np.ndarray,
    epochs: int,
    seed: int = 0,
    batch: int = 100,
    progress: bool = True,
) -> FactorNet:
    """Train a network: AdamW, one cycle of the learning rate up to 3e-3, Huber loss."""
    torch.manual_seed(seed)
    net, wanted = FactorNet(), targets(labels)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    bar = tqdm(total=steps * batch, desc="factors", unit="image", disable=not progress)
    for epoch in range(epochs):
        order = permutation(len(images), _ORDER_STREAM, seed, epoch)
        for which in order[: len(images) // batch * batch].split(batch):
            loss = F.smooth_l1_loss(net(images[which]), wanted[which], beta=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(batch)
    bar.close()
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = cli.Parser("Train the network that reads the factors of both MSDS sets.")
    parser.add_argument("--data-root", type=cli.file_name, default="data", help="data folder")
    parser.add_argument("--epochs", type=cli.count, default=3, help="passes through both sets")
    parser.add_argument("--limit", type=cli.count, help="only the first so many pictures of a set")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of weights and order")
    parser.add_argument(
        "--out", type=cli.file_name, default="weights/factors.safetensors", help="file to write"
    )
    args = parser.parse_args()
    if Path(args.out).exists():
        raise UserError(f"{args.out} exists; give another name, results are not overwritten")
    check_writable(Path(args.out).parent)
    sets = [datasets.load_split(s, "train", args.data_root, args.limit) for s in msds.SETS]
    net = fit(
        torch.cat([s.images for s in sets]),
        np.concatenate([s.labels for s in sets]),
        args.epochs,
        args.seed,
    )
    facts = provenance(seed=args.seed, epochs=args.epochs, data=[s.fingerprint for s in sets])
    checkpoints.write_tensors(args.out, {k: str(v) for k, v in facts.items()}, net.state_dict())
    print(f"Done: {args.out}")


if __name__ == "__main__":
    cli.run(main)
