"""Flows to compare with: Glow and RealNVP of the library ``normflows``, and ours without hierarchy.

Importing this adds them to the core's flows and models, so that the same loop trains them, on the
same pictures, and the same code judges them. ``normflows`` is the extra ``peers``.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from normflows import flows
from normflows.nets.resnet import ConvResidualNet
from torch import Tensor, nn

from rgflow_core import LEAN, LEAN8, RGFlowConfig, train
from rgflow_core.flow import CONFIGS, Level


@dataclass(frozen=True)
class PeerConfig(RGFlowConfig):
    """Which peer, of how many scales. There is no lattice: all of it is one level.

    ``coupling_layers``, ``hidden`` and ``res_blocks`` are of each scale (RealNVP: of each mask).
    RealNVP's networks may double their width from scale to scale (Dinh et al. 2016, section 3.6),
    Glow's may have an ActNorm after each hidden convolution (OpenAI's code).
    """

    flow: str = "glow"
    scales: int = 3
    doubling: bool = False
    net_actnorm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", self.image_size)
        super().__post_init__()

    def build(self) -> "Peer":
        return Peer(self)


class Peer(nn.Module):
    """A multiscale flow (Dinh et al. 2016): half of the channels are latents after each scale.

    It has the methods of :class:`rgflow_core.RGFlow` that training and evaluation use. Latents z
    (B, C, L, L) are those of the scales one after the other, finest first.
    """

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.config, self.shapes, self.scales = config, [], nn.ModuleList()
        channels, edge = config.channels, config.image_size
        for left in reversed(range(config.scales)):
            channels, edge = 4 * channels, edge // 2
            # normflows looks at values while it builds, and calls what torch deprecates.
            with torch.device("cpu"), warnings.catch_warnings(action="ignore"):
                self.scales.append(nn.ModuleList(STEPS[config.flow](config, channels, edge)))
            channels //= 2 if left else 1
            self.shapes.append((channels, edge, edge))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        latents, log_det = [], y.new_zeros(len(y))
        for steps in self.scales:
            for step in steps:
                # normflows goes from latents to pictures.
                y, change = step(y) if isinstance(step, Level) else step.inverse(y)
                log_det = log_det + change
            if len(latents) < len(self.scales) - 1:
                y, left = self.halves(y)
                latents.append(left)
        return self.join([*latents, y]), log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = None, z.new_zeros(len(z))
        for steps, left in reversed([*zip(self.scales, self.split(z), strict=True)]):
            y = left if y is None else self.whole(y, left)
            for step in reversed(steps):
                y, change = step(y, inverse=True) if isinstance(step, Level) else step(y)
                log_det = log_det + change
        return y, log_det

    def halves(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What goes on, and what leaves: the half that the last coupling moved, given the other."""
        run = RUNS.get(self.config.flow, y.shape[1] // 2)
        kept, left = y.unflatten(1, (-1, 2, run)).unbind(2)
        return kept.flatten(1, 2), left.flatten(1, 2)

    def whole(self, kept: Tensor, left: Tensor) -> Tensor:
        """Inverse of :meth:`halves`."""
        run = RUNS.get(self.config.flow, kept.shape[1])
        return torch.stack([y.unflatten(1, (-1, run)) for y in (kept, left)], 2).flatten(1, 3)

    def split(self, z: Tensor) -> list[Tensor]:
        """Latents of each scale, finest first, (B, channels, edge, edge)."""
        parts = z.flatten(1).split([prod(shape) for shape in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, latents: list[Tensor]) -> Tensor:
        """Inverse of :meth:`split`."""
        return torch.cat([x.flatten(1) for x in latents], 1).unflatten(1, self.config.shape)

    def standardise(self, y: Tensor) -> None:
        """Start from y: each ActNorm does from what it sees first; of our layers the first one."""
        self(y)
        for step in self.scales[0]:
            if isinstance(step, Level):
                step.standardise(y)
                break
            y, _ = step.inverse(y)

    def fold(self) -> "Peer":
        return copy.deepcopy(self).requires_grad_(False)


class Taps(nn.Module):
    """A convolution (n, n, k, k) whose weight is k^2 matrices (k^2, n, n), which Muon takes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.taps = nn.Parameter(conv.weight.data.flatten(2).permute(2, 0, 1).contiguous())
        self.bias, self.edge = conv.bias, conv.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.taps.permute(1, 2, 0).unflatten(-1, (self.edge, self.edge))
        return F.conv2d(x, weight, self.bias, padding=self.edge // 2)


def _with_taps(network: nn.Module, hidden: int) -> nn.Module:
    for parent in [*network.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.in_channels == child.out_channels == hidden:
                setattr(parent, name, Taps(child))
    return network


def _glow(config: PeerConfig, channels: int, edge: int) -> list[nn.Module]:
    """Kingma and Dhariwal 2018, arXiv:1807.03039. Its end stands for a learned diagonal prior."""
    hidden = config.hidden[0]
    kind = {"net_actnorm": config.net_actnorm}
    blocks = [flows.GlowBlock(channels, hidden, **kind) for _ in range(config.coupling_layers[0])]
    for block in blocks:
        mixing = block.flows[1]  # its triangles, which are no matrices, are not for Muon
        mixing.L, mixing.U = (nn.Parameter(p.data[None, None]) for p in (mixing.L, mixing.U))
    end = flows.AffineConstFlow((channels, edge, edge))
    return [flows.Squeeze(), *(_with_taps(block, hidden) for block in blocks), end]


def _realnvp(config: PeerConfig, channels: int, edge: int) -> list[nn.Module]:
    """Dinh et al. 2016, arXiv:1605.08803, with ActNorm for batch normalisation, s = tanh(S).

    Checkerboard masks, a squeeze, then masks of channels: the upper or the lower rows of cells, the
    lower ones last.
    """
    hidden = config.hidden[0] * (config.image_size // (2 * edge) if config.doubling else 1)

    def network(channels: int) -> nn.Module:
        net = ConvResidualNet(channels, channels, hidden, None, config.res_blocks[0])
        nn.init.zeros_(net.final_layer.weight)
        nn.init.zeros_(net.final_layer.bias)
        _with_taps(net.blocks, hidden)  # not the first and last layers, which may be square too
        return net

    def couplings(half: Tensor) -> list[nn.Module]:
        steps, n = [], len(half)
        for k in reversed(range(config.coupling_layers[0])):
            s = nn.Sequential(network(n), nn.Tanh())
            masked = flows.MaskedAffineFlow((half == k % 2).float(), network(n), s)
            steps += [flows.ActNorm((n, 1, 1)), masked]
        return steps

    line = torch.arange(2 * edge)
    board = ((line + line[:, None]) % 2).expand(channels // 4, -1, -1)
    rows = (torch.arange(channels) // 2 % 2)[:, None, None].expand(-1, edge, edge)
    end = flows.AffineConstFlow((channels, edge, edge))
    return [*couplings(board), flows.Squeeze(), *couplings(rows), end]


def _flat(config: PeerConfig, channels: int, edge: int) -> list[nn.Module]:
    """Layers of decimators and disentanglers on one grid; nothing is decimated.

    "flat" squeezes the picture first, and its blocks change their offset after each layer; "flat8"
    has the layers of ``lean8``, level after level, all on the grid of the picture.
    """
    own = config.flow == "flat8"
    lattice = (2 * edge, channels // 4, 8) if own else (edge, channels, 4)
    layers = LEAN8["coupling_layers"] if own else (1,) * config.coupling_layers[0]
    sizes = (config.res_blocks[0], config.hidden[0], config.mlp_depth[0])
    kind = {"subnet": config.subnet, "coupling": config.coupling, "order": config.order}
    levels = [Level(RGFlowConfig(*lattice, count, *sizes, **kind), 0) for count in layers]
    return [*levels, flows.Squeeze()] if own else [flows.Squeeze(), *levels]


STEPS: dict[str, Callable[[PeerConfig, int, int], list[nn.Module]]] = {
    "glow": _glow, "realnvp": _realnvp, "flat": _flat, "flat8": _flat,
}  # fmt: skip
# Channels of the half that the last coupling moved: in runs of so many; otherwise in one.
RUNS = {"realnvp": 2}
CONFIGS |= dict.fromkeys(STEPS, PeerConfig)
_GLOW = {"flow": "glow", "coupling_layers": 8}
_REALNVP = {"flow": "realnvp", "hidden": 32, "res_blocks": 2}
_FLAT = LEAN | {"flow": "flat", "scales": 1}
# As many parameters as the lean model, within 10 %, on three colours and on grey; those with an 8
# as lean8, flat8 exactly.
MODELS = {
    "glow": _GLOW | {"hidden": 144},
    "glow_16_steps": _GLOW | {"coupling_layers": 16, "hidden": 80},
    "glow_4_steps": _GLOW | {"coupling_layers": 4, "hidden": 240},
    "glow_net_actnorm": _GLOW | {"hidden": 144, "net_actnorm": True},
    "glow8": _GLOW | {"hidden": 176},
    "realnvp": _REALNVP | {"coupling_layers": 4},
    "realnvp_doubling": _REALNVP | {"coupling_layers": 4, "hidden": 12, "doubling": True},
    "flat": _FLAT | {"coupling_layers": 7},
    "flat8": _FLAT | {"flow": "flat8", "coupling_layers": 9, "order": "paper"},
    "glow_grey": _GLOW | {"hidden": 176},
    "realnvp_grey": _REALNVP | {"coupling_layers": 3},
    "flat_grey": _FLAT | {"coupling_layers": 10},
}
train.MODELS |= MODELS
