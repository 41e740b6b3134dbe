"""Training on several processes, started by torchrun, equals training on one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import TINY

from rgflow_core import load, train

# A program for torchrun: float64, so that only the order of sums differs.
PROGRAM = """
import json, os, signal, sys
import torch
from rgflow_core import cli, train

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
model, settings, folder, die_at = json.loads(sys.argv[1])
train.MODELS["lean"] = model
batch_of = train.batch_of

def dying(step, *arguments):
    if step == die_at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return batch_of(step, *arguments)

train.batch_of = dying
cli.run(lambda: train.train(train.Settings(**settings), folder, progress=False))
"""
RUN = {
    "model": "lean", "batch_size": 16, "lr": 3e-3, "train_images": 64, "val_images": 15, "epochs": 2,
    "warmup": 3, "flip": True, "img_samples": 2, "workers": 1, "device": "cpu", "seed": 5,
    "save_minutes": 1e6,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_the_program(monkeypatch):
    monkeypatch.setitem(train.MODELS, "lean", TINY)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run_alone(folder):
    train.train(train.Settings(**RUN), folder, progress=False)


def run_on_two(folder, die_at=None):
    program = folder.with_suffix(".py")
    program.write_text(PROGRAM)
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    arguments = json.dumps([TINY, RUN, str(folder), die_at])
    return subprocess.run(
        [sys.executable, "-m", *launcher, "--rdzv-endpoint", "localhost:0", program, arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def assert_same_run(one, other):
    def lines(folder):
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    ours, theirs = (load(f / "model.safetensors").flow.state_dict() for f in (one, other))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(lines(one), lines(other), strict=True):
        for key in ours.keys() - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-8), key
    names = [
        sorted(p.name.split("_2")[0] for p in f.rglob("*.*") if p.parent.name != "logs")
        for f in (one, other)
    ]
    assert names[0] == names[1]


def test_two_processes_equal_one_and_one_goes_on_where_two_were_killed(tmp_path):
    run_alone(tmp_path / "alone")
    done = run_on_two(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "alone", tmp_path / "two")
    assert "and 2 processes" in done.stdout
    assert done.stdout.count("Validation BPD") == RUN["epochs"]  # rank 0 alone speaks
    assert len(list((tmp_path / "two" / "logs").iterdir())) == 1

    killed = run_on_two(tmp_path / "killed", die_at=6)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    assert train.latest_checkpoint(tmp_path / "killed").name == "rgflow_ep001.pth"
    run_alone(tmp_path / "killed")
    assert_same_run(tmp_path / "alone", tmp_path / "killed")
