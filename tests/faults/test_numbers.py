"""Numbers at the edges: finite or refused; how exact single precision is; long runs stay small."""

import math
import os
import re
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import victims
from support import ROOT, files_below, lattice_normal, same, small_flow

from rgflow_core import PictureModel, Prior, datasets, evaluate, load, sample, train
from rgflow_core.errors import UserError
from rgflow_core.pixels import dequantise, from_logit, to_logit
from study import results

MODELS = results.models(ROOT / "weights")
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def model(name, dtype=torch.float32):
    return load(MODELS[name]).to(dtype)


def pictures(name, count):
    set_name, _ = results.split_name(name)
    return datasets.load_split(set_name, "test", ROOT / "data", count, progress=False).images


@pytest.fixture
def use_threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@each_model
def test_plain_pictures(name, counts):
    """All black, all white, constant, one bright pixel; alone or together the same."""
    flat = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 1, 128, 254, 255)]
    dot = flat[0].clone()
    dot[:, 7, 9] = 255
    images = torch.stack([*flat, dot, 255 - dot])
    bits = evaluate.evaluate(model(name), images, progress=False)
    assert bits.isfinite().all()
    alone = evaluate.evaluate(model(name), images, batch=1, progress=False)
    assert torch.allclose(alone, bits, rtol=1e-4)
    counts("edges: constant pictures", "finite")


def drawn(model, temperature=1.0):
    """Whether pictures are finite, or none are given and the line says why."""
    try:
        x = model.sample(2, temperature)
    except UserError as error:
        x = str(error)
    if isinstance(x, str):
        assert f"temperature {temperature}" in x
        return "refused"
    assert ((x >= 0) & (x <= 1)).all()  # false for NaN
    return "finite"


@each_model
def test_temperatures(name, counts):
    for temperature in (1e-300, 1.0, 3.0, 30.0, 1e4, 1e300):
        outcome = drawn(model(name), temperature)
        assert outcome == "finite" or temperature > 1
        counts("edges: temperatures", outcome)


@pytest.mark.parametrize("prior", ["laplace", "gaussian"])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e30, math.inf, math.nan])
def test_extreme_latents(prior, size, monkeypatch, counts):
    tiny = PictureModel(small_flow(torch.float32), Prior(prior))
    monkeypatch.setattr(PictureModel, "latents", lambda *_: torch.full((2, 1, 8, 8), size))
    counts("edges: extreme latents", drawn(tiny))


def test_sampling_warns_of_the_worst(command, counts):
    """Where single precision does not invert the flow, the command names the worst picture."""
    name = next(iter(MODELS))
    _, errors = model(name).sample_with_error(4, 4.0)
    arguments = (MODELS[name], "--n", 4, "--temperature")
    assert command(sample, *arguments, 0.5, "--out", "near.png") == (0, "near.png\n", [])
    code, out, (line,) = command(sample, *arguments, 4.0)
    assert (code, out) == (0, "samples.png\n")
    assert line.startswith(f"warning: picture {errors.argmax()} ")
    assert not errors.max() < sample.INVERSION_LIMIT
    counts("edges: sampling far out", "warned")


def test_evaluation_is_finite_or_refused(command, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: torch.tensor([1.0, math.nan]))
    code, _, (*_, line) = command(evaluate, next(iter(MODELS.values())), "--limit", 2)
    assert code == 2
    assert re.search("1 of 2 pictures have no finite bits.*number 1", line)


@each_model
@torch.no_grad()
def test_single_precision(name, trials, measured):
    """Pictures and samples come back; bits per dimension are those of double precision."""
    exact, ours = model(name, torch.float64), model(name)
    images, flow, moved = pictures(name, trials(24, 10_000)), ours.flow.fold(), []
    for which in torch.arange(len(images)).split(250):
        y, _ = to_logit(dequantise(images[which], ours.noise(which)))
        again, _ = flow.inverse(flow(y)[0])
        shift = from_logit(again, clip=False) - from_logit(y, clip=False)
        moved.append(256 * shift.abs().max().item())
    assert max(moved) < 0.25  # of a step between bytes
    few = images[: trials(12, 256)]
    noise = exact.noise(torch.arange(len(few)))
    bits = [m.bits_per_dim(few, noise.to(m._like.dtype)) for m in (ours, exact)]
    difference = (bits[0] - bits[1]).abs().max().item()
    assert difference < 1e-4
    measured(name, test_pictures=len(images), picture_error_in_bytes=max(moved))
    measured(name, bpd_pictures=len(few), bpd_difference=difference)
    for temperature, count, share in ((1.0, 4000, 0.95), (0.5, 1000, 0.99)):
        _, errors = ours.sample_with_error(trials(24, count), temperature)
        good = errors < sample.INVERSION_LIMIT
        assert good.double().mean() > share
        beyond = {"beyond_limit": int((~good).sum()), "limit": sample.INVERSION_LIMIT}
        rest = {"samples": len(errors), "error_of_the_others": errors[good].max().item()}
        measured(f"{name} at temperature {temperature}", **beyond, **rest)


@each_model
def test_threads(name, trials, measured, use_threads):
    images, bits = pictures(name, trials(8, 64)), []
    for threads in trials((1, 2), (1, 2, 4)):
        use_threads(threads)
        bits.append(evaluate.evaluate(model(name), images, progress=False))
    difference = max((b - bits[0]).abs().max().item() for b in bits)
    assert difference < 1e-4
    measured(name, bpd_difference_between_thread_counts=difference)


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


def test_a_run_that_diverges_says_when_and_keeps_what_is_good(tmp_path, monkeypatch, counts):
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
    counts("diverging run", "stopped early, best kept")


def test_a_run_may_be_repeated(tmp_path, trials, counts, measured, use_threads):
    """The same seed gives the same weights; another number of threads nearly so."""
    if not trials(0, 1):
        pytest.skip("two threads on busy cores wait for each other: make test-faults")
    states = []
    for folder, threads in (("a", 1), ("b", 1), ("c", 2)):
        use_threads(threads)
        train_tiny(tmp_path / folder)
        states.append(final_state(tmp_path / folder))
    assert same(states[0], states[1])
    apart = max((v - states[2][n]).abs().max().item() for n, v in states[0].items())
    assert apart < 1e-3
    measured("two threads", weights_differ_after_12_steps=apart)
    counts("same seed again", "identical")


def test_long_runs_stay_small(tmp_path, monkeypatch, trials, measured):
    """Memory is flat over thousands of steps, and so is what a step writes."""
    if not trials(0, 1):
        pytest.skip("a few steps show nothing of it: make test-faults")
    used, summary = [], evaluate.mean_and_error

    def watched(values):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return summary(values)

    monkeypatch.setattr(evaluate, "mean_and_error", watched)
    train_tiny(tmp_path, epochs=60, images_per_epoch=16 * 40)
    growth = (sum(used[40:]) - sum(used[20:40])) / 20
    assert growth < 10  # MiB
    (log,) = (tmp_path / "logs").iterdir()
    lines = len(log.read_text().splitlines())
    assert lines < 60 * 40 / 50 + 4 * 60 + 10
    assert len(files_below(tmp_path / "ckpt")) <= victims.SETTINGS.keep + 1
    measured("long run", steps=60 * 40, growth_in_mib=growth, log_lines=lines)
