"""Data sets as arrays of bytes: drawn or decoded once, cached, verified whenever loaded.

To add a set of your own, write a :class:`Source` (what it needs on disk, and a function that
gives one split as uint8 (N, 32, 32, C)) and put it into ``SOURCES``: the command line, caching and
verification follow.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import msds
from rgflow_core.errors import UserError, check_counts
from rgflow_core.files import locked, make_folder, read_json, replacing, sha256, write_json

SPLITS = ("train", "val", "test")
SIZE = 32


@dataclass(frozen=True)
class DataSet:
    """One split in memory.

    Attributes:
        images: uint8 (N, C, 32, 32).
        labels: float64 (N, 4, 4, 6) for MSDS, else ``None``.
        fingerprint: SHA-256 of the images' bytes.
    """

    images: Tensor
    labels: np.ndarray | None
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """How a data set is made.

    Attributes:
        make: (split, root, workers, progress) -> {"images": uint8 (N, 32, 32, C), ...}.
        parameters: (root) -> what the bytes depend on; a cache with others is made again.
        channels: colours of a pixel.
        flip: whether a mirrored picture is as likely as the picture itself.
        cache: folder of the cache below root.
    """

    make: Callable[[str, Path, int, bool], dict[str, np.ndarray]]
    parameters: Callable[[Path], dict]
    cache: str
    channels: int = 3
    flip: bool = True


def _progress(items: Iterable, total: int, what: str, show: bool) -> Iterable:
    return tqdm(items, total=total, desc=what, unit="image", leave=False, disable=not show)


def _gather(jobs: Iterable[Callable[[], np.ndarray]], workers: int, out: np.ndarray) -> None:
    """Run jobs on threads and put their results one after another into ``out``."""
    jobs, start, pending = iter(jobs), 0, []
    with ThreadPoolExecutor(workers) as pool:
        while pending or start < len(out):
            # A bounded queue bounds memory.
            pending += [pool.submit(job) for job in islice(jobs, 2 * workers - len(pending))]
            part = pending.pop(0).result()
            out[start : start + len(part)] = part
            start += len(part)


def _make_msds(name: str, split: str, workers: int, progress: bool) -> dict[str, np.ndarray]:
    n, shard = msds.SPLITS[split], 1000
    labels = msds.labels(name, split, 0, n)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    starts = _progress(
        range(0, n, shard), n // shard, f"drawing {name} {split} x {shard}", progress
    )
    jobs = (lambda i=i: msds.render(labels[i : i + shard]) for i in starts)
    _gather(jobs, workers, images)
    return {"images": images, "labels": labels}


def _msds(name: str) -> Source:
    return Source(
        make=lambda split, root, workers, progress: _make_msds(name, split, workers, progress),
        parameters=lambda root: {"version": msds.VERSION, "seed": 0, "splits": msds.SPLITS},
        cache=name,
        flip=False,  # a mirrored ellipse sits elsewhere in its tile: another distribution
    )


_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")


def _decode(
    paths: list[Path], crop: int | None, resample: str, workers: int, progress: bool
) -> dict[str, np.ndarray]:
    """Decode pictures, centre crop (``None``: the largest square), resize to 32.

    Raises:
        UserError: names the pictures that cannot be used, when all have been looked at.
    """
    from PIL import Image
    from torchvision.transforms import functional

    bad = []

    def one(path: Path) -> np.ndarray:
        try:
            # Only these: others can call programs to decode them.
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are too many")
                # A second picture in a camera's JPEG is a preview.
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise ValueError(f"it is animated, {image.n_frames} pictures")
                if image.mode in ("I", "F"):  # Pillow would clip, and the range is not known
                    raise ValueError("it has 32 bits per value; convert it to 8")
                if image.mode.startswith("I;16"):  # Pillow would clip, not scale
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = image.convert("RGB")
                if min(image.size) < (crop or 1):
                    raise ValueError(
                        f"{image.width} x {image.height} is smaller than {crop}; is it CelebA's "
                        "aligned picture?"
                    )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            bad.append(f"{path}: cannot be read as a picture: {error}")
            return np.zeros((1, SIZE, SIZE, 3), np.uint8)
        image = functional.center_crop(image, crop or min(image.size))
        mode = functional.InterpolationMode(resample)
        return np.asarray(functional.resize(image, SIZE, mode))[None]

    images = np.empty((len(paths), SIZE, SIZE, 3), np.uint8)
    bar = _progress(paths, len(paths), "decoding", progress)
    _gather((lambda p=p: one(p) for p in bar), workers, images)
    if bad:
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UserError(
            f"{len(bad)} of {len(paths)} pictures cannot be used; take them out or replace them: "
            + "; ".join(sorted(bad)[:20])
            + more
        )
    return {"images": images}


CELEBA_CROPS = {"authors": "bilinear", "igf23": "bicubic"}
"""Both crop the central 148 x 148 and resize to 32 x 32; they differ in the interpolation."""


def _celeba(system: str) -> Source:
    def make(split: str, root: Path, workers: int, progress: bool) -> dict[str, np.ndarray]:
        folder = root / "celeba"
        partition, pictures = folder / "list_eval_partition.txt", folder / "img_align_celeba"
        if not partition.is_file() or not pictures.is_dir():
            raise UserError(
                f"CelebA is not here: put list_eval_partition.txt at {partition} and the pictures "
                f"000001.jpg ... 202599.jpg (from img_align_celeba.zip) into {pictures}"
            )
        wanted = {"train": "0", "val": "1", "test": "2"}[split]
        rows = [line.split() for line in partition.read_text().splitlines() if line.strip()]
        bad = [row for row in rows if len(row) != 2]
        if bad:
            raise UserError(f"{partition}: damaged CelebA partition: {' '.join(bad[0])!r}")
        paths = [pictures / name for name, number in rows if number == wanted]
        missing = [path for path in paths if not path.is_file()]
        if missing or not paths:
            raise UserError(
                f"CelebA {split} is incomplete: {len(missing)} of {len(paths)} pictures are "
                f"missing from {pictures}" + (f", first {missing[0].name}" if missing else "")
            )
        return _decode(paths, 148, CELEBA_CROPS[system], workers, progress)

    return Source(
        make, lambda root: {"crop": 148, "resize": CELEBA_CROPS[system]}, "celeba32_" + system
    )


def _torchvision(name: str, where: str, holdout: int, channels: int, flip: bool) -> Source:
    """CIFAR-10 or MNIST from torchvision's files; validation is the end of the training set."""

    def make(split: str, root: Path, workers: int, progress: bool) -> dict[str, np.ndarray]:
        from torchvision import datasets

        try:
            whole = getattr(datasets, name)(str(root), train=split != "test", download=False)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{name} is not here, or damaged: put torchvision's files at {root / where} ({error})"
            ) from None
        images = np.asarray(whole.data)
        if name == "MNIST":
            images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
        part = {"train": slice(0, -holdout), "val": slice(-holdout, None), "test": slice(None)}
        return {"images": np.ascontiguousarray(images[part[split]])}

    return Source(make, lambda root: {"holdout": holdout}, name.lower(), channels, flip)


def _folder_paths(root: Path) -> list[Path]:
    kinds = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
    named = (path for path in root.rglob("*") if path.suffix.lower() in kinds)
    # A link to nowhere, or to itself, was meant to be a picture: decoding will name it.
    return sorted(p for p in named if p.is_file() or (p.is_symlink() and not p.exists()))


def _make_folder_set(split: str, root: Path, workers: int, progress: bool) -> dict[str, np.ndarray]:
    if any((root / s).is_dir() for s in SPLITS):
        paths = _folder_paths(root / split)
    else:
        # Of every ten pictures in order of their names, the 9th validates and the 10th tests.
        rest = {"train": range(8), "val": (8,), "test": (9,)}[split]
        paths = [path for i, path in enumerate(_folder_paths(root)) if i % 10 in rest]
    if not paths:
        raise UserError(
            f"{root}: no pictures for split {split!r}; put at least 10 PNG or JPEG files there, or "
            f"some into each of {', '.join(SPLITS)}"
        )
    return _decode(paths, None, "bicubic", workers, progress)


def _folder_parameters(root: Path) -> dict:
    names = "\n".join(
        f"{p.relative_to(root)} {status.st_size} {status.st_mtime_ns}"
        for p in _folder_paths(root)
        for status in [p.stat() if p.exists() else p.lstat()]
    )
    return {"files": hashlib.sha256(names.encode()).hexdigest()}


SOURCES: dict[str, Source] = {
    "msds1": _msds("msds1"),
    "msds2": _msds("msds2"),
    "celeba": _celeba("igf23"),
    "celeba_authors": _celeba("authors"),
    "cifar10": _torchvision("CIFAR10", "cifar-10-batches-py", 5000, 3, flip=True),
    "mnist": _torchvision("MNIST", "MNIST/raw", 5000, 1, flip=False),
    "folder": Source(_make_folder_set, _folder_parameters, ".rgflow32"),
}


def _manifest(folder: Path, parameters: dict) -> dict:
    """The splits cached in a folder; none, with the reason said, if they cannot be used."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        content = read_json(path)
        if content["parameters"] != json.loads(json.dumps(parameters)):
            raise UserError(f"{folder}: made with other parameters")
        return content["splits"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        print(f"{path}: {error}: its data are made again", file=sys.stderr)
        return {}


def _cached(folder: Path, split: str, parameters: dict) -> dict[str, np.ndarray] | None:
    """The verified arrays of a split; ``None`` if they are not there, or damaged, which is said."""
    arrays = {}
    try:
        entries = _manifest(folder, parameters).get(split)
        if not entries:
            return None
        for name, (file, digest) in entries.items():
            if sha256(folder / file) != digest:
                raise UserError(f"{folder / file}: damaged (SHA-256 differs)")
            arrays[name] = np.load(folder / file, mmap_mode="c")
    except (OSError, ValueError) as error:
        print(f"{error}: made again", file=sys.stderr)
        return None
    return arrays


def _store(folder: Path, split: str, parameters: dict, arrays: dict[str, np.ndarray]) -> None:
    make_folder(folder)
    entries = {}
    for name, array in arrays.items():
        file = folder / f"{split}_{name}.npy"
        with replacing(file) as temporary:
            np.save(temporary, array)
            entries[name] = [file.name, sha256(temporary)]
    splits = _manifest(folder, parameters) | {split: entries}
    write_json(folder / "manifest.json", {"parameters": parameters, "splits": splits})


def _check_made(arrays: dict[str, np.ndarray], name: str, channels: int) -> None:
    images = arrays["images"]
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, channels) or not len(images):
        raise UserError(
            f"data set {name}: its source must make uint8 images (N >= 1, {SIZE}, {SIZE}, "
            f"{channels}), not {images.dtype} {images.shape}"
        )


def load_split(
    name: str,
    split: str,
    root: str | Path = "data",
    limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> DataSet:
    """Load one split, making and caching it first if need be.

    Args:
        name: a key of ``SOURCES``. For "folder", ``root`` is the folder of pictures itself.
        split: "train", "val" or "test".
        root: data folder.
        limit: take the first so many pictures only; those of MSDS are then drawn in memory,
            nothing is read or written.
        workers: threads that draw or decode.
        progress: show a progress bar.

    Raises:
        UserError: says what is wrong or missing.

    Example:
        >>> load_split("msds1", "test", limit=2).images.shape
        torch.Size([2, 3, 32, 32])
    """
    if name not in SOURCES:
        raise UserError(f"data set must be one of {tuple(SOURCES)}, not {name!r}")
    if split not in SPLITS:
        raise UserError(f"split must be one of {SPLITS}, not {split!r}")
    check_counts(workers=workers, **{} if limit is None else {"limit": limit})
    root, source = Path(root), SOURCES[name]
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is not a folder; give another data root")
    if limit is not None and name in msds.SETS:
        labels = msds.labels(name, split, 0, min(limit, msds.SPLITS[split]))
        return _data_set({"images": msds.render(labels), "labels": labels}, None)
    if name == "folder" and not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures; give it as the data root")
    folder = root / source.cache
    parameters = source.parameters(root)
    arrays = _cached(folder, split, parameters)
    if arrays is None:
        with locked(folder, wait=True):
            arrays = _cached(folder, split, parameters)  # if another process made it meanwhile
            if arrays is None:
                arrays = source.make(split, root, workers, progress)
                _check_made(arrays, name, source.channels)
                _store(folder, split, parameters, arrays)
    return _data_set(arrays, limit)


def _data_set(arrays: dict[str, np.ndarray], limit: int | None) -> DataSet:
    images, labels = arrays["images"][:limit], arrays.get("labels")
    fingerprint = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    return DataSet(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        None if labels is None else labels[:limit],
        fingerprint,
    )
