"""Means with their 95 % intervals, as results' rows hold them, and the tighter bound on bits."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rgflow_core.evaluate import mean_and_error


def interval(value: float, stderr: float, n: int, comparisons: int = 1) -> dict[str, float]:
    """A mean of n >= 2 values and its 95 % interval by Student's t, from its standard error.

    ``comparisons`` are the intervals that are to hold together (Bonferroni's correction).

    Returns:
        ``value``, ``low``, ``high`` and ``n``, as :func:`study.results.row` takes them.
    """
    reach = float(stats.t.ppf(1 - 0.025 / comparisons, n - 1)) * stderr
    return {"value": value, "low": value - reach, "high": value + reach, "n": n}


def mean(values: Sequence[float] | Tensor, comparisons: int = 1) -> dict[str, float]:
    """Mean of values (n,) and its :func:`interval`; of a single one no interval is known."""
    values = torch.as_tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return {"value": values.mean().item(), "low": None, "high": None, "n": len(values)}
    stderr = values.std().item() / math.sqrt(len(values))
    return interval(values.mean().item(), stderr, len(values), comparisons)


def bootstrap(
    values: np.ndarray | Tensor,
    statistic: Callable[[np.ndarray], float],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """A function of means over pictures, and its :func:`interval` by resampling the pictures.

    Args:
        values: what each of N pictures gives, (N, ...).
        statistic: of the mean over pictures (...).
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples) / n
    means = (weights @ values.reshape(n, -1)).reshape(resamples, *values.shape[1:])
    low, high = np.quantile([statistic(one) for one in means], (0.025, 0.975))
    value = statistic(values.mean(0))
    return {"value": float(value), "low": float(low), "high": float(high), "n": n}


def bounds(draws: Tensor, numbers: tuple[int, ...], dim: int) -> dict[str, dict]:
    """The tighter bound from K draws of the noise: -log2 of their mean density, per dimension.

    For K = 1 it is the usual bound; it falls with K towards the bits of the bytes themselves
    (Burda et al. 2015; for dequantisation, Ho et al. 2019, section 3.1). Disjoint groups of K draws
    are so many estimates of the same bound; their mean is taken.

    Args:
        draws: bits per dimension of each picture, (K_max, N).
        numbers: K, each at most K_max.
        dim: number of dimensions.

    Returns:
        "K" -> :func:`mean_and_error`.
    """
    nats = draws.double() * dim * math.log(2)
    means = {}
    for k in numbers:
        groups = [math.log(len(group)) - (-group).logsumexp(0) for group in nats.split(k)]
        means[str(k)] = mean_and_error(torch.stack(groups).mean(0) / (dim * math.log(2)))
    return means
