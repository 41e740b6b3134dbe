"""Killed at any moment: the same command again completes, and gives what was never killed."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import victims
from support import files_below

from rgflow_core import load
from rgflow_core.files import read_json

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
PATIENCE = 600  # seconds: the cores may be busy


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Modules are imported once, in a server that is forked for each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        CONTEXT.set_forkserver_preload(["victims"])
        forkserver.ensure_running()


def start(name, folder, **how):
    process = CONTEXT.Process(target=victims.run, args=(name, folder), kwargs=how)
    process.start()
    return process


def finish(name, folder):
    process = start(name, folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    # Nothing is left of those that were killed.
    assert [f for f in files_below(folder) if "/." in f or f.startswith(".")] == []


def artefacts(name, folder):
    """What must be equal, bit for bit: all but durations, dates and how often it was started."""
    if name == "training":
        run = folder / "run"
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        checkpoint = torch.load(run / "ckpt" / "rgflow_ep003.pth", weights_only=True)
        weights = load(run / "model.safetensors").flow.state_dict()
        return {
            "names": [f for f in files_below(run) if not f.startswith("logs/")],
            "metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
            "record": {k: read_json(run / "record.json")[k] for k in ("validation", "best_epoch")},
            "samples": [p.read_bytes() for p in sorted((run / "samples").iterdir())],
            "weights": {k: v.numpy().tobytes() for k, v in weights.items()},
            "optimisers": {
                f"{i} {p} {k}": torch.as_tensor(v).numpy().tobytes()
                for i, optimizer in enumerate(checkpoint["optim"])
                for p, values in optimizer["state"].items()
                for k, v in values.items()
            },
        }
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json" and name == "results":
            content = read_json(path)
            content = content.get("01_x", content)
            content = [content["numbers"], content["found"]]
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content = {k: v.tobytes() for k, v in arrays.items()}
        found[path.relative_to(folder)] = content
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of each victim: its artefacts when it is left alone, and how long it takes."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name) / "x"
            began = time.perf_counter()
            finish(name, folder)
            known[name] = artefacts(name, folder), time.perf_counter() - began
        return known[name]

    return get


@pytest.mark.parametrize(
    ("name", "few", "many"), [("data", 1, 16), ("training", 2, 14), ("results", 1, 14),
    ("report", 1, 12)]
)  # fmt: skip
def test_at_random_moments(name, few, many, undisturbed, tmp_path, trials, counts):
    wanted, seconds = undisturbed(name)
    draw = random.Random(name)
    for trial in range(trials(few, many)):
        folder = tmp_path / str(trial)
        for _ in range(draw.choice([1, 1, 2])):  # sometimes again while it goes on
            process = start(name, folder)
            process.join(draw.uniform(0.05, 1) * seconds)
            died = process.exitcode is None
            process.kill()
            process.join()
            counts(f"killed: {name}", "resumed identical" if died else "had finished")
        finish(name, folder)
        assert artefacts(name, folder) == wanted
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", victims.VICTIMS)
def test_at_file_operations(name, undisturbed, tmp_path, trials, counts):
    """Before any opening, renaming, removing: the moments that a clock seldom meets."""
    wanted, _ = undisturbed(name)
    draw = random.Random(name)
    for trial in range(trials(1, 8 if name == "training" else 18)):
        folder = tmp_path / str(trial)
        process = start(name, folder, event=draw.randrange(1, 120 if name == "training" else 25))
        process.join(PATIENCE)
        died = process.exitcode == -signal.SIGKILL
        assert died or process.exitcode == 0
        counts(f"killed: {name}", "resumed identical" if died else "had finished")
        finish(name, folder)
        assert artefacts(name, folder) == wanted
        shutil.rmtree(folder)


def test_inside_checkpoint_writes(undisturbed, tmp_path, trials, counts):
    wanted, _ = undisturbed("training")
    for write in range(1, trials(1, 8) + 1):
        folder = tmp_path / str(write)
        process = start("training", folder, write=write)
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        assert any(".partial-" in f for f in files_below(folder))
        counts("killed: training", "resumed identical")
        finish("training", folder)
        assert artefacts("training", folder) == wanted


def made(folder):
    """Run a notebook by make and papermill in a copy of the repository."""
    return subprocess.Popen(
        ["make", "runs/smoke/01_data.ipynb", "PROFILE=smoke", f"PYTHON={sys.executable}", "SETUP="],
        cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        | {"PYTHONPATH": str(folder)},
    )  # fmt: skip


def test_make_and_papermill(tmp_path, trials, counts):
    if not trials(0, 1):
        pytest.skip("takes minutes: make test-faults")
    for name in ("notebooks", "rgflow_core"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    results = tmp_path / "runs" / "smoke" / "results"

    def wanted():
        with np.load(results / "01_data.npz") as arrays:
            arrays = {k: v.tobytes() for k, v in arrays.items()}
        return read_json(results / "01_data.json")["numbers"], arrays

    began = time.perf_counter()
    process = made(tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    first, seconds, draw = wanted(), time.perf_counter() - began, random.Random(0)
    for _ in range(4):
        shutil.rmtree(tmp_path / "runs")
        process = made(tmp_path)
        time.sleep(draw.uniform(0.05, 1) * seconds)
        died = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        counts("killed: make and papermill", "resumed identical" if died else "had finished")
        again = made(tmp_path)
        said, _ = again.communicate()
        assert again.returncode == 0, said
        assert wanted() == first


def test_two_at_once(undisturbed, tmp_path, counts):
    """Data: one waits. Training: one is refused in one line. Nothing is corrupt."""
    for name in victims.VICTIMS:
        folder, says = tmp_path / name, tmp_path / f"{name}.txt"
        processes = [start(name, folder, says=str(says)) for _ in range(2)]
        for process in processes:
            process.join(PATIENCE)
        # A second one that comes late finds all done.
        refused = sorted(process.exitcode for process in processes) == [0, 2]
        assert refused <= (name == "training")
        assert refused or [process.exitcode for process in processes] == [0, 0]
        line = {"training": f"error: {folder / 'run'}: another process is at work there"}
        line["data"] = f"{folder / 'data' / 'msds1'}: waiting for another process"
        said = says.read_text()
        assert said.count("\n") <= (6 if name == "data" else 1)  # splits in turn
        assert said.startswith(line.get(name, "") if said else "")
        assert refused == (name == "training" and bool(said))
        assert artefacts(name, folder) == undisturbed(name)[0]
        counts(f"two at once: {name}", "one refused" if refused else "identical")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals(name, code, undisturbed, tmp_path, counts):
    """One line, a checkpoint, the conventional exit code, and it goes on exactly."""
    wanted, _ = undisturbed("training")
    says = tmp_path / "says.txt"
    number = getattr(signal, name)
    process = start("training", tmp_path / "x", signalled=number, says=str(says))
    process.join(PATIENCE)
    assert process.exitcode == code
    assert (tmp_path / "x" / "run" / "ckpt" / "rgflow_last.pth").exists()
    assert says.read_text() == ("interrupted\n" if code == 130 else "")
    finish("training", tmp_path / "x")
    assert artefacts("training", tmp_path / "x") == wanted
    counts(f"stopped by {name}", "resumed identical")


LIMITS = {"data": [1000, 50_000, 5_000_000], "training": [500, 20_000, 60_000, 200_000],
          "results": [1000, 3000, 8000], "report": [1000, 5000]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "limit"), [(name, limit) for name, limits in LIMITS.items() for limit in limits]
)
def test_no_room(name, limit, undisturbed, tmp_path, counts):
    """A file cannot grow further: one line names it, what was there is whole, and it goes on."""
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    process = start(name, folder, limit=limit, says=str(says))
    process.join(PATIENCE)
    lines = says.read_text().splitlines()
    assert (process.exitcode, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ")
    assert str(folder) in lines[0]
    assert [f for f in files_below(folder) if ".partial-" in f] == []
    finish(name, folder)
    assert artefacts(name, folder) == undisturbed(name)[0]
    counts(f"no room: {name}", "one line, went on")


def test_a_full_disk(undisturbed, tmp_path, trials, counts):
    """The same on a real file system of a few hundred kilobytes, which then gets larger."""
    if os.geteuid() or not trials(0, 1):
        pytest.skip("make test-faults as root mounts small file systems")
    for name, sizes in {"training": (40, 100, 200), "results": (8, 12)}.items():
        for size in sizes:
            folder, says = tmp_path / f"{name}{size}", tmp_path / f"{name}{size}.txt"
            folder.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", folder]
            if subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("mounting is not allowed here")
            try:
                process = start(name, folder, says=str(says))
                process.join(PATIENCE)
                lines = says.read_text().splitlines()
                assert (process.exitcode, len(lines)) == (2, 1), lines
                assert lines[0].startswith("error: ")
                subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
                finish(name, folder)
                assert artefacts(name, folder) == undisturbed(name)[0]
            finally:
                subprocess.run(["umount", folder], check=True)
            counts(f"disk full: {name}", "one line, went on")


@pytest.mark.parametrize("name", ["training", "data"])
@pytest.mark.parametrize("obstacle", ["gone", "file"])
def test_a_folder_gone_or_replaced(name, obstacle, undisturbed, tmp_path, counts):
    """In the middle of the work its folder goes, or a file takes its place."""
    wanted, seconds = undisturbed(name)
    folder, says = tmp_path / "x", tmp_path / "says.txt"
    inside = folder / {"training": "run", "data": "data"}[name]
    process = start(name, folder, says=str(says))
    deadline = time.perf_counter() + 60
    while not inside.exists() and time.perf_counter() < deadline:
        time.sleep(0.001)
    time.sleep(0.3 * seconds)
    with contextlib.suppress(FileNotFoundError):
        inside.rename(tmp_path / "elsewhere")
    if obstacle == "file":
        with contextlib.suppress(OSError):
            inside.write_text("precious")
    process.join(PATIENCE)
    lines = says.read_text().splitlines()
    assert process.exitcode in (0, 2)  # 0: it was done, or made its folder again
    assert len(lines) <= 1 or process.exitcode == 0, lines
    if inside.is_file():
        assert inside.read_text() == "precious"
        inside.unlink()
    shutil.rmtree(folder)
    finish(name, folder)
    assert artefacts(name, folder) == wanted
    counts(f"folder {obstacle}: {name}", "one line" if process.exitcode else "finished")
