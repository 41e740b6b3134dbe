"""Data sets as arrays of bytes: drawn or decoded once, cached, verified whenever loaded.

To add a set of your own, write a :class:`Source` (what it needs on disk, and a function that
gives one split as uint8 (N, 32, 32, C)) and put it into ``SOURCES``: the command line, caching and
verification follow.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import files, msds
from rgflow_core.errors import UserError, check_counts

SPLITS = ("train", "val", "test")
SIZE = msds.SIZE


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
        cache: folder of the cache below root.
        channels: colours of a pixel.
        flip: whether a mirrored picture is as likely as the picture itself.
    """

    make: Callable[[str, Path, int, bool], dict[str, np.ndarray]]
    parameters: Callable[[Path], dict]
    cache: str
    channels: int = 3
    flip: bool = True


def _on_threads(make: Callable, items: list, workers: int, what: str, progress: bool) -> list:
    """What ``make`` gives for each item, in order, with a progress bar that says ``what``."""
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(make, items)
        return list(tqdm(done, what, len(items), leave=False, disable=not progress))


def _msds(name: str) -> Source:
    def make(split: str, root: Path, workers: int, progress: bool) -> dict[str, np.ndarray]:
        labels = msds.labels(name, split, 0, msds.SPLITS[split])
        parts = [labels[start : start + 1000] for start in range(0, len(labels), 1000)]
        images = _on_threads(msds.render, parts, workers, f"drawing {name} {split}", progress)
        return {"images": np.concatenate(images), "labels": labels}

    def parameters(root: Path) -> dict:
        return {"version": msds.VERSION, "seed": 0, "splits": msds.SPLITS}

    # A mirrored ellipse sits elsewhere in its tile: another distribution.
    return Source(make, parameters, cache=name, flip=False)


_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")  # others can call programs
_NAMES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def _square(path: Path, crop: int | None, resample: str) -> np.ndarray:
    """One picture, centre crop (``None``: the largest square), resized: uint8 (32, 32, 3).

    Raises:
        ValueError, OSError, SyntaxError, Image.DecompressionBombError: if it cannot be used.
    """
    from PIL import Image
    from torchvision.transforms import functional

    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        # A second picture in a camera's JPEG is a preview.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise ValueError(f"it is animated, {image.n_frames} pictures")
        if image.mode in ("I", "F"):  # Pillow would clip, and the range is not known
            raise ValueError("it has 32 bits per value; convert it to 8")
        if min(image.size) < (crop or 1):
            size = f"{image.width} x {image.height}"
            raise ValueError(f"{size} is smaller than {crop}; is it CelebA's aligned picture?")
        if image.mode.startswith("I;16"):  # Pillow would clip, not scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
    image = functional.center_crop(image, crop or min(image.size))
    return np.asarray(functional.resize(image, SIZE, functional.InterpolationMode(resample)))


def _decode(
    paths: list[Path], crop: int | None, resample: str, workers: int, progress: bool
) -> dict[str, np.ndarray]:
    """Decode pictures, see :func:`_square`.

    Raises:
        UserError: names the pictures that cannot be used, when all have been looked at.
    """
    from PIL.Image import DecompressionBombError

    bad = []

    def one(path: Path) -> np.ndarray | None:
        try:
            return _square(path, crop, resample)
        except (OSError, ValueError, SyntaxError, DecompressionBombError) as error:
            bad.append(f"{path}: cannot be read as a picture: {error}")
            return None

    images = _on_threads(one, paths, workers, "decoding", progress)
    if bad:
        named = sorted(bad)[:20] + ([f"and {len(bad) - 20} more"] if len(bad) > 20 else [])
        raise UserError(
            f"{len(bad)} of {len(paths)} pictures cannot be used; take them out or replace them: "
            + "; ".join(named)
        )
    return {"images": np.stack(images)}


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
        if bad := [row for row in rows if len(row) != 2]:
            raise UserError(f"{partition}: damaged CelebA partition: {' '.join(bad[0])!r}")
        paths = [pictures / name for name, number in rows if number == wanted]
        missing = [path for path in paths if not path.is_file()]
        if missing or not paths:
            raise UserError(
                f"CelebA {split} is incomplete: {len(missing)} of {len(paths)} pictures are "
                f"missing from {pictures}" + (f", first {missing[0].name}" if missing else "")
            )
        return _decode(paths, 148, CELEBA_CROPS[system], workers, progress)

    parameters = {"crop": 148, "resize": CELEBA_CROPS[system]}
    return Source(make, lambda root: parameters, "celeba32_" + system)


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


def _pictures(root: Path) -> dict[str, list[Path]]:
    """Each split's pictures below a folder: what is read, and what a cache is compared with."""

    def below(folder: Path) -> list[Path]:
        named = (path for path in folder.rglob("*") if path.suffix.lower() in _NAMES)
        # A link to nowhere, or to itself, was meant to be a picture: decoding will name it.
        return sorted(p for p in named if p.is_file() or (p.is_symlink() and not p.exists()))

    if any((root / split).is_dir() for split in SPLITS):
        return {split: below(root / split) for split in SPLITS}
    whole = below(root)
    train = [path for i, path in enumerate(whole) if i % 10 < 8]
    return {"train": train, "val": whole[8::10], "test": whole[9::10]}


def _folder(split: str, root: Path, workers: int, progress: bool) -> dict[str, np.ndarray]:
    if paths := _pictures(root)[split]:
        return _decode(paths, None, "bicubic", workers, progress)
    raise UserError(
        f"{root}: no pictures for split {split!r}; put at least 10 PNG or JPEG files there, or "
        f"some into each of {', '.join(SPLITS)}"
    )


def _folder_parameters(root: Path) -> dict:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures; give it as the data root")
    digest = hashlib.sha256()
    for path in sorted(path for paths in _pictures(root).values() for path in paths):
        status = path.stat() if path.exists() else path.lstat()
        facts = (path.relative_to(root), status.st_size, status.st_mtime_ns)
        digest.update(" ".join(map(str, facts)).encode() + b"\n")
    return {"files": digest.hexdigest()}


SOURCES: dict[str, Source] = {
    "msds1": _msds("msds1"),
    "msds2": _msds("msds2"),
    "celeba": _celeba("igf23"),
    "celeba_authors": _celeba("authors"),
    "cifar10": _torchvision("CIFAR10", "cifar-10-batches-py", 5000, 3, flip=True),
    "mnist": _torchvision("MNIST", "MNIST/raw", 5000, 1, flip=False),
    "folder": Source(_folder, _folder_parameters, cache=".rgflow32"),
}


def _cached(
    folder: Path, split: str, parameters: dict, say: bool = True
) -> dict[str, np.ndarray] | None:
    """The verified arrays of a split; ``None`` if they are not there, or damaged, which is said."""
    manifest, arrays = folder / f"{split}.json", {}
    if not manifest.exists():
        return None
    try:
        with files.refusing_damage(manifest, "the manifest of a data set"):
            content = files.read_json(manifest)
            if content["parameters"] != json.loads(json.dumps(parameters)):
                raise UserError(f"{manifest}: made with other parameters")
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


def _store(folder: Path, split: str, parameters: dict, arrays: dict[str, np.ndarray]) -> None:
    digests = {}
    for name, array in arrays.items():
        with files.replacing(folder / f"{split}_{name}.npy") as temporary:
            np.save(temporary, array)
            digests[name] = files.sha256(temporary)
    content = {"parameters": parameters, "arrays": digests}
    files.write_json(folder / f"{split}.json", content)


def _cached_or_made(
    name: str, split: str, root: Path, workers: int, progress: bool
) -> dict[str, np.ndarray]:
    """The arrays of a split; of several processes one makes them, the others wait."""
    source = SOURCES[name]
    folder, parameters = root / source.cache, source.parameters(root)
    if arrays := _cached(folder, split, parameters, say=False):
        return arrays
    with files.locked(folder, wait=True):
        if arrays := _cached(folder, split, parameters):  # another process made them meanwhile
            return arrays
        arrays = source.make(split, root, workers, progress)
        images, shape = arrays["images"], (SIZE, SIZE, source.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"data set {name}: its source must make uint8 images (N >= 1, {SIZE}, {SIZE}, "
                f"{source.channels}), not {images.dtype} {images.shape}"
            )
        _store(folder, split, parameters, arrays)
    return arrays


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

    Example:
        >>> load_split("msds1", "test", limit=2).images.shape
        torch.Size([2, 3, 32, 32])
    """
    if name not in SOURCES:
        raise UserError(f"data set must be one of {tuple(SOURCES)}, not {name!r}")
    if split not in SPLITS:
        raise UserError(f"split must be one of {SPLITS}, not {split!r}")
    check_counts(workers=workers)
    if limit is not None:
        check_counts(limit=limit)
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is not a folder; give another data root")
    if limit is not None and name in msds.SETS:
        labels = msds.labels(name, split, 0, min(limit, msds.SPLITS[split]))
        arrays = {"images": msds.render(labels), "labels": labels}
    else:
        arrays = _cached_or_made(name, split, root, workers, progress)
    images, labels = arrays["images"][:limit], arrays.get("labels")
    return DataSet(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        None if labels is None else labels[:limit],
        hashlib.sha256(np.ascontiguousarray(images)).hexdigest(),
    )
