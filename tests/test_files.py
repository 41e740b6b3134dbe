"""Names that are taken, where a number came from, and text that no locale changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, contents, files_below

from rgflow_core import files


def test_a_new_folder_is_the_next_that_is_free(tmp_path):
    with files.new_folder(tmp_path / "a" / "run") as first:
        (first / "x").touch()
        with files.new_folder(tmp_path / "a" / "run") as second:
            (second / "x").touch()
    with files.new_folder(tmp_path / "a" / "run") as third:
        assert third.is_dir()
    with files.new_folder(tmp_path / "b" / "run"):
        pass
    assert files_below(tmp_path) == ["a", "a/run", "a/run/x", "a/run_2", "a/run_2/x"]


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


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    """Its content is on the disk before its name; after an error the old one is there, alone."""
    done, path = [], tmp_path / "x.json"
    for owner, name in ((os, "fsync"), (Path, "replace")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, n=name, f=original: done.append(n) or f(*a))
    files.write_json(path, {"a": 1})
    assert done == ["fsync", "replace"]
    before = contents(tmp_path)

    def write():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot be written: No space.*x\.json"):
        write()
    assert contents(tmp_path) == before


SAYS = {
    "ignored": "no repository tracks this package",
    "owner": "git says: detected dubious ownership in repository",
    "no repository": "git says: not a git repository",
    "no git": "git cannot be run",
}


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize("case", [*SAYS, "tracked"])
def test_no_commit_of_another_repository(case, tmp_path, monkeypatch):
    """The package as if it lay in the ignored ``venv/`` of somebody's repository."""
    here = tmp_path / "venv" / "rgflow_core" / "files.py"
    here.parent.mkdir(parents=True)
    shutil.copy(files.__file__, here)
    monkeypatch.setattr(files, "__file__", str(here))
    (tmp_path / ".gitignore").write_text("venv\n")
    added = [".gitignore", str(here)] if case == "tracked" else [".gitignore"]
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-f", *added], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)
    if case == "owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif case == "no repository":
        shutil.rmtree(tmp_path / ".git")
    elif case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    facts = files.provenance()
    if case == "tracked":
        assert (len(facts["commit"]), facts["uncommitted_changes"]) == (40, False)
    else:
        assert facts["commit"].startswith(f"unknown, because {SAYS[case]}")
        assert str(tmp_path) not in facts["commit"]
        assert facts["uncommitted_changes"] is None


PROGRAM = """
import locale
from pathlib import Path
import nbformat
from rgflow_core import cli, files, train
from study import page, report, results, run

def main():
    assert locale.getpreferredencoding() == "ANSI_X3.4-1968"
    files.write_json("x.json", {"a": "−é"})
    assert files.read_json("x.json") == {"a": "−é"}
    with train.logging_to(Path(".")):
        train.log.info("−é")
    results.write_csv("x.csv", [{"a": "−é"}])
    report.write("cards.md", "cards", records={})
    report.update_readme("claims", Path("."))
    run.parameters("01_data", "smoke")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("−é ≥ $x$")])
    nbformat.write(book, "x.ipynb")
    page.write_html("x.ipynb", "x.html")
    print("−é")

cli.run(main)
"""


def test_text_is_utf8_in_every_locale(tmp_path):
    for folder in ("notebooks", "rgflow_core", "data", "figures"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.npy"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True,
        env=os.environ | plain | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'notebooks'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    for file in ("x.csv", "x.html", next((tmp_path / "logs").iterdir())):
        assert "−é" in (tmp_path / file).read_text("utf-8")
    assert b"\\u2212" in done.stdout


def test_no_program_is_read_in_the_locales_encoding():
    """Ruff looks at files (PLW1514)."""
    paths = [*(ROOT / "rgflow_core").rglob("*.py"), *(ROOT / "notebooks").rglob("*.*")]
    sources = [path for path in paths if path.suffix in (".py", ".ipynb")]
    assert not [path for path in sources if "text=True" in path.read_text("utf-8")]
