"""Changes of the published network, one each: of IGF23's list of details, and what may make it slow.

Importing this adds them to the core's networks, and the narrow and slim models that the study trains with
them to the models of ``rgflow_core.train``. :func:`grow_` makes a narrow network a wide one.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgflow_core import LEAN, LEAN8, RGFlow, train
from rgflow_core.errors import UserError
from rgflow_core.networks import SUBNETS, Parameters, PublishedSubnet, WeightNormLinear


class WithoutRescaling(PublishedSubnet):
    """Ablation: x + f(x), without the 1 / sqrt(2)."""

    rescaling = 1.0


class WithoutTanh(PublishedSubnet):
    """Ablation: s = S, unbounded."""

    @staticmethod
    def bound(s: Tensor) -> Tensor:
        return s


class FixedActivation(PublishedSubnet):
    """Ablation: act(x) = x sigmoid(x), without the learned alpha."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.alphas.requires_grad_(False)


class PostActivation(PublishedSubnet):
    """Ablation: x <- act((x + f(x)) / sqrt(2)), f = linear, act, ..., linear."""

    def _residual(self, x: Tensor, alpha: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        hidden = x * alpha  # the first matrix divides by it
        for k, (weight, bias) in enumerate(layers):
            hidden = torch.baddbmm(bias, F.silu(hidden) if k else hidden, weight.mT)
        return F.silu((x + hidden) * self.rescaling * alpha) / alpha


class SharedNetwork(PublishedSubnet):
    """Ablation: S and T are one network, but for its last linear layer and its gain."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        for block in range(len(self.linears)):
            for k, linear in enumerate(self.linears[block]):
                fan_out, fan_in = linear.weight_v.shape[1:]
                self.alphas[block][k] = nn.Parameter(torch.ones(1, fan_in))
                if (block, k) != (len(self.linears) - 1, len(self.linears[block]) - 1):
                    self.linears[block][k] = WeightNormLinear(fan_in, fan_out, copies=1)


ABLATIONS = {
    "without_rescaling": WithoutRescaling,
    "without_tanh": WithoutTanh,
    "fixed_activation": FixedActivation,
    "post_activation": PostActivation,
    "shared_network": SharedNetwork,
}


class OpenGain(PublishedSubnet):
    """What may be slow: the gain. It starts at 0.1, so that the networks learn from the first step."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        nn.init.constant_(self.gain, 0.1)


class _PlainLinear(WeightNormLinear):
    def scaled(self, rows: Tensor | None, columns: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = self.weight_v, self.bias
        if rows is not None:
            weight, bias = weight * rows[..., None], bias * rows
        return weight * columns[:, None], bias[:, None]


class WithoutWeightNorm(PublishedSubnet):
    """What may be slow: weight normalisation."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        for linears in self.linears:
            for k, linear in enumerate(linears):
                linears[k] = _PlainLinear(*linear.weight_v.shape[:0:-1])
                linears[k].weight_g.requires_grad_(False)


class OwnHalves(nn.Module):
    """What may be slow: one pair of networks for both half-steps. Here each has its own."""

    def __init__(self, *args: object) -> None:
        super().__init__()
        self.halves = nn.ModuleList(PublishedSubnet(*args) for _ in range(2))

    def prepare(self) -> Parameters:
        steps = [half.prepare() for half in self.halves]
        return lambda half, step: steps[step](half, step)


SUSPECTS = {
    "open_gain": OpenGain, "without_weight_norm": WithoutWeightNorm, "own_halves": OwnHalves,
}  # fmt: skip
SUBNETS |= ABLATIONS | SUSPECTS


@torch.no_grad()
def grow_(large: RGFlow, small: RGFlow) -> None:
    """Let a new published network be the function of a trained one that is narrower or has fewer blocks.

    What is new sees everything and is seen by nothing yet: its outgoing weights are zero, its
    incoming ones as drawn (as in Net2Net, Chen et al. 2015, arXiv:1511.05641, but not copied). A
    residual block too many divides its input by sqrt(2); the gain makes up for it.

    Raises:
        UserError: for networks that are not the published ones, or flows that differ in more.
    """
    kinds = (replace(flow.config, hidden=1, res_blocks=1) for flow in (large, small))
    if len({*kinds}) > 1 or small.config.subnet != "published":
        raise UserError("only published networks grow, and only in hidden and res_blocks")
    old = (m for m in small.modules() if isinstance(m, PublishedSubnet))
    new = (m for m in large.modules() if isinstance(m, PublishedSubnet))
    for trained, wide in zip(old, new, strict=True):
        count = len(trained.linears)
        for linears in wide.linears[count:]:
            linears[-1].weight_g.zero_()
        for k, linears in enumerate(trained.linears):
            for j, linear in enumerate(linears):
                rows, columns = linear.weight_v.shape[1:]
                other = wide.linears[k][j]
                other.weight_v[:, :rows, columns:] = 0
                other.weight_v[:, :rows, :columns] = linear.weight_v
                other.weight_g[:, :rows] = linear.weight_g
                other.bias[:, :rows] = linear.bias
                wide.alphas[k][j][:, :columns] = trained.alphas[k][j]
        wide.gain.copy_(trained.gain * 2 ** (0.5 * (len(wide.linears) - count)))


_NARROW = {"hidden": 64, "res_blocks": 2}
# Half or a quarter of the coupling layers: a third of the time a step takes.
_SLIM = _NARROW | {"coupling_layers": (2, 1, 1, 1)}
_MAYBE_SLOW = (*SUSPECTS, "fixed_activation", "without_rescaling")
train.MODELS |= {
    "slim": _SLIM,
    "slim_paper_order": _SLIM | {"order": "paper"},
    **{f"slim_{subnet}": _SLIM | {"subnet": subnet} for subnet in ABLATIONS},
    # On the way from the published network to the lean models.
    "narrow": _NARROW,
    **{f"narrow_{subnet}": _NARROW | {"subnet": subnet} for subnet in _MAYBE_SLOW},
    "lean_paper_order": LEAN | {"order": "paper"},
    # What was tried for the lean model of 8 x 8 blocks.
    "lean8_code_order": LEAN8 | {"order": "code"},
    "lean8_4_2_2": LEAN8 | {"coupling_layers": (4, 2, 2)},
    "lean8_8_1_1": LEAN8 | {"coupling_layers": (8, 1, 1)},
    "lean8_hidden_64": LEAN8 | {"hidden": 64},
    "lean8_hidden_128": LEAN8 | {"hidden": 128},
}
