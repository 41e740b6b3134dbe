"""Settings of the whole suite."""

import shutil
import signal
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from support import ROOT

from rgflow_core import cli
from study import records

# The same examples on every machine, and no limit on how long one takes to draw or to try.
settings.register_profile(
    "suite", derandomize=True, deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("suite")

# A shell starts what runs in the background with Ctrl-C ignored, and Python leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: the tensors are small and the cores may be shared. Set here, not in a fixture, so
# that fixtures of any scope compute with it too: the number of threads changes the last bits.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start():
    """Global random numbers do not leak from one test to the next."""
    torch.manual_seed(0)


@pytest.fixture
def caches(tmp_path_factory, monkeypatch):
    """Where a user's caches lie."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def planned(tmp_path):
    """A repository with the study's plan and no record."""
    for folder in ("notebooks", "rgflow_core", "weights", "data"):
        (tmp_path / folder).mkdir()
    for name in (records.PLAN, records.PEERS, "data/published.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def command(tmp_path, caches, monkeypatch, capfd):
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


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="make all trials")
