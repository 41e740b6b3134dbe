"""Networks that give the parameters of a coupling layer.

Given one checkerboard half of every block, they give the log-scale s and the shift t of the other
half, for the coupling "nlsq" also q, d and g (see :mod:`rgflow_core.couplings`). A coupling layer
asks twice, once per half. :class:`PublishedSubnet` is the network of Hu et al. (arXiv:2010.00029),
exactly; :class:`LeanSubnet` is ours, about fifty times smaller, for training on a CPU.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = Callable[[Tensor, int], tuple[Tensor, ...]]


def split_parity(x: Tensor, channels: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Split flattened blocks into their two checkerboard halves.

    Args:
        x: blocks (..., C m^2), channel first, row-major.
        channels, kernel: C and m, the latter even.

    Returns:
        The halves with row + column even and odd, each (..., C m^2 / 2).
    """
    cells = x.reshape(*x.shape[:-1], channels, kernel // 2, 2, kernel // 2, 2)
    even = torch.stack((cells[..., 0, :, 0], cells[..., 1, :, 1]), -1)
    odd = torch.stack((cells[..., 0, :, 1], cells[..., 1, :, 0]), -1)
    return even.flatten(-4), odd.flatten(-4)


def merge_parity(even: Tensor, odd: Tensor, channels: int, kernel: int) -> Tensor:
    """Inverse of :func:`split_parity`: (..., C m^2)."""
    shape = (*even.shape[:-1], channels, kernel // 2, kernel // 2, 2)
    (e0, e1), (o0, o1) = even.reshape(shape).unbind(-1), odd.reshape(shape).unbind(-1)
    rows = torch.stack((torch.stack((e0, o0), -1), torch.stack((o1, e1), -1)), -3)
    return rows.flatten(-5)


class WeightNormLinear(nn.Module):
    """The same layer of S and of T, with W = g v / ||v|| per output row (Salimans and Kingma 2016).

    Weights start as U(-b, b) with b = sqrt(2.81 * 3 / fan_in), biases as zero. ``copies`` is 2, or
    1 where an ablation lets S and T share a layer.
    """

    def __init__(self, fan_in: int, fan_out: int, copies: int = 2) -> None:
        super().__init__()
        bound = math.sqrt(2.81 * 3 / fan_in)
        direction = torch.empty(copies, fan_out, fan_in).uniform_(-bound, bound)
        self.weight_v = nn.Parameter(direction)
        self.weight_g = nn.Parameter(direction.norm(dim=-1, keepdim=True))
        self.bias = nn.Parameter(torch.zeros(copies, fan_out))

    def scaled(self, rows: Tensor | None, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (2, fan_out, fan_in) and biases (2, 1, fan_out), rows and columns multiplied."""
        gain, bias = self.weight_g, self.bias
        if rows is not None:
            gain, bias = gain * rows[..., None], bias * rows
        # What torch's own parametrisation calls; it wants one matrix.
        weight = torch._weight_norm(self.weight_v.flatten(0, 1), gain.flatten(0, 1), 0)
        return weight.view_as(self.weight_v) * columns[:, None], bias[:, None]


class PublishedSubnet(nn.Module):
    """Separate networks S and T, each from all C m^2 values (one half zero) to C m^2 values.

    Both half-steps share the pair; s = tanh(S), t = T (Hu et al., section 2 and code). A network is
    a sequence of residual blocks, then a gain that starts at zero. Each block maps x to
    (x + f(x)) / sqrt(2) with f = act, linear, act, linear, ..., and act(x) = x sigmoid(alpha x) with
    a learned alpha per feature. S and T have the same shapes and are computed together.

    act(x) = silu(alpha x) / alpha, so that alpha moves into the linear layers before and after it:
    one fused operation per activation is left of three.

    Args:
        block: (C, m) of blocks (C, m, m).
        sizes: number of residual blocks, width H of their hidden layers, and how many these are.
        odd_first: whether half-step 0 is conditioned on the odd half of the checkerboard.
        outputs: parameters per value of the coupling; here always 2, s and t.
    """

    # What an ablation may change, as it may :meth:`_residual`.
    rescaling = math.sqrt(0.5)
    bound = staticmethod(torch.tanh)

    def __init__(
        self, block: tuple[int, int], sizes: tuple[int, int, int], odd_first: bool, outputs: int = 2
    ) -> None:
        super().__init__()
        self.block, self.odd_first = block, odd_first
        features, (res_blocks, hidden, depth) = block[0] * block[1] ** 2, sizes
        pairs = list(pairwise([features, *[hidden] * depth, features]))
        self.linears = nn.ModuleList(
            nn.ModuleList(WeightNormLinear(i, o) for i, o in pairs) for _ in range(res_blocks)
        )
        self.alphas = nn.ModuleList(
            nn.ParameterList(torch.ones(2, i) for i, _ in pairs) for _ in range(res_blocks)
        )
        self.gain = nn.Parameter(torch.zeros(2, features))
        self.folded = False

    def _weights(self) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        """Of each residual block: alpha of its first activation, then its matrices and biases."""
        for linears, alphas in zip(self.linears, self.alphas, strict=True):
            if self.folded:
                yield alphas[0], [(linear.weight_v, linear.bias) for linear in linears]
                continue
            # At alpha = 0 the activation is x / 2, and so it is to rounding at 1e-20.
            alphas = [torch.where(a.abs() < 1e-20, 1e-20, a) for a in alphas]
            scales = zip(linears, [*alphas[1:], None], alphas, strict=True)
            layers = [linear.scaled(rows, columns.reciprocal()) for linear, rows, columns in scales]
            yield alphas[0][:, None], layers

    @torch.no_grad()
    def fold_(self) -> None:
        """Replace g, v and alpha by plain weights for good: the same function, not trainable."""
        weights = list(self._weights())
        for linears, alphas, (alpha, layers) in zip(
            self.linears, self.alphas, weights, strict=True
        ):
            alphas[0] = nn.Parameter(alpha, requires_grad=False)
            for linear, (weight, bias) in zip(linears, layers, strict=True):
                linear.weight_v = nn.Parameter(weight, requires_grad=False)
                linear.bias = nn.Parameter(bias, requires_grad=False)
                linear.weight_g = None
        self.folded = True

    def prepare(self) -> Parameters:
        """Make the weights once; the result maps (half, half-step) to (s, t)."""
        weights = list(self._weights())

        def scale_shift(half: Tensor, step: int) -> tuple[Tensor, Tensor]:
            is_odd = self.odd_first != bool(step)
            zero = torch.zeros_like(half)
            x = merge_parity(*((zero, half) if is_odd else (half, zero)), *self.block)
            for alpha, layers in weights:
                x = self._residual(x, alpha, layers)
            x = x * self.gain[:, None]
            s, t = split_parity(x, *self.block)[0 if is_odd else 1]
            return self.bound(s), t

        return scale_shift

    def _residual(self, x: Tensor, alpha: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        in_place, hidden = not torch.is_grad_enabled(), x * alpha
        for weight, bias in layers:
            hidden = F.silu(hidden, inplace=in_place).expand(len(weight), -1, -1)
            hidden = torch.baddbmm(bias, hidden, weight.mT)
        return (x + hidden) * self.rescaling


class LeanNetwork(nn.Module):
    """One small network: linear, residual SiLU blocks, linear from zero."""

    def __init__(
        self, features: int, outputs: int, res_blocks: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(features, hidden)
        blocks = ([nn.Linear(hidden, hidden) for _ in range(depth)] for _ in range(res_blocks))
        self.blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.leave = nn.Linear(hidden, outputs)
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
    """A :class:`LeanNetwork` per half-step, from C m^2 / 2 values to their coupling's parameters.

    All are bounded smoothly: s = 2 tanh(s' / 2) and d likewise, q = 0.95 tanh(q'). Same arguments
    as :class:`PublishedSubnet`; the halves have networks of their own, so their order is free.
    """

    def __init__(
        self, block: tuple[int, int], sizes: tuple[int, int, int], odd_first: bool, outputs: int = 2
    ) -> None:
        super().__init__()
        features = block[0] * block[1] ** 2 // 2
        halves = (LeanNetwork(features, outputs * features, *sizes) for _ in range(2))
        self.halves, self.outputs = nn.ModuleList(halves), outputs

    @torch.no_grad()
    def standardise(self, first: Tensor, second: Tensor) -> None:
        """Let a new layer give its halves (N, d) mean 0 and, as far as s reaches, deviation 1.

        A start from data (Salimans and Kingma 2016): networks begin at zero and would take hundreds
        of steps to learn it.
        """
        for network, half in zip(self.halves, (second, first), strict=True):
            s = (-half.std(0).log()).clamp(-1.8, 1.8)
            bias = network.leave.bias.view(self.outputs, -1)
            bias[0], bias[1] = 2 * torch.atanh(s / 2), -s.exp() * half.mean(0)

    def prepare(self) -> Parameters:
        """The map from (half, half-step) to the coupling's parameters."""

        def parameters(half: Tensor, step: int) -> tuple[Tensor, ...]:
            # What follows is never in a network's reduced precision.
            s, t, *bump = self.halves[step](half).to(half.dtype).chunk(self.outputs, -1)
            s = 2 * torch.tanh(s / 2)
            if not bump:
                return s, t
            q, d, g = bump
            return s, t, 0.95 * torch.tanh(q), 2 * torch.tanh(d / 2), g

        return parameters


SUBNETS = {"published": PublishedSubnet, "lean": LeanSubnet}
"""By the name in a config; a study may add its own."""
