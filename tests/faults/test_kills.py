"""Killed at any moment: the same command again completes, and gives what was never killed."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import victims
from support import files_below, metrics, same

from rgflow_core import load
from rgflow_core.files import locked, read_json

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
# How many file operations and calls a victim makes, about.
LENGTH = {"data": (25, 3000), "training": (120, 150_000), "results": (25, 150_000)}


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Modules are imported once, in a server that is forked for each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        CONTEXT.set_forkserver_preload(["victims"])
        forkserver.ensure_running()


def start(name, folder, says=os.devnull, **fault):
    process = CONTEXT.Process(target=victims.run, args=(name, folder, str(says)), kwargs=fault)
    process.start()
    return process


def attempt(name, folder, **how):
    """Exit code of a victim."""
    process = start(name, folder, **how)
    process.join()
    return process.exitcode


def content(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix == ".json":  # but dates, durations and how often it was started
        stored = read_json(path)
        return {k: stored[k] for k in ("validation", "best_epoch", "splits") if k in stored}
    if path.name == "metrics.jsonl":
        return metrics(path.parent)
    if path.name == "model.safetensors":
        return load(path).flow.state_dict()
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)["optim"]
    return path.read_bytes()


def artefacts(folder):
    """What must be equal, bit for bit."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "lock" not in p.name)
    return {p.relative_to(folder): content(p) for p in files if p.parent.name != "logs"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Artefacts of each victim when it is left alone."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name) / "x"
            assert attempt(name, folder) == 0
            known[name] = artefacts(folder)
        return known[name]

    return get


@pytest.fixture
def finishes(undisturbed):
    """The same command again completes; nothing is left of those that were killed."""

    def check(name, folder):
        assert attempt(name, folder) == 0
        assert [f for f in files_below(folder) if ".partial-" in f] == []
        assert same(artefacts(folder), undisturbed(name))

    return check


@pytest.mark.parametrize("name", victims.VICTIMS)
@pytest.mark.parametrize("moment", ["operation", "call"])
def test_killed_at_random_moments(name, moment, finishes, tmp_path, trials, counts):
    """Before any opening, renaming, removing of a file; and anywhere."""
    draw, most = random.Random(name), LENGTH[name][moment == "call"]
    for trial in range(trials(1, 12)):
        folder = tmp_path / str(trial)
        for _ in range(draw.choice([1, 1, 2])):  # sometimes again while it goes on
            code = attempt(name, folder, **{moment: draw.randrange(1, most)})
            assert code in (0, -signal.SIGKILL)
            counts(f"killed: {name}", "resumed identical" if code else "had finished")
        finishes(name, folder)
        shutil.rmtree(folder)


def test_killed_inside_checkpoint_writes(finishes, tmp_path, trials, counts):
    for write in range(1, trials(1, 8) + 1):
        folder = tmp_path / str(write)
        assert attempt("training", folder, write=write) == -signal.SIGKILL
        assert any(".partial-" in f for f in files_below(folder))
        counts("killed: training", "resumed identical")
        finishes("training", folder)


def test_make_and_papermill(tmp_path, trials, counts):
    """A notebook run by make in a copy of the repository, killed after any line it prints."""
    if not trials(0, 1):
        pytest.skip("takes minutes: make test-faults")
    for name in ("notebooks", "rgflow_core"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def made(lines=None):
        arguments = ["runs/smoke/01_data.ipynb", "PROFILE=smoke", f"PYTHON={sys.executable}"]
        process = subprocess.Popen(
            ["make", *arguments, "SETUP="],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
            | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        said = [line for _, line in zip(range(lines or 10**9), process.stdout, strict=False)]
        if lines:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert lines or process.returncode == 0, said
        return len(said)

    lines, wanted = made(), artefacts(tmp_path / "runs" / "smoke" / "results")
    for line in random.Random(0).sample(range(1, lines), 4):
        shutil.rmtree(tmp_path / "runs")
        made(line)
        counts("killed: make and papermill", "resumed identical")
        made()
        assert same(artefacts(tmp_path / "runs" / "smoke" / "results"), wanted)


def test_two_trainings_at_once(finishes, tmp_path, counts):
    """One is refused in one line."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    with locked(folder / "run"):
        assert attempt("training", folder, says=says) == 2
    line = f"error: {folder / 'run'}: another process is at work there"
    assert says.read_text().startswith(line)
    assert says.read_text().count("\n") == 1
    finishes("training", folder)
    counts("two at once: training", "one refused")


def test_two_that_make_data_at_once(undisturbed, tmp_path, counts):
    """One waits, and says so."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    with locked(folder / "data" / "msds1"):
        process = start("data", folder, says=says)
        while process.is_alive() and "waiting for another process" not in (
            says.read_text() if says.exists() else ""
        ):
            process.join(0.02)
        assert process.is_alive()
    process.join()
    assert process.exitcode == 0
    assert says.read_text().count("\n") == 1
    assert same(artefacts(folder), undisturbed("data"))
    counts("two at once: data", "identical")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals(name, code, finishes, tmp_path, counts):
    """One line, a checkpoint, the conventional exit code, and it goes on exactly."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    assert attempt("training", folder, says=says, signalled=getattr(signal, name)) == code
    assert (folder / "run" / "ckpt" / "rgflow_last.pth").exists()
    assert says.read_text() == ("interrupted\n" if code == 130 else "")
    finishes("training", folder)
    counts(f"stopped by {name}", "resumed identical")


def assert_one_line(folder, says, code):
    lines = says.read_text().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ")
    assert str(folder) in lines[0]
    assert [f for f in files_below(folder) if ".partial-" in f] == []


@pytest.mark.parametrize(
    ("name", "limit"),
    [("data", 50_000), ("training", 500), ("training", 60_000), ("results", 1000), ("results", 9000)],
)  # fmt: skip
def test_no_room(name, limit, finishes, tmp_path, counts):
    """A file cannot grow further: one line names it, what was there is whole, and it goes on."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    assert_one_line(folder, says, attempt(name, folder, says=says, limit=limit))
    finishes(name, folder)
    counts(f"no room: {name}", "one line, went on")


@pytest.mark.parametrize(("name", "size"), [("training", 100), ("training", 200), ("results", 12)])
def test_a_full_disk(name, size, finishes, tmp_path, trials, counts):
    """The same on a real file system of some kilobytes, which then gets larger."""
    if os.geteuid() or not trials(0, 1):
        pytest.skip("make test-faults as root mounts small file systems")
    folder, says = tmp_path / "disk", tmp_path / "says.txt"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert_one_line("", says, attempt(name, folder, says=says))
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        finishes(name, folder)
    finally:
        subprocess.run(["umount", folder], check=True)
    counts(f"disk full: {name}", "one line, went on")


@pytest.mark.parametrize(("name", "operation"), [("training", 40), ("data", 8)])
@pytest.mark.parametrize("obstacle", ["gone", "file"])
def test_a_folder_gone_or_replaced(name, operation, obstacle, finishes, tmp_path, counts):
    """In the middle of the work its folder goes, or a file takes its place."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    code = attempt(name, folder, says=says, **{obstacle: operation})
    assert (tmp_path / "elsewhere").exists()
    assert code in (0, 2)  # 0: it made its folder again
    assert len(says.read_text().splitlines()) == (1 if code else 0)
    inside = folder / {"training": "run", "data": "data"}[name]
    if inside.is_file():
        assert inside.read_text() == "precious"
        inside.unlink()
    shutil.rmtree(folder)
    finishes(name, folder)
    counts(f"folder {obstacle}: {name}", "one line" if code else "finished")
