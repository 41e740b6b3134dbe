"""Tables of results: written whole, read verified, one number at a time."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from rgflow_core.errors import UserError
from study import results

ROWS = [
    results.row("bpd", 1.285, "msds1_gaussian", at="test", low=1.28, high=1.29, n=10_000),
    results.row("area", 31.1, "msds1_laplace", level=0),
    results.row("area", 77, "msds1_laplace", level=1),
    results.row("frechet", 1 / 3, "msds1_laplace", at=1.0),
]


def test_a_table_comes_back_as_it_was_written(tmp_path):
    written = results.write(tmp_path, "03_x", ROWS, {"a/b": np.arange(3)}, seed=4, images=7)
    table = results.read(tmp_path)
    assert list(table) == ["notebook", *results.COLUMNS]
    assert table.drop(columns="notebook").equals(written)
    assert set(table["notebook"]) == {"03_x"}
    assert results.read(tmp_path, "03_x").equals(table)
    assert results.arrays(tmp_path, "03_x")["a/b"].tolist() == [0, 1, 2]
    facts = json.loads((tmp_path / "03_x.json").read_text())
    assert facts["seed"] == 4
    assert facts["parameters"] == {"images": 7}
    assert {"commit", "command", "versions", "hardware", "date", "seconds"} <= facts.keys()


def test_numbers_are_found_by_what_they_are(tmp_path):
    table = results.write(tmp_path, "x", ROWS)
    assert results.number(table, "frechet", at=1) == 1 / 3
    assert results.number(table, "area", level=1) == 77
    assert results.number(table, "bpd", "low", model="msds1_gaussian", at="test") == 1.28
    assert len(results.select(table, "area", level=[0, 1, 2])) == 2
    assert len(results.select(table, "bpd", level=None)) == 1
    with pytest.raises(UserError, match="2 rows, not 1, of: area model=msds1_laplace"):
        results.number(table, "area", model="msds1_laplace")
    with pytest.raises(UserError, match="0 rows, not 1, of: area level=5"):
        results.number(table, "area", level=5)


BAD = {"not finite": results.row("a", np.nan), "twice": results.row("area", 5, "msds1_laplace", 0)}


@pytest.mark.parametrize("why", BAD)
def test_bad_rows_are_refused_and_the_old_table_stays(tmp_path, why):
    results.write(tmp_path, "x", ROWS)
    with pytest.raises(UserError, match=why):
        results.write(tmp_path, "x", [*ROWS, BAD[why]])
    assert len(results.read(tmp_path)) == len(ROWS)


@pytest.mark.parametrize("kind", ["csv", "npz", "json", "sha256 of json"])
def test_what_is_missing_or_damaged_is_named(tmp_path, kind):
    results.write(tmp_path, "x", ROWS, {"a": np.arange(100)})
    what, damage = {"sha256 of json": (b"sha256", b"sha257")}.get(kind, (b"1", b"2"))
    path = tmp_path / f"x.{kind.split()[-1]}"
    path.write_bytes(path.read_bytes().replace(what, damage) + b" ")
    reader = results.arrays if kind == "npz" else results.read
    with pytest.raises(UserError, match=rf"{path.name}.*SHA-256"):
        reader(tmp_path, "x")
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        reader(tmp_path, "x")


def test_the_reference_check_finds_what_deviates(tmp_path, capsys):
    """The tolerance of an area is one pixel and 2 %; a row that one side lacks deviates."""
    run, target = tmp_path / "run", tmp_path / "figures"
    target.mkdir()
    for name, values in {"old": (31.1, 77.0, 5.0), "new": (31.2, 80.0, 5.0)}.items():
        rows = [results.row("area", value, level=level) for level, value in enumerate(values)]
        rows.append(results.row("area", 1, level=3, model=name))
        results.write(run, "x", rows, seed=7)
        results.collect(run, target)
        assert results.read(target).equals(results.read(run))
        assert results.origins(target)["x"]["seed"] == 7
        if name == "old":
            shutil.copy(target / "results.csv", target / "reference.csv")
            results.check(target)
    with pytest.raises(UserError, match="3 numbers are not those of"):
        results.check(target)
    assert "2 of 5 numbers agree" in capsys.readouterr().out


def test_a_folder_without_results_or_models_says_what_makes_them(tmp_path):
    with pytest.raises(UserError, match="make reproduce"):
        results.read(tmp_path)
    with pytest.raises(UserError, match="02_training"):
        results.models(tmp_path)
    with pytest.raises(UserError, match="not inside"):
        results.root(tmp_path)


def test_names_of_models_are_taken_apart_here():
    assert results.split_name("msds1_gaussian_affine") == ("msds1", "gaussian")
    assert results.title("msds2_laplace") == "MSDS2, Laplace"


def test_texts_that_look_like_missing_values_stay(tmp_path):
    results.write(tmp_path, "x", [results.row("q", 1, factor="NA", at="nan")])
    assert results.number(results.read(tmp_path), "q", factor="NA", at="nan") == 1
    assert pd.isna(results.read(tmp_path)["level"].iloc[0])
