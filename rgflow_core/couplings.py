"""What a coupling layer does to each value: monotone maps with exact inverse and log-derivative.

The networks give the parameters, one tensor (N, d) each; values are (N, d). Both directions
return the new values and the logarithm of their derivative, (N, d).
"""

import math

import torch
from torch import Tensor

_STEEPEST = 8 * math.sqrt(3) / 9  # 1 over the largest slope of 1 / (1 + u^2)


def affine(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """exp(s) x + t (Dinh et al. 2016, arXiv:1605.08803)."""
    return x * torch.exp(s) + t, s


def affine_inverse(y: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`affine`."""
    return (y - t) * torch.exp(-s), -s


def _bump(u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Of u -> u + a / (1 + u^2), a = 8 sqrt(3) / 9 q: what it adds, and its derivative less 1."""
    r = 1 / (1 + u * u)
    added = _STEEPEST * q * r
    return added, -2 * u * added * r


def nlsq(x: Tensor, s: Tensor, t: Tensor, q: Tensor, d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Nonlinear squared map (Ziegler and Rush 2019, arXiv:1901.10548, section 4), in our terms.

    exp(s) (x + exp(-d) a / (1 + u^2)) + t with u = exp(d) x + g and a = 8 sqrt(3) / 9 q. Its
    derivative lies within exp(s) (1 - |q|) and exp(s) (1 + |q|): monotone for |q| < 1.
    """
    added, slope = _bump(torch.exp(d) * x + g, q)
    return torch.exp(s) * (x + torch.exp(-d) * added) + t, s + torch.log1p(slope)


def nlsq_inverse(
    y: Tensor, s: Tensor, t: Tensor, q: Tensor, d: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`nlsq`: the one real root of a cubic, then two Newton steps.

    With v = exp(d) exp(-s) (y - t) + g it solves u + a / (1 + u^2) = v.
    """
    v = torch.exp(d - s) * (y - t) + g
    # Gradients come through the Newton steps: those of the root itself would be the same again.
    u = _root(v.detach().double(), _STEEPEST * q.detach().double()).to(v.dtype)
    for _ in range(2):
        added, slope = _bump(u, q)
        u = u - (u + added - v) / (1 + slope)
    _, slope = _bump(u, q)
    return (u - g) * torch.exp(-d), -s - torch.log1p(slope)


def _root(v: Tensor, a: Tensor) -> Tensor:
    """The real root u of u^3 - v u^2 + u + a - v (Cardano), near v where v is huge."""
    small = v.clamp(-1e4, 1e4)  # v^6 must not overflow; beyond, u differs from v by 1e-8
    p = (1 - small**2 / 3) / 3
    half = (a - 2 * small / 3 - 2 * small**3 / 27) / 2
    # Of the two cube roots the larger: no cancellation.
    size = half.abs() + (half**2 + p**3).clamp_min(0).sqrt()
    w = -torch.copysign(size.clamp_min(1e-30) ** (1 / 3), half)
    return w - p / w + small / 3 + (v - small)


COUPLINGS = {"affine": (affine, affine_inverse, 2), "nlsq": (nlsq, nlsq_inverse, 5)}
"""Name -> map, inverse, and how many parameters a value takes."""
