"""Training on several processes, started by torchrun, equals training on one."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from support import RUN, TINY, close, files_below, metrics

from rgflow_core import load, train

# A program for torchrun: float64, so that only the order of sums differs.
PROGRAM = """
import json, os, signal, sys
import torch
from rgflow_core import cli, train

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
model, settings, folder, die_at = json.loads(sys.argv[1])
train.MODELS["tiny"] = model
batch_of = train.batch_of

def dying(step, *arguments):
    if step == die_at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return batch_of(step, *arguments)

train.batch_of = dying
cli.run(lambda: train.train(train.Settings(**settings), folder, progress=False))
"""
# Two clocks that differ, and what each rank knows of its run.
COMMAND = """
import json, os, sys
from datetime import datetime
from types import SimpleNamespace
from rgflow_core import cli, train

rank = int(os.environ["RANK"])
train.MODELS["tiny"] = json.loads(sys.argv.pop())
train.datetime = SimpleNamespace(now=lambda: datetime(2026, 1, 1, 0, 0, rank))
made = train.Run.__init__

def told(run, settings, folder, *more):
    open(f"rank{rank}", "w").write(str(folder))
    made(run, settings, folder, *more)

train.Run.__init__ = told
cli.run(train.main)
"""
SETTINGS = replace(RUN, val_images=15, epochs=2, flip=True, seed=5)


@pytest.fixture
def alone():
    """Train in this process, with the program's type."""
    torch.set_default_dtype(torch.float64)
    yield lambda folder: train.train(SETTINGS, folder, progress=False)
    torch.set_default_dtype(torch.float32)


def torchrun(program, place, *arguments):
    (place / "program.py").write_text(program)
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0", "program.py"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def on_two(folder, die_at=None):
    arguments = json.dumps([TINY, asdict(SETTINGS), str(folder), die_at])
    return torchrun(PROGRAM, folder.parent, arguments)


def test_the_first_process_names_the_run_and_all_agree(tmp_path):
    arguments = ["--model=tiny", "--test-mode", "--epochs=1", "--batch-size=64", "--device=cpu"]
    done = torchrun(COMMAND, tmp_path, *arguments, json.dumps(TINY))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "msds1_20260101_000000"
    assert [(tmp_path / f"rank{k}").read_text() for k in (0, 1)] == [f"runs/{folder.name}"] * 2
    assert done.stdout.count(f"{folder.name}/model.safetensors\n") == 1


def assert_same_run(one, other):
    ours, theirs = (load(f / "model.safetensors").flow.state_dict() for f in (one, other))
    for name, value in ours.items():
        close(value, theirs[name], 1e-10)
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)
    names = ([n for n in files_below(f) if not n.startswith("logs")] for f in (one, other))
    assert next(names) == next(names)


def test_two_processes_equal_one_and_one_goes_on_where_two_were_killed(alone, tmp_path):
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    alone(one)
    done = on_two(two)
    assert done.returncode == 0, done.stderr
    assert_same_run(one, two)
    assert "and 2 processes" in done.stdout
    assert done.stdout.count("Validation BPD") == SETTINGS.epochs  # rank 0 alone speaks
    assert len(files_below(two / "logs")) == 1

    done = on_two(killed, die_at=6)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert train.latest_checkpoint(killed).name == "rgflow_ep001.pth"
    alone(killed)
    assert_same_run(one, killed)
