"""Killed at any moment: the same command again completes, and gives what was never killed."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import victims
from support import files_below, metrics, same

from rgflow_core import load
from rgflow_core.files import locked, read_json

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
CONTEXT = multiprocessing.get_context("forkserver")
# A victim makes a few more file operations and calls than these.
LENGTH = {"data": (70, 35_000), "training": (115, 2_200_000), "results": (50, 900_000)}


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Modules are imported once, in a server that is forked for each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        CONTEXT.set_forkserver_preload(["victims"])
        forkserver.ensure_running()


def start(name, folder, **fault):
    process = CONTEXT.Process(target=victims.run, args=(name, folder), kwargs=fault)
    process.start()
    return process


def attempt(name, folder, **fault):
    """Exit code of a victim, and the lines that it said."""
    process = start(name, folder, **fault)
    process.join()
    return process.exitcode, Path(f"{folder}.says").read_text().splitlines()


def content(path):
    """What must be equal, bit for bit."""
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
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "lock" not in p.name)
    return {p.relative_to(folder): content(p) for p in files if p.parent.name != "logs"}


def without_remains(folder):
    return not [name for name in files_below(folder) if ".partial-" in name]


@pytest.fixture(scope="module")
def finishes(tmp_path_factory):
    """The same command again completes as if left alone; nothing is left of those killed."""

    @cache
    def left_alone(name):
        folder = tmp_path_factory.mktemp(name) / "x"
        assert attempt(name, folder) == (0, [])
        return artefacts(folder)

    def check(name, folder, again=True):
        assert not again or attempt(name, folder)[0] == 0
        assert without_remains(folder)
        assert same(artefacts(folder), left_alone(name))

    return check


@pytest.mark.parametrize("name", victims.VICTIMS)
@pytest.mark.parametrize("moment", ["operation", "call"])
def test_killed_at_random_moments(name, moment, finishes, tmp_path, trials):
    """Before any opening, renaming, removing of a file; and anywhere."""
    draw, most = random.Random(name), LENGTH[name][moment == "call"]
    codes = set()
    for trial in range(trials(1, 12)):
        for _ in range(draw.choice([1, 1, 2])):  # sometimes again while it goes on
            code, _ = attempt(name, tmp_path / str(trial), **{moment: draw.randrange(1, most)})
            codes.add(code)
        finishes(name, tmp_path / str(trial))
        shutil.rmtree(tmp_path / str(trial))
    assert {-KILL} <= codes <= {0, -KILL}, "LENGTH is that of a longer run"


# A victim, its fault, the exit code, and the one line it says, if any.
TRIALS = [
    ("training", {"signalled": INT}, 130, "interrupted"),
    ("training", {"signalled": TERM}, 143, ""),
    *[
        (name, {"limit": limit}, 2, "error: ")
        for name, limits in {"data": [50_000], "training": [500, 60_000], "results": [1000, 9000]}.items()
        for limit in limits
    ],
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "code", "says"), TRIALS, ids=str)
def test_faults(name, fault, code, says, finishes, tmp_path):
    """One line at most, the conventional exit code, and it goes on exactly."""
    folder = tmp_path / "x"
    ended, lines = attempt(name, folder, **fault)
    assert (ended, len(lines)) == (code, bool(says)), lines
    assert all(line.startswith(says) for line in lines)
    assert all(str(folder) in line for line in lines if says == "error: ")
    assert without_remains(folder)
    assert (folder / name / "ckpt" / "rgflow_last.pth").exists() == ("signalled" in fault)
    finishes(name, folder)


@pytest.mark.parametrize(("name", "operation"), [("training", 40), ("data", 8)])
@pytest.mark.parametrize("obstacle", ["gone", "file"])
def test_a_folder_gone_or_replaced(name, operation, obstacle, finishes, tmp_path):
    folder = tmp_path / "x"
    code, lines = attempt(name, folder, **{obstacle: operation})
    assert (tmp_path / "elsewhere").exists()
    assert (code, len(lines)) in ((0, 0), (2, 1))  # 0: it made its folder again
    assert not (folder / name).is_file() or (folder / name).read_text() == "precious"
    shutil.rmtree(folder)
    finishes(name, folder)


def test_two_trainings_at_once(finishes, tmp_path):
    folder = tmp_path / "x" / "training"
    with locked(folder):
        code, (line,) = attempt("training", tmp_path / "x")
    assert (code, line.startswith(f"error: {folder}: another process is at work")) == (2, True)
    finishes("training", tmp_path / "x")


def test_two_that_make_data_at_once(finishes, tmp_path):
    folder, says = tmp_path / "x", tmp_path / "x.says"
    os.mkfifo(says)  # a line can be read as soon as it is said, however long that takes
    with locked(folder / "data" / "msds1"):
        process = start("data", folder)
        lines = says.open()
        assert "waiting for another process" in lines.readline()
        assert process.is_alive()
    assert lines.read() == ""
    process.join()
    assert process.exitcode == 0
    finishes("data", folder, again=False)
