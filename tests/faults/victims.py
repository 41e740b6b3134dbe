"""What the trials run in processes of their own: small, quick, and with nothing random."""

import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision.utils  # noqa: F401 - before the server is forked
from matplotlib.figure import Figure
from support import RUN

from rgflow_core import cli, datasets, msds, train
from study import figures, results

SETTINGS = replace(RUN, val_images=8, img_samples=1, optimizer="muon", save_minutes=0.0, keep=1)
msds.render(msds.labels("msds1", "train", 0, 1))  # makes its table, once for all forks
OPERATIONS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
OPERATIONS |= {"tempfile.mkstemp", "shutil.copyfile"}


def data(folder: Path) -> None:
    """Draw a small data set."""
    msds.SPLITS = {"train": 2500, "val": 50, "test": 50}
    for split in datasets.SPLITS:
        datasets.load_split("msds1", split, folder / "data", workers=2, progress=False)


def training(folder: Path) -> None:
    """Train a tiny model, with a checkpoint after every step."""
    train.train(SETTINGS, folder / "training", progress=False)


def stored(folder: Path) -> None:
    """Store results, and draw a figure from them."""
    pictures = np.arange(8 * 32 * 32 * 3, dtype=np.uint8).reshape(8, 32, 32, 3)
    rows = [results.row("bpd", 1.25 * k, at=k) for k in range(100)]
    results.write(folder / "results", "01_x", rows, {"pictures": pictures})
    figure = Figure()
    table = results.read(folder / "results", "01_x")
    figure.add_subplot().plot(table["value"])
    drawing = (figure, table, {"pictures": pictures})
    figures.save(folder / "figures", "fig01_x", lambda: drawing)


VICTIMS = {"data": data, "training": training, "results": stored}


def die() -> None:
    """As if the power failed."""
    os.kill(os.getpid(), signal.SIGKILL)


def nth(number: int, action: Callable[[], None]) -> Callable:
    """A function that does something at its call number ``number``, counted from 1."""
    calls = itertools.count(1)
    return lambda *_: next(calls) == number and action()


def prepare(kind: str, number: int, folder: Path, inside: Path) -> None:
    """Let a fault happen, see :func:`run`; ``inside`` is where the victim works in its folder."""
    now, original = nth(number, die), train.batch_of

    def at_operation(now: Callable) -> None:
        def hook(event: str, given: tuple) -> None:
            if event in OPERATIONS and any(str(folder) in str(a) for a in given):
                now()

        sys.addaudithook(hook)

    def take_away() -> None:
        if inside.exists():
            inside.rename(folder.parent / "elsewhere")
        if kind == "file":
            inside.write_text("precious")

    def with_signal(step: int, *arguments: int) -> tuple:
        if step == 5:
            signal.raise_signal(number)
        return original(step, *arguments)

    match kind:
        case "operation":
            at_operation(now)
        case "gone" | "file":
            at_operation(nth(number, take_away))
        case "call":
            sys.setprofile(now)
        case "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        case "signalled":
            train.batch_of = with_signal


def run(name: str, folder: Path, **fault: int) -> None:
    """Run a victim as a command; what it says on stderr goes to the file FOLDER.says.

    Args:
        name: of the victim.
        folder: where it works.
        fault: ``operation`` or ``call``: die at that one; ``limit``: bytes that a file may have,
            as on a full disk; ``signalled``: signal that comes in the middle of a training;
            ``gone`` or ``file``: at that file operation its folder goes, or a file takes its place.
    """
    torch.set_num_threads(1)
    os.dup2(os.open(f"{folder}.says", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for kind, number in fault.items():
        prepare(kind, number, folder, folder / name)
    cli.run(lambda: VICTIMS[name](folder))
