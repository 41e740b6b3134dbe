"""Networks that give the scale and shift of a coupling layer.

Both networks answer the same question: given one checkerboard half of every block, what is the
log-scale ``s`` and the shift ``t`` of the other half? A coupling layer asks twice, once per
half. :class:`PublishedSubnet` is the network of Hu et al. (arXiv:2010.00029), exactly;
:class:`LeanSubnet` is ours, about fifty times smaller, for training on a CPU.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ScaleShift = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def split_parity(x: Tensor, channels: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Split flattened blocks into their two checkerboard halves.

    Args:
        x: blocks, shape ``(..., channels * kernel**2)``, channel first, row-major.
        channels: number of channels C.
        kernel: block edge m (even).

    Returns:
        The half with row + column even and the half with row + column odd, each of shape
        ``(..., channels * kernel**2 / 2)``.
    """
    cells = x.reshape(*x.shape[:-1], channels, kernel // 2, 2, kernel // 2, 2)
    even = torch.stack((cells[..., 0, :, 0], cells[..., 1, :, 1]), -1)
    odd = torch.stack((cells[..., 0, :, 1], cells[..., 1, :, 0]), -1)
    return even.flatten(-4), odd.flatten(-4)


def merge_parity(even: Tensor, odd: Tensor, channels: int, kernel: int) -> Tensor:
    """Inverse of :func:`split_parity`, shape ``(..., channels * kernel**2)``."""
    shape = (*even.shape[:-1], channels, kernel // 2, kernel // 2, 2)
    (e0, e1), (o0, o1) = even.reshape(shape).unbind(-1), odd.reshape(shape).unbind(-1)
    rows = torch.stack((torch.stack((e0, o0), -1), torch.stack((o1, e1), -1)), -3)
    return rows.flatten(-5)


class WeightNormLinear(nn.Module):
    """Linear layer with W = g v / ||v|| per output row (Salimans and Kingma 2016).

    Written out rather than taken from ``torch.nn.utils.parametrizations`` so that a coupling
    layer normalises once for its two half-steps, and parameters carry the published names.
    Weights start as U(-b, b) with b = sqrt(2.81 * 3 / fan_in), biases as zero.

    Args:
        fan_in: input features.
        fan_out: output features.
    """

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = math.sqrt(2.81 * 3 / fan_in)
        direction = torch.empty(fan_out, fan_in).uniform_(-bound, bound)
        self.weight_v = nn.Parameter(direction)
        self.weight_g = nn.Parameter(direction.norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def weight(self) -> Tensor:
        """The plain matrix W, shape ``(fan_out, fan_in)``."""
        if self.weight_g is None:
            return self.weight_v
        norm = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / norm)

    @torch.no_grad()
    def fold_(self) -> Self:
        """Replace g and v by W for good: the same function, cheaper, no longer trainable."""
        self.weight_v = nn.Parameter(self.weight(), requires_grad=False)
        self.weight_g = None
        return self


class ResidualMLP(nn.Module):
    """The published network S or T: pre-activation residual blocks, then a gain from zero.

    Each block maps x to (x + f(x)) / sqrt(2) with f = act, linear, act, linear, ..., and
    act(x) = x sigmoid(alpha x) with a learned alpha per feature.

    Args:
        features: input and output features, C m^2.
        res_blocks: number of residual blocks.
        hidden: width H of the hidden layers.
        depth: number of hidden layers in a block.
    """

    def __init__(self, features: int, res_blocks: int, hidden: int, depth: int) -> None:
        super().__init__()
        widths = [features, *[hidden] * depth, features]
        pairs = list(pairwise(widths))
        self.linears = nn.ModuleList(
            nn.ModuleList(WeightNormLinear(i, o) for i, o in pairs) for _ in range(res_blocks)
        )
        self.alphas = nn.ModuleList(
            nn.ParameterList(torch.ones(i) for i, _ in pairs) for _ in range(res_blocks)
        )
        self.gain = nn.Parameter(torch.zeros(features))

    def weights(self) -> list[list[Tensor]]:
        """Normalised matrices of all linear layers, to be handed to :meth:`forward`."""
        return [[linear.weight() for linear in block] for block in self.linears]

    def forward(self, x: Tensor, weights: list[list[Tensor]]) -> Tensor:
        for linears, alphas, matrices in zip(self.linears, self.alphas, weights, strict=True):
            hidden = x
            for linear, alpha, matrix in zip(linears, alphas, matrices, strict=True):
                hidden = F.linear(hidden * torch.sigmoid(alpha * hidden), matrix, linear.bias)
            x = (x + hidden) / math.sqrt(2)
        return x * self.gain


class PublishedSubnet(nn.Module):
    """Separate networks S and T, each from all C m^2 values (one half zero) to C m^2 values.

    Both half-steps share the pair; s = tanh(S), t = T (Hu et al., section 2 and code).

    Args:
        channels, kernel: block shape (C, m, m).
        res_blocks, hidden, depth: see :class:`ResidualMLP`.
        first_parity: checkerboard half ("even" or "odd") that half-step 0 is conditioned on.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        res_blocks: int,
        hidden: int,
        depth: int,
        first_parity: str,
    ) -> None:
        super().__init__()
        self.block = (channels, kernel)
        self.first_odd = first_parity == "odd"
        features = channels * kernel**2
        self.s = ResidualMLP(features, res_blocks, hidden, depth)
        self.t = ResidualMLP(features, res_blocks, hidden, depth)

    def prepare(self) -> ScaleShift:
        """Normalise the weights once; the result maps (half, half-step) to (s, t)."""
        s_weights, t_weights = self.s.weights(), self.t.weights()

        def scale_shift(half: Tensor, step: int) -> tuple[Tensor, Tensor]:
            is_odd = self.first_odd != bool(step)
            zero = torch.zeros_like(half)
            pair = (zero, half) if is_odd else (half, zero)
            x = merge_parity(*pair, *self.block)
            other = 0 if is_odd else 1
            s = split_parity(self.s(x, s_weights), *self.block)[other]
            t = split_parity(self.t(x, t_weights), *self.block)[other]
            return torch.tanh(s), t

        return scale_shift


class LeanNetwork(nn.Module):
    """One small network for scale and shift: linear, residual SiLU blocks, linear from zero."""

    def __init__(self, features: int, res_blocks: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, hidden)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
            for _ in range(res_blocks)
        )
        self.leave = nn.Linear(hidden, 2 * features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            hidden = x
            for linear in block:
                hidden = linear(F.silu(hidden))
            x = x + hidden
        return self.leave(F.silu(x))


class LeanSubnet(nn.Module):
    """A :class:`LeanNetwork` per half-step, from C m^2 / 2 values to scale and shift.

    The log-scale is bounded smoothly, s = 2 tanh(s' / 2). Same arguments as
    :class:`PublishedSubnet`; the halves have networks of their own, so their order is free.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        res_blocks: int,
        hidden: int,
        depth: int,
        first_parity: str,
    ) -> None:
        super().__init__()
        features = channels * kernel**2 // 2
        self.halves = nn.ModuleList(
            LeanNetwork(features, res_blocks, hidden, depth) for _ in range(2)
        )

    def prepare(self) -> ScaleShift:
        """The map from (half, half-step) to (s, t)."""

        def scale_shift(half: Tensor, step: int) -> tuple[Tensor, Tensor]:
            s, t = self.halves[step](half).chunk(2, -1)
            return 2 * torch.tanh(s / 2), t

        return scale_shift


SUBNETS = {"published": PublishedSubnet, "lean": LeanSubnet}
