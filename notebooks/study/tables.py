"""Data as rows for CSV files: what a figure shows, beside the figure."""

import csv
from pathlib import Path

import numpy as np

from rgflow_core.files import replacing


def table(data: object, *columns: str) -> list[dict]:
    """Rows of nested dictionaries and lists, each level of nesting a column.

    Args:
        data: its keys, or positions in its lists, fill the columns; what is left below them is a
            row (a dictionary of values), several (one of equally long lists), or one ``value``.
        columns: names for the levels, from the outermost.
    """
    if columns:
        inner = data.items() if isinstance(data, dict) else enumerate(data)
        return [{columns[0]: k} | row for k, v in inner for row in table(v, *columns[1:])]
    if not isinstance(data, dict):
        return [{"value": data}]
    if all(isinstance(v, list | np.ndarray) for v in data.values()):
        return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    return [data]


def sources(file: str, arrays: dict[str, np.ndarray]) -> list[dict]:
    """Of pictures, in place of their pixels: the arrays of a notebook's file that hold them."""
    return [
        {"file": f"results/{file}.npz", "array": name, "shape": " x ".join(map(str, a.shape))}
        for name, a in arrays.items()
    ]


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Write rows, whole; the header has the columns of all of them, in order of appearance."""
    header = dict.fromkeys(key for row in rows for key in row)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
