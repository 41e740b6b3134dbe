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
    with pytest.raises(FileNotFoundError, match="'none'"), files.replacing(path) as temporary:
        shutil.copyfile("none", temporary)  # another file's error stays its own
    assert contents(tmp_path) == before


SAYS = {
    "ignored": "no repository tracks this package",
    "owner": "git says: detected dubious ownership in repository",
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
    elif case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    facts = files.provenance()
    if case == "tracked":
        assert (len(facts["commit"]), facts["uncommitted_changes"]) == (40, False)
    else:
        assert facts["commit"].startswith(f"unknown, because {SAYS[case]}")
        assert str(tmp_path) not in facts["commit"]
        assert facts["uncommitted_changes"] is None


def test_what_a_locale_cannot_write_is_escaped():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    code = "from rgflow_core import cli; cli.run(lambda: print('\\u2212'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | plain, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\u2212\n")


def test_no_program_is_read_in_the_locales_encoding():
    """Ruff looks at files (PLW1514)."""
    paths = [*(ROOT / "rgflow_core").rglob("*.py"), *(ROOT / "notebooks").rglob("*.*")]
    sources = [path for path in paths if path.suffix in (".py", ".ipynb")]
    assert not [path for path in sources if "text=True" in path.read_text("utf-8")]
