"""The command lines: flags, defaults, and what works; bad input is in faults/test_inputs."""

import json
import re
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from support import GOLDEN, contents, files_below

from rgflow_core import RGFlowConfig, cli, datasets, evaluate, load, sample, train
from rgflow_core.errors import UserError


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a module's command line in an empty folder: (exit code, output, visible error lines)."""
    monkeypatch.chdir(tmp_path)
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
    # Whose parameters test_flow counts.
    assert train.flow_config(train.Settings()) == RGFlowConfig()


# What works


TEST_RUN = ("--model", "tiny", "--test-mode", "--epochs", 1, "--batch-size", 64, "--workers", 0)


def test_a_run_is_interrupted_resumed_evaluated_and_sampled(command, monkeypatch, tmp_path):
    original = train.dequantise

    def stopped(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "dequantise", stopped)
        code, out, lines = command(train, *TEST_RUN)
    assert (code, lines[-1]) == (130, "interrupted")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"msds1_\d{8}_\d{6}", folder.name)
    resume = ("--resume", f"runs/{folder.name}")
    assert " ".join(resume) in out
    code, out, _ = command(train, *resume)
    assert (code, out.splitlines()[-1]) == (0, f"{resume[1]}/model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 128
    logs = "".join(path.read_text() for path in (folder / "logs").glob("rgflow_*.log"))
    assert "128 training and 64 validation images" in logs
    assert re.search(r"Validation BPD: \d+\.\d{4}\n", logs)

    checkpoint, printed = folder / "ckpt" / "rgflow_ep001.pth", []
    for file in (folder / "model.safetensors", checkpoint):
        code, out, _ = command(evaluate, file, "--split", "val", "--limit", 64)
        printed.append(json.loads(out))
    assert printed[0] == printed[1]
    recorded = json.loads((folder / "record.json").read_text())["validation"][-1]
    assert printed[0]["bpd"] == pytest.approx(recorded["bpd"], rel=1e-6)
    assert command(sample, checkpoint, "--n", 3)[0] == 0
    assert (tmp_path / "samples.png").exists()

    before = contents(tmp_path)
    # A flag that repeats a default is still a flag.
    for flag, value in (("lr", "0.5"), ("prior", "gaussian"), ("batch-size", "512")):
        code, _, (line,) = command(train, *resume, f"--{flag}", value)
        assert code == 2
        assert flag.replace("-", "_") in line
        assert value in line
    assert contents(tmp_path) == before
    assert command(train, *resume, "--epochs", 2)[0] == 0
    assert (folder / "ckpt" / "rgflow_ep002.pth").exists()
    assert list((tmp_path / "runs").iterdir()) == [folder]


def test_evaluate_published(command, tmp_path):
    file, prior = GOLDEN / "authors_L32_gaussian.state", "gaussian"
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


@pytest.mark.parametrize(
    ("name", "prior", "edge"),
    [("authors_L16_laplace", "laplace", 16), ("authors_L32_gaussian", "gaussian", 32)],
)
def test_sample_published(name, prior, edge, command, tmp_path):
    """The same for the same seed and for one temperature at all levels."""

    def drawn(out, *more):
        arguments = ("--prior", prior, "--n", 4, "--out", out, *more)
        assert command(sample, GOLDEN / f"{name}.state", *arguments)[:2] == (0, f"{out}\n")
        return np.asarray(Image.open(tmp_path / out))

    levels = [3, 4][edge == 32]
    one, again, other = (drawn(f"{k}.png", "--seed", seed) for k, seed in enumerate((1, 1, 2)))
    cool, alike = (drawn(f"{n}c.png", "--temperature", *[0.5] * n) for n in (1, levels))
    mixed = drawn("m.png", "--temperature", 0.2, *[0.8] * (levels - 1))
    assert one.shape == (2 * edge + 6, 2 * edge + 6, 3)  # a grid of 2 x 2, lines of 2
    assert np.array_equal(one, again)
    assert np.array_equal(cool, alike)
    assert not np.array_equal(one, other)
    assert not np.array_equal(cool, mixed)
