"""Cut files and flipped bytes: noticed and named, or without any effect; never another number."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import TINY, small_flow

from rgflow_core import Prior, checkpoints, datasets, files, load, msds, train
from rgflow_core.errors import UserError
from study import factors, results

FEW, MANY = 12, 130  # damages of each kind of file


def damage(path: Path, seed: int) -> None:
    """Cut a file, flip bytes, or zero a part, as the seed says."""
    draw = random.Random(f"{path.name} {seed}")
    content = bytearray(path.read_bytes())
    kind = draw.choice(["cut", "flip", "flip", "flips", "zeros"])
    if kind == "cut":
        content = content[: draw.randrange(len(content))]
    elif kind == "zeros":
        start = draw.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    else:
        for _ in range(1 if kind == "flip" else 8):
            # The beginning, where headers are, as often as all the rest.
            end = draw.choice([min(2000, len(content)), len(content)])
            content[draw.randrange(end)] ^= 1 << draw.randrange(8)
    # A new file: the old one may be mapped into memory, or linked.
    path.unlink()
    path.write_bytes(content)


def state(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


def same(one, other):
    """Whether two results are the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


# Of each kind: what makes the file, and what is read from it.


def make_weights(folder):
    flow = small_flow(torch.float32, subnet="lean")
    checkpoints.save(flow, Prior(), folder / "x.safetensors", {"seed": 3, "bpd": 1.285})
    return folder / "x.safetensors", lambda p: (
        (loaded := load(p)).prior, loaded.metadata, loaded.flow.config, state(loaded.flow)
    )  # fmt: skip


def make_factors(folder):
    torch.manual_seed(0)
    net = factors.FactorNet()
    checkpoints.write_tensors(folder / "f.safetensors", {"seed": "0"}, net.state_dict())
    return folder / "f.safetensors", lambda p: (factors.card(p), state(factors.load(p)))


def make_training(folder):
    settings = train.Settings(
        model="lean", train_images=32, val_images=4, batch_size=16, epochs=1, img_samples=1,
        optimizer="muon", device="cpu",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.MODELS, "lean", TINY)
        train.train(settings, folder / "run", progress=False)

    def read(path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(train.MODELS, "lean", TINY)
            run = train._Run(settings, torch.device("cpu"), fingerprint)
            run.restore(path)
        loaded = load(path)
        optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
        facts = (run.step, run.history, run.running, run.starts, loaded.metadata, loaded.prior)
        return facts, state(run.model.flow), optimizers, state(loaded.flow)

    fingerprint = datasets.load_split("msds1", "train", limit=32).fingerprint
    return folder / "run" / "ckpt" / "rgflow_ep001.pth", read


def make_published(folder):
    golden = Path(__file__).parents[1] / "golden" / "authors_L16_laplace.state"
    shutil.copy(golden, folder)
    return folder / golden.name, lambda p: (
        (c := load(p, "laplace")).prior,
        c.flow.config,
        state(c.flow),
    )


def make_results(folder):
    numbers = {"bpd": {"a": 1.285, "b": [1, 2.5]}, "count": 10_000}
    results.write_results(folder, "01_x", numbers, seed=3)
    results.found(folder, "01_x", ["- 1.285 bits"])
    return folder / "01_x.json", lambda p: {k: results.collect(p.parent, "x")["01_x"].get(k)
        for k in ("numbers", "provenance", "found")}  # fmt: skip


def make_arrays(folder):
    results.write_results(folder, "02_x", {}, {"a": np.arange(5000.0), "b": np.eye(3)})
    return folder / "02_x.npz", lambda p: results.read_results(p.parent, "02_x")


def make_record(folder):
    files.write_json(folder / "record.json", {"test": {"bpd": 1.285}, "seed": 0})
    return folder / "record.json", lambda p: [files.read_json(p).get(k) for k in ("test", "seed")]


KINDS = {
    "weights": make_weights,
    "factor network": make_factors,
    "training checkpoint": make_training,
    "published checkpoint": make_published,
    "results.json": make_results,
    "arrays of results": make_arrays,
    "record.json": make_record,
}


@pytest.mark.filterwarnings("ignore:.*has no SHA-256")
@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path, trials, counts):
    path, read = KINDS[kind](tmp_path)
    good, whole = path.read_bytes(), read(path)
    assert same(read(path), whole)
    for seed in range(trials(FEW, MANY)):
        damage(path, seed)
        message, again = "", None
        try:
            again = read(path)
        except UserError as error:
            message = str(error)
        if message:
            assert path.name in message
            assert "\n" not in message
        else:
            assert same(again, whole), f"another result in silence: damage {seed}"
        counts(f"damaged files: {kind}", "detected" if message else "harmless")
        path.unlink()
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["test_images.npy", "test_labels.npy", "manifest.json"])
def test_data(name, tmp_path, trials, counts, monkeypatch, capsys):
    """Data are checked whenever loaded, and made again if they are damaged."""
    monkeypatch.setattr(msds, "SPLITS", {"train": 8, "val": 8, "test": 8})

    def read():
        data = datasets.load_split("msds1", "test", tmp_path, progress=False)
        return data.images.clone(), data.labels.copy(), data.fingerprint

    whole = read()
    path = tmp_path / "msds1" / name
    before = path.read_bytes()
    for seed in range(trials(FEW, MANY)):
        damage(path, seed)
        capsys.readouterr()
        assert same(read(), whole)
        said = capsys.readouterr().err
        if said:
            assert "again" in said
            assert str(path) in said
            assert path.read_bytes() == before
        counts(f"damaged files: {name}", "made again" if said else "harmless")
        path.write_bytes(before)


@pytest.mark.parametrize("seed", range(8))
def test_metrics(seed, tmp_path, counts):
    """A log is for people; one that cannot be read is named."""
    lines = [json.dumps({"step": step, "images": 16 * step}) for step in range(30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    damage(tmp_path / "metrics.jsonl", seed)
    with contextlib.suppress(UserError):
        train._truncate(tmp_path / "metrics.jsonl", 10)
    counts("damaged files: metrics.jsonl", "read or named")


def test_shipped_files_have_their_checksum():
    root = Path(__file__).parents[2] / "weights"
    for path in root.glob("*.safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            assert "sha256" in file.metadata(), path
