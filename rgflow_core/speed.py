"""How a training step is computed, not what: precision, memory, compilation."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch
from torch import Tensor

from rgflow_core.errors import UserError
from rgflow_core.flow import CouplingLayer, RGFlow

PRECISIONS = ("float32", "tf32", "bf16")
# Of what is free: the rest is for temporary values and for everybody else.
_USABLE = 0.8

log = logging.getLogger("rgflow")


def check_precision(name: str, device: torch.device) -> None:
    """Raise :class:`UserError` for tf32 without a GPU."""
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"precision tf32 needs an NVIDIA GPU, not {device.type}; try float32")


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Inside, the networks compute in ``name``; all else is float32 or better.

    Couplings, log-determinants and the prior's sums are never rounded, so that the density stays
    one: only the networks' answers differ a little from those in float32.

    Args:
        name: "float32", "tf32" (matrix products with 10 bits of mantissa, NVIDIA GPUs) or "bf16"
            (by torch's autocast: products, and most of what networks do between them, with 7).
        device: where the products are computed.

    Raises:
        UserError: for tf32 without a GPU.
    """
    check_precision(name, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def kept_bytes(flow: RGFlow, batch: int) -> int:
    """Bytes that a forward pass of ``batch`` pictures keeps for the backward pass.

    Extrapolated from one picture and two: what belongs to the weights does not grow.
    """
    like = next(flow.parameters())

    def kept(count: int) -> int:
        storages = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            # The result holds the graph, so that no storage is used twice.
            result = flow(like.new_zeros(count, *flow.config.shape))
        total = sum(storages.values())
        del result
        return total

    one, two = kept(1), kept(2)
    return one + (batch - 1) * (two - one)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device (on a CPU: the machine's, whatever a container allows)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def needs_checkpointing(flow: RGFlow, batch: int) -> bool:
    """Whether training on so many pictures at once must recompute activations to fit in memory."""
    like = next(flow.parameters())
    # Gradients and the optimiser's two moments.
    state = 3 * sum(p.numel() * p.element_size() for p in flow.parameters())
    # Processes of one machine share its memory, unless each has a GPU.
    share = 1 if like.is_cuda else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    need, free = kept_bytes(flow, batch) + state, free_bytes(like.device) / share
    recompute = need > _USABLE * free
    log.info(
        f"A step needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
        + ("activations are recomputed" if recompute else "no checkpointing")
    )
    return recompute


def compile_couplings(flow: RGFlow) -> bool:
    """Let ``torch.compile`` fuse what a coupling layer does, once for all layers and levels.

    Where no C++ compiler is found, nothing changes, and a log line says so.
    """
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        log.info(f"No compiler {compiler!r} found: not compiled, the same function, slower")
        return False
    compiled = torch.compile(CouplingLayer.log_derivatives, dynamic=True)
    for layer in flow.modules():
        if isinstance(layer, CouplingLayer):
            layer.log_derivatives = partial(compiled, layer)
    return True
