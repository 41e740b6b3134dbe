"""Numbers at the edges: finite or refused; how exact single precision is; long runs stay small."""

import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import victims
from support import same, small_flow

from rgflow_core import PictureModel, Prior, datasets, evaluate, load, sample, train
from rgflow_core.pixels import dequantise, from_logit, to_logit
from study import results

ROOT = Path(__file__).parents[2]
MODELS = results.models(ROOT / "weights")


each_model = pytest.mark.parametrize("name", MODELS)


@cache
def model(name, dtype=torch.float32):
    return load(MODELS[name]).to(dtype)


def pictures(name, count):
    return datasets.load_split(
        name.split("_")[0], "test", ROOT / "data", count, progress=False
    ).images


# Edges


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


def sampled(model, temperature=1.0):
    """Samples, or why there are none."""
    try:
        return model.sample(4, temperature)
    except ValueError as error:
        return str(error)


@each_model
def test_temperatures(name, counts):
    for temperature in (1e-300, 1.0, 3.0, 30.0, 1e4, 1e300):
        x = sampled(model(name), temperature)
        if isinstance(x, str):
            assert f"temperature {temperature}" in x
            assert temperature > 1
        else:
            assert ((x >= 0) & (x <= 1)).all()  # false for NaN
        counts("edges: temperatures", "refused" if isinstance(x, str) else "finite")


@pytest.mark.parametrize("prior", ["laplace", "gaussian"])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e30, math.inf, math.nan])
def test_extreme_latents(prior, size, monkeypatch, counts):
    """Latents that the prior never draws: pictures are finite, or there are none."""
    tiny = PictureModel(small_flow(torch.float32), Prior(prior))
    monkeypatch.setattr(PictureModel, "latents", lambda *_: torch.full((2, 1, 8, 8), size))
    x = sampled(tiny)
    assert "not finite" in x if isinstance(x, str) else x.isfinite().all()
    counts("edges: extreme latents", "refused" if isinstance(x, str) else "finite")


def test_sampling_warns_of_the_worst(tmp_path, monkeypatch, capsys, counts):
    """Where single precision does not invert the flow, the command names the worst picture."""
    name = next(iter(MODELS))
    _, errors = model(name).sample_with_error(4, 4.0)
    for temperature, warned in ((0.5, False), (4.0, True)):
        out = tmp_path / f"{temperature}.png"
        arguments = ["sample", str(MODELS[name]), "--n", "4", "--temperature", str(temperature)]
        monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out)])
        sample.main()
        said = capsys.readouterr().err
        assert said.startswith(f"warning: picture {errors.argmax()} ") if warned else not said
        assert out.exists()
    assert not errors.max() < sample.INVERSION_LIMIT
    counts("edges: sampling far out", "warned")


def test_evaluation_is_finite_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: torch.tensor([1.0, math.nan]))
    name = next(iter(MODELS))
    monkeypatch.setattr("sys.argv", ["evaluate", str(MODELS[name]), "--limit", "2"])
    with pytest.raises(ValueError, match=r"1 of 2 pictures have no finite bits.*number 1"):
        evaluate.main()


# Exactness


@each_model
@torch.no_grad()
def test_single_precision(name, trials, measured):
    """Pictures and samples come back; bits per dimension are those of double precision."""
    exact, ours = model(name, torch.float64), model(name)
    images = pictures(name, trials(24, 10_000))
    flow, back = ours.flow.fold(), []
    for start in range(0, len(images), 250):
        part = images[start : start + 250]
        noise = ours.noise(torch.arange(start, start + len(part)))
        y, _ = to_logit(dequantise(part, noise))
        again, _ = flow.inverse(flow(y)[0])
        shift = from_logit(again, clip=False) - from_logit(y, clip=False)
        back.append(256 * shift.abs().flatten(1).amax(1))
    back = torch.cat(back)
    few = images[: trials(12, 256)]
    noise = exact.noise(torch.arange(len(few)))
    bits = [m.bits_per_dim(few, noise.to(m._like.dtype)) for m in (ours, exact)]
    difference = (bits[0] - bits[1]).abs()
    _, errors = ours.sample_with_error(trials(24, 4000))
    _, cool = ours.sample_with_error(trials(24, 1000), 0.5)
    good = errors < sample.INVERSION_LIMIT
    assert back.max() < 0.1  # of a step between bytes
    assert difference.max() < 1e-4
    good_cool = cool < sample.INVERSION_LIMIT
    assert good_cool.double().mean() > 0.99
    assert good.double().mean() > 0.95
    measured(
        name,
        test_pictures=len(images),
        picture_error_in_bytes=back.max().item(),
        bpd_pictures=len(few),
        bpd_difference=difference.max().item(),
        samples=len(errors),
        samples_beyond_limit=int((~good).sum()),
        limit=sample.INVERSION_LIMIT,
        error_of_the_others=errors[good].max().item(),
        worst=errors.argmax().item(),
        cool_samples=len(cool),
        cool_samples_beyond_limit=int((~good_cool).sum()),
        error_of_the_other_cool_ones=cool[good_cool].max().item(),
    )


@each_model
def test_threads(name, trials, measured):
    images, bits = pictures(name, trials(8, 64)), []
    try:
        for threads in trials((1, 2), (1, 2, 4)):
            torch.set_num_threads(threads)
            bits.append(evaluate.evaluate(model(name), images, progress=False))
    finally:
        torch.set_num_threads(1)
    difference = max((b - bits[0]).abs().max().item() for b in bits)
    assert difference < 1e-4
    measured(name, bpd_difference_between_thread_counts=difference)


# Training


def train_tiny(folder, **changes):
    train.train(replace(victims.SETTINGS, save_minutes=1e6, **changes), folder, progress=False)


def test_a_run_that_diverges_says_when(tmp_path, monkeypatch, counts):
    rate = train.rate_factor
    monkeypatch.setattr(train, "rate_factor", lambda s, step, n: rate(s, step, n) * (1e8 if step > 5 else 1))  # fmt: skip
    with pytest.raises(train.Diverged, match=r"at step \d+, diverged") as error:
        train_tiny(tmp_path, epochs=20)
    assert "checkpoints written before are good" in str(error.value)
    kept = sorted((tmp_path / "ckpt").iterdir())
    assert kept
    assert all(load(path).flow for path in kept)
    assert not (tmp_path / "model.safetensors").exists()
    counts("diverging run", "stopped early, best kept")


def test_a_run_may_be_repeated(tmp_path, trials, counts, measured):
    """The same seed gives the same weights; another number of threads nearly so."""
    if not trials(0, 1):
        pytest.skip("two threads on busy cores wait for each other: make test-faults")
    states = []
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        folder = tmp_path / str(len(states))
        try:
            train_tiny(folder)
        finally:
            torch.set_num_threads(1)
        states.append(load(folder / "model.safetensors").flow.state_dict())
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
    epochs, steps = 60, 60 * 40
    train_tiny(tmp_path, epochs=epochs, images_per_epoch=16 * 40)
    growth = (sum(used[40:]) - sum(used[20:40])) / 20
    assert growth < 10  # MiB
    (log,) = (tmp_path / "logs").iterdir()
    lines = len(log.read_text().splitlines())
    assert lines < steps / 50 + 4 * epochs + 10
    assert len(list((tmp_path / "ckpt").iterdir())) <= victims.SETTINGS.keep + 1
    measured("long run", steps=steps, growth_in_mib=growth, log_lines=lines)
