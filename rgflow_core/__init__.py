"""RG-Flow: a hierarchical normalizing flow, its priors, data and training."""

import os

# Threads that wait should not keep other programs off the cores for long: a tenth of libgomp's own
# count of spins. It costs 3 % on two idle cores and is four times as fast beside another program;
# waiting asleep would cost 60 %. OpenMP reads this when torch loads.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "30000"

from rgflow_core import msds
from rgflow_core.checkpoints import load, load_published, save, save_published
from rgflow_core.flow import LEAN, LEAN8, LEAN_AFFINE, RGFlow, RGFlowConfig
from rgflow_core.model import PictureModel
from rgflow_core.priors import Prior

__version__ = "0.1.0"

__all__ = [
    "LEAN",
    "LEAN8",
    "LEAN_AFFINE",
    "PictureModel",
    "Prior",
    "RGFlow",
    "RGFlowConfig",
    "load",
    "load_published",
    "msds",
    "save",
    "save_published",
]
