"""Speed: this package against the published codes' way of computing, measured in pairs.

The comparator :class:`PublishedWay` is a plain module that computes as both published codes do:
every layer gathers its blocks from the full lattice by an index table and scatters them back, S and
T run apart, weights are normalised in every call, each network is checkpointed in training. Times
of a shared machine drift; so ours and theirs alternate, and the machine's own matrix product is
timed between them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from rgflow_core import train
from rgflow_core.flow import BlockBijection, RGFlow, RGFlowConfig
from rgflow_core.networks import PublishedSubnet
from rgflow_core.running import Ranks
from study import statistics


class _Activation(nn.Module):
    def __init__(self, alpha: Tensor) -> None:
        super().__init__()
        self.alpha = nn.Parameter(alpha.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.alpha * x)


class _Network(nn.Module):
    """S (0) or T (1) of a published subnet, by itself."""

    def __init__(self, subnet: PublishedSubnet, which: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(subnet.gain[which].detach().clone())
        self.res_blocks = nn.ModuleList()
        for linears, alphas in zip(subnet.linears, subnet.alphas, strict=True):
            block = nn.Sequential()
            for linear, alpha in zip(linears, alphas, strict=True):
                gain, direction = linear.weight_g[which], linear.weight_v[which]
                own = weight_norm(nn.Linear(*reversed(direction.shape), dtype=direction.dtype))
                names = ("bias", *(f"parametrizations.weight.original{k}" for k in (0, 1)))
                values = (linear.bias[which], gain, direction)
                own.load_state_dict(dict(zip(names, values, strict=True)))
                block.extend((_Activation(alpha[which]), own))
            self.res_blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = (x + block(x)) / math.sqrt(2)
        return x * self.gain


class _Layer(nn.Module):
    """All blocks of one offset of one level, gathered from the whole picture."""

    def __init__(self, config: RGFlowConfig, level: int, bijection: BlockBijection) -> None:
        super().__init__()
        m, step = config.kernel, 2**level
        edge = config.image_size // step
        start = torch.arange(edge // m)[:, None] * m + bijection.offset
        lines = (start + torch.arange(m)) % edge * step
        index = lines[:, None, :, None] * config.image_size + lines[None, :, None, :]
        self.register_buffer("index", index.reshape(-1, m * m))
        odd = (torch.arange(m)[:, None] + torch.arange(m)) % 2
        mask = (odd if config.first_parity == "odd" else 1 - odd).float()
        self.register_buffer("mask", mask.repeat(config.channels, 1, 1).flatten())
        subnets = [coupling.subnet for coupling in bijection.couplings]
        self.s, self.t = (nn.ModuleList(_Network(net, k) for net in subnets) for k in (0, 1))

    def _gather(self, x: Tensor) -> Tensor:
        blocks = x.flatten(2)[:, :, self.index]
        return blocks.transpose(1, 2).reshape(-1, len(self.mask))

    def _scatter(self, x: Tensor, blocks: Tensor) -> Tensor:
        out = x.flatten(2).clone()
        shape = (len(x), -1, x.shape[1], self.index.shape[1])
        out[:, :, self.index] = blocks.reshape(shape).transpose(1, 2)
        return out.view_as(x)

    def _scale_shift(self, k: int, mask: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        half = mask * x
        s, t = (
            checkpoint(net, half, use_reentrant=False) if torch.is_grad_enabled() else net(half)
            for net in (self.s[k], self.t[k])
        )
        return (1 - mask) * torch.tanh(s), (1 - mask) * t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks, log_det = self._gather(x), 0.0
        for k in range(len(self.s)):
            for mask in (self.mask, 1 - self.mask):
                s, t = self._scale_shift(k, mask, blocks)
                blocks = mask * blocks + (1 - mask) * (blocks * torch.exp(s) + t)
                log_det = log_det + s.sum(1)
        return self._scatter(x, blocks), log_det.reshape(len(x), -1).sum(1)

    def inverse(self, x: Tensor) -> Tensor:
        blocks = self._gather(x)
        for k in reversed(range(len(self.s))):
            for mask in (1 - self.mask, self.mask):
                s, t = self._scale_shift(k, mask, blocks)
                blocks = mask * blocks + (1 - mask) * ((blocks - t) * torch.exp(-s))
        return self._scatter(x, blocks)


class PublishedWay(nn.Module):
    """The comparator, with the weights of a flow of published subnets."""

    def __init__(self, flow: RGFlow) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer(flow.config, h, bijection)
            for h, level in enumerate(flow.levels)
            for bijection in level.layers()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = 0.0
        for layer in self.layers:
            x, layer_log_det = layer(x)
            log_det = log_det + layer_log_det
        return x, log_det

    def inverse(self, x: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return x


def flops_per_image(flow: RGFlow) -> float:
    """Floating-point operations of the matrix products of one forward pass, per picture."""
    config, total = flow.config, 0
    for h, level in enumerate(flow.levels):
        blocks = (config.image_size // 2**h // config.kernel) ** 2
        matrices = (p for n, p in level.named_parameters() if n.endswith(("weight_v", ".weight")))
        # A pair of published networks runs in both half-steps, a lean network in one.
        runs = 2 if config.subnet == "published" else 1
        total += 2 * runs * blocks * sum(p.numel() for p in matrices)
    return float(total)


def matrix_peak(device: str = "cpu", repeats: int = 10) -> float:
    """FLOP/s of a float32 product (8192 x 512) (512 x 512), the best of ``repeats``."""
    a, b = torch.randn(8192, 512, device=device), torch.randn(512, 512, device=device)
    best = min(seconds(lambda: a @ b, device) for _ in range(repeats))
    return 2 * 8192 * 512 * 512 / best


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int, device: str = "cpu"
) -> dict:
    """Alternate two programs, after two rounds that do not count.

    Returns:
        ``speedup``: geometric mean of theirs / ours, as :func:`statistics.mean`; ``ours``,
        ``theirs``: the best seconds; ``peak``: of matrix products in between, FLOP/s.
    """
    for _ in range(2):
        ours(), theirs()
    rounds = [
        (matrix_peak(device), seconds(ours, device), seconds(theirs, device)) for _ in range(pairs)
    ]
    peaks, mine, others = zip(*rounds, strict=True)
    speedup = statistics.mean([math.log(b / a) for a, b in zip(mine, others, strict=True)])
    ends = {key: v if v is None else math.exp(v) for key, v in speedup.items() if key != "n"}
    best = {"ours": min(mine), "theirs": min(others), "peak": max(peaks)}
    return best | {"speedup": ends | {"n": pairs}}


def step(settings: train.Settings, images: Tensor) -> Callable[[], None]:
    """A program that trains a new model by one step, its noise and optimisers included."""
    settings = replace(settings, outlier_bpd=None)  # of a fresh model all pictures may be outliers
    run = train.Run(settings, Path("none"), Ranks("cpu"), len(images), "")
    return lambda: train.step(run, run.model, images)


def pillow_render(labels: np.ndarray) -> np.ndarray:
    """MSDS pictures by the published drawing loop (facts of both codes), for comparison."""
    pictures = []
    for picture in labels:
        canvas = Image.new("RGB", (32, 32))
        for column in picture:
            for x, y, angle, *colour in column:
                tile = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
                fill = (*(int(c) for c in colour), 255)
                ImageDraw.Draw(tile).ellipse([(1, 3), (7, 5)], fill=fill)
                tile = tile.rotate(float(angle), Image.Resampling.BICUBIC)
                canvas.paste(tile, (int(x), int(y)), tile)
        pictures.append(np.asarray(canvas))
    return np.stack(pictures)
