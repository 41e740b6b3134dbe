"""The command lines: flags, defaults, and what works; bad input is in faults/test_inputs."""

import ast
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from dataclasses import asdict, replace
from datetime import datetime
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from support import GOLDEN, ROOT, TINY, calls, contents, files_below, interrupt, metrics, small_flow

from rgflow_core import RGFlowConfig, checkpoints, cli, datasets, evaluate, load, sample, train
from rgflow_core.model import PictureModel
from rgflow_core.priors import Prior

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def first_imports(notebook):
    sources = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    lines = ast.parse("\n".join(sources)).body
    return "\n".join(ast.unparse(x) for x in lines if isinstance(x, ast.Import | ast.ImportFrom))


STARTS = {name: f"import {name}" for name in ("rgflow_core", "study")}
STARTS |= {path.stem: first_imports(path) for path in NOTEBOOKS}
GIVEN = [({"OMP_WAIT_POLICY": "ACTIVE"}, "rgflow_core"), ({"GOMP_SPINCOUNT": "9"}, "rgflow_core")]


@pytest.mark.parametrize(("given", "start"), [*(({}, name) for name in STARTS), *GIVEN])
def test_how_long_threads_spin_is_set_before_torch_is_there_unless_the_user_says(given, start):
    code = """if 1:
        import json, os, sys
        class Finder:
            def find_spec(name, *_):
                if name == "torch":
                    print(json.dumps({k: v for k, v in os.environ.items() if "OMP_" in k}))
                    os._exit(0)
        sys.meta_path.insert(0, Finder)
        exec(sys.argv[1])"""
    clean = {k: v for k, v in os.environ.items() if "OMP_" not in k} | {"PYTHONPATH": "notebooks"}
    command = [sys.executable, "-c", code, STARTS[start]]
    done = subprocess.run(command, env=clean | given, cwd=ROOT, capture_output=True)
    assert json.loads(done.stdout) == (given or {"GOMP_SPINCOUNT": "30000"})


@pytest.mark.parametrize("module", [train, evaluate, sample], ids=lambda m: m.__name__)
def test_help(module, command):
    code, out, lines = command(module, "--help")
    assert (code, lines) == (0, [])
    flags = re.findall(r"^  (--[a-z-]+)(.*(?:\n {10,}.*)*)", out, re.MULTILINE)
    assert {"--device", "--prior", "--seed"} <= {flag for flag, _ in flags}
    for flag, text in flags:
        assert re.search(r"\s{2,}\w+", text), f"{flag} is not explained"


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "rgflow_core.train", "--lr", "nan"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*nan.*\n", done.stderr)
    assert files_below(tmp_path) == []


def test_a_name_that_is_not_utf8():
    name = os.fsdecode(b"caf\xe9")
    assert cli.parse(train.Command, "", ["--data-root", name])[0].data_root == name
    json.dumps(asdict(train.Settings(data_root=name)))


def failing(error):
    return SimpleNamespace(__name__="x", main=Mock(side_effect=error))


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
def test_our_own_errors_keep_their_traceback(error, command):
    with pytest.raises(error):
        command(failing(error))


IGF23 = {
    "dataset": "msds1", "data_root": "data", "epochs": 60, "batch_size": 512, "lr": 1e-3,
    "prior": "laplace", "out": "runs", "device": "auto", "workers": 8, "img_samples": 16,
    "test_mode": False,
}  # fmt: skip


def test_flags_of_igf23_keep_their_defaults():
    args = vars(cli.parse(train.Command, "", [])[0])
    assert args.items() >= IGF23.items()
    assert args["model"] == "published"
    assert (args["weight_decay"], args["clip"]) == (5e-5, 1)
    given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in IGF23.items()]
    cli.parse(train.Command, "", [text for flag in given for text in flag if text != "False"])
    for name in ("msds1", "msds2", "celeba", "cifar10", "mnist", "folder"):
        assert cli.parse(train.Command, "", ["--dataset", name])[0].dataset == name
    # Whose parameters test_flow counts.
    assert train.flow_config(train.Settings()) == RGFlowConfig()


TEST_RUN = ("--model", "tiny", "--test-mode", "--epochs", 1, "--batch-size", 64, "--workers", 0)


def test_a_recipe_sets_the_knobs_that_were_not_typed(command, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "train", lambda settings, folder: asked.append(settings) or folder)
    command(train, "--recipe", "lean8", "--batch-size", 4)
    command(train)
    chosen = asdict(asked[0])
    assert {k: chosen[k] for k in train.LEAN8_RECIPE} == train.LEAN8_RECIPE | {"batch_size": 4}
    assert replace(asked[1], data_root="data") == train.Settings()


def test_a_run_is_interrupted_resumed_evaluated_and_sampled(command, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        calls(patch, train, "inputs", 1, interrupt)
        code, out, lines = command(train, *TEST_RUN)
    assert (code, lines[-1]) == (130, "interrupted")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"msds1_\d{8}_\d{6}", folder.name)
    resume = ("--resume", f"runs/{folder.name}")
    assert " ".join(resume) in out
    code, out, _ = command(train, *resume)
    assert (code, out.splitlines()[-1]) == (0, f"{resume[1]}/model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert "128 training images" in out

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
    # On from a folder, from what a run has printed, and from its latest checkpoint.
    for epochs, what in enumerate(("", "model.safetensors", "ckpt/rgflow_ep003.pth"), 2):
        code, out, _ = command(train, "--resume", folder / what, "--epochs", epochs)
        assert (code, out.splitlines()[-1]) == (0, str(folder / "model.safetensors"))
    code, _, (line,) = command(train, "--resume", folder / "ckpt" / "rgflow_ep003.pth")
    assert code == 2
    assert re.search("not the latest checkpoint.*rgflow_ep004.pth", line)
    monkeypatch.chdir(folder / "ckpt")
    assert command(train, "--resume", "rgflow_ep004.pth")[0] == 0
    assert list((tmp_path / "runs").iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of its own")
def test_a_closed_terminal_loses_nothing(tmp_path):
    """As the window of a shell is closed while its training runs."""
    code = f"""if 1:
        import contextlib, sys
        from rgflow_core import cli, train
        train.MODELS["tiny"] = {TINY}
        batch_of = train.batch_of
        def waiting(step, *arguments):
            if step == 2:
                print("waiting", flush=True)
                with contextlib.suppress(OSError):
                    sys.stdin.read()  # until there is no terminal
            return batch_of(step, *arguments)
        train.batch_of = waiting
        cli.run(train.main)"""
    arguments = [*map(str, TEST_RUN[:3]), "--epochs", "9", "--device", "cpu"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=lambda: (  # whatever started the tests may ignore it, as nohup does
            signal.signal(signal.SIGHUP, signal.SIG_DFL), fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        ),
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"waiting" not in said:  # an error once the process has ended
        said += os.read(ours, 65536)
    os.close(ours)
    assert process.wait() == 129
    (folder,) = (tmp_path / "runs").iterdir()
    assert torch.load(train.latest_checkpoint(folder), weights_only=True)["step"] == 3


def test_runs_started_at_the_same_moment_with_the_same_out(command, monkeypatch, tmp_path):
    monkeypatch.setattr(
        train, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    )
    for seed, name in enumerate(("msds1_20260102_030405", "msds1_20260102_030405_2")):
        code, out, _ = command(train, *TEST_RUN, "--out=deep/x", "--seed", seed)
        final = tmp_path / out.splitlines()[-1]
        assert (code, final.parent.name, load(final).metadata["seed"]) == (0, name, seed)
        assert [line["step"] for line in metrics(final.parent)] == [2, 2]


def test_a_run_is_resumed_from_elsewhere_with_its_own_data(command, tmp_path, monkeypatch):
    """And evaluated and sampled, at its own size."""
    pictures = tmp_path / "home" / "pictures"
    for split in datasets.SPLITS:
        (pictures / split).mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (32, 32), (n, 50, 9)).save(pictures / split / f"{n}.png")
    monkeypatch.chdir(pictures.parent)
    arguments = ("--dataset", "folder", "--data-root", "pictures", "--image-size", 16)
    code, out, _ = command(train, *TEST_RUN[:2], *TEST_RUN[3:], *arguments)
    assert code == 0
    final = pictures.parent / out.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    assert load(final).metadata["settings"]["data_root"] == str(pictures)
    assert command(train, "--resume", final, "--epochs", 2)[0] == 0
    assert command(evaluate, final)[0] == 0
    assert command(sample, final, "--n", 1)[0] == 0
    assert Image.open("samples.png").size == (16, 16)
    code, _, (line,) = command(train, "--resume", final, "--image-size", 32)
    assert (code, "image_size 16 -> 32" in line) == (2, True)
    assert not (tmp_path / "data").exists()
    Image.new("RGB", (32, 32)).save(pictures / "train" / "0.png")
    root = os.path.relpath(pictures)  # also where it is spelt otherwise
    for file in (final, final.parent / "ckpt" / "rgflow_ep002.pth"):
        code, _, lines = command(evaluate, file, "--data-root", root)
        assert (code, "other training pictures now" in lines[-1]) == (0, True)
    Image.new("RGB", (32, 32), (0, 50, 9)).save(pictures / "train" / "0.png")
    assert not any("note" in line for line in command(evaluate, file)[2])
    pictures.rename(tmp_path / "moved")
    code, _, (line,) = command(train, "--resume", final, "--epochs", 3)
    assert (code, str(pictures) in line, "--data-root" in line) == (2, True, True)
    assert not pictures.exists()
    arguments = ("--epochs", 3, "--data-root", tmp_path / "moved")
    assert command(train, "--resume", final, *arguments)[0] == 0


def test_evaluate_published(command, tmp_path):
    file, prior = GOLDEN / "authors_L32_gaussian.state", "gaussian"
    data = ("--dataset", "msds1", "--limit", 5)
    arguments = ("--prior", prior, *data, "--seed", 3, "--out", "deep/result.json")
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


@pytest.fixture
def trained(tmp_path):
    """Weights whose file says they are of msds2, in a data folder that is not the default."""
    flow = small_flow(torch.float32, image_size=32, channels=3, subnet="lean", coupling_layers=1)
    (tmp_path / "elsewhere").mkdir()
    settings = {"dataset": "msds2", "data_root": str(tmp_path / "elsewhere")}
    checkpoints.save(
        PictureModel(flow, Prior()), tmp_path / "trained.safetensors", {"settings": settings}
    )
    return tmp_path / "trained.safetensors"


def test_the_data_are_those_of_the_file_unless_a_flag_says_otherwise(trained, command, monkeypatch):
    asked, original = [], datasets.load_split

    def spy(name, split, root, *more, **named):
        asked.append((name, str(root)))
        return original(name, split, root, *more, **named)

    monkeypatch.setattr(datasets, "load_split", spy)
    elsewhere = str(trained.parent / "elsewhere")
    for flags, data in {
        (): ("msds2", elsewhere),
        ("--dataset", "msds2", "--data-root", "x"): ("msds2", "x"),
        ("--dataset", "msds1"): ("msds1", "data"),
    }.items():
        code, out, lines = command(evaluate, trained, "--limit", 2, *flags)
        assert (code, json.loads(out)["dataset"]) == (0, data[0])
        assert asked.pop() == data
        notes = [line for line in lines if line.startswith("note: ")]
        assert len(notes) == (data[0] == "msds1")
        assert all("trained on msds2" in note and "evaluated on msds1" in note for note in notes)
    (trained.parent / "elsewhere").rmdir()  # nothing is drawn where a file from elsewhere says
    assert command(evaluate, trained, "--limit", 2)[0] == 0
    assert asked == [("msds2", "data")]


@pytest.mark.parametrize("module", [evaluate, sample], ids=lambda m: m.__name__)
def test_what_another_command_wrote_meanwhile_stays(module, trained, command, monkeypatch):
    def meanwhile(*arguments):
        (trained.parent / "x.png").write_text("precious")
        return original(*arguments)

    original = module.cli.ModelFile.load
    monkeypatch.setattr(module.cli.ModelFile, "load", meanwhile)
    more = ("--limit", 2) if module is evaluate else ("--n", 1)
    code, _, (*_, line) = command(module, trained, "--out", "x.png", *more)
    assert (code, "x.png exists" in line) == (2, True)
    assert (trained.parent / "x.png").read_text() == "precious"


def test_sample_published(command):
    """The grid is of what the model draws with the number, seed and temperatures that were typed."""
    file, by_level = GOLDEN / "authors_L16_laplace.state", (0.2, 0.8, 0.8)
    arguments = ("--prior", "laplace", "--n", 4, "--seed", 1, "--temperature", *by_level)
    assert command(sample, file, *arguments, "--out", "a.png")[:2] == (0, "a.png\n")
    sample.write_grid(load(file, "laplace").sample(4, by_level, seed=1), "b.png")
    drawn, wanted = (np.asarray(Image.open(name)) for name in ("a.png", "b.png"))
    assert drawn.shape == (2 * 16 + 6, 2 * 16 + 6, 3)  # a grid of 2 x 2, lines of 2
    assert np.array_equal(drawn, wanted)
