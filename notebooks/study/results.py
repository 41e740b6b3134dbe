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
TOLERANCES = {"background": (1e-6, 1e-6), "entropy": (1e-4, 1e-4), "validation": (0.1, 0.05)}
TOLERANCES |= dict.fromkeys(("area", "area_half", "procedure_area"), (1.0, 0.02))
TOLERANCES |= dict.fromkeys(
    ("frechet", "frechet_real", "radius", "radius_half", "growth", "growth_step"), (0.05, 0.02)
)
TOLERANCES |= dict.fromkeys(
    ("hoyer", "excess_kurtosis", "rotation_cost", "probe", "probe_untrained", "intervention",
     "separation", "mixing"), (0.02, 0.02)
)  # fmt: skip
# Durations, and what rounding can lead elsewhere: which samples explode.
_LEFT_OUT = ("cost", "exploded")
_TYPES = {"level": "Int64", "n": "Int64"} | dict.fromkeys(("value", "low", "high"), "float64")


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


def models(folder: str | Path) -> dict[str, Path]:
    """SET_PRIOR... -> path of the models ``.safetensors`` in a folder, in order of their names.

    Without SET_PRIOR_lean8: these models have other levels, and only notebook 03 reads them.

    Raises:
        UserError: if there is none.
    """
    paths = sorted(Path(folder).glob("msds*.safetensors"))
    paths = {path.stem: path for path in paths if not path.stem.endswith("_lean8")}
    if not paths:
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
    """One measurement of a quantity.

    Args:
        quantity, value: what was measured, and what came out.
        model: its name, or a set's where it is a property of the data.
        level: 0 is the finest.
        factor: a data factor, a prior, a change, a part.
        at: the condition: a split, a temperature, pictures seen, K, L, a seed.
        low, high: the 95 % interval.
        n: what was averaged over.
    """
    values = (quantity, model, level, factor, _text(at), float(value), low, high, n)
    return dict(zip(COLUMNS, values, strict=True))


def _table(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a table, refused if one is not finite or said twice."""
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
        notebook: its name.
        rows: of :func:`row`; they are returned as a table.
        arrays: what figures show and no table holds, such as pictures.
        seed: of all random choices.
        parameters: of the notebook.

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
    """Values of a notebook's run beside those stored in ``figures/``, on which texts rest.

    Args:
        table: rows of :func:`write`.
        columns: what is spread over columns, such as "level"; by default nothing, and the stored
            values' intervals are shown.
    """
    both = table[[*_KEY, "value"]].merge(
        read(root() / "figures"), on=_KEY, how="left", suffixes=("_here", None)
    )
    both = both.rename(columns={"value_here": "here", "value": "stored"})
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
    texts = dict.fromkeys(("notebook", "quantity", "model", "factor", "at"), str)
    with refusing_damage(path, "a table of results"):
        table = pd.read_csv(
            path, dtype=_TYPES | texts, keep_default_na=False,
            na_values={name: [""] for name in _TYPES},
        )  # fmt: skip
        table[list(COLUMNS)]  # a foreign table lacks some
    return table


def read(folder: str | Path, notebook: str | None = None) -> pd.DataFrame:
    """The table of a notebook, or of all whose results lie in a folder, first column its name.

    Args:
        folder: of a profile's results, or one with a collected ``results.csv``, as ``figures``.
        notebook: its name; by default all.

    Raises:
        UserError: if there are none, or a file is damaged.
    """
    folder = Path(folder)
    if notebook is None and (folder / "results.csv").exists():
        return _read_csv(_verified(folder, "results", "csv"))
    names = [notebook] if notebook else sorted(path.stem for path in folder.glob("*.json"))
    if not names:
        raise UserError(f"{folder}: no results; run notebooks 01 to 06 (or make reproduce)")
    tables = [_read_csv(_verified(folder, name, "csv")) for name in names]
    for name, table in zip(names, tables, strict=True):
        table.insert(0, "notebook", name)
    return pd.concat(tables, ignore_index=True)


def arrays(folder: str | Path, notebook: str) -> dict[str, np.ndarray]:
    """The arrays that a notebook stored; :class:`UserError` if missing or damaged."""
    path = _verified(folder, notebook, "npz")
    with refusing_damage(path, "arrays of a notebook"), np.load(path) as file:
        return dict(file)


def origins(folder: str | Path) -> dict[str, dict]:
    """Notebook -> where its numbers come from, of a folder that :func:`read` reads."""
    joined = Path(folder) / "results.json"
    if joined.exists():
        return read_json(joined, by_hand=False)["notebooks"]
    paths = sorted(Path(folder).glob("*.json"))
    return {path.stem: read_json(path, by_hand=False) for path in paths}


def select(table: pd.DataFrame, quantity: str, **where: object) -> pd.DataFrame:
    """The rows of a quantity whose columns are as ``where`` says; a list allows each of it.

    Raises:
        UserError: for a column that is not there.
    """
    rows = table[table["quantity"] == quantity]
    for column, wanted in where.items():
        if column not in table:
            raise UserError(f"results have no column {column}; those are {', '.join(table)}")
        values = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        if column == "at":
            values = [_text(value) for value in values]
        rows = rows[rows[column].isin([pd.NA if v is None else v for v in values])]
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


def collect(folder: str | Path, target: str | Path) -> None:
    """Join the tables of a profile: ``results.csv``, and ``results.json`` with their provenance."""
    target = Path(target)
    write_csv(target / "results.csv", read(folder))
    hashes = {"csv": sha256(target / "results.csv")}
    write_json(target / "results.json", {"notebooks": origins(folder), "files": hashes})


def compare(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Both tables side by side: ``value``, ``reference``, ``tolerance`` and ``verdict``."""
    key = ["notebook", *_KEY]
    sides = (t[~t["quantity"].isin(_LEFT_OUT)] for t in (table, reference))
    here, there = (side[[*key, "value"]] for side in sides)
    both = here.merge(there.rename(columns={"value": "reference"}), on=key, how="outer")
    limits = [TOLERANCES.get(quantity, _OTHERWISE) for quantity in both["quantity"]]
    absolute, relative = np.array(limits).reshape(-1, 2).T
    both["tolerance"] = absolute + relative * both["reference"].abs()
    agrees = (both["value"] - both["reference"]).abs() <= both["tolerance"]
    both["verdict"] = np.where(agrees, "agrees", "DEVIATES")
    both.loc[both["value"].isna(), "verdict"] = "missing here"
    both.loc[both["reference"].isna(), "verdict"] = "not in the reference"
    return both


def check(target: str | Path) -> None:
    """Compare ``results.csv`` in a folder with ``reference.csv``, and print what deviates.

    Raises:
        UserError: if a number deviates, or is on one side only.
    """
    reference = Path(target) / "reference.csv"
    rows = compare(read(target), _read_csv(reference))
    bad = rows[rows["verdict"] != "agrees"]
    print(f"{len(rows) - len(bad)} of {len(rows)} numbers agree with {reference}")
    if len(bad):
        print(bad.drop(columns="tolerance").to_string(index=False, na_rep=""))
        raise UserError(
            f"{len(bad)} numbers are not those of {reference}; if that is meant: make reference"
        )


def main() -> None:
    parser = cli.Parser("Join a profile's tables, compare them with the reference, or make it.")
    parser.add_argument("what", choices=("collect", "check", "reference"))
    parser.add_argument("folders", nargs="+", help="FOLDER TARGET to collect, else TARGET")
    args = parser.parse_args()
    *folder, target = args.folders
    if args.what == "collect":
        collect(*folder, target)
    elif args.what == "check":
        check(target)
    else:
        table = read(target)
        write_csv(Path(target) / "reference.csv", table[~table["quantity"].isin(_LEFT_OUT)])


if __name__ == "__main__":
    cli.run(main)
