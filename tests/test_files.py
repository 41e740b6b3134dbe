"""Names that are taken, where a number came from, and text that no locale changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rgflow_core import files

ROOT = Path(__file__).parents[1]
TRACKED = shutil.which("git") and (ROOT / ".git").exists()


def test_a_new_folder_is_the_next_that_is_free(tmp_path):
    with files.new_folder(tmp_path / "a" / "run") as first:
        (first / "x").touch()
        with files.new_folder(tmp_path / "a" / "run") as second:
            (second / "x").touch()
    assert (first.name, second.name) == ("run", "run_2")
    with files.new_folder(tmp_path / "a" / "run") as third:
        assert third.is_dir()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["run", "run_2"]
    with files.new_folder(tmp_path / "b" / "run"):
        pass
    assert not (tmp_path / "b").exists()


def test_a_new_folder_outlives_the_removal_of_its_parent(tmp_path, monkeypatch):
    """By another run that came to nothing at the same moment."""
    make, removed = files.make_folder, []

    def removing(path):
        make(path)
        if not removed:
            removed.append(path)
            path.rmdir()

    monkeypatch.setattr(files, "make_folder", removing)
    with files.new_folder(tmp_path / "runs" / "x") as folder:
        assert (folder.name, folder.is_dir()) == ("x", True)


# Provenance


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as if it lay in the ignored ``venv/`` of somebody's repository."""
    here = tmp_path / "venv" / "rgflow_core" / "files.py"
    here.parent.mkdir(parents=True)
    shutil.copy(files.__file__, here)
    (tmp_path / ".gitignore").write_text("venv\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "x")
    git(tmp_path, "config", "user.email", "x")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-qm", "x")
    monkeypatch.setattr(files, "__file__", str(here))
    return here


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_the_commit_of_our_own_repository():
    facts = files.provenance()
    assert len(facts["commit"]) == 40
    assert isinstance(facts["uncommitted_changes"], bool)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize("case", ["ignored", "tracked", "owner", "no repository", "no git"])
def test_no_commit_of_another_repository(case, installed, tmp_path, monkeypatch):
    if case == "tracked":
        git(tmp_path, "add", "-f", installed)
        git(tmp_path, "commit", "-qm", "x")
    elif case == "owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif case == "no repository":
        shutil.rmtree(tmp_path / ".git")
    elif case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    facts = files.provenance()
    says = {
        "ignored": "no repository tracks this package",
        "owner": "git says: detected dubious ownership in repository",
        "no repository": "git says: not a git repository",
        "no git": "git cannot be run",
    }
    if case == "tracked":
        assert (len(facts["commit"]), facts["uncommitted_changes"]) == (40, False)
    else:
        assert facts["commit"].startswith(f"unknown, because {says[case]}")
        assert str(tmp_path) not in facts["commit"]
        assert facts["uncommitted_changes"] is None


# Text


PROGRAM = """
import locale
from pathlib import Path
import nbformat
from rgflow_core import cli, files, train
from study import page, report, results, run

def main():
    assert locale.getpreferredencoding() in ("ANSI_X3.4-1968", "ISO-8859-1")
    files.write_json("x.json", {"a": "−é"})
    assert files.read_json("x.json") == {"a": "−é"}
    with train.logging_to(Path(".")):
        train.log.info("−é")
    results.write_csv("x.csv", [{"a": "−é"}])
    report.write("cards.md", "cards", records={})
    report.update_readme("results", Path("."))
    run.parameters("01_data", "smoke", None, {"sets", "out", "weights"} | NAMES)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("−é ≥ $x$")])
    nbformat.write(book, "x.ipynb")
    page.write_html("x.ipynb", "x.html")
    print("−é")

NAMES = run.accepted(Path("notebooks/01_data.ipynb"))
cli.run(main)
"""


@pytest.mark.parametrize("name", ["C", "latin"])
def test_text_is_utf8_in_every_locale(name, tmp_path):
    if name == "latin":
        make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / name)]
        if not shutil.which(make[0]) or subprocess.run(make, capture_output=True).returncode:
            pytest.skip("the locale cannot be made here")
    for folder in ("notebooks", "rgflow_core", "data", "figures"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.npy"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    before = (tmp_path / "README.md").read_bytes()
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True,
        env=os.environ | {
            "LC_ALL": name, "LOCPATH": str(tmp_path), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "notebooks")]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "README.md").read_bytes() == before
    for file in ("x.csv", "x.html", "cards.md", next((tmp_path / "logs").iterdir())):
        text = (tmp_path / file).read_text("utf-8")
        assert file == "cards.md" or "−é" in text
    assert b"\\u2212" in done.stdout


def test_every_text_file_states_its_encoding():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--preview", "--isolated", "--select", "PLW1514",
         "rgflow_core", "notebooks"], cwd=ROOT, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    calls = [
        f"{path}: {line.strip()}"
        for folder in ("rgflow_core", "notebooks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".ipynb")
        for line in path.read_text("utf-8").splitlines()
        if "read_text()" in line or "text=True" in line
    ]
    assert not calls
