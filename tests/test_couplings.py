"""The monotone maps by themselves: inverse, log-derivative, precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import close

from rgflow_core.couplings import COUPLINGS

RANGES = {"s": 2, "t": 30, "q": 0.95, "d": 2, "g": 30}
PARAMETERS = st.tuples(*(st.floats(-limit, limit) for limit in RANGES.values()))


@pytest.mark.parametrize("name", COUPLINGS)
@given(x=st.floats(-1e6, 1e6), values=PARAMETERS)
def test_undone_and_monotone(name, x, values):
    forward, inverse, count = COUPLINGS[name]
    values = [torch.tensor([[v]], dtype=torch.float64) for v in values[:count]]
    x = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    y, log_derivative = forward(x, *values)
    (slope,) = torch.autograd.grad(y, x)
    assert slope.item() > 0
    close(log_derivative, slope.log(), 1e-8)
    back, inverse_log_derivative = inverse(y.detach(), *values)
    close(back, x.detach(), 1e-9)
    close(inverse_log_derivative, -log_derivative, 1e-7)


def test_nlsq():
    """In float32 over its whole range; with q = 0 it is the affine map."""
    forward, inverse, _ = COUPLINGS["nlsq"]
    x, t, g = torch.tensor([4.0, 3.0, 3.0])[:, None] * torch.randn(3, 200_000)
    s, d, q = torch.tensor([2, 2, 0.95])[:, None] * (2 * torch.rand(3, 200_000) - 1)
    back, _ = inverse(forward(x, s, t, q, d, g)[0], s, t, q, d, g)
    assert (back - x).abs().max() < 2e-3  # the slope is 0.05 at least: error 20 times as large
    assert (back - x).abs().median() < 1e-6
    x, s, t, d, g = torch.randn(5, 100, dtype=torch.float64)
    for nlsq, affine in list(zip(COUPLINGS["nlsq"], COUPLINGS["affine"], strict=True))[:2]:
        for ours, theirs in zip(nlsq(x, s, t, 0 * x, d, g), affine(x, s, t), strict=True):
            close(ours, theirs, 1e-9)
