"""The study's results: tidy tables, one row a measurement, read and written here alone.

``python -m study.results collect FOLDER TARGET`` joins a profile's tables as
``TARGET/results.csv``; ``check TARGET`` compares that with ``TARGET/reference.csv``, and
``reference TARGET`` makes it the reference.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, read_json, refusing_damage, replacing, sha256, write_json

# What was measured, of what, where and under which condition; its 95 % interval; averaged over.
COLUMNS = ("quantity", "model", "level", "factor", "at", "value", "low", "high", "n")
_KEY = ["quantity", "model", "level", "factor", "at"]
# What a number may differ by between machines, absolute and relative to the reference. Weights,
# pictures and noise are the same; what differs is rounding, and what rounding does to a training.
_OTHERWISE = (2e-3, 0.01)
TOLERANCES = {
    "background": (1e-6, 1e-6), "entropy": (1e-4, 1e-4), "validation": (0.1, 0.05),
    **dict.fromkeys(("area", "area_half", "procedure_area"), (1.0, 0.02)),
    **dict.fromkeys(("radius", "radius_half", "growth", "growth_step"), (0.05, 0.02)),
    **dict.fromkeys(("frechet", "frechet_real"), (0.05, 0.02)),
    **dict.fromkeys(("hoyer", "excess_kurtosis", "rotation_cost", "mixing"), (0.02, 0.02)),
    **dict.fromkeys(("probe", "probe_untrained", "intervention", "separation"), (0.02, 0.02)),
}  # fmt: skip
# Durations, and what rounding can lead elsewhere: which samples explode.
_LEFT_OUT = ("cost", "exploded")
_TYPES = {"level": "Int64", "n": "Int64"} | dict.fromkeys(("value", "low", "high"), "float64")
_TEXTS = dict.fromkeys(("notebook", "quantity", "model", "factor", "at"), str)


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


def models(folder: str | Path, lean8: bool = False) -> dict[str, Path]:
    """SET_PRIOR... -> path of the models in a folder, in order of their names.

    Those of SET_PRIOR_lean8 have other levels: only notebook 03 asks for them, by themselves.

    Raises:
        UserError: if there is no model.
    """
    paths = {path.stem: path for path in sorted(Path(folder).glob("msds*.safetensors"))}
    paths = {name: path for name, path in paths.items() if name.endswith("_lean8") == lean8}
    if not paths and not lean8:
        raise UserError(
            f"{folder}: no msds*.safetensors; run notebook 02_training (or make reproduce)"
        )
    return paths


def split_name(name: str) -> tuple[str, str]:
    """Set and prior of a model's name, SET_PRIOR or SET_PRIOR_MORE."""
    set_name, prior, *_ = name.split("_")
    return set_name, prior


def title(name: str) -> str:
    """A model's name as figures and sentences have it: ``msds1_laplace`` is MSDS1, Laplace."""
    set_name, prior, *more = name.split("_")
    return ", ".join([set_name.upper(), prior.capitalize(), *more])


def _text(value: object) -> str:
    """A condition as tables have it: 1, 1.0 and "1" are the same."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def row(
    quantity: str,
    value: float,
    model: str = "",
    level: int | None = None,
    factor: str = "",
    at: str | float = "",
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
) -> dict:
    """One measurement of a quantity, its 95 % interval, and over how many it is a mean.

    ``model`` may be a set, of a property of the data; level 0 is the finest; ``factor`` is a data
    factor, a prior, a change or a part; ``at`` a split, a temperature, pictures seen, K, L, a seed.
    """
    values = (quantity, model, level, factor, _text(at), float(value), low, high, n)
    return dict(zip(COLUMNS, values, strict=True))


def _table(rows: Iterable[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS).astype(_TYPES)
    odd = table[~np.isfinite(table["value"]) | np.isinf(table[["low", "high"]]).any(axis=1)]
    twice = table[table.duplicated(_KEY)]
    for bad, why in ((odd, "is not finite"), (twice, "is there twice")):
        if len(bad):
            raise UserError(f"a row of results {why}: {bad.iloc[0].dropna().to_dict()}")
    return table


def write_csv(path: str | Path, rows: pd.DataFrame | Iterable[dict]) -> None:
    """Write rows as CSV, whole."""
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def write(
    folder: str | Path,
    notebook: str,
    rows: Iterable[dict],
    arrays: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    **parameters: object,
) -> pd.DataFrame:
    """Store what a notebook measured: NOTEBOOK.csv, .npz and, last, .json with its provenance.

    Says which parameters are not those of the results in ``figures/``, on which texts rest.

    Args:
        folder: the profile's folder of results.
        rows: of :func:`row`; they are returned as a table.
        arrays: what figures show and no table holds, such as pictures.
        seed, parameters: of the notebook.

    Raises:
        UserError: if a value is not finite or a measurement is there twice.
    """
    folder, table = Path(folder), _table(rows)
    (folder / f"{notebook}.json").unlink(missing_ok=True)  # the old one speaks for no new file
    with replacing(folder / f"{notebook}.npz") as temporary:
        np.savez_compressed(temporary, **arrays or {})
    write_csv(folder / f"{notebook}.csv", table)
    hashes = {kind: sha256(folder / f"{notebook}.{kind}") for kind in ("csv", "npz")}
    # CPU seconds: what a notebook costs, whoever else is at work on the machine.
    seconds = round(time.process_time(), 1)
    facts = provenance(parameters=parameters, seed=seed, seconds=seconds, files=hashes)
    write_json(folder / f"{notebook}.json", facts)
    stored = origins(root() / "figures").get(notebook, {}).get("parameters", parameters)
    if toy := {k: v for k, v in parameters.items() if v != stored.get(k)}:
        sizes = ", ".join(f"{k} = {v} (stored: {stored.get(k)})" for k, v in toy.items())
        print("Of a run with " + sizes)
    return table


def beside(table: pd.DataFrame, columns: str | None = None) -> pd.DataFrame:
    """Values of :func:`write` beside those stored in ``figures/``, on which texts rest.

    Args:
        columns: what is spread over columns, such as "level"; by default nothing, and the stored
            values' intervals are shown.
    """
    here = table[[*_KEY, "value"]].rename(columns={"value": "here"})
    both = here.merge(read(root() / "figures"), on=_KEY, how="left")
    both = both.rename(columns={"value": "stored"})
    shown = [name for name in _KEY if (both[name] != "").any() and both[name].notna().any()]
    if columns is None:
        return both[[*shown, "here", "stored", "low", "high", "n"]].round(3)
    index = [name for name in shown if name != columns]
    return both.pivot_table(["here", "stored"], index, columns, sort=False).round(2) + 0.0


def _verified(folder: str | Path, name: str, kind: str) -> Path:
    """The path of a file whose SHA-256 is the one that ``NAME.json`` states."""
    path = Path(folder) / f"{name}.{kind}"
    with refusing_damage(path, "results of a notebook (make reproduce makes them)"):
        if sha256(path) != read_json(path.with_suffix(".json"), by_hand=False)["files"][kind]:
            raise UserError(f"{path}: damaged or changed by hand (SHA-256 differs); make it again")
    return path


def _read_csv(path: Path) -> pd.DataFrame:
    blanks = {name: [""] for name in _TYPES}  # elsewhere "NA" and the like are texts
    with refusing_damage(path, "a table of results"):
        table = pd.read_csv(path, dtype=_TYPES | _TEXTS, keep_default_na=False, na_values=blanks)
        table[list(COLUMNS)]  # a foreign table lacks some
    return table


def read(folder: str | Path, notebook: str | None = None) -> pd.DataFrame:
    """The table of a notebook, or of all whose results lie in a folder, first column its name.

    Args:
        folder: of a profile's results, or one with a collected ``results.csv``, as ``figures``.
        notebook: by default all.

    Raises:
        UserError: if there are none, or a file is damaged.
    """
    folder = Path(folder)
    if notebook is None and (folder / "results.csv").exists():
        return _read_csv(_verified(folder, "results", "csv"))
    tables = []
    for name in [notebook] if notebook else sorted(path.stem for path in folder.glob("*.json")):
        tables.append(_read_csv(_verified(folder, name, "csv")))
        tables[-1].insert(0, "notebook", name)
    if not tables:
        raise UserError(f"{folder}: no results; run notebooks 01 to 06 (or make reproduce)")
    return pd.concat(tables, ignore_index=True)


def arrays(folder: str | Path, notebook: str) -> dict[str, np.ndarray]:
    """The arrays that a notebook stored; :class:`UserError` if missing or damaged."""
    path = _verified(folder, notebook, "npz")
    with refusing_damage(path, "arrays of a notebook"), np.load(path) as file:
        return dict(file)


def origins(folder: str | Path) -> dict[str, dict]:
    """Notebook -> where its numbers come from, of a folder that :func:`read` reads."""
    folder = Path(folder)
    if (folder / "results.json").exists():
        return read_json(folder / "results.json", by_hand=False)["notebooks"]
    return {path.stem: read_json(path, by_hand=False) for path in sorted(folder.glob("*.json"))}


def select(table: pd.DataFrame, quantity: str, **where: object) -> pd.DataFrame:
    """The rows of a quantity whose columns are as ``where`` says; a list allows each of it."""
    rows = table[table["quantity"] == quantity]
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        known = {"at": _text}.get(column, lambda value: pd.NA if value is None else value)
        rows = rows[rows[column].isin(map(known, values))]
    return rows


def number(table: pd.DataFrame, quantity: str, column: str = "value", **where: object) -> float:
    """One number, the ``value`` of the only row that fits, or its ``low``, ``high`` or ``n``.

    Raises:
        UserError: if no row fits, or several do.
    """
    rows = select(table, quantity, **where)
    if len(rows) != 1:
        query = " ".join([quantity, *(f"{k}={v}" for k, v in where.items())])
        raise UserError(f"results have {len(rows)} rows, not 1, of: {query}")
    return float(rows[column].iloc[0])


def collect(folder: Path, target: Path) -> None:
    """Join the tables of a profile: ``results.csv``, and ``results.json`` with their provenance."""
    write_csv(target / "results.csv", read(folder))
    hashes = {"csv": sha256(target / "results.csv")}
    write_json(target / "results.json", {"notebooks": origins(folder), "files": hashes})


def _left_in(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["quantity"].isin(_LEFT_OUT)]


def check(target: Path) -> None:
    """Compare ``results.csv`` in a folder with ``reference.csv``, and print what deviates.

    Raises:
        UserError: if a number deviates, or is on one side only.
    """
    reference, key = target / "reference.csv", ["notebook", *_KEY]
    here, there = (_left_in(t)[[*key, "value"]] for t in (read(target), _read_csv(reference)))
    both = here.merge(there, "outer", key, suffixes=(None, "_reference"))
    limits = [TOLERANCES.get(quantity, _OTHERWISE) for quantity in both["quantity"]]
    absolute, relative = np.array(limits).T
    allowed = absolute + relative * both["value_reference"].abs()
    agrees = (both["value"] - both["value_reference"]).abs() <= allowed
    print(f"{agrees.sum()} of {len(both)} numbers agree with {reference}")
    if not agrees.all():
        print(both[~agrees].to_string(index=False, na_rep=""))
        raise UserError(
            f"{(~agrees).sum()} numbers are not those of {reference}; if that is meant: make reference"
        )


def main() -> None:
    parser = cli.Parser("Join a profile's tables, compare them with the reference, or make it.")
    parser.add_argument("what", choices=("collect", "check", "reference"))
    parser.add_argument("folders", nargs="+", type=Path, help="[FOLDER] TARGET")
    args = parser.parse_args()
    *folder, target = args.folders
    if args.what == "collect":
        collect(*folder, target)
    elif args.what == "check":
        check(target)
    else:
        write_csv(target / "reference.csv", _left_in(read(target)))


if __name__ == "__main__":
    cli.run(main)
