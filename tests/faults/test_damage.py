"""Cut files and flipped bytes: noticed and named, or without any effect; never another number."""

import itertools
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support import ROOT, RUN, same, small_flow

from rgflow_core import Prior, checkpoints, datasets, load, msds, train
from rgflow_core.errors import UserError
from rgflow_core.model import PictureModel
from study import records, results


def damages(path, number):
    """Copies of a file that are cut, or with a bit, some bits or a part of each region changed."""
    draw, content = random.Random(path.name), path.read_bytes()
    n = len(content)
    # Where a format's parts lie: its first bytes, its header, its body, its end.
    edges = [0, min(16, n // 4), min(2000, n // 2), max(n - 200, 3 * n // 4), n]
    for start, end in itertools.pairwise(edges):
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


def facts(model):
    state = {name: value.clone() for name, value in model.flow.state_dict().items()}
    return model.prior, model.metadata, model.flow.config, state


# Of each kind: what makes the file, and what is read from it.


def weights(folder):
    flow, path = small_flow(torch.float32, subnet="lean"), folder / "x.safetensors"
    checkpoints.save(PictureModel(flow, Prior()), path, {"seed": 3, "bpd": 1.285})
    return path, lambda: facts(load(path))


def training_checkpoint(folder):
    settings = replace(RUN, train_images=32, val_images=4, epochs=1, optimizer="muon")
    train.train(settings, folder / "run", progress=False)
    fingerprint = datasets.load_split("msds1", "train", limit=32).fingerprint
    path = folder / "run" / "ckpt" / "rgflow_ep001.pth"

    def read():
        run = train.Run(settings, folder / "run", train.Ranks("cpu"), 32, fingerprint)
        run.restore(path)
        optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
        return run.step, run.history, run.running, run.starts, optimizers, facts(load(path))

    return path, read


def tables(folder):
    rows = [results.row("bpd", value, at=at) for at, value in (("a", 1.285), ("b", 2.5))]
    results.write(folder, "01_x", rows, {"a": np.arange(5000.0), "b": np.eye(3)}, seed=3)
    read = (results.read(folder, "01_x").to_csv, lambda: results.origins(folder))
    return folder / "01_x.json", lambda: [one() for one in read]


def arrays(folder):
    tables(folder)
    return folder / "01_x.npz", lambda: results.arrays(folder, "01_x")


def data(name, folder):
    def read():
        split = datasets.load_split("msds1", "test", folder, progress=False)
        return split.images.clone(), split.labels.copy(), split.fingerprint

    read()
    return folder / "msds1" / name, read


KINDS = {
    "weights": weights, "training checkpoint": training_checkpoint, "results.json": tables,
    "arrays of results": arrays,
}  # fmt: skip
KINDS |= {name: partial(data, name) for name in ("test_images.npy", "test_labels.npy", "test.json")}


@pytest.mark.filterwarnings("ignore:.*has no SHA-256")
@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path, trials, monkeypatch, capsys):
    """Detected and named; data, which can be drawn, are made again."""
    monkeypatch.setattr(msds, "SPLITS", {"train": 8, "val": 8, "test": 8})
    path, read = KINDS[kind](tmp_path)
    good, whole = path.read_bytes(), read()
    assert same(read(), whole)
    for number, content in enumerate(damages(path, trials(1, 5))):
        put(path, content)
        capsys.readouterr()
        said = ""
        try:
            assert same(read(), whole), f"another result in silence: damage {number}"
        except UserError as error:
            said = str(error)
        if kind.startswith("test"):
            assert not said
            said = capsys.readouterr().err.rstrip()
            assert not said or ("again" in said and path.read_bytes() == good)
        assert not said or (path.name in said and "\n" not in said)
        put(path, good)


def test_shipped_files_have_their_checksum():
    paths = {path.stem: path for path in (ROOT / "weights").glob("*.safetensors")}
    assert paths.keys() == {*records.shipped_records(ROOT), "factors"}
    for name, path in paths.items():
        with safe_open(path, "pt") as file:
            assert "sha256" in file.metadata(), name
