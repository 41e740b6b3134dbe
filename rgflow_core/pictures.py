"""Pictures of one's own: which files of a folder are pictures, and one of them read.

What is data. Every file below the folder whose name ends as pictures' do (:func:`is_named`), links
followed (each folder once), except

 - what has a part of its path that begins with a dot, or is in ``JUNK``;
 - what this package drew: :func:`rgflow_core.sample.write_grid` writes ``OWN`` into each file.

Folders named as in ``SPLIT_NAMES``, in any case, are the splits; without them eight, one and one
of ten pictures are, in the order of their paths. What merely looks like a split is refused.
"""

import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rgflow_core.errors import UserError, printable

# Others could call programs, or have no pixels of their own.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_ENDINGS = r"a?png|jpe?g?|jfif|mpo|bmp|dib|webp|gif|tiff?|p[pgbn]m|avif|jp[2cfx]|j2[kc]"
JUNK = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
OWN = ("Software", "rgflow_core")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ["val", "valid", "validation"], "val"
)
_LIKE_A_SPLIT = re.compile(
    r"(?i:(train(ing)?|val(id(ation)?)?|test(ing|s)?|dev|eval(uation)?|hold-?out)"
    r"(sets?|data|images|pictures)?)(?![a-z])"
)


def is_named(name: str) -> bool:
    """Whether a file has a picture's name."""
    return re.search(rf"\.({_ENDINGS})$", name, re.IGNORECASE) is not None


def _is_own(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return "\0".join(OWN).encode() in file.read(200)
    except OSError:  # decoding will name it
        return False


def _below(folder: Path, without: set[str] = frozenset()) -> tuple[list[Path], Counter]:
    """Pictures below a folder, but not in those ``without``; how many others of which ending."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    pictures, others, seen = [], Counter(), set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        new = (real := os.path.realpath(here)) not in seen
        seen.add(real)
        outside = without if here == str(folder) else ()
        kept = sorted(n for n in folders if n[0] != "." and n not in JUNK and n not in outside)
        folders[:] = kept if new else []
        for name in names if new else ():
            path, ending = Path(here, name), Path(name).suffix.lower()
            if name[0] == "." or name in JUNK:
                continue
            # A link to nowhere, or to itself, was meant to be a picture: decoding will name it.
            if is_named(name) and (path.is_file() or not path.exists()):
                if ending != ".png" or not _is_own(path):
                    pictures.append(path)
            else:
                others[ending or "without an ending"] += 1
    return sorted(pictures), others


def _refuse_like_splits(root: Path, paths: list[Path], nested: bool) -> None:
    """Raise if pictures lie in folders like splits: at the root, or (``nested``) two side by side."""
    found: dict[tuple, set] = {}
    for path in paths:
        *parents, _ = path.relative_to(root).parts
        for depth, part in enumerate(parents if nested else parents[:1]):
            if _LIKE_A_SPLIT.match(part):
                found.setdefault(tuple(parents[:depth]), set()).add(part)
    for parents, names in sorted(found.items()):
        if len(names) > 1 or not parents:
            where = root.joinpath(*parents)
            raise UserError(
                f"{where}: named like splits: {', '.join(sorted(names))}; name them train, val and "
                "test and give the folder that holds them as the data root, or rename them"
            )


def splits(root: Path) -> tuple[dict[str, list[Path]], str]:
    """Each split's pictures below a folder, and a line on what is not read ("": nothing).

    Raises:
        UserError: for folders that look like splits but are not, or cannot be read.
    """
    folders: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and (split := SPLIT_NAMES.get(path.name.lower())):
            if split in folders:
                raise UserError(
                    f"{root}: both {folders[split]} and {path.name} are {split}; keep one"
                )
            folders[split] = path.name
    whole, others = _below(root, set(folders.values()))
    _refuse_like_splits(root, whole, nested=not folders)
    found = {"train": [p for i, p in enumerate(whole) if i % 10 < 8]}
    found |= {"val": whole[8::10], "test": whole[9::10]}
    if folders:
        others = Counter({"pictures beside the splits": len(whole)} if whole else {}) + others
        for split in found:
            found[split], more = (
                _below(root / folders[split]) if split in folders else ([], Counter())
            )
            others += more
    kinds = [f"{number} {kind}" for kind, number in others.most_common(8)]
    said = f"{root}: left out: {', '.join(kinds)}" if kinds else ""
    return found, printable(said)


def _check(image: Image.Image, crop: int | None) -> None:
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    # A second picture in a camera's JPEG is a preview.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"it holds {image.n_frames} pictures, as pages or an animation")
    if image.mode in ("I", "F") and (image.mode, image.format) != ("I", "PPM"):
        # Pillow would clip, and the range is not known
        raise ValueError("it has 32 bits per value; convert it to 8")
    if min(image.size) < (crop or 1):
        size = f"{image.width} x {image.height}"
        raise ValueError(f"{size} is smaller than {crop}; is it CelebA's aligned picture?")


def read(
    path: Path, crop: int | None, resample: str, size: int
) -> tuple[np.ndarray, int, int | None]:
    """One picture the right way up, centre crop (``None``: the largest square), resized.

    It is white where it is transparent.

    Returns:
        uint8 (size, size, 3); the square's edge before; of 16 bits per value, the largest in parts
        of 255, else ``None``.

    Raises:
        Exception: of any type, if it cannot be used; its message says why.
    """
    from torchvision.transforms import functional

    with Image.open(path, formats=FORMATS) as image:
        _check(image, crop)
        raw = str(image.tile[0].args) if image.tile else ""  # how a pixel is stored
        deep = image.mode[0] == "I" or ";16" in raw or (image.format == "PPM" and "65535" in raw)
        if isinstance(key := image.info.get("transparency"), int | tuple):
            if deep:
                raise ValueError("it has a transparent colour of 16 bits; save it with 8")
            if raw in ("L;2", "L;4"):  # Pillow scales the values, but not this one
                image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw]
        image = ImageOps.exif_transpose(image)
        if image.mode[0] == "I":  # Pillow would clip, not scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        largest = max(high for _, high in image.convert("RGB").getextrema()) if deep else None
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("RGB")
    edge = crop or min(image.size)
    image = functional.center_crop(image, edge)
    image = functional.resize(image, size, functional.InterpolationMode(resample))
    return np.asarray(image), edge, largest


def check_range(largest: list[int]) -> None:
    """Say or refuse what 16 bits per value may mean; ``largest`` of each such picture, of 255."""
    low, high = min(largest, default=255) * 257, max(largest, default=255) * 257
    count = len(largest)
    said = f"pictures with 16 bits per value: {count}, the largest of each about {low} to {high}"
    if 0 < high <= 16 * 257:
        raise UserError(
            f"{said} of 65535: they would be nearly black; scale their values to 0 ... 65535, or "
            "save them with 8 bits"
        )
    if low < 128 * 257:
        print(f"{said}; 65535 is taken as white", file=sys.stderr)
