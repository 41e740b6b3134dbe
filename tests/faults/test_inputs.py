"""Bad input: one clear line that names the value and what is allowed; exit code 2 for a command."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from support import TINY, small_flow

from rgflow_core import (
    PictureModel,
    Prior,
    RGFlowConfig,
    checkpoints,
    cli,
    datasets,
    evaluate,
    files,
    load,
    msds,
    sample,
    save_published,
    train,
)
from study import factors, page, records, reference, report, results

ROOT = Path(__file__).parents[2]
W, RUN = "w.safetensors", ["--model=lean", "--epochs=1", "--device=cpu"]
# Module, arguments, and what the line must say.
COMMANDS = [
    (train, ["--epochs=0"], "epochs >= 1 0"),
    (train, [f"--epochs={10**30}"], f"epochs 2147483648 {10**30}"),
    (train, ["--epochs=1.5"], "epochs 1.5"),
    (train, ["--batch-size=0"], "batch_size >= 1 0"),
    (train, [f"--batch-size={10**30}"], f"batch_size 2147483648 {10**30}"),
    (train, ["--lr=nan"], "lr > 0 nan"),
    (train, ["--lr=1e400"], "lr > 0 inf"),
    (train, ["--matrix-lr=0"], "matrix_lr > 0 0"),
    (train, ["--beta2=1"], "beta2 < 1 1.0"),
    (train, ["--clip=-1"], "clip > 0 -1.0"),
    (train, ["--weight-decay=-1"], "weight_decay >= 0 -1.0"),
    (train, ["--warmup=1e3"], "warmup 1e3"),
    (train, ["--save-minutes=nan"], "save_minutes >= 0 nan"),
    (train, ["--keep=0"], "keep >= 1 0"),
    (train, ["--seed=-1"], "seed >= 0 -1"),
    (train, [f"--seed={2**31}"], f"seed {2**31}"),
    (train, ["--optimizer=sgd"], "sgd adamw muon"),
    (train, ["--convention=x"], "'x' unit_variance unit_scale"),
    (train, ["--dataset=MSDS1"], "MSDS1 msds1 msds2 folder"),
    (train, ["--prior=cauchy"], "cauchy laplace gaussian"),
    (train, ["--schedule=linear"], "linear constant cosine"),
    (train, ["--model=huge"], "huge published lean"),
    (train, ["--device=meta"], "meta cpu"),
    (train, ["--device="], "device ''"),
    (train, ["--device=cuda:99"], "cuda:99 cpu"),
    (train, ["--out="], "--out name ''"),
    (train, ["--out=precious"], "precious file folder"),
    (train, ["--resume="], "--resume name ''"),
    (train, ["--resume=precious"], "precious checkpoint"),
    (train, ["--data-root="], "data_root ''"),
    (train, ["--data-root=precious"], "precious folder"),
    (train, ["--test-mode", "--train-images=0"], "train_images >= 1 0"),
    (train, ["--images-per-epoch=0"], "images_per_epoch >= 1 0"),
    (train, ["more"], "more"),
    (evaluate, [], "FILE"),
    (evaluate, [""], "name ''"),
    (evaluate, ["none.pth"], "none.pth no such file"),
    (evaluate, ["folder"], "folder no such file"),
    (evaluate, ["precious"], "precious not a readable checkpoint"),
    (evaluate, [W, "--limit=0"], "--limit >= 1 '0'"),
    (evaluate, [W, "--limit=1e3"], "--limit '1e3'"),
    (evaluate, [W, f"--batch-size={10**30}"], f"--batch-size {10**30}"),
    (evaluate, [W, "--seed=-1"], "--seed '-1'"),
    (evaluate, [W, "--split=valid"], "valid train val test"),
    (evaluate, [W, "--device=meta"], "meta cpu"),
    (evaluate, [W, "--out="], "--out name ''"),
    (evaluate, [W, "--out=folder"], "folder exists"),
    (evaluate, [W, "--out=precious/x.json"], "precious file folder"),
    (evaluate, [W, "--data-root=precious", "--limit=1"], "precious folder"),
    (evaluate, [W, "--dataset=mnist", "--limit=1"], "MNIST data/MNIST/raw"),
    (evaluate, [W, "--dataset=folder", "--data-root=folder"], "folder PNG JPEG 10"),
    (sample, [], "FILE"),
    (sample, ["none.pth"], "none.pth no such file"),
    (sample, [W, "--n=0"], "--n >= 1 '0'"),
    (sample, [W, f"--n={10**30}"], f"--n {10**30}"),
    (sample, [W, "--temperature=0"], "--temperature > 0 '0'"),
    (sample, [W, "--temperature=inf"], "--temperature > 0 'inf'"),
    (sample, [W, "--temperature", "1", "1"], "temperature 4 levels 2"),
    (sample, [W, "--temperature=1e300"], "temperature 1e+300 finite"),
    (sample, [W, "--out=x.jpg"], "--out .png x.jpg"),
    (sample, [W, "--out="], "--out name ''"),
    (sample, [W, "--out=precious/x.png"], "precious file folder"),
    (sample, [W, "--prior=gaussian"], "laplace gaussian --prior"),
    (records, ["nonsense"], "nonsense not a run msds1_laplace"),
    (reference, [], "what results reference"),
    (reference, ["look", "a", "b"], "look check write"),
    (reference, ["check", "none.json", "none.json"], "none.json No such file"),
    (reference, ["check", "cut.json", "cut.json"], "cut.json cannot be read"),
    (reference, ["check", "list.json", "list.json"], "list.json object list"),
    (reference, ["check", "empty.json", "empty.json"], "empty.json no numbers"),
    (reference, ["check", "odd.json", "empty.json"], "odd.json results"),
    (reference, ["check", "unknown.json", "empty.json"], "99_unknown"),
    (reference, ["write", "list.json", "out.json"], "list.json object list"),
    (report, ["pdf", "a", "b"], "pdf results speed"),
    (page, ["none.ipynb", "x.html"], "none.ipynb No such file"),
    (page, ["list.json", "x.html"], "list.json notebook"),
    (page, ["precious", "x.html"], "precious notebook"),
    (report, ["results", "none.json", "README.md"], "none.json No such file"),
    (report, ["results", "odd.json", "README.md"], "odd.json results"),
    (report, ["results", "list.json", "README.md"], "list.json object list"),
    (report, ["results", "odd.json", "none.md"], "none.md No such file"),
    (report, ["results", "odd.json", "precious"], "precious results: begin"),
    (factors, ["--epochs=0"], "--epochs >= 1 '0'"),
    (factors, ["--limit=-1"], "--limit >= 1 '-1'"),
    (factors, ["--out=precious"], "precious exists"),
    (factors, ["--out=precious/x"], "precious file folder"),
    (factors, ["--data-root=precious", "--out=x"], "precious folder"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty repository with a tiny model, a file, a folder, and unfit JSON files."""
    monkeypatch.setitem(train.MODELS, "lean", TINY)
    for name in ("folder", "notebooks", "rgflow_core", "data"):
        (tmp_path / name).mkdir()
    for path in (ROOT / "data").glob("*.json"):
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    flow = small_flow(torch.float32, image_size=32, channels=3, subnet="lean", coupling_layers=1)
    checkpoints.save(flow, Prior(), tmp_path / W, {})
    marks = "<!-- results: begin --><!-- results: end -->"
    texts = {"precious": "x", "cut.json": '{"a": ', "list.json": "[1, 2]", "empty.json": "{}"}
    texts |= {"odd.json": '{"01_data": 3}', "README.md": marks}
    texts |= {"unknown.json": '{"99_unknown": {"numbers": {"x": 1}}}'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    COMMANDS,
    ids=lambda v: " ".join(v) if isinstance(v, list) else getattr(v, "__name__", "says"),
)
def test_commands(module, arguments, words, place, monkeypatch, capfd, counts):
    before = contents(place)
    arguments = [*RUN, *arguments] if module is train else arguments
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main)
    lines = [line.rsplit("\r", 1)[-1] for line in capfd.readouterr().err.split("\n")]
    lines = [line for line in lines if line.strip()]
    assert (stop.value.code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ")
    for word in words.split():
        assert word in lines[0], lines[0]
    assert contents(place) == before
    counts("bad inputs", "refused")


def model():
    return PictureModel(small_flow(torch.float32), Prior())


def pictures(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


LABELS = np.zeros((1, 4, 4, 6))
FUNCTIONS = {
    "Settings: unknown data set": (lambda: train.Settings(dataset="x"), "dataset msds1 'x'"),
    "Settings: data set None": (lambda: train.Settings(dataset=None), "dataset None"),
    "Settings: data set list": (lambda: train.Settings(dataset=[]), "dataset []"),
    "Settings: text as number": (lambda: train.Settings(epochs="3"), "epochs whole '3'"),
    "Settings: True as number": (lambda: train.Settings(epochs=True), "epochs whole True"),
    "Settings: fraction": (lambda: train.Settings(seed=0.5), "seed whole 0.5"),
    "Settings: infinite": (lambda: train.Settings(clip=math.inf), "clip finite inf"),
    "Settings: text as flag": (lambda: train.Settings(flip="no"), "flip true 'no'"),
    "Settings: device": (lambda: train.Settings(device=0), "device text 0"),
    "Settings: data_root": (lambda: train.Settings(data_root=""), "data_root text ''"),
    "config: image_size": (lambda: RGFlowConfig(image_size=33), "image_size kernel 33"),
    "config: absurd image_size": (lambda: RGFlowConfig(2**20), f"image_size 4096 {2**20}"),
    "config: odd kernel": (lambda: RGFlowConfig(kernel=3), "kernel even 3"),
    "config: hidden": (lambda: RGFlowConfig(hidden=0), "hidden >= 1 0"),
    "config: levels": (lambda: RGFlowConfig(hidden=(8, 8)), "hidden per level 4"),
    "config: subnet": (lambda: RGFlowConfig(subnet="x"), "subnet lean 'x'"),
    "Prior: name": (lambda: Prior("cauchy"), "prior laplace cauchy"),
    "Prior: convention": (lambda: Prior("laplace", "x"), "convention unit_scale 'x'"),
    "PictureModel: no prior": (lambda: PictureModel(small_flow(), None), "prior Prior None"),
    "log_prob: type": (lambda: model().log_prob(pictures(1, 1, 8, 8).float()), "uint8 float32"),
    "log_prob: array": (lambda: model().log_prob(np.zeros((1, 1, 8, 8))), "uint8 ndarray"),
    "log_prob: shape": (lambda: model().log_prob(pictures(1, 3, 8, 8)), "shape 1, 8, 8"),
    "log_prob: no picture": (lambda: model().log_prob(pictures(0, 1, 8, 8)), "B >= 1 (0, 1"),
    "log_prob: noise": (
        lambda: model().log_prob(pictures(1, 1, 8, 8), torch.ones(1, 1, 8, 8)), "noise [0, 1)"
    ),
    "bits_per_dim: no pictures": (
        lambda: evaluate.evaluate(model(), pictures(0, 1, 8, 8)), "B >= 1 (0, 1"
    ),
    "bits_per_dim: batch": (
        lambda: evaluate.evaluate(model(), pictures(1, 1, 8, 8), batch=0), "batch >= 1 0"
    ),
    "sample: n": (lambda: model().sample(0), "n >= 1 0"),
    "sample: batch": (lambda: model().sample(1, batch=0), "batch >= 1 0"),
    "sample: temperature 0": (lambda: model().sample(1, 0.0), "temperature positive 0"),
    "sample: temperature NaN": (lambda: model().sample(1, math.nan), "temperature finite nan"),
    "sample: huge temperature": (lambda: model().sample(1, 1e300), "temperature 1e+300"),
    "sample: per level": (lambda: model().sample(1, (1, 1, 1)), "temperature 2 3"),
    "labels: set": (lambda: msds.labels("msds3", "test", 0, 1), "msds1 msds3"),
    "labels: split": (lambda: msds.labels("msds1", "x", 0, 1), "split val 'x'"),
    "labels: range": (lambda: msds.labels("msds1", "test", 2, 1), "start stop 2 ... 1"),
    "labels: seed": (lambda: msds.labels("msds1", "test", 0, 1, -1), "seed 2^63 -1"),
    "render: shape": (lambda: msds.render(LABELS[0]), "(N, 4, 4, 6) (4, 4, 6)"),
    "render: colour": (lambda: msds.render(LABELS + 256), "whole numbers"),
    "render: NaN": (lambda: msds.render(LABELS * math.nan), "finite"),
    "render: chunk": (lambda: msds.render(LABELS, 0), "chunk >= 1 0"),
    "entropy: set": (lambda: msds.entropy("x"), "msds1 'x'"),
    "entropy: angles": (lambda: msds.entropy("msds1", angles=15), "angles multiple 16 15"),
    "data: set": (lambda: datasets.load_split("x", "test"), "msds1 'x'"),
    "data: split": (lambda: datasets.load_split("msds1", "x"), "train 'x'"),
    "data: limit": (lambda: datasets.load_split("msds1", "test", limit=0), "limit >= 1 0"),
    "data: workers": (lambda: datasets.load_split("msds1", "test", "d", workers=0), "workers >= 1 0"),
    "weights: missing": (lambda: load("none.pth"), "none.pth no such file"),
    "weights: folder": (lambda: load("folder"), "folder no such file"),
    "weights: layout": (lambda: save_published(small_flow(), "x", "y"), "layout igf23 'y'"),
    "models: none": (lambda: results.models("folder"), "folder .safetensors"),
    "results: missing": (lambda: results.read_results("folder", "x"), "x.json No such file"),
    "JSON: list": (lambda: files.read_json("list.json"), "list.json object list"),
    "JSON: NaN": (lambda: files.write_json("x.json", {"a": math.nan}), "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, place, counts):
    function, words = FUNCTIONS[name]
    before = contents(place)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for below
        function()
    message = str(error.value)
    assert "\n" not in message
    for word in words.split():
        assert word in message, message
    assert contents(place) == before
    counts("bad inputs", "refused")


NOTEBOOKS = [
    ("01_data", {"sets": ["msds3"]}, "sets msds1 msds3"),
    ("01_data", {"images": 0}, "images >= 1 0"),
    ("01_data", {"angles": 0}, "angles 0"),
    ("02_training", {"dataset": "msds3"}, "dataset msds1 msds3"),
    ("02_training", {"prior": "cauchy"}, "prior laplace cauchy"),
    ("02_training", {"planned": "x"}, "planned shipped 'x'"),
    ("02_training", {"overrides": {"epoch": 1}}, "epoch"),
    ("02_training", {"overrides": {"epochs": 0}}, "epochs >= 1 0"),
    ("03_bpd_evaluation", {"weights": "nowhere"}, "nowhere .safetensors"),
    ("03_bpd_evaluation", {"images": 0}, "images >= 1 0"),
    ("03_bpd_evaluation", {"iw_draws": -1}, "iw_draws >= 1 -1"),
    ("04_sparsity", {"images": "many"}, "images >= 1 'many'"),
    ("04_sparsity", {"rotations": 0}, "rotations >= 1 0"),
    ("05_receptive_fields", {"latents": 0}, "latents >= 1 0"),
    ("05_receptive_fields", {"samples": 1.5}, "samples >= 1 1.5"),
    ("06_latent_space", {"pairs": 0}, "pairs >= 1 0"),
    ("06_latent_space", {"changed": -3}, "changed >= 1 -3"),
    ("07_figures", {"out": "nowhere"}, "nowhere"),
    ("A1_benchmarks", {"hidden": 0}, "hidden >= 1 0"),
    ("A1_benchmarks", {"pairs": 0}, "pairs >= 1 0"),
]


@pytest.mark.parametrize(("name", "parameters", "words"), NOTEBOOKS, ids=str)
def test_notebooks(name, parameters, words, place, monkeypatch, counts):
    """A parameter of a notebook is refused in its first cells, before anything is computed."""
    (place / "weights").symlink_to(ROOT / "weights")
    nb = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert parameters.keys() <= set(re.findall(r"^([a-z_]+)\b", cells[0].source, re.M)) | {
        second for _, second in re.findall(r"^(\w+), (\w+) =", cells[0].source, re.M)
    }
    space = {}
    exec(cells[0].source, space)
    space |= parameters
    with pytest.raises((TypeError, ValueError)) as error:
        exec("\n".join(cell.source for cell in cells[1:3]), space)
    for word in words.split():
        assert word in str(error.value)
    assert not (place / "runs").exists()
    counts("bad inputs", "refused")


@pytest.mark.parametrize("value", ["nonsense", "", "Default", "smoke paper"])
def test_profiles(value, counts):
    done = subprocess.run(
        ["make", "reproduce", f"PROFILE={value}"], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "PROFILE must be one of smoke, default, study, retrain, paper" in done.stderr
    assert f"not '{value}'" in done.stderr
    counts("bad inputs", "refused")


def test_a_record_is_no_list(place, counts):
    (place / records.FOLDER).mkdir()
    (place / records.FOLDER / "x.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"x\.json: must hold a JSON object, not a list"):
        records.read(place, ["x"])
    counts("bad inputs", "refused")
