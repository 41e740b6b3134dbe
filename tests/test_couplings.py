import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgflow_core import LEAN, RGFlow, RGFlowConfig
from rgflow_core.couplings import COUPLINGS

EXTREME = st.floats(-1e6, 1e6)
USUAL = st.floats(-30, 30)


def parameters(q, d, s, t, g):
    return [torch.tensor([[v]], dtype=torch.float64) for v in (s, t, q, d, g)]


@settings(max_examples=300, deadline=None)
@given(
    x=EXTREME,
    q=st.floats(-0.95, 0.95),
    d=st.floats(-2, 2),
    s=st.floats(-2, 2),
    t=USUAL,
    g=USUAL,
)
def test_nlsq_is_undone_and_monotone(x, q, d, s, t, g):
    forward, inverse, _ = COUPLINGS["nlsq"]
    values = parameters(q, d, s, t, g)
    x = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    y, log_derivative = forward(x, *values)
    (slope,) = torch.autograd.grad(y, x)
    assert slope.item() > 0
    assert log_derivative.item() == pytest.approx(math.log(slope.item()), abs=1e-8)
    back, inverse_log_derivative = inverse(y.detach(), *values)
    torch.testing.assert_close(back, x.detach(), rtol=1e-9, atol=1e-9)
    assert inverse_log_derivative.item() == pytest.approx(-log_derivative.item(), abs=1e-7)


def test_nlsq_in_float32_over_its_whole_range():
    forward, inverse, _ = COUPLINGS["nlsq"]
    torch.manual_seed(0)
    x = 4 * torch.randn(200_000)
    s, d = 4 * torch.rand(2, 200_000) - 2
    t, g = 3 * torch.randn(2, 200_000)
    q = 1.9 * torch.rand(200_000) - 0.95
    back, _ = inverse(forward(x, s, t, q, d, g)[0], s, t, q, d, g)
    assert (back - x).abs().max() < 2e-3  # the slope is 0.05 at least: error 20 times as large
    assert (back - x).abs().median() < 1e-6


def test_nlsq_with_q_zero_is_affine():
    x, s, t, d, g = torch.randn(5, 100, dtype=torch.float64)
    zero = torch.zeros_like(x)
    for number in (0, 1):
        affine, nlsq = COUPLINGS["affine"][number], COUPLINGS["nlsq"][number]
        for ours, theirs in zip(nlsq(x, s, t, zero, d, g), affine(x, s, t), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_flow_with_nlsq_against_the_jacobian():
    torch.manual_seed(0)
    flow = RGFlow(RGFlowConfig(image_size=8, channels=1, coupling_layers=1, **LEAN | {"hidden": 8}))
    flow = flow.double()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    y = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    z, log_det = flow(y)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v)[0], y).reshape(64, 64)
    torch.testing.assert_close(log_det[0], jacobian.slogdet().logabsdet, rtol=1e-10, atol=1e-10)
    back, inverse_log_det = flow.inverse(z)
    torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)
    assert (z - flow(y + 1)[0]).abs().min() > 0


def test_published_subnets_refuse_it():
    with pytest.raises(ValueError, match="coupling must be 'affine' with published subnets"):
        RGFlowConfig(coupling="nlsq")
    with pytest.raises(ValueError, match="coupling must be one of"):
        RGFlowConfig(**LEAN | {"coupling": "cubic"})
