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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
Each = Callable[[Callable, Sequence, str], list]
"""(function, items, what is done) -> results: a map on threads, with a progress bar."""


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
        make: (split, root, size L, each) -> {"images": uint8 (N, L, L, C), ...}.
        parameters: (root) -> what the bytes depend on; a cache with others is made again.
        cache: folder of the cache below root; "" where root holds the user's own pictures: they
            can have any size, and their cache lies among the user's caches.
        channels: colours of a pixel.
        flip: whether a mirrored picture is as likely as the picture itself.
    """

    make: Callable[[str, Path, int, Each], Arrays]
    parameters: Callable[[Path], dict]
    cache: str
    channels: int = 3
    flip: bool = True


def _on_threads(
    workers: int, progress: bool, function: Callable, items: Sequence, what: str
) -> list:
    with ExitStack() as stack:
        each = stack.enter_context(ThreadPoolExecutor(workers)).map if workers else map
        return list(
            tqdm(each(function, items), what, len(items), leave=False, disable=not progress)
        )


def _msds(name: str) -> Source:
    def make(split: str, root: Path, size: int, each: Each) -> Arrays:
        labels = msds.labels(name, split, 0, msds.SPLITS[split])
        parts = [labels[start : start + 1000] for start in range(0, len(labels), 1000)]
        images = each(msds.render, parts, f"drawing {name} {split}")
        return {"images": np.concatenate(images), "labels": labels}

    facts = {"version": msds.VERSION, "seed": 0, "splits": msds.SPLITS}
    # A mirrored ellipse sits elsewhere in its tile: another distribution.
    return Source(make, lambda root: facts, cache=name, flip=False)


def _decode(
    paths: list[Path], size: int, each: Each, crop: int | None = None, resample: str = "bicubic"
) -> Arrays:
    """Decode pictures, see :func:`rgflow_core.pictures.read`.

    Raises:
        UserError: if they would take too much memory; names the pictures that cannot be used,
            when all have been looked at.
    """
    if len(paths) > (most := MEMORY // (3 * size**2)):
        raise UserError(
            f"{len(paths)} pictures of {size} x {size} in one split take more than the "
            f"{MEMORY / 2**30:.3g} GiB allowed; {most} would fit, or more at a smaller --image-size"
        )
    images, facts, bad = np.empty((len(paths), size, size, 3), np.uint8), [], []

    def read(i: int) -> None:
        try:
            images[i], *fact = pictures.read(paths[i], crop, resample, size)
            facts.append(fact)
        except Exception as error:  # bytes that are anything raise anything
            reason = str(error) or type(error).__name__
            bad.append(f"{paths[i]}: cannot be read as a picture: {reason}")

    each(read, range(len(paths)), "decoding")
    if bad:
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UserError(
            f"{len(bad)} of {len(paths)} pictures cannot be used; take them out or replace them: "
            f"{'; '.join(sorted(bad)[:20])}{more}"
        )
    pictures.check_range([largest for _, largest in facts if largest is not None])
    if small := sum(edge < size for edge, _ in facts):
        said = f"smaller than {size} x {size}, enlarged: {small} of {len(paths)} pictures"
        print(said, file=sys.stderr)
    return {"images": images}


def _celeba(cache: str, resample: str) -> Source:
    """The central 148 x 148, resized; the two published codes differ in the interpolation."""

    def make(split: str, root: Path, size: int, each: Each) -> Arrays:
        partition = root / "celeba" / "list_eval_partition.txt"
        folder = root / "celeba" / "img_align_celeba"
        if not partition.is_file() or not folder.is_dir():
            raise UserError(
                f"CelebA is not here: put list_eval_partition.txt at {partition} and the pictures "
                f"000001.jpg ... 202599.jpg (from img_align_celeba.zip) into {folder}"
            )
        with files.refusing_damage(partition, "CelebA's partition"):
            lines = partition.read_text("utf-8").splitlines()
            numbers = dict(filter(None, map(str.split, lines)))
            wanted = str(SPLITS.index(split))
            paths = [folder / name for name, number in numbers.items() if number == wanted]
            if not paths:
                raise ValueError(f"it names no picture of split {split!r}")
        if missing := [path for path in paths if not path.is_file()]:
            raise UserError(
                f"CelebA {split} is incomplete: {len(missing)} of {len(paths)} pictures are "
                f"missing from {folder}, first {missing[0].name}"
            )
        return _decode(paths, size, each, 148, resample)

    return Source(make, lambda root: {"crop": 148, "resize": resample}, cache)


# Validation is the end of the training set.
HOLDOUT = 5000
_PARTS = {"train": slice(0, -HOLDOUT), "val": slice(-HOLDOUT, None), "test": slice(None)}


def _cifar10(split: str, root: Path, size: int, each: Each) -> Arrays:
    from torchvision import datasets

    try:
        whole = datasets.CIFAR10(root, train=split != "test")
    except (OSError, RuntimeError):  # torchvision's advice to download is none here
        where = root / datasets.CIFAR10.base_folder
        raise UserError(
            f"CIFAR10 is not here, or damaged: put the files of cifar-10-python.tar.gz into {where}"
        ) from None
    return {"images": whole.data[_PARTS[split]]}


DEBIAN = Path("/usr/share/datasets")  # of its packages dataset-...


def _mnist(name: str, package: str = "") -> Source:
    """MNIST, or a set like it, from torchvision's files or Debian's; padded to 32 x 32."""

    def make(split: str, root: Path, size: int, each: Each) -> Arrays:
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


def _folder(split: str, root: Path, size: int, each: Each) -> Arrays:
    """A folder of one's own pictures, see :mod:`rgflow_core.pictures`."""
    paths, left_out = pictures.splits(root)
    if left_out:
        print(left_out, file=sys.stderr)
    if not paths[split]:
        raise UserError(
            f"{root}: no pictures for split {split!r}; put at least 10 PNG or JPEG files "
            f"there, or some into each of {', '.join(SPLITS)}"
        )
    return _decode(paths[split], size, each)


def _files_below(root: Path) -> dict:
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
    return {"files": digest.hexdigest()}


SOURCES: dict[str, Source] = {
    "msds1": _msds("msds1"),
    "msds2": _msds("msds2"),
    "celeba": _celeba("celeba32_igf23", "bicubic"),
    "celeba_authors": _celeba("celeba32_authors", "bilinear"),
    "cifar10": Source(_cifar10, lambda root: {"holdout": HOLDOUT}, "cifar10"),
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST", "fashion-mnist"),
    "folder": Source(_folder, _files_below, cache=""),
}


def _cached(folder: Path, split: str, parameters: dict, say: bool = False) -> Arrays | None:
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


def _cached_or_made(name: str, split: str, root: Path, size: int, each: Each) -> Arrays:
    """The arrays of a split; of several processes one makes them, the others wait."""
    source = SOURCES[name]
    folder, parameters = _cache_folder(name, root, size), source.parameters(root)
    if arrays := _cached(folder, split, parameters):
        return arrays
    failure = None
    with ExitStack() as stack:
        try:
            files.check_writable(folder)
            stack.enter_context(files.locked(folder, wait=True))
        except (OSError, UserError) as error:
            failure = error
        if arrays := _cached(folder, split, parameters, say=True):  # made by another meanwhile
            return arrays
        arrays = source.make(split, root, size, each)
        images, shape = arrays["images"], (size, size, source.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"data set {name}: its source must make uint8 images (N >= 1, {size}, {size}, "
                f"{source.channels}), not {images.dtype} {images.shape}"
            )
        if failure is None:
            try:
                _store(folder, split, parameters, arrays)
            except OSError as error:  # a full disk; the data root's is the user's to empty
                if source.cache:
                    raise
                failure = error
    if failure is not None:
        reason = explain(failure)
        print(f"{name} {split} is kept in memory, not cached: {reason}", file=sys.stderr)
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
    (size,), (workers,) = check_counts(size=size), check_counts(0, workers=workers)
    if size != SIZE and SOURCES[name].cache:
        raise UserError(f"{name} has only pictures of edge {SIZE}, not {size}; others: folder")
    if limit is not None:
        (limit,) = check_counts(limit=limit)
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is not a folder; give another data root")
    if limit is not None and name in msds.SETS:
        labels = msds.labels(name, split, 0, min(limit, msds.SPLITS[split]))
        arrays = {"images": msds.render(labels), "labels": labels}
    else:
        arrays = _cached_or_made(name, split, root, size, partial(_on_threads, workers, progress))
    images, labels = arrays["images"][:limit], arrays.get("labels")
    return DataSet(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        None if labels is None else labels[:limit],
        hashlib.sha256(np.ascontiguousarray(images)).hexdigest(),
    )
