"""Networks that give the parameters of a coupling layer.

Given one checkerboard half of every block, they give the log-scale s and the shift t of the other
half, for the coupling "nlsq" also q, d and g (see :mod:`rgflow_core.couplings`). A coupling layer
asks twice, once per half. :class:`PublishedSubnet` is the network of Hu et al. (arXiv:2010.00029),
exactly; :class:`LeanSubnet` is ours, about fifty times smaller, for training on a CPU.
:class:`AutoregressiveSubnet` serves layers without halves: each position sees those before it.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Parameters = Callable[[Tensor, int], tuple[Tensor, ...]]


def split_parity(x: Tensor, channels: int, kernel: int) -> tuple[Tensor, Tensor]:
    """The checkerboard halves of flattened blocks (..., C m^2), channel first, row-major.

    Returns:
        Those with row + column even and odd, each (..., C m^2 / 2).
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
        blocks = zip(self.linears, self.alphas, self._weights(), strict=True)
        for linears, alphas, (alpha, layers) in blocks:
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
    """Linear, residual SiLU blocks, linear from zero: of values (N, d) ``outputs`` parameters each.

    These are bounded smoothly: s = 2 tanh(s' / 2) and d likewise, q = 0.95 tanh(q').
    """

    def __init__(
        self, features: int, outputs: int, res_blocks: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.enter = nn.Linear(features, hidden)
        blocks = ([nn.Linear(hidden, hidden) for _ in range(depth)] for _ in range(res_blocks))
        self.blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.leave = nn.Linear(hidden, outputs * features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        x = self.enter(values)
        for block in self.blocks:
            hidden = x
            for linear in block:
                hidden = linear(F.silu(hidden))
            x = x + hidden
        # What follows a network is never in its reduced precision.
        s, t, *bump = self.leave(F.silu(x)).to(values.dtype).chunk(self.outputs, -1)
        s = 2 * torch.tanh(s / 2)
        if not bump:
            return s, t
        q, d, g = bump
        return s, t, 0.95 * torch.tanh(q), 2 * torch.tanh(d / 2), g

    @torch.no_grad()
    def standardise(self, values: Tensor) -> None:
        """Let what it moves, (N, d), get mean 0 and, as far as s reaches, deviation 1.

        A start from data (Salimans and Kingma 2016): networks begin at zero and would take
        hundreds of steps to learn it.
        """
        # A single row has no deviation.
        deviation = values.std(0) if len(values) > 1 else torch.ones_like(values[0])
        s = (-deviation.log()).clamp(-1.8, 1.8)
        bias = self.leave.bias.view(self.outputs, -1)
        bias[0], bias[1] = 2 * torch.atanh(s / 2), -s.exp() * values.mean(0)


class LeanSubnet(nn.Module):
    """A :class:`LeanNetwork` per half-step; arguments of :class:`PublishedSubnet`.

    The halves have networks of their own, so their order is free.
    """

    def __init__(
        self, block: tuple[int, int], sizes: tuple[int, int, int], odd_first: bool, outputs: int = 2
    ) -> None:
        super().__init__()
        features = block[0] * block[1] ** 2 // 2
        self.halves = nn.ModuleList(LeanNetwork(features, outputs, *sizes) for _ in range(2))

    def standardise(self, first: Tensor, second: Tensor) -> None:
        """Start from the halves (N, d) of data."""
        self.halves[0].standardise(second)
        self.halves[1].standardise(first)

    def prepare(self) -> Parameters:
        """The map from (half, half-step) to the coupling's parameters."""
        return lambda half, step: self.halves[step](half)


class AutoregressiveSubnet(nn.Module):
    """A masked :class:`LeanNetwork` (Germain et al. 2015, arXiv:1502.03509) over a whole block.

    The parameters of a position, for all its colours, depend on the positions before it alone:
    those of the first half, one 2 x 2 cell after another row by row, then those of the second, or
    all in reverse. A hidden unit sees the positions up to a last one, the same in each layer, so
    that residual sums keep it: every second unit sees the half that is first, the others more or
    less, evenly. Masks apply where weights are used; what Muon makes of masked entries is ignored.

    Args:
        block, sizes, outputs: as of :class:`PublishedSubnet`.
        reverse: which order.
    """

    def __init__(
        self, block: tuple[int, int], sizes: tuple[int, int, int], reverse: bool, outputs: int
    ) -> None:
        super().__init__()
        channels, hidden, positions = block[0], sizes[1], block[1] ** 2
        self.network = LeanNetwork(channels * positions, outputs, *sizes)
        rank = torch.arange(positions)
        rank = rank.flip(0) if reverse else rank
        rank = rank.view(2, 1, -1).expand(2, channels, -1).flatten()  # of each value of (a, b)
        last = torch.arange(hidden) * (positions - 1) // hidden  # that a hidden unit sees
        last[1::2] = positions // 2 - 1
        masks = {
            "enter": last[:, None] >= rank,
            "blocks": last[:, None] >= last,
            "leave": rank.repeat(outputs)[:, None] > last,
        }
        for name, mask in masks.items():
            self.register_buffer(name, mask.to(self.network.leave.weight.dtype), persistent=False)
        order = rank.argsort().view(positions, channels)
        self.register_buffer("order", order, persistent=False)

    def standardise(self, first: Tensor, second: Tensor) -> None:
        """Start from the halves (N, d / 2) of data."""
        self.network.standardise(torch.cat((first, second), -1))

    def prepare(self) -> Callable[..., tuple[Tensor, ...]]:
        """Mask the weights once; the result maps (blocks (N, d), which values) to their parameters."""
        weights, outputs = dict(self.network.named_parameters()), self.network.outputs
        for name in weights:
            if name.endswith("weight"):
                weights[name] = weights[name] * self.get_buffer(name.partition(".")[0])

        def parameters(x: Tensor, which: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
            leave = {
                name: weights[name].unflatten(0, (outputs, -1))[:, which].flatten(0, 1)
                for name in ("leave.weight", "leave.bias")
            }
            return functional_call(self.network, weights | leave, x)

        return parameters


SUBNETS = {"published": PublishedSubnet, "lean": LeanSubnet, "autoregressive": AutoregressiveSubnet}
"""By the name in a config; a study may add its own."""
