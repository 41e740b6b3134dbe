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

# For torchrun: in float64, so that only the order of sums differs; two clocks that differ, and what
# each rank knows of its run; rank 1 may be killed.
PROGRAM = """
import json, os, signal, sys
from datetime import datetime
from types import SimpleNamespace
import torch
from rgflow_core import cli, train

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
train.MODELS["tiny"], die_at = json.loads(sys.argv.pop())
rank, batch_of, made = int(os.environ["RANK"]), train.batch_of, train.Run.__init__

def dying(step, *arguments):
    if step == die_at and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch_of(step, *arguments)

def told(run, settings, folder, *more):
    open(f"rank{rank}", "w").write(str(folder))
    made(run, settings, folder, *more)

train.datetime = SimpleNamespace(now=lambda: datetime(2026, 1, 1, 0, 0, rank))
train.batch_of, train.Run.__init__ = dying, told
cli.run(train.main)
"""
SETTINGS = replace(RUN, val_images=15, epochs=2, flip=True, seed=5)
KNOBS = {k: v for k, v in asdict(SETTINGS).items() if v is not None and not isinstance(v, bool)}


@pytest.fixture
def alone():
    """Train in this process, with the program's type."""
    torch.set_default_dtype(torch.float64)
    yield lambda folder: train.train(SETTINGS, folder, progress=False)
    torch.set_default_dtype(torch.float32)


def on_two(place, die_at=None):
    """The command on two processes, and the folder of its run."""
    place.mkdir()
    (place / "program.py").write_text(PROGRAM)
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0", "program.py"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in KNOBS.items()]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *flags, "--flip", json.dumps([TINY, die_at])],
        cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    return done, place / "runs" / "msds1_20260101_000000"


def assert_same_run(one, other):
    ours, theirs = (load(f / "model.safetensors").flow.state_dict() for f in (one, other))
    for name, value in ours.items():
        close(value, theirs[name], 1e-10)
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)
    names = ([n for n in files_below(f) if not n.startswith("logs")] for f in (one, other))
    assert next(names) == next(names)


def test_two_processes_equal_one_and_one_goes_on_where_two_were_killed(alone, tmp_path):
    one = tmp_path / "one"
    alone(one)
    done, two = on_two(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_run(one, two)
    # The first process names the run, and it alone speaks.
    assert list(two.parent.iterdir()) == [two]
    assert [(tmp_path / "two" / f"rank{k}").read_text() for k in (0, 1)] == [f"runs/{two.name}"] * 2
    assert "2 x cpu" in done.stdout
    assert done.stdout.count("Validation BPD") == SETTINGS.epochs
    assert done.stdout.count(f"{two.name}/model.safetensors\n") == 1
    assert len(files_below(two / "logs")) == 1

    done, killed = on_two(tmp_path / "killed", die_at=6)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert train.latest_checkpoint(killed).name == "rgflow_ep001.pth"
    alone(killed)
    assert_same_run(one, killed)
