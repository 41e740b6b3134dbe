"""Intervals hold the truth as often as they say; bounds."""

import numpy as np
import pytest
import torch
from scipy import stats

from study import statistics


def test_means_are_scipys():
    first, second = np.random.default_rng(0).normal(size=(2, 6))
    row = statistics.mean((first - second).tolist())
    wanted = stats.ttest_rel(first, second).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((wanted.low, wanted.high))
    assert row["value"] == pytest.approx((first - second).mean())
    wide = statistics.mean(first - second, comparisons=5)
    wanted = stats.ttest_rel(first, second).confidence_interval(0.99)
    assert (wide["low"], wide["high"]) == pytest.approx((wanted.low, wanted.high))
    assert statistics.mean([3.0]) == {"value": 3.0, "low": None, "high": None, "n": 1}
    again = statistics.interval(row["value"], stats.sem(first - second), 6)
    assert again == pytest.approx(row)


def test_bootstrap_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).normal(size=400)
    row = statistics.bootstrap(values, float, resamples=4000)
    wanted = statistics.mean(values)
    assert row["value"] == pytest.approx(wanted["value"])
    assert row["low"] == pytest.approx(wanted["low"], abs=0.01)
    assert row["high"] == pytest.approx(wanted["high"], abs=0.01)


def test_importance_weighted_bounds():
    draws = torch.rand(64, 5) + 3
    bounds = statistics.bounds(draws, (1, 8, 64), dim=3072)
    assert list(bounds) == ["1", "8", "64"]
    assert bounds["1"]["bpd"] == pytest.approx(draws.mean().item(), rel=1e-6)
    assert bounds["1"]["bpd"] > bounds["8"]["bpd"] > bounds["64"]["bpd"]
    dim = 2  # few enough to average densities without logarithms
    wanted = -torch.log2((2.0 ** (-dim * draws.double())).mean(0)) / dim
    bounds = statistics.bounds(draws, (64,), dim)
    assert bounds["64"]["bpd"] == pytest.approx(wanted.mean().item())
