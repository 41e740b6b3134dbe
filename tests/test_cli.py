"""The command lines: what works, and one clear line and exit 2 for what cannot."""

import json
import math
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import GOLDEN, TINY, files_below, small_flow

from rgflow_core import Prior, checkpoints, cli, datasets, evaluate, load, msds, sample, train

PUBLISHED = {
    "16": ("authors_L16_laplace.state", "laplace"),
    "32": ("authors_L32_gaussian.state", "gaussian"),
    "odd": ("igf23_L16_laplace.pth", "laplace"),
}


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a module's command line in an empty folder: (exit code, output, visible error lines)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(train.MODELS, "lean", TINY)
    handler = signal.getsignal(signal.SIGTERM)

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(module.main)
        out, err = capfd.readouterr()
        # A carriage return takes a progress bar away, as on a terminal.
        lines = [line.rsplit("\r", 1)[-1] for line in err.split("\n")]
        return stop.value.code or 0, out, [line for line in lines if line.strip()]

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(command, tmp_path):
    """A command is refused: exit 2, one line that holds the words, no file made or changed."""

    def contents():
        names = files_below(tmp_path)
        return {n: (tmp_path / n).is_file() and (tmp_path / n).read_bytes() for n in names}

    def run(module, *arguments, words=()):
        before = contents()
        code, out, lines = command(module, *arguments)
        assert code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert "Traceback" not in out
        for word in words:
            assert str(word) in lines[0]
        assert contents() == before

    return run


@pytest.fixture
def weights(tmp_path):
    """Our own weights, of a tiny 32 x 32 model."""
    flow = small_flow(torch.float32, image_size=32, channels=3, subnet="lean", coupling_layers=1)
    path = tmp_path / "ours.safetensors"
    checkpoints.save(flow, Prior("gaussian"), path, {})
    return path


# Help and defaults


@pytest.mark.parametrize("module", [train, evaluate, sample], ids=lambda m: m.__name__)
def test_help(module, command):
    code, out, lines = command(module, "--help")
    assert (code, lines) == (0, [])
    flags = re.findall(r"^  (--[a-z-]+)(.*(?:\n {10,}.*)*)", out, re.MULTILINE)
    assert {"--device", "--prior", "--seed"} <= {flag for flag, _ in flags}
    for flag, text in flags:
        assert re.search(r"\s{2,}\w+", text), f"{flag} is not explained"


@pytest.mark.parametrize("module", ["train", "evaluate", "sample"])
def test_as_programs(module, tmp_path):
    """The same through the interpreter: exit code, one line, no traceback, no files."""
    arguments = {"train": ["--lr", "nan"], "evaluate": ["no.pth"], "sample": ["no.pth"]}[module]
    done = subprocess.run(
        [sys.executable, "-m", f"rgflow_core.{module}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*(nan|no\.pth).*\n", done.stderr)
    assert done.stdout == ""
    assert files_below(tmp_path) == []


def test_flags_of_igf23_keep_their_defaults():
    args = vars(train.parser().parse_args([]))
    assert (
        args.items()
        >= {
            "dataset": "msds1",
            "data_root": "data",
            "epochs": 60,
            "batch_size": 512,
            "lr": 1e-3,
            "prior": "laplace",
            "out": "runs",
            "device": "auto",
            "workers": 8,
            "img_samples": 16,
            "test_mode": False,
        }.items()
    )
    assert args["model"] == "published"
    assert train.Settings().weight_decay == 5e-5
    assert train.Settings().clip == 1
    sets = ("msds1", "msds2", "celeba", "cifar10", "mnist", "folder")
    for name in sets:
        assert train.parser().parse_args(["--dataset", name]).dataset == name
    # One number of each size that the default trains.
    with torch.device("meta"):
        flow = train.RGFlow(train.flow_config(train.Settings()))
    assert sum(p.numel() for p in flow.parameters()) == 80_518_144


# What works


TEST_RUN = ("--model", "lean", "--test-mode", "--epochs", 1, "--batch-size", 64, "--device", "cpu")


@pytest.fixture
def run_folder(command, tmp_path):
    """The folder of a finished test run."""
    code, out, _ = command(train, *TEST_RUN)
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert out.splitlines()[-1] == str((folder / "model.safetensors").relative_to(tmp_path))
    return folder


def test_a_test_run(run_folder, tmp_path):
    assert re.fullmatch(r"msds1_\d{8}_\d{6}", run_folder.name)
    assert files_below(tmp_path) == sorted({"runs", f"runs/{run_folder.name}"} | {
        f"runs/{run_folder.name}/{name}" for name in files_below(run_folder)
    })  # fmt: skip
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["images"] == 128
    (log,) = (run_folder / "logs").glob("rgflow_*.log")
    assert "128 training and 64 validation images" in log.read_text()
    assert re.search(r"Validation BPD: \d+\.\d{4}\n", log.read_text())


def test_a_run_is_evaluated_sampled_and_resumed(run_folder, command, refused, tmp_path):
    checkpoint = run_folder / "ckpt" / "rgflow_ep001.pth"
    results = []
    for file in (run_folder / "model.safetensors", checkpoint):
        code, out, _ = command(evaluate, file, "--split", "val", "--limit", 64)
        assert code == 0
        results.append(json.loads(out))
    assert results[0] == results[1]
    recorded = json.loads((run_folder / "record.json").read_text())["validation"][-1]
    assert results[0]["bpd"] == pytest.approx(recorded["bpd"], rel=1e-6)

    assert command(sample, checkpoint, "--n", 3)[0] == 0
    assert (tmp_path / "samples.png").exists()

    refused(train, "--resume", run_folder, "--lr", 0.5, words=["lr", "0.5"])
    refused(train, "--resume", run_folder, "--prior", "gaussian", words=["prior"])
    # A flag that repeats a default is still a flag.
    refused(train, "--resume", run_folder, "--batch-size", 512, words=["batch_size", "512"])
    assert command(train, "--resume", run_folder, "--epochs", 2)[0] == 0
    assert (run_folder / "ckpt" / "rgflow_ep002.pth").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_run_that_diverges_says_where(command, monkeypatch):
    original = train.dequantise
    monkeypatch.setattr(train, "dequantise", lambda *a: original(*a) * math.nan)
    code, out, lines = command(train, *TEST_RUN)
    assert code != 0
    assert lines[-1].startswith("error: ")
    assert "step 0" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert "Traceback" not in out


def test_an_interrupted_run_says_how_to_go_on(command, monkeypatch, tmp_path):
    original = train.dequantise

    def stopped(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "dequantise", stopped)
        code, out, lines = command(train, *TEST_RUN)
    assert code == 130
    assert lines[-1] == "interrupted"
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"--resume runs/{folder.name}" in out
    assert command(train, "--resume", folder)[0] == 0
    assert load(folder / "model.safetensors").prior == Prior()


@pytest.mark.parametrize("prior", ["laplace", "gaussian"])
def test_evaluate_published(prior, command, tmp_path):
    file = GOLDEN / PUBLISHED["32"][0]
    arguments = ("--prior", prior, "--limit", 5, "--seed", 3, "--out", "deep/result.json")
    code, out, _ = command(evaluate, file, *arguments)
    assert code == 0
    result = json.loads(out)
    images = datasets.load_split("msds1", "test", limit=5).images
    bpd = load(file, prior).bits_per_dim(images, seed=3)
    assert result["bpd"] == pytest.approx(bpd.mean().item(), rel=1e-9)
    assert result["stderr"] == pytest.approx((bpd.std() / 5**0.5).item(), rel=1e-9)
    stated = {"name": prior, "convention": "unit_variance"}
    expected = {"images": 5, "dataset": "msds1", "split": "test", "prior": stated}
    assert result.items() >= expected.items()
    stored = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert stored["provenance"].keys() >= {"commit", "command", "seed", "versions", "hardware"}
    assert {k: stored[k] for k in result} == result


@pytest.mark.parametrize("which", PUBLISHED)
def test_sample_published(which, command, tmp_path):
    name, prior = PUBLISHED[which]
    edge = 32 if which == "32" else 16
    pictures = []
    for out, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        arguments = ("--prior", prior, "--n", 4, "--seed", seed, "--out", out)
        code, said, _ = command(sample, GOLDEN / name, *arguments)
        assert (code, said) == (0, f"{out}\n")
        pictures.append(np.asarray(Image.open(tmp_path / out)))
    assert pictures[0].shape == (2 * edge + 6, 2 * edge + 6, 3)  # a grid of 2 x 2, lines of 2
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_sample_at_temperatures(weights, command, tmp_path):
    for out, temperatures in (
        ("a.png", [0.5]),
        ("b.png", [0.5] * 4),
        ("c.png", [0.2, 0.8, 0.8, 1]),
    ):
        assert command(sample, weights, "--out", out, "--temperature", *temperatures)[0] == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{x}.png")) for x in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


# Bad input, of training


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--dataset", ["msds3", "MSDS1", ""]),
        ("--prior", ["cauchy"]),
        ("--model", ["huge"]),
        ("--schedule", ["linear"]),
        ("--epochs", ["0", "-1", "1.5", "many"]),
        ("--batch-size", ["0", "-64", "nan"]),
        ("--workers", ["0", "-1"]),
        ("--img-samples", ["0", "-1"]),
        ("--keep", ["0"]),
        ("--warmup", ["-1", "x"]),
        ("--lr", ["nan", "inf", "-inf", "0", "-1e-3", "fast"]),
        ("--seed", ["-1", "1.5", "2147483648", "x"]),
        ("--device", ["cuda:99", "abacus"]),
    ],
)
def test_bad_flags(flag, values, refused):
    for value in values:
        name = flag.strip("-").split("-")[-1]  # the flag, or the setting with an underscore
        refused(train, *TEST_RUN, f"{flag}={value}", words=[name])


def test_unknown_flags_and_missing_values(refused):
    refused(train, "--learning-rate", 1, words=["--learning-rate"])
    refused(train, "--lr", words=["--lr"])
    refused(evaluate, words=["FILE"])
    refused(sample, words=["FILE"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(refused, weights):
    refused(train, *TEST_RUN, "--device", "cuda", words=["cuda", "cpu"])
    refused(evaluate, weights, "--device", "cuda", words=["cuda", "cpu"])
    refused(sample, weights, "--device", "cuda", words=["cuda", "cpu"])


def test_missing_data(refused, tmp_path):
    celeba = ["data/celeba/list_eval_partition.txt", "data/celeba/img_align_celeba"]
    refused(train, "--model", "lean", "--dataset", "celeba", words=celeba)
    refused(train, *TEST_RUN, "--dataset", "celeba", words=celeba)
    refused(train, *TEST_RUN, "--dataset", "cifar10", words=["data/cifar-10-batches-py"])
    refused(train, *TEST_RUN, "--dataset", "mnist", words=["data/MNIST/raw"])
    refused(train, *TEST_RUN, "--dataset", "folder", "--data-root", "no", words=["no"])
    (tmp_path / "empty").mkdir()
    refused(train, *TEST_RUN, "--dataset", "folder", "--data-root", "empty", words=["empty"])


def test_a_file_in_place_of_a_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(msds, "SPLITS", {"train": 20, "val": 20, "test": 20})
    (tmp_path / "file").write_text("precious")
    refused(train, *TEST_RUN, "--out", "file", words=["file"])
    refused(train, *TEST_RUN, "--out", "file/deeper", words=["file"])
    refused(train, *TEST_RUN, "--dataset", "celeba", "--data-root", "file", words=["file"])
    refused(train, "--model", "lean", "--data-root", "file", words=["file"])


def test_nothing_to_resume(refused, tmp_path, weights):
    refused(train, "--resume", "nowhere", words=["nowhere"])
    refused(train, "--resume", weights, words=["ours"])
    (tmp_path / "run" / "ckpt").mkdir(parents=True)
    refused(train, "--resume", "run", words=["run"])
    path = tmp_path / "run" / "ckpt" / "rgflow_ep001.pth"
    path.write_bytes((GOLDEN / PUBLISHED["odd"][0]).read_bytes())
    refused(train, "--resume", "run", words=["rgflow_ep001.pth"])
    path.write_bytes(b"garbage")
    refused(train, "--resume", "run", words=["rgflow_ep001.pth"])


# Bad input, of evaluation and sampling


def damaged(kind, path):
    whole = (GOLDEN / PUBLISHED["32"][0]).read_bytes()
    if kind == "missing":
        return
    if kind == "NaN":
        content = torch.load(GOLDEN / PUBLISHED["32"][0], weights_only=True)
        content["flow"]["layers.0.s_layers.0.scale.scale"][0] = math.nan
        torch.save(content, path)
    else:
        path.write_bytes({"truncated": whole[:5000], "text": b"hello", "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "empty", "NaN"])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_damaged_checkpoints(kind, name, refused, tmp_path):
    damaged(kind, tmp_path / name)
    refused(evaluate, name, "--prior", "gaussian", "--limit", 2, words=[name])
    refused(sample, name, "--prior", "gaussian", words=[name])


def test_a_place_that_cannot_be_written_is_named_before_the_work(weights, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(evaluate, weights, "--out", "file/x.json", words=["file"])
    refused(sample, weights, "--out", "file/x.png", words=["file"])
    refused(train, "--model", "lean", "--out", "file", words=["file"])


def test_a_published_checkpoint_does_not_say_its_prior(refused):
    for name, _ in PUBLISHED.values():
        refused(evaluate, GOLDEN / name, "--limit", 2, words=["--prior", "gaussian"])
        refused(sample, GOLDEN / name, words=["--prior", "gaussian"])


def test_a_published_checkpoint_has_the_convention_of_its_system(command, refused, weights):
    for name, convention in (("authors", "unit_variance"), ("igf23", "unit_scale")):
        file = next(GOLDEN / n for n, _ in PUBLISHED.values() if n.startswith(name))
        assert load(file, "laplace").prior == Prior("laplace", convention)
    other = {"laplace": "gaussian", "gaussian": "laplace"}[load(weights).prior.name]
    refused(evaluate, weights, "--prior", other, "--limit", 2, words=[other])


@pytest.mark.parametrize("which", ["16", "odd"])
def test_a_model_of_other_pictures(which, refused, tmp_path):
    name, prior = PUBLISHED[which]
    arguments = ("--prior", prior, "--limit", 2, "--out", "x.json")
    refused(evaluate, GOLDEN / name, *arguments, words=["16", "32"])


def test_a_model_of_other_colours(weights, refused, monkeypatch):
    source = datasets.Source(
        lambda *_: {"images": np.zeros((3, 32, 32, 1), np.uint8)}, lambda _: {}, "mnist", 1
    )
    monkeypatch.setitem(datasets.SOURCES, "mnist", source)
    datasets.load_split("mnist", "test")  # its cache is no trace of the command
    refused(evaluate, weights, "--dataset", "mnist", words=["(3, 32, 32)", "1, 32, 32"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "msds3"],
        ["--split", "valid"],
        ["--limit", "0"],
        ["--batch-size", "-1"],
        ["--prior", "cauchy"],
        ["--seed", "-1"],
        ["--device", "cuda:99"],
    ],
    ids=" ".join,
)
def test_bad_flags_of_evaluate(arguments, weights, refused):
    refused(evaluate, weights, *arguments, words=[arguments[0].strip("-")])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--n", "0"],
        ["--n", "-3"],
        ["--temperature", "0"],
        ["--temperature", "nan"],
        ["--temperature", "1", "1"],
        ["--temperature", "1", "1", "1", "-1"],
        ["--prior", "cauchy"],
        ["--seed", "-1"],
        ["--device", "cuda:99"],
        ["--out", "x.jpg"],
    ],
    ids=" ".join,
)
def test_bad_flags_of_sample(arguments, weights, refused):
    refused(sample, weights, *arguments, words=[arguments[0].strip("-")])


def test_results_are_never_overwritten(weights, refused, tmp_path):
    (tmp_path / "x.png").write_text("precious")
    (tmp_path / "x.json").write_text("precious")
    refused(sample, weights, "--out", "x.png", words=["x.png", "exists"])
    refused(evaluate, weights, "--limit", 2, "--out", "x.json", words=["x.json", "exists"])
    refused(sample, weights, "--out", "x.json/y.png", words=["x.json"])
    refused(evaluate, weights, "--limit", 2, "--out", "x.json/y.json", words=["x.json"])
