"""Stored results, the report, the notebooks' form, and the Makefile's own checks."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

from rgflow_core.errors import UserError
from study import report, results

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Figures that are drawn only where runs have records.
RECORDED = ("_seeds", "_ablations")


def test_results_round_trip(tmp_path):
    results.write_results(tmp_path, "03_x", {"a": 1.5}, {"b/c": np.arange(3)}, seed=4)
    numbers, arrays = results.read_results(tmp_path, "03_x")
    assert numbers == {"a": 1.5}
    assert np.array_equal(arrays["b/c"], np.arange(3))
    stored = json.loads((tmp_path / "03_x.json").read_text())["provenance"]
    assert stored["seed"] == 4
    assert {"commit", "command", "versions", "hardware", "date"} <= stored.keys()
    assert results.collect(tmp_path, "p").keys() == {"profile", "03_x"}


def test_results_refuse_nan_and_keep_the_old(tmp_path):
    results.write_results(tmp_path, "n", {"a": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        results.write_results(tmp_path, "n", {"a": float("nan")})
    assert results.read_results(tmp_path, "n")[0] == {"a": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["n.json"]


def test_missing_results_and_models_are_named(tmp_path):
    with pytest.raises(UserError, match=r"n\.json"):
        results.read_results(tmp_path, "n")
    with pytest.raises(UserError, match="02_training"):
        results.models(tmp_path)
    with pytest.raises(UserError, match="not inside"):
        results.root(tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "run `make notebooks`"
    for cell in code:
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
        assert ignored == ("# NBVAL_IGNORE_OUTPUT:" in cell.source), "an ignored cell says why"
        assert len(cell.source.splitlines()) <= 40, "longer code belongs in the module"


def test_readme_table_is_the_one_of_the_results(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    report.update_readme("results", ROOT / "figures" / "results.json", copy)
    assert copy.read_text() == (ROOT / "README.md").read_text()


def test_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match="results: begin"):
        report.update_readme("results", ROOT / "figures" / "results.json", tmp_path / "README.md")


def figure_names():
    """The figures of notebook 07, without those that only records of runs give."""
    text = (ROOT / "notebooks" / "07_figures.ipynb").read_text()
    return {n for n in re.findall(r"fig\d\d_[a-z_]+", text) if not n.endswith(RECORDED)}


def test_figures_are_those_of_the_notebook_with_their_data():
    there = {p.name for p in (ROOT / "figures").glob("fig*") if not p.stem.endswith(RECORDED)}
    assert there == {f"{n}.{kind}" for n in figure_names() for kind in ("csv", "pdf", "png")}
    assert len({name[:5] for name in figure_names()}) == len(figure_names()), "a number for each"


def test_unknown_profile_is_refused():
    done = subprocess.run(
        ["make", "reproduce", "PROFILE=nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "PROFILE must be one of smoke, default, study, retrain, paper" in done.stderr


def test_bench_gives_its_notebook_parameters_that_it_has():
    command = subprocess.run(
        ["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", "")
    words = next(w for w in map(shlex.split, command.splitlines()) if "-y" in w)
    given = yaml.safe_load(words[words.index("-y") + 1])
    cells = nbformat.read(ROOT / "notebooks" / "A1_benchmarks.ipynb", as_version=4).cells
    (own,) = (c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    assert given
    assert all(re.search(rf"\b{name}\b.* = ", own) for name in given)


PRODUCTS = [
    "01_data.ipynb results/01_data.json results/01_data.npz",
    "02_training_msds1_laplace.ipynb models/msds1_laplace.safetensors "
    "results/02_training_msds1_laplace.json",
    "02_training_msds1_gaussian.ipynb models/msds1_gaussian.safetensors "
    "results/02_training_msds1_gaussian.json",
    "03_bpd_evaluation.ipynb results/03_bpd_evaluation.json",
    "04_sparsity.ipynb results/04_sparsity.json results/04_sparsity.npz",
    "05_receptive_fields.ipynb results/05_receptive_fields.json results/05_receptive_fields.npz",
    "06_latent_space.ipynb results/06_latent_space.json results/06_latent_space.npz",
    "07_figures.ipynb results.json",
]


def test_make_remakes_what_is_missing_and_nothing_else(tmp_path):
    # The copy of the Makefile has no records beside it.
    kinds = ("csv", "png", "pdf")
    figures = [f"figures/{name}.{kind}" for name in sorted(figure_names()) for kind in kinds]
    products = [line.split() for line in PRODUCTS]
    products[-1] += figures
    shutil.copy(ROOT / "Makefile", tmp_path)
    sources = [".venv/installed", "requirements.lock", "pyproject.toml"]
    sources += [
        str(p.relative_to(ROOT))
        for p in [
            *NOTEBOOKS,
            *(ROOT / "rgflow_core").glob("*.py"),
            *(ROOT / "notebooks" / "study").glob("*.py"),
        ]
    ]
    age = itertools.count(1)
    for name in ["requirements.lock", "pyproject.toml", *sources]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name) if "07" in name else (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0) if "venv" not in name else (1, 1))
    for group in [*products, ["report.html"]]:
        stamp = next(age) + 10
        for name in group:
            path = tmp_path / "runs" / "smoke" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (stamp, stamp))

    def remade():
        done = subprocess.run(
            ["make", "-n", "reproduce", "PROFILE=smoke"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "CONDA"))},
        )  # fmt: skip
        return set(re.findall(r"-> runs/smoke/(\S+)\.ipynb", done.stdout))

    assert remade() == set()
    for group in products:
        for name in group[:4]:
            path = tmp_path / "runs" / "smoke" / name
            stamp = path.stat().st_mtime
            path.unlink()
            assert group[0].removesuffix(".ipynb") in remade(), name
            path.touch()
            os.utime(path, (stamp, stamp))
    assert remade() == set()
    (tmp_path / "runs" / "smoke" / "results" / "04_sparsity.npz").unlink()
    assert remade() == {"04_sparsity", "07_figures"}
