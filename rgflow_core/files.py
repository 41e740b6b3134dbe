"""Files written whole, by one process at a time, and where a number came from."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from rgflow_core.errors import UserError, explain


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
    here = next(f for f in (Path(folder), *Path(folder).resolve().parents) if f.exists())
    if not here.is_dir():
        raise UserError(f"{here}: is a file, not a folder; choose another place")
    if not os.access(here, os.W_OK):
        raise UserError(f"{here}: cannot be written to; choose another place")


def _acquire(lock: FileLock, timeout: float = -1) -> bool:
    """Take a lock; false where the file system has none, as some of clusters.

    Raises:
        Timeout: if another process has it.
    """
    try:
        lock.acquire(timeout)
    except OSError as error:  # Timeout is one too
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return True


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder of that name, or of the next that is free: ``_2``, ``_3`` and so on.

    It is removed again if nothing is put there.
    """
    path = folder = Path(path)
    check_writable(path)
    new = _missing(path.parent)
    for number in count(2):
        make_folder(path.parent)
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = path.with_name(f"{path.name}_{number}")
        except FileNotFoundError:  # another run came to nothing and removed the parent: once more
            pass
    try:
        yield folder
    finally:
        _remove_empty(folder, *new)


def _missing(folder: Path) -> list[Path]:
    """What of a folder and its parents does not exist, the innermost first."""
    return [f for f in (folder, *folder.parents) if not f.exists()]


def _remove_empty(*folders: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it when done.

    After an error the temporary file is removed and an earlier ``path`` is untouched. What a
    killed process left behind is removed by the next that writes the same file.

    Raises:
        UserError: if ``path`` is a folder, or in a folder that cannot be made.
        OSError: names ``path``, as when the disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file; choose another name")
    prefix = f".{path.stem}.partial-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError), FileLock(left, timeout=0, fallback_to_soft=False):
            left.unlink()  # not while its writer lives, who has the lock
    temporary = path.with_name(prefix + secrets.token_hex(4) + path.suffix)
    lock = FileLock(temporary, fallback_to_soft=False)
    try:
        _acquire(lock)
        yield temporary
        # The name must not be on the disk before the content is.
        with temporary.open("rb") as file:
            os.fsync(file)
        temporary.replace(path)
    except OSError as error:  # a full disk does not say where
        if error.filename not in (None, temporary, str(temporary)):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot be written: {reason}", str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder; a killed one counts no more.

    The folder is made if need be, and removed again if nothing is put there. To ``wait`` for
    another process is said.

    Raises:
        UserError: if another process works there, and ``wait`` is false.
    """
    folder, timeout = Path(folder), 0
    new = _missing(folder)
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    while True:
        make_folder(folder)
        try:
            if not _acquire(lock, timeout):
                print(f"{folder}: cannot be locked; start no other process there", file=sys.stderr)
            break
        except FileNotFoundError:  # the one before has just removed the folder: once more
            pass
        except Timeout:
            if not wait:
                raise UserError(
                    f"{folder}: another process is at work there; wait for it, or choose another "
                    "folder"
                ) from None
            print(f"{folder}: waiting for another process at work there", file=sys.stderr)
            timeout = -1
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        _remove_empty(*new)  # if it came to nothing


@contextmanager
def refusing_damage(path: str | Path, what: str = "a readable checkpoint") -> Iterator[None]:
    """Turn the errors of a file that is damaged, or not ``what`` it should be, into a UserError."""
    try:
        yield
    except Exception as error:  # bytes that are anything raise anything
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        foreign = isinstance(error, ValidationError)
        reason = explain(error) if foreign else str(error).partition("\n")[0]
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        reason = lacks + (reason or type(error).__name__)
        raise UserError(f"{path}: damaged or not {what}: {reason}") from error


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: str | Path, content: dict) -> None:
    """Write JSON, whole, indented, with its SHA-256; NaN and infinity are refused."""
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
    with replacing(path) as temporary:
        text = json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"
        temporary.write_text(text, "utf-8")


def read_json(path: str | Path, by_hand: bool = True) -> dict:
    """Read JSON; :class:`UserError` if it is missing or damaged.

    A file of :func:`write_json` is compared with its SHA-256; only one that may be written
    ``by_hand`` needs none.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    stated = content.pop("sha256", None)
    if stated != _digest(content) and not (by_hand and stated is None):
        raise UserError(f"{path}: damaged or changed by hand (SHA-256 differs); make it again")
    return content


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit() -> tuple[str, bool | None]:
    """The commit of the repository that tracks this very file, and whether that has changes.

    Another repository around it, as of a project with this package in its ``venv/``, has none.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", here.parent, *arguments]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except OSError:
        reason = "git cannot be run"
    except subprocess.CalledProcessError as error:
        # 1: not tracked. Else git's own words, without the folder that it names.
        said = error.stderr.partition("\n")[0].removeprefix("fatal: ").partition(" at ")[0]
        reason = (
            f"git says: {said}" if error.returncode != 1 else "no repository tracks this package"
        )
    return f"unknown, because {reason}", None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(**more: object) -> dict:
    """Commit, versions, hardware and date, plus what the caller adds (command, seed, ...)."""
    commit, changed = _commit()
    versions = {package: version(package) for package in ("torch", "numpy")}
    # Without the folder that the program happens to lie in.
    typed = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "commit": commit,
        "uncommitted_changes": changed,
        "versions": {"python": platform.python_version()} | versions,
        "hardware": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # The Makefile says what was typed; a notebook's kernel cannot know.
        "command": os.environ.get("RGFLOW_COMMAND")
        or ("jupyter" if "ipykernel" in sys.modules else typed),
        **more,
    }
