"""What the trials run in processes of their own: small, quick, and with nothing random."""

import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
    train.train(SETTINGS, folder / "run", progress=False)


def stored(folder: Path) -> None:
    """Store results, and draw a figure from them."""
    pictures = np.arange(8 * 32 * 32 * 3, dtype=np.uint8).reshape(8, 32, 32, 3)
    rows = [results.row("bpd", 1.25 * k, at=k) for k in range(100)]
    results.write(folder / "results", "01_x", rows, {"pictures": pictures})
    figure = Figure()
    table = results.read(folder / "results", "01_x")
    figure.add_subplot().plot(table["value"])
    figures.save(folder / "figures", "fig01_x", figure, table, {"pictures": pictures})


VICTIMS = {"data": data, "training": training, "results": stored}


def die() -> None:
    """As if the power failed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _at_operation(folder: Path, number: int, action: Callable[[], None]) -> None:
    """Do something at a file operation below a folder, counted from 1."""
    done = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        inside = event in OPERATIONS and any(str(folder) in str(a) for a in arguments)
        if inside and next(done) == number:
            action()

    sys.addaudithook(hook)


def _die_at_call(number: int) -> None:
    """Die at a call of any function, Python's or C's, counted from 1."""
    calls = itertools.count(1)
    sys.setprofile(lambda *_: next(calls) >= number and die())


def _die_in_write(number: int) -> None:
    save, written = torch.save, itertools.count(1)

    def half(content: object, path: Path) -> None:
        save(content, path)
        if next(written) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half


def _signal_in_training(number: int) -> None:
    batch_of = train.batch_of

    def with_signal(step: int, *arguments: int) -> tuple:
        if step == 5:
            signal.raise_signal(number)
        return batch_of(step, *arguments)

    train.batch_of = with_signal


def _take_away(inside: Path, put_file: bool) -> None:
    if inside.exists():
        inside.rename(inside.parent.parent / "elsewhere")
    if put_file:
        inside.write_text("precious")


def run(name: str, folder: Path, says: str = os.devnull, **fault: int) -> None:
    """Run a victim as a command.

    Args:
        name: of the victim.
        folder: where it works.
        says: file for what it says on stderr.
        fault: ``operation``, ``call`` or ``write``: die at that one; ``limit``: bytes that a file
            may have, as on a full disk; ``signalled``: signal that comes in the middle of a
            training; ``gone`` or ``file``: at that file operation its folder goes, or a file takes
            its place.
    """
    torch.set_num_threads(1)
    os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for kind, number in fault.items():
        if kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        elif kind == "operation":
            _at_operation(folder, number, die)
        elif kind in ("gone", "file"):
            inside = folder / {"training": "run", "data": "data"}[name]
            _at_operation(folder, number, partial(_take_away, inside, kind == "file"))
        else:
            how = {"call": _die_at_call, "write": _die_in_write, "signalled": _signal_in_training}
            how[kind](number)
    cli.run(lambda: VICTIMS[name](folder))
