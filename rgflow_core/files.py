"""Files written whole, and where a number came from."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from rgflow_core.errors import UserError


def make_folder(path: str | Path) -> Path:
    """Create a folder, parents included; :class:`UserError` if something is in its place."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder: {error.strerror}") from None
    return path


def check_writable(folder: str | Path) -> None:
    """Raise :class:`UserError` before any work if a folder could not be made or written to."""
    for here in (Path(folder), *Path(folder).resolve().parents):
        if here.exists():
            if not here.is_dir():
                raise UserError(f"{here}: is a file, not a folder; choose another place")
            if not os.access(here, os.W_OK):
                raise UserError(f"{here}: cannot be written to; choose another place")
            return


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it when done.

    After an error the temporary file is removed and an earlier ``path`` is untouched.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    # mkstemp makes private files; a finished one gets the usual permissions.
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: object) -> None:
    """Write JSON, whole, indented; NaN and infinity are refused."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read JSON; :class:`UserError` if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(**more: object) -> dict:
    """Commit, versions, hardware and date, plus what the caller adds (command, seed, ...)."""
    packages = ("torch", "numpy", "matplotlib")
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit or "not a git checkout",
        "uncommitted_changes": bool(_git("status", "--porcelain", "-uno")) if commit else None,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # The Makefile says what was typed; a notebook's kernel cannot know.
        "command": os.environ.get("RGFLOW_COMMAND")
        or ("jupyter" if "ipykernel" in sys.modules else " ".join(sys.argv)),
        **more,
    }
