"""Training on several processes, started by torchrun, equals training on one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rgflow_core import load, train

# A program for torchrun: float64, so that only the order of sums differs.
PROGRAM = """
import json, sys
import torch
from rgflow_core import cli, train

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
train.MODELS["lean"] = {"subnet": "lean", "coupling_layers": 1, "res_blocks": 1, "hidden": 8, "mlp_depth": 1}
settings, folder = json.loads(sys.argv[1]), sys.argv[2]
cli.run(lambda: train.train(train.Settings(**settings), folder, progress=False))
"""
RUN = {
    "model": "lean", "batch_size": 16, "lr": 3e-3, "train_images": 64, "val_images": 15, "epochs": 2,
    "warmup": 3, "flip": True, "img_samples": 2, "workers": 1, "device": "cpu", "seed": 5,
}  # fmt: skip


def command(processes, tmp_path, name, **changes):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*launcher, str(program), json.dumps(RUN | changes), str(tmp_path / name)]


def run(*arguments, **changes):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, **changes), env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert run(1, folder, "run").returncode == 0
    return folder / "run"


def close(one, other, tolerance=1e-10):
    ours, theirs = (load(f / "model.safetensors").flow.state_dict() for f in (one, other))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)
    ours, theirs = (json.loads((f / "record.json").read_text()) for f in (one, other))
    for a, b in zip(ours["validation"], theirs["validation"], strict=True):
        assert a["images"] == b["images"]
        assert a["bpd"] == pytest.approx(b["bpd"], rel=1e-10)
        assert a["stderr"] == pytest.approx(b["stderr"], rel=1e-8)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(alone, tmp_path):
    done = run(2, tmp_path, "run")
    assert done.returncode == 0, done.stderr
    close(alone, tmp_path / "run")
    assert "and 2 processes" in done.stdout
    # Rank 0 alone writes and speaks.
    assert done.stdout.count("Validation BPD") == RUN["epochs"]
    names = sorted(p.name for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert [n.split("_2")[0] for n in names] == sorted(
        p.name.split("_2")[0] for p in alone.rglob("*") if p.is_file()
    )
    for ours, theirs in zip(metrics(alone), metrics(tmp_path / "run"), strict=True):
        for key in ours.keys() - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9), key


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    assert run(2, tmp_path, "run", epochs=1).returncode == 0
    assert run(1, tmp_path, "run").returncode == 0
    close(alone, tmp_path / "run")


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = run(2, tmp_path, "run", batch_size=15)
    assert done.returncode != 0
    assert "batch_size must be a multiple of the 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_ends_the_job(tmp_path):
    """The job stops, says which process died, and the last checkpoint is intact."""
    epochs = 10_000
    process = subprocess.Popen(
        command(2, tmp_path, "run", epochs=epochs),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        folder = tmp_path / "run"
        deadline = time.monotonic() + 120
        while not train.latest_checkpoint(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "SIGKILL" in said or "-9" in said
    assert load(train.latest_checkpoint(folder)).flow is not None
