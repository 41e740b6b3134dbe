"""Bad input: one clear line that names the value and what is allowed; exit code 2 for a command."""

import math
import os
import shutil
import subprocess

import nbformat
import numpy as np
import pytest
import torch
from support import GOLDEN, ROOT, contents, small_flow

from rgflow_core import checkpoints, datasets, evaluate, files, load, msds, sample, train
from rgflow_core.errors import explain
from rgflow_core.model import PictureModel
from rgflow_core.priors import Prior
from study import page, records, report, results, run

W, RUN = "w.safetensors", ["--model=tiny", "--epochs=1", "--device=cpu"]
IGF23 = str(GOLDEN / "igf23_L16_laplace.pth")
# Module, arguments, and what the line must say.
COMMANDS = [
    (train, ["--epochs=0"], "--epochs equal to 1 '0'"),
    (train, [f"--epochs={10**30}"], f"--epochs 2147483648 {10**30}"),
    (train, ["--batch-size=1.5"], "--batch-size integer 1.5"),
    (train, ["--lr=0", "--beta2=1"], "--lr greater --beta2 less"),
    (train, ["--dataset=MSDS1"], "MSDS1 msds1 msds2 folder"),
    (train, ["--image-size=33", "--dataset=folder"], "image_size kernel 4 2^k 4096 33"),
    (train, ["--image-size=64"], "msds1 32 64 folder"),
    (train, ["--device=cuda:99"], "cuda:99 cpu"),
    (train, ["--device=mps"], "mps cpu"),
    (train, ["--precision=tf32"], "tf32 GPU cpu"),
    (train, ["--out="], "--out character ''"),
    (train, ["--out=precious/deeper"], "precious file folder"),
    (train, ["--resume=nowhere"], "nowhere checkpoint"),
    (train, ["--resume=nowhere", "--out=runs"], "--out resumed"),
    (train, ["--resume=precious"], "precious checkpoint"),
    (train, ["--resume=foreign"], "rgflow_ep001.pth lacks 'settings'"),
    (train, ["--data-root=precious"], "precious folder"),
    (train, ["--dataset=celeba"], "data/celeba/list_eval_partition.txt data/celeba/img_align_celeba"),
    (train, ["--learning-rate=1"], "--learning-rate"),
    (train, ["--dataset=cifar10"], "data/cifar-10-batches-py"),
    (train, ["--dataset=mnist"], "data/MNIST/raw"),
    (evaluate, [], "FILE"),
    (evaluate, ["none.pth"], "none.pth no such file"),
    (evaluate, ["folder"], "folder is a folder; checkpoint"),
    (evaluate, ["precious"], "precious not a readable checkpoint"),
    (evaluate, [IGF23], "--prior laplace gaussian"),
    (evaluate, [IGF23, "--prior=laplace", "--limit=2", "--dataset=msds1"], "msds1 32 16 folder"),
    (evaluate, [W, "--prior=gaussian"], "laplace gaussian"),
    (evaluate, [W, "--device=meta"], "meta cpu"),
    (evaluate, [W, "--out=precious"], "precious exists"),
    (evaluate, [W], "w.safetensors does not say its data set --dataset msds1 folder"),
    (evaluate, [W, "--dataset=msds1", "--data-root=precious", "--limit=1"], "precious folder"),
    (evaluate, [W, "--dataset=folder", "--data-root=folder"], "folder PNG JPEG 10"),
    (sample, [W, "--temperature", "1", "inf"], "--temperature finite 'inf'"),
    (sample, [W, "--temperature", "1", "1"], "temperature 4 levels 2"),
    (sample, [W, "--temperature=1e300"], "temperature 1e+300 finite"),
    (sample, [W, "--out=x.jpg"], "--out .png x.jpg"),
    (sample, [W, "--out=precious/x.png"], "precious file folder"),
    (records, ["nonsense"], "nonsense not a run data/runs.json"),
    (results, ["look", "x"], "look collect check reference"),
    (results, ["check", "none"], "none"),
    (run, ["01_nothing"], "01_nothing"),
    (report, ["nonsense"], "nonsense findings speed"),
    (page, ["precious", "x.html"], "precious notebook"),
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
    (folder / "precious").write_text("x")
    (folder / "list.json").write_text("[1, 2]")
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """A copy of it, in which one is."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path, dirs_exist_ok=True))
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    return tmp_path


@pytest.fixture
def refused(place):
    """Check that a message is one line with certain words, and that nothing was written."""
    before = contents(place)

    def check(message, words):
        assert "\n" not in message
        assert [word for word in words.split() if word not in message] == [], message
        assert contents(place) == before

    return check


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    COMMANDS,
    ids=lambda v: " ".join(v) if isinstance(v, list) else getattr(v, "__name__", "says"),
)
def test_commands(module, arguments, words, refused, command):
    code, _, (line,) = command(module, *(RUN if module is train else []), *arguments)
    assert (code, line[:7]) == (2, "error: ")
    refused(line, words)


def model():
    return PictureModel(small_flow(torch.float32), Prior())


BYTES, LABELS = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), np.zeros((4, 4, 6))
FUNCTIONS = {
    "epochs integer True": lambda: train.Settings(epochs=True),
    "epoch Unexpected": lambda: train.Settings(epoch=1),
    "prior laplace cauchy": lambda: Prior("cauchy"),
    "convention unit_scale 'x'": lambda: Prior("laplace", "x"),
    "prior Prior None": lambda: PictureModel(small_flow(), None),
    "uint8 float32": lambda: model().log_prob(BYTES.float()),
    "noise [0, 1)": lambda: model().log_prob(BYTES, torch.ones(1, 1, 8, 8)),
    "noise (1, 1": lambda: model().log_prob(BYTES.expand(2, 1, 8, 8), torch.rand(1, 1, 8, 8)),
    "batch >= 1 0": lambda: evaluate.evaluate(model(), BYTES, batch=0),
    "n >= 1 0": lambda: model().sample(0),
    "msds1 msds3": lambda: msds.labels("msds3", "test", 0, 1),
    "split valid": lambda: msds.labels("msds1", "valid", 0, 1),
    "range start stop 2 ... 1": lambda: msds.labels("msds1", "test", 2, 1),
    "start -1": lambda: msds.labels("msds1", "test", -1, 1),
    f"seed {2**64}": lambda: msds.labels("msds1", "test", 0, 1, 2**64),
    "(N, 4, 4, 6) (4, 4, 6)": lambda: msds.render(LABELS),
    "msds1 'x'": lambda: datasets.load_split("x", "test"),
    "train 'x'": lambda: datasets.load_split("msds1", "x"),
    "limit >= 1 0": lambda: datasets.load_split("msds1", "test", limit=0),
    "workers >= 0 -1": lambda: datasets.load_split("msds1", "test", workers=-1),
    "celeba 32 64 folder": lambda: datasets.load_split("celeba", "val", size=64),
    "prior laplace 'cauchy'": lambda: load(W, "cauchy"),
    "precious: folder": lambda: checkpoints.save(model(), "precious/x.safetensors"),
    "list.json object list": lambda: files.read_json("list.json"),
    "JSON": lambda: files.write_json("x.json", {"a": math.nan}),
}


@pytest.mark.parametrize("words", FUNCTIONS)
def test_functions(words, refused):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for
        FUNCTIONS[words]()
    refused(explain(error.value), words)


NOTEBOOKS = [
    ("01_data", {"sets": ["msds3"]}, "sets msds1 msds3"),
    ("02_training", {"planned": "x"}, "planned shipped 'x'"),
    ("02_training", {"overrides": {"epoch": 1}}, "epoch"),
    ("03_bpd_evaluation", {"weights": "nowhere"}, "nowhere .safetensors"),
    ("04_sparsity", {"images": "many"}, "images >= 1 'many'"),
    ("06_latent_space", {"changed": 0}, "changed >= 1 0"),
    ("A1_benchmarks", {"hidden": 0}, "hidden >= 1 0"),
]


@pytest.mark.parametrize(("name", "parameters", "words"), NOTEBOOKS, ids=str)
def test_notebooks(name, parameters, words, refused):
    """A parameter of a notebook is refused in its first cells, before anything is computed."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert parameters.keys() <= run.accepted(path)
    space = {}
    exec(cells[0], space)
    space |= parameters
    with pytest.raises((TypeError, ValueError)) as error:
        exec("\n".join(cells[1:3]), space)
    refused(explain(error.value), words)


def test_profiles():
    done = subprocess.run(
        ["make", "reproduce", "PROFILE=Default"], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )  # fmt: skip
    assert done.returncode == 2
    said = "PROFILE must be one of smoke default study retrain paper, not 'Default'"
    assert said in done.stderr
