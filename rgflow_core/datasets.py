"""Data sets as arrays of bytes: drawn or decoded once, cached, verified whenever loaded.

To add a set of your own, write a :class:`Source` (what it needs on disk, and a function that
gives one split as uint8 (N, L, L, C)) and put it into ``SOURCES``: the command line, caching and
verification follow.
"""

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import files, msds, pictures
from rgflow_core.errors import UserError, check_counts, explain

SPLITS = ("train", "val", "test")
SIZE = msds.SIZE
MEMORY = 8 * 2**30
"""Bytes that the decoded pictures of one split may take."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class DataSet:
    """One split in memory.

    Attributes:
        images: uint8 (N, C, L, L).
        labels: float64 (N, 4, 4, 6) for MSDS, uint8 (N,) for both MNISTs, else ``None``.
        fingerprint: SHA-256 of the images' bytes.
    """

    images: Tensor
    labels: np.ndarray | None
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """How a data set is made.

    Attributes:
        make: (split, root, size L, workers, progress) -> {"images": uint8 (N, L, L, C), ...}.
        parameters: (root) -> what the bytes depend on; a cache with others is made again.
        cache: folder of the cache below root; "": among the user's caches, as root is the user's.
        channels: colours of a pixel.
        flip: whether a mirrored picture is as likely as the picture itself.
        any_size: whether L can be other than 32.
    """

    make: Callable[[str, Path, int, int, bool], Arrays]
    parameters: Callable[[Path], dict]
    cache: str
    channels: int = 3
    flip: bool = True
    any_size: bool = False


def _on_threads(make: Callable, items: list, workers: int, what: str, progress: bool) -> list:
    """What ``make`` gives for each item, in order, with a progress bar that says ``what``."""
    with ExitStack() as stack:
        each = stack.enter_context(ThreadPoolExecutor(workers)).map if workers else map
        return list(tqdm(each(make, items), what, len(items), leave=False, disable=not progress))


def _msds(name: str) -> Source:
    def make(split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
        labels = msds.labels(name, split, 0, msds.SPLITS[split])
        parts = [labels[start : start + 1000] for start in range(0, len(labels), 1000)]
        images = _on_threads(msds.render, parts, workers, f"drawing {name} {split}", progress)
        return {"images": np.concatenate(images), "labels": labels}

    def parameters(root: Path) -> dict:
        return {"version": msds.VERSION, "seed": 0, "splits": msds.SPLITS}

    # A mirrored ellipse sits elsewhere in its tile: another distribution.
    return Source(make, parameters, cache=name, flip=False)


def _decode(
    paths: list[Path],
    size: int,
    crop: int | None,
    resample: str,
    workers: int,
    progress: bool,
    background: tuple[int, int, int] = pictures.WHITE,
) -> Arrays:
    """Decode pictures, see :func:`rgflow_core.pictures.read`.

    Raises:
        UserError: if they would take too much memory; names the pictures that cannot be used,
            when all have been looked at.
    """
    most = MEMORY // (3 * size**2)
    if len(paths) > most:
        edge = next(e for k in count(1) if len(paths) * 3 * (e := size >> k) ** 2 <= MEMORY)
        raise UserError(
            f"{len(paths)} pictures of {size} x {size} in one split take more than the "
            f"{MEMORY / 2**30:.3g} GiB allowed; {most} would fit, or all with --image-size {edge}"
        )
    images, facts, bad = np.empty((len(paths), size, size, 3), np.uint8), [], []

    def one(number: int) -> None:
        try:
            images[number], *fact = pictures.read(paths[number], crop, resample, background, size)
            facts.append(fact)
        except Exception as error:  # bytes that are anything raise anything
            reason = str(error) or type(error).__name__
            bad.append(f"{paths[number]}: cannot be read as a picture: {reason}")

    _on_threads(one, range(len(paths)), workers, "decoding", progress)
    if bad:
        named = sorted(bad)[:20] + ([f"and {len(bad) - 20} more"] if len(bad) > 20 else [])
        raise UserError(
            f"{len(bad)} of {len(paths)} pictures cannot be used; take them out or replace them: "
            + "; ".join(named)
        )
    pictures.check_range([largest for _, largest in facts if largest is not None])
    if small := sum(edge < size for edge, _ in facts):
        line = f"smaller than {size} x {size}, enlarged: {small} of {len(paths)} pictures"
        print(line, file=sys.stderr)
    return {"images": images}


CELEBA_CROPS = {"authors": "bilinear", "igf23": "bicubic"}
"""Both crop the central 148 x 148 and resize to 32 x 32; they differ in the interpolation."""


def _celeba(system: str) -> Source:
    def make(split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
        folder = root / "celeba"
        partition, pictures = folder / "list_eval_partition.txt", folder / "img_align_celeba"
        if not partition.is_file() or not pictures.is_dir():
            raise UserError(
                f"CelebA is not here: put list_eval_partition.txt at {partition} and the pictures "
                f"000001.jpg ... 202599.jpg (from img_align_celeba.zip) into {pictures}"
            )
        wanted = {"train": "0", "val": "1", "test": "2"}[split]
        lines = partition.read_text("utf-8", "replace").splitlines()
        rows = [row for line in lines if (row := line.split())]
        if bad := [row for row in rows if len(row) != 2]:
            raise UserError(f"{partition}: damaged CelebA partition: {' '.join(bad[0])!r}")
        paths = [pictures / name for name, number in rows if number == wanted]
        missing = [path for path in paths if not path.is_file()]
        if missing or not paths:
            raise UserError(
                f"CelebA {split} is incomplete: {len(missing)} of {len(paths)} pictures are "
                f"missing from {pictures}" + (f", first {missing[0].name}" if missing else "")
            )
        return _decode(paths, size, 148, CELEBA_CROPS[system], workers, progress)

    parameters = {"crop": 148, "resize": CELEBA_CROPS[system]}
    return Source(make, lambda root: parameters, "celeba32_" + system)


# Validation is the end of the training set.
HOLDOUT = 5000
_PARTS = {"train": slice(0, -HOLDOUT), "val": slice(-HOLDOUT, None), "test": slice(None)}


def _cifar10(split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
    from torchvision import datasets

    try:
        whole = datasets.CIFAR10(str(root), train=split != "test", download=False)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        # torchvision's advice to download is none here.
        reason = "not found or corrupted" if "download" in str(error) else error
        where = f"put torchvision's files at {root / 'cifar-10-batches-py'}"
        raise UserError(f"CIFAR10 is not here, or damaged: {where} ({reason})") from None
    return {"images": whole.data[_PARTS[split]]}


DEBIAN = Path("/usr/share/datasets")  # of its packages dataset-...


def _mnist(name: str, package: str = "") -> Source:
    """MNIST, or a set like it, from torchvision's files or Debian's; padded to 32 x 32."""

    def make(split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
        raw, arrays = root / name / "raw", {}
        places = [raw, DEBIAN / package] if package else [raw]
        for what, dims in (("images", 3), ("labels", 1)):
            file = f"{'t10k' if split == 'test' else 'train'}-{what}-idx{dims}-ubyte"
            paths = [folder / (file + packed) for folder in places for packed in ("", ".gz")]
            if (path := next(filter(Path.is_file, paths), None)) is None:
                hint = f", or install Debian's dataset-{package}" if package else ""
                raise UserError(f"{name} is not here: put {file} or {file}.gz into {raw}{hint}")
            with files.refusing_damage(path, "an IDX file"):
                data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
                shape = np.frombuffer(data, ">i4", dims, 4)
                array = np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
                arrays[what] = array.copy()  # that of a file's bytes cannot be written to
                if len({len(a) for a in arrays.values()}) > 1:
                    raise ValueError("as many labels as pictures belong in it")
        arrays["images"] = np.pad(arrays["images"], ((0, 0), (2, 2), (2, 2)))[..., None]
        return {what: array[_PARTS[split]] for what, array in arrays.items()}

    # A boot's toe points to the left, and a mirrored figure is another one.
    facts = {"holdout": HOLDOUT, "labels": True}
    return Source(make, lambda root: facts, name.lower(), channels=1, flip=False)


def folder(background: tuple[int, int, int] = pictures.WHITE) -> Source:
    """A folder of one's own pictures, see :mod:`rgflow_core.pictures`.

    Args:
        background: red, green and blue behind what is transparent.
    """

    def make(split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
        paths, left_out = pictures.splits(root)
        if not paths[split]:
            names = ", ".join(SPLITS)
            raise UserError(
                f"{root}: no pictures for split {split!r}; put at least 10 PNG or JPEG files there, or some into each "
                f"of {names}" + (f" ({left_out})" if left_out else "")
            )
        if left_out:
            print(left_out, file=sys.stderr)
        return _decode(paths[split], size, None, "bicubic", workers, progress, background)

    def parameters(root: Path) -> dict:
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; give that of your pictures with --data-root (data_root=)"
            )
        digest = hashlib.sha256()
        for split, paths in pictures.splits(root)[0].items():
            for path in paths:
                status = path.stat() if path.exists() else path.lstat()
                facts = f"{split} {path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(os.fsencode(facts))
        return {"files": digest.hexdigest(), "background": background}

    return Source(make, parameters, cache="", any_size=True)


SOURCES: dict[str, Source] = {
    "msds1": _msds("msds1"),
    "msds2": _msds("msds2"),
    "celeba": _celeba("igf23"),
    "celeba_authors": _celeba("authors"),
    "cifar10": Source(_cifar10, lambda root: {"holdout": HOLDOUT}, "cifar10"),
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST", "fashion-mnist"),
    "folder": folder(),
}


def _cached(folder: Path, split: str, parameters: dict, say: bool = True) -> Arrays | None:
    """The verified arrays of a split; ``None`` if they are not there, or damaged, which is said."""
    manifest, arrays = folder / f"{split}.json", {}
    if not manifest.exists():
        return None
    try:
        with files.refusing_damage(manifest, "the manifest of a data set"):
            content = files.read_json(manifest)
            if content["parameters"] != json.loads(json.dumps(parameters)):
                raise UserError(f"{manifest}: made of other data or parameters")
            for name, digest in content["arrays"].items():
                path = folder / f"{split}_{name}.npy"
                if files.sha256(path) != digest:
                    raise UserError(f"{path}: damaged (SHA-256 differs)")
                arrays[name] = np.load(path, mmap_mode="c")
    except UserError as error:
        if say:
            print(f"{error}: made again", file=sys.stderr)
        return None
    return arrays


def _store(folder: Path, split: str, parameters: dict, arrays: Arrays) -> None:
    digests = {}
    for name, array in arrays.items():
        with files.replacing(folder / f"{split}_{name}.npy") as temporary:
            np.save(temporary, array)
            digests[name] = files.sha256(temporary)
    content = {"parameters": parameters, "arrays": digests}
    files.write_json(folder / f"{split}.json", content)


def _cache_folder(name: str, root: Path, size: int) -> Path:
    """Where the cache of a set lies: below the data root, or among the user's caches."""
    if SOURCES[name].cache:
        return root / SOURCES[name].cache
    home = Path("~/.cache").expanduser() if os.environ.get("HOME") else Path(os.devnull)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored if it is relative
    key = hashlib.sha256(os.fsencode(f"{name} {size} {root.resolve()}")).hexdigest()[:16]
    return (base if base.is_absolute() else home) / "rgflow_core" / key


def _make(name: str, split: str, root: Path, size: int, workers: int, progress: bool) -> Arrays:
    source = SOURCES[name]
    arrays = source.make(split, root, size, workers, progress)
    images, shape = arrays["images"], (size, size, source.channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(
            f"data set {name}: its source must make uint8 images (N >= 1, {size}, {size}, "
            f"{source.channels}), not {images.dtype} {images.shape}"
        )
    return arrays


def _cached_or_made(
    name: str, split: str, root: Path, size: int, make: Callable[[], Arrays]
) -> Arrays:
    """The arrays of a split; of several processes one makes them, the others wait."""
    folder, parameters = _cache_folder(name, root, size), SOURCES[name].parameters(root)
    if SOURCES[name].any_size:
        parameters["size"] = size
    if arrays := _cached(folder, split, parameters, say=False):
        return arrays

    def say(error: Exception) -> None:
        reason = explain(error).partition(";")[0]
        print(f"{reason}: {name} {split} is kept in memory, not cached", file=sys.stderr)

    with ExitStack() as stack:
        try:
            files.check_writable(folder)
            stack.enter_context(files.locked(folder, wait=True))
        except (OSError, UserError) as error:
            say(error)
            return make()
        if arrays := _cached(folder, split, parameters):  # another process made them meanwhile
            return arrays
        arrays = make()
        try:
            _store(folder, split, parameters, arrays)
        except OSError as error:  # as when the disk is full; the data root's is the user's to empty
            if SOURCES[name].cache:
                raise
            say(error)
    return arrays


def load_split(
    name: str,
    split: str,
    root: str | Path = "data",
    limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
    size: int = SIZE,
) -> DataSet:
    """Load one split, making and caching it first if need be.

    Args:
        name: a key of ``SOURCES``. For "folder", ``root`` is the folder of pictures itself.
        split: "train", "val" or "test".
        root: data folder.
        limit: take the first so many pictures only; those of MSDS are then drawn in memory,
            nothing is read or written.
        workers: threads that draw or decode; 0: no extra one.
        progress: show a progress bar.
        size: edge of the pictures; only a folder's can be another than 32.

    Raises:
        UserError: for bad arguments, and data that are missing, unfit, or more than ``MEMORY``.

    Example:
        >>> load_split("msds1", "test", limit=2).images.shape
        torch.Size([2, 3, 32, 32])
    """
    if name not in SOURCES:
        raise UserError(f"data set must be one of {tuple(SOURCES)}, not {name!r}")
    if split not in SPLITS:
        raise UserError(f"split must be one of {SPLITS}, not {split!r}")
    (size,) = check_counts(size=size)
    if size != SIZE and not SOURCES[name].any_size:
        sized = ", ".join(key for key, source in SOURCES.items() if source.any_size)
        raise UserError(f"{name} has only pictures of edge {SIZE}, not {size}; others: {sized}")
    (workers,) = check_counts(0, workers=workers)
    if limit is not None:
        (limit,) = check_counts(limit=limit)
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is not a folder; give another data root")
    if limit is not None and name in msds.SETS:
        labels = msds.labels(name, split, 0, min(limit, msds.SPLITS[split]))
        arrays = {"images": msds.render(labels), "labels": labels}
    else:
        make = partial(_make, name, split, root, size, workers, progress)
        arrays = _cached_or_made(name, split, root, size, make)
    images, labels = arrays["images"][:limit], arrays.get("labels")
    return DataSet(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        None if labels is None else labels[:limit],
        hashlib.sha256(np.ascontiguousarray(images)).hexdigest(),
    )
