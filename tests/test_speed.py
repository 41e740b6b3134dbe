"""Precision, memory and compilation change how a step is computed, hardly what."""

import shutil

import pytest
import torch
from support import lattice_normal

from rgflow_core import LEAN, PictureModel, Prior, RGFlow, RGFlowConfig, speed
from rgflow_core.errors import UserError
from rgflow_core.pixels import to_logit
from study import benchmarks

DEVICES = [
    ("cpu", "bf16"),
    *(
        pytest.param("cuda", name, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
        for name in ("tf32", "bf16")
    ),
]  # fmt: skip


def single(subnet):
    """A small flow in float32 that is neither the identity nor wild."""
    config = {"image_size": 16, "coupling_layers": 2, "res_blocks": 1, "hidden": 16}
    torch.manual_seed(0)
    return benchmarks.randomise(RGFlow(RGFlowConfig(subnet=subnet, **config)))


@pytest.mark.parametrize(("device", "name"), DEVICES)
@pytest.mark.parametrize("subnet", ["published", "lean"])
def test_reduced_precision_rounds_the_networks_alone(subnet, device, name):
    device = torch.device(device)
    model = PictureModel(single(subnet).to(device), Prior("gaussian"))
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    whole = model(*to_logit(x))
    with speed.precision(name, device):
        rounded = model(*to_logit(x))
        z, log_det = model.flow(to_logit(x)[0])
        back, inverse_log_det = model.flow.inverse(z)
    assert rounded.flow.dtype == rounded.prior.dtype == torch.float64
    assert z.dtype == log_det.dtype == torch.float32
    # It does round, a little.
    difference = abs(sum(rounded) - sum(whole)) / model.flow.config.dim
    assert 0 < difference.max() < 0.05
    # And it stays one density: the inverse undoes the rounded map and its log-determinant.
    torch.testing.assert_close(back, to_logit(x)[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0.01, atol=0.5)
    # Afterwards all is as before.
    again = model(*to_logit(x))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_tf32_wants_a_gpu():
    with pytest.raises(UserError, match="tf32 needs an NVIDIA GPU, not cpu"):
        speed.check_precision("tf32", torch.device("cpu"))


@pytest.mark.parametrize("subnet", ["published", "lean"])
def test_kept_bytes_are_those_of_a_forward_pass(subnet):
    flow, batch = single(subnet), 5
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = flow(torch.randn(batch, 3, 16, 16))
    assert speed.kept_bytes(flow, batch) == pytest.approx(sum(storages.values()), rel=0.02)
    del kept
    assert speed.kept_bytes(flow.use_checkpointing(), batch) < sum(storages.values()) / 2


@pytest.mark.parametrize(("free", "recomputed"), [(10**4, True), (10**12, False)])
def test_activations_are_recomputed_where_memory_is_short(monkeypatch, caplog, free, recomputed):
    monkeypatch.setattr(speed, "free_bytes", lambda _: free)
    with caplog.at_level("INFO", "rgflow"):
        assert speed.needs_checkpointing(single("lean"), 4) is recomputed
    assert ("recomputed" in caplog.text) is recomputed


def test_free_memory_is_some_of_the_machine():
    assert 10**6 < speed.free_bytes(torch.device("cpu")) < 10**14


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_flow_computes_the_same_function():
    flow = benchmarks.randomise(RGFlow(RGFlowConfig(image_size=8, coupling_layers=1, **LEAN)))
    y = lattice_normal(flow, 3)
    plain = flow(y)
    gradient = torch.autograd.grad(plain[1].sum(), flow.levels[0].decimator.parameters())
    assert speed.compile_couplings(flow)
    compiled = flow(y)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    again = torch.autograd.grad(compiled[1].sum(), flow.levels[0].decimator.parameters())
    for one, other in zip(gradient, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(flow.fold()(y)[0], plain[0], rtol=1e-4, atol=1e-4)


def test_without_a_compiler_a_line_says_so(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    flow = single("lean")
    y = torch.randn(1, 3, 16, 16)
    before = flow(y)[0]
    with caplog.at_level("INFO", "rgflow"):
        assert not speed.compile_couplings(flow)
    assert "no-such-compiler" in caplog.text
    assert torch.equal(flow(y)[0], before)
