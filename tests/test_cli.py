"""The command lines: flags, defaults, and what works; bad input is in faults/test_inputs."""

import json
import re
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from support import GOLDEN, TINY, files_below, small_flow

from rgflow_core import Prior, checkpoints, cli, datasets, evaluate, load, sample, train
from rgflow_core.errors import UserError

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


def test_as_a_program(tmp_path):
    """The same through the interpreter: exit code, one line, no traceback, no files."""
    done = subprocess.run(
        [sys.executable, "-m", "rgflow_core.train", "--lr", "nan"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*nan.*\n", done.stderr)
    assert done.stdout == ""
    assert files_below(tmp_path) == []


@dataclass(frozen=True, config=cli.STRICT)
class Knobs:
    """One of each kind."""

    file: cli.Name = Field(description="read")
    name: cli.one_of(["a"]) = cli.knob("a", "which")
    count: cli.Count | None = cli.knob(None, "how many")
    on: bool = cli.knob(False, "do it")
    values: tuple[cli.Positive, ...] = cli.knob((1.0,), "some")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["f"], {"file": "f"}),
        (["f", "--name", "a", "--count=3"], {"file": "f", "name": "a", "count": 3}),
        (["f", "--on"], {"file": "f", "on": True}),
        (["f", "--no-on"], {"file": "f", "on": False}),
        (["f", "--values", "1e-3", "2"], {"file": "f", "values": (0.001, 2.0)}),
    ],
)
def test_what_was_typed(argv, wanted):
    assert cli.typed(Knobs, "A command.", argv) == wanted
    assert cli.parse(Knobs, "A command.", argv) == Knobs(**wanted)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("file x:\nis bad"), 2, "error: file x: is bad\n"),
        (OSError(28, "No space left on device", "x"), 2, "x'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(143), 143, ""),
    ],
)
def test_what_a_user_can_put_right_is_one_line(error, code, says, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(Mock(side_effect=error))
    assert stop.value.code == code
    said = capsys.readouterr().err
    assert said.endswith(says)
    assert said.count("\n") == (code != 143)


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
def test_our_own_errors_keep_their_traceback(error, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(error):
        cli.run(Mock(side_effect=error))


IGF23 = {
    "dataset": "msds1", "data_root": "data", "epochs": 60, "batch_size": 512, "lr": 1e-3,
    "prior": "laplace", "out": "runs", "device": "auto", "workers": 8, "img_samples": 16,
    "test_mode": False,
}  # fmt: skip


def test_flags_of_igf23_keep_their_defaults():
    args = vars(cli.parse(train.Command, "", []))
    assert args.items() >= IGF23.items()
    assert args["model"] == "published"
    assert (args["weight_decay"], args["clip"]) == (5e-5, 1)
    flags = ["--" + name.replace("_", "-") for name in IGF23]
    values = [[str(value)] if value is not False else [] for value in IGF23.values()]
    cli.parse(train.Command, "", [x for f, v in zip(flags, values, strict=True) for x in (f, *v)])
    for name in ("msds1", "msds2", "celeba", "cifar10", "mnist", "folder"):
        assert cli.parse(train.Command, "", ["--dataset", name]).dataset == name
    # One number of each size that the default trains.
    with torch.device("meta"):
        flow = train.RGFlow(train.flow_config(train.Settings()))
    assert sum(p.numel() for p in flow.parameters()) == 80_518_144


# What works


TEST_RUN = ("--model", "lean", "--test-mode", "--epochs", 1, "--batch-size", 64, "--workers", 0)


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


def test_evaluate_published(command, tmp_path):
    file, prior = GOLDEN / PUBLISHED["32"][0], "gaussian"
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


@pytest.mark.parametrize("which", ["16", "32"])
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


def test_nothing_to_resume(refused, tmp_path):
    (tmp_path / "run" / "ckpt").mkdir(parents=True)
    refused(train, "--resume", "run", words=["run"])
    path = tmp_path / "run" / "ckpt" / "rgflow_ep001.pth"
    path.write_bytes((GOLDEN / PUBLISHED["odd"][0]).read_bytes())
    refused(train, "--resume", "run", words=["rgflow_ep001.pth"])
    path.write_bytes(b"garbage")
    refused(train, "--resume", "run", words=["rgflow_ep001.pth"])
