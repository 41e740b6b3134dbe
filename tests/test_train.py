"""Training: stopped and resumed equals never stopped; what a run leaves; how steps are computed."""

import contextlib
import itertools
import json
import logging
import math
import re
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from support import RUN as SHORT
from support import (
    TINY,
    calls,
    contents,
    files_below,
    interrupt,
    metrics,
    said_by,
    same,
    small_flow,
)

from rgflow_core import RGFlow, RGFlowConfig, checkpoints, datasets, evaluate, load, sample, train
from rgflow_core.files import sha256
from rgflow_core.model import PictureModel
from rgflow_core.priors import Prior

EPOCHS, STEPS = SHORT.epochs, 4  # of a whole run, and per epoch
RUN = replace(SHORT, schedule="cosine", keep=EPOCHS, dequantisation="learned", standardise=True)


def run(folder, **changes):
    return train.train(replace(RUN, **changes), folder, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    return run(tmp_path_factory.mktemp("whole")).parent


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), epochs=1, schedule="constant").parent


def weights(path):
    return checkpoints.tensors(load(path))


def assert_same_run(one, other):
    """Bit for bit: final weights, every epoch's weights, metrics, record, samples."""

    def left(folder):
        record = json.loads((folder / "record.json").read_text())
        keys = ("validation", "best_epoch", "images_seen", "train_fingerprint")
        return {
            "weights": {p.name: weights(p) for p in (folder / "ckpt").iterdir()},
            "final": weights(folder / "model.safetensors"),
            "metrics": metrics(folder),
            "record": {key: record[key] for key in keys},
            "samples": {p.name: np.array(Image.open(p)) for p in (folder / "samples").iterdir()},
        }

    theirs = left(other)
    for what, value in left(one).items():
        assert same(value, theirs[what]), what


def test_outliers_are_learned_from_unless_excluded(tmp_path, whole, monkeypatch):
    original = train.bits_per_dim

    def one_is_bad(log_prob):
        bits = original(log_prob)
        bits[0] += 100
        return bits

    monkeypatch.setattr(train, "bits_per_dim", one_is_bad)
    wanted = weights(whole / "model.safetensors")
    for name, limit in {"learned": None, "excluded": 16.0}.items():
        ours = weights(run(tmp_path / name, outlier_bpd=limit))
        assert same(ours, wanted) == (name == "learned")
    (log,) = (tmp_path / "excluded" / "logs").iterdir()
    assert "Step 0: 1 outliers not learned from" in log.read_text()
    message = said_by(run, tmp_path / "all", outlier_bpd=0.01)
    assert re.search("all pictures.* --outlier-bpd 0.01 .*diverged", message)


KNOBS = [
    {"lr": 1e-3}, {"clip": 0.1}, {"weight_decay": 1.0}, {"beta2": 0.5}, {"warmup": 0}, {"seed": 1},
    {"schedule": "cosine"}, {"flip": True}, {"without_noise": True}, {"optimizer": "muon"},
    {"optimizer": "muon_all"},
    {"dequantisation": "uniform"}, {"standardise": False},
]  # fmt: skip


@pytest.mark.parametrize("knob", KNOBS, ids=str)
def test_a_knob_changes_what_is_learned(knob, one_epoch, tmp_path):
    ours = run(tmp_path, **{"epochs": 1, "schedule": "constant"} | knob)
    assert not same(weights(ours), weights(one_epoch / "model.safetensors"))


def test_a_run_begins_with_the_weights_of_a_file(one_epoch, tmp_path):
    path = one_epoch / "model.safetensors"
    ours = run(tmp_path / "on", epochs=1, start_from=str(path), prior="gaussian", lr=1e-12)
    theirs, state = weights(path), weights(ours)
    assert all(torch.allclose(state[name], theirs[name]) for name in theirs), "nor standardised"
    (start,) = json.loads((ours.parent / "record.json").read_text())["starts"]
    assert start["weights"] == sha256(path)
    message = said_by(run, tmp_path / "not", start_from=str(path), dequantisation="uniform")
    assert re.search("--start-from .*model.safetensors: not of the run's kind", message)
    message = said_by(run, tmp_path / "not", start_from=str(path.with_suffix(".pth")))
    assert "wants a .safetensors of ours" in message
    assert not (tmp_path / "not").exists()
    with pytest.MonkeyPatch.context() as patch:
        calls(patch, train, "rate_factor", 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "again", start_from=str(path))
    again = run(tmp_path / "again", start_from=str(path))
    assert same(weights(again), weights(run(tmp_path / "whole", start_from=str(path))))


# Stopped and resumed


crash = Mock(side_effect=MemoryError)
# At which call of which function, what happens, and what ends the run.
STOPS = {
    "before the first step": (train, "inputs", 1, interrupt, KeyboardInterrupt),
    "before an update": (train, "rate_factor", STEPS + 3, interrupt, KeyboardInterrupt),
    "after an epoch's last update": (torch.optim.AdamW, "step", STEPS, interrupt, KeyboardInterrupt),
    "in the last validation": (evaluate, "evaluate", EPOCHS, interrupt, None),
    "while samples are drawn": (sample, "write_grid", 2, interrupt, KeyboardInterrupt),
    "crash between two checkpoints": (train, "inputs", STEPS + 3, crash, MemoryError),
}  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_goes_on_exactly(stop, whole, tmp_path, monkeypatch):
    """Also with other settings of what changes no result."""
    *where, action, end = STOPS[stop]
    with monkeypatch.context() as patch:
        calls(patch, *where, action)
        with pytest.raises(end) if end else contextlib.nullcontext():
            run(tmp_path)
    if end is MemoryError:  # half a line, as the power failed
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "ima')
    run(tmp_path, workers=0, keep=EPOCHS + 2, save_minutes=1.0, checkpointing=True)
    assert_same_run(whole, tmp_path)


def handled(request, number, handler):
    """Let a signal have a handler, until the test has ended."""
    was = signal.signal(number, handler)
    request.addfinalizer(lambda: signal.signal(number, was))


def test_a_closed_terminal_stops_nothing_that_ignores_it(whole, tmp_path, monkeypatch, request):
    """As under nohup; test_cli closes one."""
    handled(request, signal.SIGHUP, signal.SIG_IGN)
    calls(monkeypatch, train, "inputs", 3, partial(signal.raise_signal, signal.SIGHUP))
    run(tmp_path)
    assert_same_run(whole, tmp_path)


def test_a_run_killed_as_it_finished_leaves_no_checkpoint_more(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    run(tmp_path, save_minutes=0.0)
    assert_same_run(whole, tmp_path)


def test_latest_checkpoint_counts_beyond_999(tmp_path):
    assert train.latest_checkpoint(tmp_path) is None
    (tmp_path / "ckpt").mkdir()
    for epoch in (998, 999, 1000):
        (tmp_path / "ckpt" / f"rgflow_ep{epoch:03d}.pth").touch()
    assert train.latest_checkpoint(tmp_path).name == "rgflow_ep1000.pth"


OTHERS = {"model": "published", "train_images": 48, "epochs": EPOCHS + 1}  # a cosine's


@pytest.mark.parametrize("knob", OTHERS)
def test_a_run_with_another_knob_is_refused(knob, whole):
    before = contents(whole)
    assert knob in said_by(run, whole, **{knob: OTHERS[knob]})
    assert contents(whole) == before


def test_a_run_of_other_data_or_of_another_model_is_refused(whole, monkeypatch):
    before, real = contents(whole), datasets.load_split
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_split", lambda *a: replace(real(*a), fingerprint="other"))
        assert "training data" in said_by(run, whole)
    monkeypatch.setitem(train.MODELS, "tiny", TINY | {"hidden": 9})
    assert "its model" in said_by(run, whole)
    assert contents(whole) == before


def test_more_epochs_at_a_constant_rate(one_epoch, tmp_path):
    run(tmp_path / "long", schedule="constant", epochs=2)
    shutil.copytree(one_epoch, tmp_path / "short")
    run(tmp_path / "short", schedule="constant", epochs=2)
    assert same(*(weights(tmp_path / n / "ckpt" / "rgflow_ep002.pth") for n in ("long", "short")))


DAMAGES = {
    "foreign": lambda s: [s.pop(k) for k in list(s) if k not in ("epoch", "model")],
    "no optimiser": lambda s: s.update(optim={}),
    "missing weight": lambda s: s["model"].popitem(),
    "short history": lambda s: s.update(history=[]),
    "step of another type": lambda s: s.update(step="x"),
    "NaN": lambda s: next(iter(s["model"].values())).fill_(math.nan),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_not_resumed(damage, one_epoch, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "ckpt" / "rgflow_ep001.pth"
    state = torch.load(path, weights_only=True)
    DAMAGES[damage](state)
    torch.save(state, path)
    before = contents(tmp_path)
    assert str(path) in said_by(run, tmp_path, epochs=2, schedule="constant")
    assert contents(tmp_path) == before


def test_metrics_that_cannot_be_read_are_named(one_epoch, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl" in said_by(run, tmp_path, epochs=2, schedule="constant")


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    validate_as(monkeypatch, [3.0, math.nan])
    assert f"step {2 * STEPS}" in said_by(run, tmp_path)
    assert files_below(tmp_path / "ckpt") == ["rgflow_ep001.pth"]
    assert not (tmp_path / "model.safetensors").exists()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch, request, before):
    """Also where a shell starts its background jobs with SIGINT ignored."""
    handled(request, signal.SIGINT, before)

    def twice():  # not by the kernel, which may make one of two
        for _ in range(2):
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    calls(monkeypatch, train, "inputs", 2, twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not train.latest_checkpoint(tmp_path)


def test_training_never_sees_the_noise_of_evaluation(tmp_path, monkeypatch):
    epochs, original = {True: set(), False: set()}, PictureModel.noise

    def noise(self, index, seed=0, epoch=0):
        epochs[torch.is_grad_enabled()] |= set(torch.as_tensor(epoch).unique().tolist())
        return original(self, index, seed, epoch)

    monkeypatch.setattr(PictureModel, "noise", noise)
    run(tmp_path, epochs=1)
    assert epochs == {True: {1}, False: {0, 1}}  # the start from data is of the first epoch


# What a run leaves


def test_files_of_a_run(whole):
    assert files_below(whole / "ckpt") == [f"rgflow_ep00{e}.pth" for e in (1, 2, 3)]
    assert files_below(whole / "samples") == [f"epoch00{e}.png" for e in (1, 2, 3)]
    assert Image.open(whole / "samples" / "epoch001.png").size[0] >= 2 * 32
    names = {path.name for path in whole.iterdir()}
    assert names == {"ckpt", "logs", "samples", "metrics.jsonl", "model.safetensors", "record.json"}
    final = load(whole / "model.safetensors")
    parameters = weights(whole / "model.safetensors").values()
    assert final.metadata["parameters"] == sum(value.numel() for value in parameters)
    assert any(p.any() for p in final.dequantiser.layers[-1].parameters()), "it learns"
    before = contents(whole)
    assert run(whole) == whole / "model.safetensors"
    assert contents(whole) == before, "a finished run is left alone"


def test_metrics_and_log_agree_with_the_checkpoints(whole):
    validations = [line for line in metrics(whole) if "val_bpd" in line]
    assert [(v["step"], v["images"]) for v in validations] == [(4, 64), (8, 128), (12, 192)]
    images = datasets.load_split("msds1", "val", limit=16).images
    (log,) = (whole / "logs").glob("rgflow_*.log")
    for epoch, values in enumerate(validations, 1):
        model = load(whole / "ckpt" / f"rgflow_ep{epoch:03d}.pth")
        bpd = evaluate.evaluate(model, images, progress=False)
        assert values["val_bpd"] == pytest.approx(bpd.mean().item(), rel=1e-6)
        assert values["val_stderr"] == pytest.approx(bpd.std().item() / 4, rel=1e-6)
        assert f"Validation BPD: {values['val_bpd']:.4f}\n" in log.read_text()
    training = [line for line in metrics(whole) if "train_bpd" in line]
    assert all(math.isfinite(line["train_bpd"] + line["gradient_norm"]) for line in training)


def validate_as(monkeypatch, values):
    values = iter(values)
    monkeypatch.setattr(
        evaluate, "mean_and_error", lambda _: {"bpd": next(values), "stderr": 0.0, "images": 16}
    )


def test_keep_bounds_the_checkpoints_and_the_best_is_kept(tmp_path, monkeypatch):
    validate_as(monkeypatch, [3.0, 1.0, 5.0, 4.0, 2.0])
    final = run(tmp_path, epochs=5, keep=2)
    kept = [f"rgflow_ep00{e}.pth" for e in (2, 4, 5)]
    assert files_below(tmp_path / "ckpt") == kept
    best, _, last = (weights(tmp_path / "ckpt" / name) for name in kept)
    assert same(weights(final), best)
    assert not same(best, last)
    assert load(final).metadata["best_epoch"] == 2


def test_training_lowers_the_bits_per_dimension(tmp_path):
    run(tmp_path, epochs=8, lr=1e-2, schedule="constant")
    history = [line["val_bpd"] for line in metrics(tmp_path) if "val_bpd" in line]
    fresh = PictureModel(RGFlow(RGFlowConfig(**TINY)), Prior())
    images = datasets.load_split("msds1", "val", limit=16).images
    assert history[0] < evaluate.evaluate(fresh, images, progress=False).mean().item()
    assert history[-1] < history[0] - 0.2


@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 120])
def test_order_covers_each_image_once_per_pass(batch_size):
    size, passes = 50, 6
    steps = -(-size * passes // batch_size)
    batches = [train.batch_of(s, batch_size, size, 3) for s in range(steps)]
    index, which = (torch.cat(x) for x in zip(*batches, strict=True))
    by_pass = index[: size * passes].reshape(passes, size)
    assert torch.equal(which[: size * passes], torch.arange(1, passes + 1).repeat_interleave(size))
    for one in by_pass:
        assert sorted(one.tolist()) == list(range(size))
    assert len({tuple(one.tolist()) for one in by_pass}) == passes
    # The same sequence for every batch size, and from any step on.
    alone = torch.cat([train.batch_of(s, 1, size, 3)[0] for s in range(size * 2)])
    assert torch.equal(alone, by_pass[:2].flatten())
    assert not torch.equal(train.batch_of(0, 50, size, 4)[0], by_pass[0])


def test_rate_factor():
    settings = replace(RUN, warmup=4, schedule="constant")
    rates = [train.rate_factor(settings, step, 10) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75] + [1.0] * 7
    settings = replace(RUN, warmup=0, schedule="cosine")
    rates = [train.rate_factor(settings, step, 8) for step in range(8)]
    assert rates == pytest.approx((1 + np.cos(np.pi * np.arange(8) / 8)) / 2)


@pytest.mark.parametrize(
    ("dataset", "flip", "some"),
    [("msds1", True, True), ("celeba", False, True), ("msds1", False, False)],
)
def test_flips(dataset, flip, some):
    """Of about half of the pictures, others in each pass; natural sets always do."""
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    settings = replace(RUN, dataset=dataset, flip=flip, batch_size=40)
    new, mirrored = train.Run(settings, None, train.Ranks("cpu"), 40, ""), []
    for step in range(3):
        new.step, (index, _) = step, train.batch_of(step, 40, 40, settings.seed)
        seen = train.inputs(new, images)[0][index.argsort()]
        plain, turned = ((seen == x).flatten(1).all(1) for x in (images, images.flip(-1)))
        assert (plain ^ turned).all()
        mirrored.append(turned)
    share = torch.cat(mirrored).double().mean()
    assert 0.35 < share < 0.65 if some else share == 0
    assert torch.equal(mirrored[0], mirrored[1]) != some


def test_images_per_epoch_and_what_the_console_says(tmp_path, capsys):
    run(tmp_path, images_per_epoch=32, epochs=2)
    assert [line["step"] for line in metrics(tmp_path) if "val_bpd" in line] == [2, 4]
    assert capsys.readouterr().out.count("Validation BPD: ") == 2
    assert not logging.getLogger("rgflow").handlers


@pytest.mark.parametrize("knob", sorted(asdict(RUN)))
def test_every_knob_refuses_what_it_cannot_be_and_says_its_name(knob):
    for bad in ("", [], math.nan, -1):
        with pytest.raises(ValidationError, match=f"(?s)^1 validation error.*{knob}"):
            replace(RUN, **{knob: bad})


def test_pictures_that_cannot_be_shared_are_refused(tmp_path, monkeypatch):
    three = SimpleNamespace(world=3, agreed=lambda folder: folder)
    monkeypatch.setattr(train, "Ranks", lambda _: three)
    assert "multiple of the 3 processes, not 16" in said_by(run, tmp_path / "run")
    # Fewer pictures than a batch make a smaller one.
    message = said_by(run, tmp_path / "run", batch_size=15, train_images=10)
    assert "multiple of the 3 processes, not 10" in message
    assert "2 are too few for 3" in said_by(run, tmp_path / "run", batch_size=15, val_images=2)
    assert files_below(tmp_path) == []


def test_reduced_precision_trains_nearly_alike_and_validates_in_float32(whole, tmp_path):
    path = run(tmp_path / "run", precision="bf16")
    ours, theirs = (json.loads((f / "record.json").read_text()) for f in (whole, path.parent))
    bits = [[entry["bpd"] for entry in record["validation"]] for record in (ours, theirs)]
    assert bits[0] != bits[1]
    assert bits[0] == pytest.approx(bits[1], abs=0.05)
    val = datasets.load_split("msds1", "val", RUN.data_root, RUN.val_images, progress=False)
    again = evaluate.evaluate(load(path), val.images, progress=False).mean().item()
    assert again == pytest.approx(min(bits[1]), abs=1e-6)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "bf16"), *(pytest.param("cuda", n, marks=GPU) for n in ("tf32", "bf16"))],
)
@pytest.mark.parametrize("subnet", ["published", "lean", "autoregressive"])
def test_reduced_precision_rounds_the_networks_alone(subnet, device, name):
    device = torch.device(device)
    flow = small_flow(torch.float32, channels=3, coupling_layers=1, hidden=16, subnet=subnet)
    model = PictureModel(flow.to(device), Prior("gaussian"))
    images = torch.arange(8 * 192).reshape(8, 3, 8, 8).to(device, torch.uint8)
    data = images, model.noise(torch.arange(8))
    y, *_ = model.transform(*data)
    whole = model(*data)
    with train.precision(name, device):
        rounded = model(*data)
        z, log_det = model.flow(y)
        back, inverse_log_det = model.flow.inverse(z)
    assert rounded.dtype == torch.float64
    assert z.dtype == log_det.dtype == torch.float32
    # It does round, a little.
    difference = abs(rounded - whole) / model.flow.config.dim
    assert 0 < difference.max() < 0.05
    # And it stays one density: the inverse undoes the rounded map and its log-determinant.
    torch.testing.assert_close(back, y, rtol=0.02, atol=0.02)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0.01, atol=0.5)
    # Afterwards all is as before.
    assert torch.equal(whole, model(*data))


@pytest.mark.parametrize("place", ["at once", "backward", "later"])
def test_where_compiling_fails_a_line_says_so_and_the_run_goes_on(
    place, whole, tmp_path, monkeypatch
):
    fails_at, count = {"at once": 1, "later": 20}.get(place), itertools.count(1)
    fail = Mock(side_effect=RuntimeError("no compiler\nand a long traceback"))

    def compiled(layer, *arguments):
        if next(count) == fails_at:
            fail()
        first, *rest = type(layer).forward(layer, *arguments)
        if place == "backward":
            first.register_hook(fail)
        return first, *rest

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled)
    run(tmp_path, compile=True)
    (log,) = (tmp_path / "logs").iterdir()
    (line,) = (line for line in log.read_text("utf-8").splitlines() if "Not compiled" in line)
    assert "RuntimeError: no compiler" in line
    assert "traceback" not in log.read_text("utf-8")
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize(("size", "layers"), [(8, (6,)), (32, (6, 2, 1)), (64, (6, 2, 1, 1))])
def test_a_model_s_coupling_layers_follow_the_size_of_the_pictures(size, layers):
    settings = train.Settings(dataset="folder", model="lean8", image_size=size)
    assert train.flow_config(settings).coupling_layers == layers
