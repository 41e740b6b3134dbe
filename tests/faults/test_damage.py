"""Cut files and flipped bytes: noticed and named, or without any effect; never another number."""

import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support import RUN, same, small_flow

from rgflow_core import Prior, checkpoints, datasets, load, msds, train
from rgflow_core.errors import UserError
from rgflow_core.model import PictureModel
from study import factors, results

FEW, MANY = 1, 5  # damages of each kind and region of each file


def regions(content):
    """Where a format's parts lie: its first bytes, its header, its body, its end."""
    n = len(content)
    edges = [0, min(16, n // 4), min(2000, n // 2), max(n - 200, 3 * n // 4), n]
    return list(itertools.pairwise(edges))


def damages(path, number):
    """Copies of a file that are cut, or with a bit, some bits or a part of each region changed."""
    draw, content = random.Random(path.name), path.read_bytes()
    for start, end in regions(content):
        for _ in range(number):
            yield content[: draw.randrange(start, end)]
            for bits in (1, 8):
                flipped = bytearray(content)
                for _ in range(bits):
                    flipped[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
                yield bytes(flipped)
        size = min(512, end - start)
        yield content[:start] + bytes(size) + content[start + size :]


def put(path, content):
    """A new file: the old one may be mapped into memory, or linked."""
    path.unlink()
    path.write_bytes(content)


def state(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


# Of each kind: what makes the file, and what is read from it.


def make_weights(folder):
    flow = small_flow(torch.float32, subnet="lean")
    checkpoints.save(
        PictureModel(flow, Prior()), folder / "x.safetensors", {"seed": 3, "bpd": 1.285}
    )
    return folder / "x.safetensors", lambda p: (
        (loaded := load(p)).prior, loaded.metadata, loaded.flow.config, state(loaded.flow)
    )  # fmt: skip


def make_factors(folder):
    torch.manual_seed(0)
    net = factors.FactorNet()
    checkpoints.write_tensors(folder / "f.safetensors", {"seed": "0"}, net.state_dict())
    return folder / "f.safetensors", lambda p: (
        checkpoints.read_tensors(p)[0],
        state(factors.load(p)),
    )


def make_training(folder):
    settings = replace(RUN, train_images=32, val_images=4, epochs=1, optimizer="muon")
    train.train(settings, folder / "run", progress=False)
    fingerprint = datasets.load_split("msds1", "train", limit=32).fingerprint

    def read(path):
        run = train.Run(settings, folder / "run", train.Ranks("cpu"), 32, fingerprint)
        run.restore(path)
        loaded = load(path)
        optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
        facts = (run.step, run.history, run.running, run.starts, loaded.metadata, loaded.prior)
        return facts, state(run.model.flow), optimizers, state(loaded.flow)

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
    rows = [results.row("bpd", value, at=at) for at, value in (("a", 1.285), ("b", 2.5))]
    results.write(folder, "01_x", rows, seed=3)
    return folder / "01_x.json", lambda p: (
        results.read(p.parent, "01_x").to_csv(), results.origins(p.parent)
    )  # fmt: skip


def make_arrays(folder):
    results.write(folder, "02_x", [], {"a": np.arange(5000.0), "b": np.eye(3)})
    return folder / "02_x.npz", lambda p: results.arrays(p.parent, "02_x")


KINDS = {
    "weights": make_weights,
    "factor network": make_factors,
    "training checkpoint": make_training,
    "published checkpoint": make_published,
    "results.json": make_results,
    "arrays of results": make_arrays,
}


@pytest.mark.filterwarnings("ignore:.*has no SHA-256")
@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path, trials, counts):
    path, read = KINDS[kind](tmp_path)
    good, whole = path.read_bytes(), read(path)
    assert same(read(path), whole)
    for number, content in enumerate(damages(path, trials(FEW, MANY))):
        put(path, content)
        message, again = "", None
        try:
            again = read(path)
        except UserError as error:
            message = str(error)
        if message:
            assert path.name in message
            assert "\n" not in message
        else:
            assert same(again, whole), f"another result in silence: damage {number}"
        counts(f"damaged files: {kind}", "detected" if message else "harmless")
        put(path, good)


@pytest.mark.parametrize("name", ["test_images.npy", "test_labels.npy", "test.json"])
def test_data(name, tmp_path, trials, counts, monkeypatch, capsys):
    """Data are checked whenever loaded, and made again if they are damaged."""
    monkeypatch.setattr(msds, "SPLITS", {"train": 8, "val": 8, "test": 8})

    def read():
        data = datasets.load_split("msds1", "test", tmp_path, progress=False)
        return data.images.clone(), data.labels.copy(), data.fingerprint

    whole = read()
    path = tmp_path / "msds1" / name
    before = path.read_bytes()
    for content in damages(path, trials(FEW, MANY)):
        put(path, content)
        capsys.readouterr()
        assert same(read(), whole)
        said = capsys.readouterr().err
        if said:
            assert "again" in said
            assert str(path) in said
            assert path.read_bytes() == before
        counts(f"damaged files: {name}", "made again" if said else "harmless")
        put(path, before)


def test_metrics(tmp_path, counts):
    """A log is for people; one that cannot be read is named."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "images": 16 * step}) for step in range(30)]
    path.write_text("\n".join(lines) + "\n")
    run = SimpleNamespace(folder=tmp_path, ranks=SimpleNamespace(rank=0), step=10)
    for content in damages(path, 1):
        path.write_bytes(content)
        message = path.name
        try:
            train.Run.truncate_metrics(run)
        except UserError as error:
            message = str(error)
        assert path.name in message
        # Nothing is kept but lines that were there.
        assert set(path.read_bytes().splitlines()) <= set(content.splitlines())
        counts("damaged files: metrics.jsonl", "read or named")


def test_shipped_files_have_their_checksum():
    for path in (Path(__file__).parents[2] / "weights").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert "sha256" in file.metadata(), path
