"""Settings of the whole suite."""

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

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


def pytest_addoption(parser):
    parser.addoption("--faults", metavar="FILE", help="make all trials, write their counts to FILE")
