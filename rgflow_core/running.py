"""What a training runs on: processes, precision, compiled networks, its log, and signals."""

import gc
import logging
import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed
from tqdm.auto import tqdm

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import make_folder
from rgflow_core.flow import CouplingLayer, RGFlow

PRECISIONS = ("float32", "tf32", "bf16")

log = logging.getLogger("rgflow")


class Ranks:
    """This process among those that ``torchrun`` started; alone without it."""

    def __init__(self, device: str) -> None:
        launched = distributed.is_torchelastic_launched()
        self.rank = int(os.environ["RANK"]) if launched else 0
        self.world = int(os.environ["WORLD_SIZE"]) if launched else 1
        if launched and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.device = cli.pick_device(device)
        if launched:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(
                backend, device_id=self.device if backend == "nccl" else None
            )

    def agreed(self, folder: Path) -> Path:
        """The first rank's folder: each has named its own after the time."""
        folders = [folder]
        if self.world > 1:
            distributed.broadcast_object_list(folders, device=self.device)
        return folders[0]

    def mine(self, x: Tensor) -> Tensor:
        """This rank's part of what is indexed by pictures."""
        return x[self.rank :: self.world]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x

    def gathered(self, part: Tensor, count: int) -> Tensor:
        """Undo :meth:`mine` for a tensor (count,)."""
        whole = torch.zeros(count, dtype=part.dtype, device=self.device)
        whole[self.rank :: self.world] = part.to(self.device)
        return self.sum(whole).cpu()

    def wait(self) -> None:
        """Until all ranks are here: one that leaves earlier breaks the others' connections."""
        if self.world > 1:
            distributed.barrier()

    def close(self) -> None:
        """Give up the connections; what still refers to them would abort the program's end."""
        if distributed.is_initialized():
            gc.collect()
            distributed.destroy_process_group()


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Inside, the networks compute in ``name``; all else is float32 or better.

    Couplings, log-determinants and the prior's sums are never rounded, so that the density stays
    one: only the networks' answers differ a little from those in float32.

    Args:
        name: "float32", "tf32" (matrix products with 10 bits of mantissa, NVIDIA GPUs) or "bf16"
            (by torch's autocast: products, and most of what networks do between them, with 7).
        device: where the products are computed.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def compile_couplings(flow: RGFlow) -> bool:
    """Let ``torch.compile`` fuse what a coupling layer does, once for all layers and levels.

    Where that fails, here at a step's try with two pictures or later, a log line says so and
    nothing changes.
    """
    layers = [module for module in flow.modules() if isinstance(module, CouplingLayer)]
    if not layers:
        raise UserError("--compile: this flow has none of our coupling layers; leave it out")
    plain = type(layers[0]).forward  # all are of one kind
    compiled, working = torch.compile(plain, dynamic=True), True

    def give_up(error: Exception) -> None:
        nonlocal working
        working, reason = False, str(error).strip().partition("\n")[0]
        log.info(f"Not compiled, the same function, slower: {type(error).__name__}: {reason}")

    def forward(layer: CouplingLayer, *arguments: object) -> object:
        if working:
            try:
                return compiled(layer, *arguments)
            except Exception as error:  # compilers fail with anything
                give_up(error)
        return plain(layer, *arguments)

    for layer in layers:
        layer.forward = partial(forward, layer)
    try:
        like = next(flow.parameters())
        z, log_det = flow(like.new_zeros(2, *flow.config.shape))
        (z.sum() + log_det.sum()).backward()
    except Exception as error:
        give_up(error)
    flow.zero_grad(set_to_none=True)
    return working


# Saying, saving, stopping


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Log lines go to the console, above the progress bar, and to a new file in the run's folder."""
    path = make_folder(folder / "logs") / f"rgflow_{datetime.now():%Y%m%d_%H%M%S}.log"
    with open(path, "a", 1, "utf-8", "backslashreplace") as file:

        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                tqdm.write(record.getMessage())
                # A full disk stops the run, as it would at the next checkpoint.
                print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {record.getMessage()}", file=file)

        log.setLevel(logging.INFO)
        log.handlers = [Lines()]
        log.propagate = False
        try:
            yield
        finally:
            log.handlers = []


def stopped_by(number: int) -> BaseException:
    """What ends a program that a signal stopped."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, for a loop that stops when its state is whole."""
    received: list[int] = []
    before: dict = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGHUP:  # writing to a closed terminal would be an error
            for stream in (1, 2):
                if not stat.S_ISREG(os.fstat(stream).st_mode):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        elif len(received) > 1:  # asked twice: at once, also where a shell has it ignore SIGINT
            raise stopped_by(number)

    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, remember)
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
