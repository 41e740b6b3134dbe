"""Muon for many small matrices: momentum, orthogonalised (Jordan et al. 2024).

``torch.optim.Muon`` is the same rule, one matrix after another and in bfloat16, which many CPUs
emulate: for the lean model's 128 hidden matrices a step costs three times as much as this one.
"""

from itertools import groupby

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of each of the matrices (..., m, n) = U S V^T, by a quintic Newton-Schulz.

    Under autocast all of it is computed in autocast's type, as torch's own is.
    """
    (a, b, c), kind = COEFFICIENTS, matrices.device.type
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised.

    Args:
        parameters: matrices (m, n) or stacks of them (N, m, n), which all have gradients at each step.
        lr: learning rate; an update has spectral norm about ``lr`` times sqrt(m / n), the fan-out
            over the fan-in (Yang, Simon and Bernstein 2023, arXiv:2310.17813).
        steps: of the iteration; three leave small singular values short of one, at 3/5 of the cost.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, steps: int = 5) -> None:
        super().__init__(sorted(parameters, key=lambda p: p.shape), {"lr": lr})
        self.steps = steps

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for shape, same in groupby(group["params"], key=lambda p: p.shape):
                alike, few = [*same], max(1, 2**20 // shape.numel())
                rate = group["lr"] * (shape[-2] / shape[-1]) ** 0.5
                for start in range(0, len(alike), few):  # the cache holds what is at work
                    self._move(alike[start : start + few], rate)

    def _move(self, some: list[nn.Parameter], rate: float) -> None:
        for p in some:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients, momenta = zip(*((p.grad, self.state[p]["momentum"]) for p in some), strict=True)
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        nesterov = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
        updates = orthogonalise(torch.stack(nesterov), self.steps)
        torch._foreach_add_(some, [*updates], alpha=-rate)
