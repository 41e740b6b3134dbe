"""Settings of the whole suite."""

import pytest
import torch
from hypothesis import settings

# The same examples on every machine, and no limit on how long one takes.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("suite")

THREADS = 2


@pytest.fixture(autouse=True)
def _same_start():
    """Threads and global random numbers do not leak from one test to the next."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
