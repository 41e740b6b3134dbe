"""How sparse latents are."""

import math

import numpy as np
import torch
from torch import Tensor

from study import statistics


def hoyer(latents: Tensor) -> Tensor:
    """Hoyer's sparsity of each row (N, d): 0 if all are equally large, 1 if only one is not 0.

    (sqrt(d) - |z|_1 / |z|_2) / (sqrt(d) - 1), Hurley and Rickard 2009. For large d a Gaussian
    density has about 0.20, a Laplace density 0.29; both are larger where d is small.
    """
    root = math.sqrt(latents.shape[1])
    ratio = latents.abs().sum(1) / latents.norm(dim=1).clamp_min(1e-30)
    return (root - ratio) / (root - 1)


def excess_kurtosis(latents: Tensor) -> dict[str, float]:
    """Pooled excess kurtosis of latents (N, d): 0 for a Gaussian, 3 for a Laplace density.

    Returns:
        As :func:`statistics.bootstrap` over the N pictures.
    """

    def kurtosis(moments: np.ndarray) -> float:
        m1, m2, m3, m4 = moments
        return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / (m2 - m1**2) ** 2 - 3

    moments = torch.stack([latents.double().pow(k).mean(1) for k in (1, 2, 3, 4)], 1)
    return statistics.bootstrap(moments, kurtosis)
