"""What the trials run in processes of their own: small, quick, and with nothing random."""

import os
import resource
import signal
import sys
from pathlib import Path

import nbconvert  # noqa: F401 - before the server is forked, as the next
import nbformat
import numpy as np
import torch
import torchvision.utils  # noqa: F401
from support import TINY

from rgflow_core import cli, datasets, msds, train
from rgflow_core.files import replacing, write_json
from study import figures, results
from study.page import write_html

SETTINGS = train.Settings(
    model="lean", train_images=64, val_images=8, batch_size=16, epochs=3, img_samples=1,
    optimizer="muon", device="cpu", workers=1, save_minutes=0.0, keep=1,
)  # fmt: skip
msds.render(msds.labels("msds1", "train", 0, 1))  # makes its table, once for all forks
_EVENTS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
_EVENTS |= {"tempfile.mkstemp", "shutil.copyfile"}


def data(folder: Path) -> None:
    """Draw a small data set."""
    msds.SPLITS = {"train": 2500, "val": 50, "test": 50}
    for split in datasets.SPLITS:
        datasets.load_split("msds1", split, folder / "data", workers=2, progress=False)


def training(folder: Path) -> None:
    """Train a tiny model, with a checkpoint after every step."""
    train.MODELS["lean"] = TINY
    train.train(SETTINGS, folder / "run", progress=False)


def stored(folder: Path) -> None:
    """Store results, draw figures from them, and collect them."""
    numbers = {"bpd": [1.25, 2.5]}
    pictures = np.arange(8 * 32 * 32 * 3, dtype=np.uint8).reshape(8, 32, 32, 3)
    results.write_results(folder / "results", "01_x", numbers, {"pictures": pictures})
    results.found(folder / "results", "01_x", ["- 1.25 bits"])
    _, arrays = results.read_results(folder / "results", "01_x")
    for name in ("fig01_x", "fig02_x"):
        figure = figures.picture_sheets({"a sheet": arrays["pictures"]}, columns=4)
        figures.save(figure, folder / "figures", name, [{"picture": 1}])
    collected = results.collect(folder / "results", "small")
    write_json(folder / "results.json", collected)


def page(folder: Path) -> None:
    """Write a page of the report."""
    cells = [nbformat.v4.new_markdown_cell(f"# Part {k}\n$x^{k}$") for k in range(40)]
    folder.mkdir(exist_ok=True)
    notebook = folder / "notebook.ipynb"
    with replacing(notebook) as temporary:
        for k, cell in enumerate(cells):
            cell["id"] = str(k)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), temporary)
    write_html(notebook, folder / "report.html")


VICTIMS = {"data": data, "training": training, "results": stored, "report": page}


def die() -> None:
    """As if the power failed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_event(folder: Path, number: int) -> None:
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in _EVENTS and any(str(folder) in str(a) for a in arguments):
            left -= 1
            if not left:
                die()

    sys.addaudithook(hook)


def _die_in_write(number: int) -> None:
    save, left = torch.save, number

    def half(content: object, path: Path) -> None:
        nonlocal left
        save(content, path)
        left -= 1
        if not left:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half


def _signal_in_training(number: int) -> None:
    batch = train.Order.batch

    def with_signal(order: train.Order, step: int, batch_size: int) -> tuple:
        if step == 5:
            signal.raise_signal(number)
        return batch(order, step, batch_size)

    train.Order.batch = with_signal


def run(
    name: str,
    folder: Path,
    event: int = 0,
    write: int = 0,
    limit: int = 0,
    signalled: int = 0,
    says: str = os.devnull,
) -> None:
    """Run a victim as a command.

    Args:
        name: of the victim.
        folder: where it works.
        event: die at this file operation.
        write: die half through this checkpoint.
        limit: bytes that a file may have, as on a full disk.
        signalled: signal that comes in the middle of a training's second epoch.
        says: file for what it says on stderr.
    """
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if event:
        _die_at_event(folder, event)
    if write:
        _die_in_write(write)
    if signalled:
        _signal_in_training(signalled)
    cli.run(lambda: VICTIMS[name](folder))
