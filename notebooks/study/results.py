"""Where the study keeps things: its root, stored results, models, published numbers."""

import os
import time
from pathlib import Path

import numpy as np

from rgflow_core.errors import UserError
from rgflow_core.files import provenance, read_json, refusing_damage, replacing, write_json

_STARTED = time.perf_counter()


def root(start: str | Path = ".") -> Path:
    """The repository's root, found upwards from ``start`` and relative to it.

    Raises:
        UserError: outside the repository.
    """
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "rgflow_core").is_dir():
            return Path(os.path.relpath(folder, here))
    raise UserError(f"{here} is not inside the study's repository; start Jupyter there")


def title(name: str) -> str:
    """A model's name as figures and sentences have it: ``msds1_laplace`` is MSDS1, Laplace."""
    set_name, prior, *more = name.split("_")
    return ", ".join([set_name.upper(), prior.capitalize(), *more])


def models(folder: str | Path) -> dict[str, Path]:
    """SET_PRIOR... -> path of the models ``.safetensors`` in a folder, in order of their names.

    Raises:
        UserError: if there is none.
    """
    found = {path.stem: path for path in sorted(Path(folder).glob("msds*.safetensors"))}
    if not found:
        raise UserError(f"{folder}: no .safetensors; run notebook 02_training (or make reproduce)")
    return found


def write_results(
    folder: str | Path,
    name: str,
    numbers: dict,
    arrays: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    **parameters: object,
) -> None:
    """Store what a notebook found: ``NAME.json`` with its provenance, and ``NAME.npz``.

    Args:
        folder: the profile's folder of results.
        name: the notebook's name.
        numbers: JSON values; what the report quotes.
        arrays: what the report draws.
        seed: of all random choices, for the provenance.
        parameters: of the notebook, for the provenance.
    """
    folder = Path(folder)
    if arrays:
        with replacing(folder / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
    seconds = round(time.perf_counter() - _STARTED, 1)
    source = provenance(parameters=parameters, seed=seed, seconds=seconds)
    write_json(folder / f"{name}.json", {"numbers": numbers, "provenance": source})


def found(folder: str | Path, name: str, lines: list[str]) -> object:
    """Store what a notebook concludes beside its numbers, for the report, and show it."""
    from IPython.display import Markdown

    path, text = Path(folder) / f"{name}.json", "\n".join(lines)
    write_json(path, read_json(path) | {"found": text})
    return Markdown(text)


def read_results(folder: str | Path, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Numbers and arrays that :func:`write_results` stored.

    Raises:
        UserError: if they are missing or damaged.
    """
    folder = Path(folder)
    with refusing_damage(folder / f"{name}.json", "results of a notebook"):
        numbers = read_json(folder / f"{name}.json")["numbers"]
    arrays = folder / f"{name}.npz"
    if not arrays.exists():
        return numbers, {}
    with refusing_damage(arrays, "arrays of a notebook"), np.load(arrays) as file:
        if bad := file.zip.testzip():  # numpy would not look beyond the shape in a header
            raise UserError(f"{arrays}: damaged (CRC-32 of {bad} differs)")
        return numbers, dict(file)


def collect(folder: str | Path, profile: str) -> dict:
    """All stored results of a profile, by notebook: the content of ``results.json``.

    Raises:
        UserError: if there are none.
    """
    paths = sorted(Path(folder).glob("[0-9]*.json"))
    if not paths:
        raise UserError(f"{folder}: no results; run notebooks 01 to 06 (or make reproduce)")
    return {"profile": profile} | {path.stem: read_json(path) for path in paths}
