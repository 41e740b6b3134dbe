"""Numbers at the edges: finite or refused; how exact single precision is."""

import math
import re
import shutil
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import victims
from support import ROOT, lattice_normal, same, small_flow

from rgflow_core import datasets, evaluate, load, sample, train
from rgflow_core.errors import UserError
from rgflow_core.pixels import from_logit
from study import results

MODELS = results.models(ROOT / "weights") | results.models(ROOT / "weights", lean8=True)
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def model(name, dtype=torch.float32):
    return load(MODELS[name]).to(dtype)


def pictures(name, count):
    set_name, _ = results.split_name(name)
    return datasets.load_split(set_name, "test", ROOT / "data", count, progress=False).images


@each_model
def test_plain_pictures(name):
    """All black, all white, constant, one bright pixel; alone or together the same."""
    flat = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 1, 128, 254, 255)]
    dot = flat[0].clone()
    dot[:, 7, 9] = 255
    images = torch.stack([*flat, dot, 255 - dot])
    bits = evaluate.evaluate(model(name), images, progress=False)
    assert bits.isfinite().all()
    alone = evaluate.evaluate(model(name), images, batch=1, progress=False)
    assert torch.allclose(alone, bits, rtol=1e-4)


@each_model
def test_temperatures(name):
    """Pictures are finite, or none are given and the line says why."""
    for temperature in (1e-300, 1.0, 3.0, 30.0, 1e4, 1e300):
        x, said = torch.tensor(math.nan), ""
        try:
            x = model(name).sample(2, temperature)
        except UserError as error:
            said = str(error)
        finite = ((x >= 0) & (x <= 1)).all()  # false for NaN
        assert finite or (temperature > 1 and f"temperature {temperature}" in said)


def test_sampling_warns_of_the_worst(command):
    """Where single precision does not invert the flow, the command names the worst picture."""
    name = next(iter(MODELS))
    _, errors = model(name).sample_with_error(4, 4.0)
    arguments = (MODELS[name], "--n", 4, "--temperature")
    assert command(sample, *arguments, 0.5, "--out", "near.png") == (0, "near.png\n", [])
    code, out, (line,) = command(sample, *arguments, 4.0)
    assert (code, out) == (0, "samples.png\n")
    assert line.startswith(f"warning: picture {errors.argmax()} ")
    assert not errors.max() < sample.INVERSION_LIMIT


def test_evaluation_is_finite_or_refused(command, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: torch.tensor([1.0, math.nan]))
    code, _, (*_, line) = command(evaluate, next(iter(MODELS.values())), "--limit", 2)
    assert code == 2
    assert re.search("1 of 2 pictures have no finite bits.*number 1", line)


@each_model
@torch.no_grad()
def test_single_precision(name, trials):
    """Pictures and samples come back; bits per dimension are those of double precision."""
    exact, ours = model(name, torch.float64), model(name)
    images, flow, moved = pictures(name, trials(24, 10_000)), ours.flow.fold(), []
    for which in torch.arange(len(images)).split(250):
        y, *_ = ours.transform(images[which], ours.noise(which))
        again, _ = flow.inverse(flow(y)[0])
        shift = from_logit(again, clip=False) - from_logit(y, clip=False)
        moved.append(256 * shift.abs().max().item())
    assert max(moved) < 0.25  # of a step between bytes
    few = images[: trials(12, 256)]
    noise = exact.noise(torch.arange(len(few)))
    bits = [m.bits_per_dim(few, noise.to(m._like.dtype)) for m in (ours, exact)]
    assert (bits[0] - bits[1]).abs().max() < 1e-4
    for temperature, count, share in ((1.0, 4000, 0.95), (0.5, 1000, 0.99)):
        _, errors = ours.sample_with_error(trials(24, count), temperature)
        assert (errors < sample.INVERSION_LIMIT).double().mean() > share


@pytest.mark.parametrize("subnet", ["lean", "autoregressive"])
def test_a_compiled_flow_computes_the_same_function(subnet, trials, monkeypatch):
    # The graph alone; with --faults as users compile it, which takes half a minute.
    backend = trials("aot_eager", "inductor")
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    flow = small_flow(torch.float32, coupling_layers=1, hidden=8, subnet=subnet)
    y = lattice_normal(flow, 3)

    def outputs_and_gradient():
        z, log_det = flow(y)
        return [z, log_det, *torch.autograd.grad(log_det.sum(), flow.levels[0].parameters())]

    plain = outputs_and_gradient()
    with pytest.importorskip("torch._inductor.config").patch(compile_threads=1):
        assert train.compile_couplings(flow)
    torch.testing.assert_close(outputs_and_gradient(), plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(flow.fold()(y)[0], plain[0], rtol=1e-4, atol=1e-4)


def train_tiny(folder, **changes):
    train.train(replace(victims.SETTINGS, save_minutes=1e6, **changes), folder, progress=False)


def final_state(folder):
    return load(folder / "model.safetensors").flow.state_dict()


def test_a_run_that_diverges_says_when_and_keeps_what_is_good(tmp_path, monkeypatch):
    rate, folder = train.rate_factor, tmp_path / "diverged"
    with monkeypatch.context() as patch:
        patch.setattr(train, "rate_factor", lambda s, k, n: rate(s, k, n) * 1e30 ** (k == 9))
        says = "loss nan.* at step 10, diverged; checkpoints written before are good"
        with pytest.raises(train.Diverged, match=says):
            train_tiny(folder)
    assert not (folder / "model.safetensors").exists()
    for again in (folder, tmp_path / "whole"):
        train_tiny(again)
    assert same(final_state(folder), final_state(tmp_path / "whole"))
