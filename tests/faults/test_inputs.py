"""Bad input: one clear line that names the value and what is allowed; exit code 2 for a command."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from support import GOLDEN, contents, small_flow

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
from rgflow_core.errors import explain
from study import entropy, factors, page, records, report, results, run

ROOT = Path(__file__).parents[2]
W, RUN = "w.safetensors", ["--model=tiny", "--epochs=1", "--device=cpu"]
IGF23 = str(GOLDEN / "igf23_L16_laplace.pth")
# Module, arguments, and what the line must say.
COMMANDS = [
    (train, ["--epochs=0"], "--epochs equal to 1 '0'"),
    (train, [f"--epochs={10**30}"], f"--epochs 2147483648 {10**30}"),
    (train, ["--batch-size=1.5"], "--batch-size integer 1.5"),
    (train, ["--lr=nan"], "--lr finite nan"),
    (train, ["--lr=0", "--beta2=1"], "--lr greater --beta2 less"),
    (train, ["--seed=-1"], "--seed equal to 0 -1"),
    (train, ["--dataset=MSDS1"], "MSDS1 msds1 msds2 folder"),
    (train, ["--model=huge"], "huge published lean"),
    (train, ["--image-size=33", "--dataset=folder"], "image_size kernel 4 2^k 4096 33"),
    (train, ["--image-size=8192", "--dataset=folder"], "image_size 4096 8192"),
    (train, ["--image-size=64"], "msds1 32 64 folder"),
    (train, ["--model=lean8", "--image-size=64", "--dataset=folder"], "model lean8 level 4 6, 2, 1"),
    (train, ["--image-size=64", "--dataset=mnist"], "mnist 32 64 folder"),
    (train, ["--device=cuda:99"], "cuda:99 cpu"),
    (train, ["--device=mps"], "mps float64 cpu"),
    (train, ["--precision=tf32"], "tf32 GPU cpu"),
    (train, ["--out="], "--out character ''"),
    (train, ["--out=precious/deeper"], "precious file folder"),
    (train, ["--resume=nowhere"], "nowhere checkpoint"),
    (train, ["--resume=nowhere", "--out=runs"], "--out resumed"),
    (train, ["--resume=precious"], "precious checkpoint"),
    (train, ["--resume=folder"], "folder checkpoint"),
    (train, ["--resume=foreign"], "rgflow_ep001.pth lacks 'settings'"),
    (train, ["--data-root=precious"], "precious folder"),
    (train, ["--dataset=celeba"], "data/celeba/list_eval_partition.txt data/celeba/img_align_celeba"),
    (train, ["--dataset=cifar10"], "data/cifar-10-batches-py"),
    (train, ["--dataset=mnist"], "data/MNIST/raw"),
    (train, ["--test-mode", "--train-images=0"], "--train-images equal to 1 0"),
    (train, ["--learning-rate=1"], "--learning-rate"),
    (train, ["--lr"], "--lr argument"),
    (train, ["more"], "more"),
    (evaluate, [], "FILE"),
    (evaluate, ["none.pth"], "none.pth no such file"),
    (evaluate, ["folder"], "folder is a folder; checkpoint"),
    (evaluate, ["precious"], "precious not a readable checkpoint"),
    (evaluate, ["cut.safetensors"], "cut.safetensors not a readable"),
    (evaluate, [IGF23], "--prior laplace gaussian"),
    (evaluate, [IGF23, "--prior=laplace", "--limit=2", "--dataset=msds1"], "msds1 32 16 folder"),
    (evaluate, [W, "--prior=gaussian"], "laplace gaussian"),
    (evaluate, [W, "--split=valid"], "valid train val test"),
    (evaluate, [W, "--device=meta"], "meta cpu"),
    (evaluate, [W, "--out=precious"], "precious exists"),
    (evaluate, [W], "w.safetensors does not say its data set --dataset msds1 folder"),
    (evaluate, [W, "--dataset=msds1", "--data-root=precious", "--limit=1"], "precious folder"),
    (evaluate, [W, "--dataset=folder", "--data-root=folder"], "folder PNG JPEG 10"),
    (sample, [], "FILE"),
    (sample, [W, "--n=0"], "--n equal to 1 '0'"),
    (sample, [W, "--temperature", "1", "inf"], "--temperature finite 'inf'"),
    (sample, [W, "--temperature", "1", "1"], "temperature 4 levels 2"),
    (sample, [W, "--temperature=1e300"], "temperature 1e+300 finite"),
    (sample, [W, "--out=x.jpg"], "--out .png x.jpg"),
    (sample, [W, "--out=precious"], "precious exists"),
    (sample, [W, "--out=precious/x.png"], "precious file folder"),
    (records, ["nonsense"], "nonsense not a run msds1_laplace"),
    (results, ["look", "x"], "look collect check reference"),
    (results, ["check", "none"], "none"),
    (run, ["01_nothing"], "01_nothing"),
    (report, ["nonsense"], "nonsense results speed faults"),
    (page, ["none.ipynb", "x.html"], "none.ipynb No such file"),
    (page, ["precious", "x.html"], "precious notebook"),
    (factors, ["--limit=-1"], "--limit equal to 1 '-1'"),
    (factors, ["--out=precious"], "precious exists"),
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty repository with a tiny model, a file, folders, and unfit files."""
    folder = tmp_path_factory.mktemp("template")
    for name in ("folder", "notebooks", "rgflow_core", "data", "foreign/ckpt"):
        (folder / name).mkdir(parents=True)
    for path in (ROOT / "data").glob("*.json"):
        shutil.copy(path, folder / "data")
    flow = small_flow(torch.float32, image_size=32, channels=3, subnet="lean", coupling_layers=1)
    checkpoints.save(PictureModel(flow, Prior()), folder / W, {})
    torch.save({"flow": {}}, folder / "foreign" / "ckpt" / "rgflow_ep001.pth")
    marks = "<!-- results: begin --><!-- results: end -->"
    for name, text in {"precious": "x", "list.json": "[1, 2]", "README.md": marks}.items():
        (folder / name).write_text(text)
    (folder / "cut.safetensors").write_bytes((folder / W).read_bytes()[:5000])
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """A copy of it, in which one is."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path, dirs_exist_ok=True))
    return tmp_path


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
    "Settings: data set": (lambda: train.Settings(dataset="x"), "dataset msds1 'x'"),
    "Settings: text as number": (lambda: train.Settings(epochs="3"), "epochs integer '3'"),
    "Settings: True as number": (lambda: train.Settings(epochs=True), "epochs integer True"),
    "Settings: text as flag": (lambda: train.Settings(flip="no"), "flip boolean 'no'"),
    "Settings: unknown": (lambda: train.Settings(epoch=1), "epoch Unexpected"),
    "config: levels": (lambda: RGFlowConfig(hidden=(8, 8)), "hidden per level 4"),
    "Prior: name": (lambda: Prior("cauchy"), "prior laplace cauchy"),
    "Prior: convention": (lambda: Prior("laplace", "x"), "convention unit_scale 'x'"),
    "PictureModel: no prior": (lambda: PictureModel(small_flow(), None), "prior Prior None"),
    "log_prob: type": (lambda: model().log_prob(pictures(1, 1, 8, 8).float()), "uint8 float32"),
    "log_prob: shape": (lambda: model().log_prob(pictures(1, 3, 8, 8)), "shape 1, 8, 8"),
    "log_prob: noise": (
        lambda: model().log_prob(pictures(1, 1, 8, 8), torch.ones(1, 1, 8, 8)), "noise [0, 1)"
    ),
    "log_prob: shape of noise": (
        lambda: model().log_prob(pictures(2, 1, 8, 8), torch.rand(1, 1, 8, 8)), "noise (1, 1"
    ),
    "bits_per_dim: no pictures": (
        lambda: evaluate.evaluate(model(), pictures(0, 1, 8, 8)), "B >= 1 (0, 1"
    ),
    "bits_per_dim: batch": (
        lambda: evaluate.evaluate(model(), pictures(1, 1, 8, 8), batch=0), "batch >= 1 0"
    ),
    "sample: n": (lambda: model().sample(0), "n >= 1 0"),
    "sample: temperature NaN": (lambda: model().sample(1, math.nan), "temperature finite nan"),
    "sample: huge temperature": (lambda: model().sample(1, 1e300), "temperature 1e+300"),
    "sample: per level": (lambda: model().sample(1, (1, 1, 1)), "temperature 2 3"),
    "labels: set": (lambda: msds.labels("msds3", "test", 0, 1), "msds1 msds3"),
    "labels: split": (lambda: msds.labels("msds1", "valid", 0, 1), "split valid"),
    "labels: range": (lambda: msds.labels("msds1", "test", 2, 1), "range start stop 2 ... 1"),
    "labels: start": (lambda: msds.labels("msds1", "test", -1, 1), "range -1"),
    "labels: seed": (lambda: msds.labels("msds1", "test", 0, 1, -1), "seed -1"),
    "labels: huge seed": (lambda: msds.labels("msds1", "test", 0, 1, 2**64), f"seed {2**64}"),
    "render: no pictures": (lambda: msds.render(LABELS[0]), "(N, 4, 4, 6) (4, 4, 6)"),
    "render: five values": (lambda: msds.render(LABELS[..., 1:]), "shape (1, 4, 4, 5)"),
    "entropy: angles": (lambda: entropy.bits("msds1", angles=15), "angles multiple 16 15"),
    "data: set": (lambda: datasets.load_split("x", "test"), "msds1 'x'"),
    "data: split": (lambda: datasets.load_split("msds1", "x"), "train 'x'"),
    "data: limit": (lambda: datasets.load_split("msds1", "test", limit=0), "limit >= 1 0"),
    "data: workers": (lambda: datasets.load_split("msds1", "test", workers=-1), "workers >= 0 -1"),
    "data: size": (lambda: datasets.load_split("celeba", "val", size=64), "celeba 32 64 folder"),
    "data: a file": (lambda: datasets.load_split("msds1", "val", "precious"), "precious folder"),
    "weights: a file": (
        lambda: checkpoints.save(PictureModel(small_flow(), Prior()), "precious/x.safetensors", {}),
        "precious: folder",
    ),
    "weights: missing": (lambda: load("none.pth"), "none.pth no such file"),
    "weights: layout": (lambda: save_published(small_flow(), "x", "y"), "layout igf23 'y'"),
    "models: none": (lambda: results.models("folder"), "folder msds*.safetensors"),
    "results: missing": (lambda: results.read("folder", "x"), "x.csv No such file"),
    "JSON: list": (lambda: files.read_json("list.json"), "list.json object list"),
    "JSON: NaN": (lambda: files.write_json("x.json", {"a": math.nan}), "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, place, counts):
    function, words = FUNCTIONS[name]
    before = contents(place)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for below
        function()
    message = explain(error.value)
    assert "\n" not in message
    for word in words.split():
        assert word in message, message
    assert contents(place) == before
    counts("bad inputs", "refused")


NOTEBOOKS = [
    ("01_data", {"sets": ["msds3"]}, "sets msds1 msds3"),
    ("02_training", {"planned": "x"}, "planned shipped 'x'"),
    ("02_training", {"overrides": {"epoch": 1}}, "epoch"),
    ("02_training", {"overrides": {"epochs": 0}}, "epochs equal to 1 0"),
    ("03_bpd_evaluation", {"weights": "nowhere"}, "nowhere .safetensors"),
    ("04_sparsity", {"images": "many"}, "images >= 1 'many'"),
    ("05_receptive_fields", {"samples": 1.5}, "samples >= 1 1.5"),
    ("06_latent_space", {"changed": 0}, "changed >= 1 0"),
    ("A1_benchmarks", {"hidden": 0}, "hidden >= 1 0"),
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
        assert word in explain(error.value)
    assert not (place / "runs").exists()
    counts("bad inputs", "refused")


@pytest.mark.parametrize("value", ["nonsense", "Default"])
def test_profiles(value, counts):
    done = subprocess.run(
        ["make", "reproduce", f"PROFILE={value}"], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "PROFILE must be one of smoke default study retrain paper" in done.stderr
    assert f"not '{value}'" in done.stderr
    counts("bad inputs", "refused")
