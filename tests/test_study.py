"""The notebooks' form and what they say, the runner, and what make runs again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from support import ROOT, files_below

from rgflow_core.errors import UserError
from study import results, run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = yaml.safe_load((ROOT / run.PROFILES).read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        assert cell.execution_count, "run `make notebooks`"
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
        assert ignored == ("# NBVAL_IGNORE_OUTPUT:" in cell.source), "an ignored cell says why"
        assert "split_name" not in cell.source, "a model's data set is its file's, not its name's"
        assert path.stem[:2] == "07" or "figures" not in re.findall(r"import (.*)", cell.source)


QUOTED = re.compile(r"([−+-]?[\d,]*\.?\d+)( ?%)?<!-- (\w+)((?: \w+=.*?)?) -->")


def wrong(text: str, table) -> list[str]:
    """The numbers in a text that are not, to the digits given, those that their comments name."""
    bad = []
    for written, percent, quantity, where in QUOTED.findall(text):
        pairs = (pair.split("=", 1) for pair in re.split(r" (?=\w+=)", where.strip()) if pair)
        query = {key: int(of) if key == "level" else of for key, of in pairs}
        value = results.number(table, quantity, **query) * (100 if percent else 1)
        quoted = float(written.replace("−", "-").replace(",", ""))
        if abs(value - quoted) > 0.5001 * 10 ** -len(written.partition(".")[2]):
            bad.append(f"{written}{percent} is {value}: {quantity}{where}")
    return bad


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_numbers_in_text_are_those_of_the_results(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert text.count("<!-- ") == len(QUOTED.findall(text)), "a comment names a number before it"
    assert wrong(text, results.read(ROOT / "figures")) == []


def test_a_number_that_moved_is_found(tmp_path):
    rows = [
        results.row("share", 0.5953, "msds1"),
        results.row("gap", -0.0188, level=3, factor="a less b"),
    ]
    table = results.write(tmp_path, "x", rows)
    good = "59.5 %<!-- share model=msds1 -->, −0.019<!-- gap level=3 factor=a less b -->"
    assert wrong(good, table) == []
    assert len(wrong(good.replace("9.5", "9.6").replace("19", "18"), table)) == 2


def test_profiles_have_parameters_that_the_notebooks_have():
    for profile, notebooks in PROFILES.items():
        for name in notebooks.keys() - {"weights"}:  # of others than the notebook's it complains
            assert "out" in run.parameters(name, profile), name


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A repository with one notebook, which fails as its parameters say."""
    for folder in ("notebooks", "rgflow_core"):
        (tmp_path / folder).mkdir()
    source = (
        "from rgflow_core.errors import UserError\n"
        "print('half\\rwhole', out, prior, end='', flush=True)\n"
        "if problem:\n    raise (UserError if problem == 'input' else KeyError)(problem)"
    )
    given = "out = ''\nprior = ''\nproblem = ''"
    cells = [nbformat.v4.new_code_cell(text) for text in (given, source)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "notebooks" / "n.ipynb")
    profiles = {name: {"n": {"problem": name}} for name in ("input", "bug")}
    profiles |= {"fine": {}, "typo": {"n": {"prblem": 1}}}
    (tmp_path / run.PROFILES).write_text(yaml.safe_dump(profiles))
    monkeypatch.chdir(tmp_path)


def test_a_notebook_is_run(study, capfd):
    """The executed copy appears when it is done; else it is said what failed and where it is."""
    assert run.run("n", "fine", "msds1_laplace") == Path("runs/fine/n_msds1_laplace.ipynb")
    assert "n_msds1_laplace: whole runs/fine laplace\n" in capfd.readouterr().out
    assert files_below(Path("runs/fine")) == ["n_msds1_laplace.ipynb"]
    for problem in ("input", "bug"):
        says = rf"n failed: .*{problem}.*; as far as it came it is in"
        with pytest.raises(UserError, match=says):
            run.run("n", problem)
        assert ("KeyError" in capfd.readouterr().out) == (problem == "bug"), "with its traceback"
        (partial,) = Path("runs", problem).iterdir()
        assert json.loads(partial.read_text())["cells"]
    for profile, says in (("typo", "no parameters prblem"), ("x", "profile must be one of")):
        with pytest.raises(UserError, match=says):
            run.run("n", profile)


NAMES = ["01_data", "02_training_msds1_gaussian", "02_training_msds1_laplace"]
NAMES += ["03_bpd_evaluation", "04_sparsity", "05_receptive_fields", "06_latent_space"]
MAKEFILE = (ROOT / "Makefile").read_text()
FIGURES = set(re.findall(r"fig\d\d_\w+", MAKEFILE))
OF_PICTURES = tuple(re.findall(r"%(_\w+)", MAKEFILE))
DRAWN = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf", "csv")}
DRAWN |= {f"{name}.npz" for name in FIGURES if name.endswith(OF_PICTURES)}
PRODUCTS = [(name, f"results/{name}.{kind}") for name in NAMES for kind in ("csv", "json", "npz")]
PRODUCTS += [(name, f"models/{name[12:]}.safetensors") for name in NAMES[1:3]]
PRODUCTS += [("07_figures", f"figures/{name}") for name in DRAWN]


@pytest.fixture
def built(tmp_path):
    """A copy of what make looks at, after `make reproduce PROFILE=smoke` with stand-in products."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "lib" / "python{}.{}".format(*sys.version_info)).mkdir(parents=True)
    patterns = ("requirements.lock", "pyproject.toml", "data/*.json", "rgflow_core/*.py")
    patterns += ("notebooks/*.ipynb", "notebooks/study/**/*.*")
    paths = [path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)]
    ends = [file for _, file in PRODUCTS] + [f"{name}.ipynb" for name in [*NAMES, "07_figures"]]
    paths += [".venv/installed", *(f"runs/smoke/{file}" for file in [*ends, "report.html"])]
    for age, name in enumerate(paths):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    return tmp_path


def make(folder, *arguments):
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, encoding="utf-8",
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "CONDA"))},
    )  # fmt: skip


def remade(folder):
    """What `make reproduce` would run."""
    done = make(folder, "-n", "reproduce", "PROFILE=smoke")
    assert done.returncode == 0, done.stderr
    runs = re.findall(r"study\.run (\w+) --profile smoke(?: --model (\w+))?", done.stdout)
    return {"_".join(filter(None, names)) for names in runs} | set(
        re.findall("study.page", done.stdout)
    )


def test_make_remakes_what_is_missing_and_nothing_else(built):
    assert remade(built) == set(), "a second make does nothing"
    kinds = {(name[:2], Path(file).suffix): (name, file) for name, file in sorted(PRODUCTS)[::-1]}
    for name, file in kinds.values():
        path = built / "runs" / "smoke" / file
        path.rename(built / "aside")
        assert {name, "07_figures", "study.page"} <= remade(built), file
        (built / "aside").rename(path)
    (built / "runs" / "smoke" / "04_sparsity.ipynb").unlink()
    assert remade(built) == {"04_sparsity", "07_figures", "study.page"}, "and goes on from there"


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("notebooks/study/figures.py", {"07_figures", "study.page"}),
        ("notebooks/study/report.py", {"07_figures", "study.page"}),
        ("notebooks/study/templates/report.md", {"07_figures", "study.page"}),
        ("notebooks/study/templates/page/page.css", {"study.page"}),
        ("notebooks/study/page.py", {"study.page"}),
        ("data/ledger.json", {"07_figures", "study.page"}),
        ("notebooks/study/run.py", set()),
        ("notebooks/04_sparsity.ipynb", {"04_sparsity", "07_figures", "study.page"}),
    ],
)
def test_a_change_of_style_reruns_no_analysis(built, changed, again):
    (built / changed).touch()
    assert remade(built) == again


PYTHON3 = """#!/bin/sh
case "$2" in
*print*) echo $STUB ;;
*exit*) test $STUB != 3.10 ;;
venv) mkdir -p .venv/bin .venv/lib/python$STUB && ln -sf /bin/true .venv/bin/python ;;
esac
"""


def test_make_says_that_a_python_is_too_old_and_takes_a_newer_one_later(tmp_path, monkeypatch):
    """Whatever an older one has left in .venv."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(PYTHON3)
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / ".venv" / "lib" / "python3.10").mkdir(parents=True)
    monkeypatch.setenv("STUB", "3.10")
    done = make(tmp_path, "setup")
    assert done.returncode != 0
    assert "error: python3 is 3.10 here; wanted is 3.11 or later" in done.stderr
    for version in ("3.11", "3.12"):
        monkeypatch.setenv("STUB", version)
        assert make(tmp_path, "setup").returncode == 0
        assert (tmp_path / ".venv" / "lib" / f"python{version}").exists()
        assert "venv" not in make(tmp_path, "setup").stdout, "once"


def test_figures_of_make_are_the_committed_ones_with_their_data():
    assert len(FIGURES) <= 12
    assert {path.name for path in (ROOT / "figures").glob("fig*")} == DRAWN


def test_make_needs_no_newer_make_and_no_gnu_tools():
    assert not re.search(r"&:|\.ONESHELL|\$\(eval|\$\(file|sed -u|!=|nproc|readlink -f", MAKEFILE)
