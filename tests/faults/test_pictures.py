"""Strangers' pictures: used, or refused with their number and names, before any training."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from support import said_by

from rgflow_core import datasets, pictures

pytestmark = [
    pytest.mark.usefixtures("caches"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def chunk(name, content):
    crc = zlib.crc32(name + content)
    return len(content).to_bytes(4, "big") + name + content + crc.to_bytes(4, "big")


def png(width, height, depth, kind, rows, **others):
    """A PNG of any bit depth, with other chunks before its pixels."""
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = {"IHDR": head, **others, "IDAT": pixels, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(k.encode(), v) for k, v in chunks.items())


def png_of_size(width, height):
    """It says that it is of this size, with no more than a few bytes."""
    return lambda path: path.write_bytes(png(width, height, 8, 2, noise(8, 24)))


def truncated(path):
    Image.fromarray(noise(200, 200, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def frames(path, kind=None):
    first, second = (Image.fromarray(noise(40, 40, 3) // k) for k in (1, 2))
    first.save(path, kind, save_all=True, append_images=[second])


def loop_of_folders(path):
    path.mkdir()
    (path / "again").symlink_to(path)
    Image.fromarray(noise(40, 40, 3)).save(path / "x.png")


def pixels(*shape, dtype=np.uint8, mode=None):
    def make(path):
        image = Image.fromarray(noise(*shape, dtype=dtype))
        (image.convert(mode) if mode else image).save(path)

    return make


REFUSED = {
    "zero.png": lambda p: p.write_bytes(b""),
    "cut.png": truncated,
    "cut.jpg": truncated,
    "page.png": lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "animated.gif": frames,
    "enormous.png": png_of_size(60_000, 60_000),
    "large.png": png_of_size(12_000, 12_000),
    "empty.png": png_of_size(0, 8),
    "float.tif": pixels(40, 40, dtype=np.float32),
    "long.tif": pixels(40, 40, dtype=np.int32),
    "loop.png": lambda p: p.symlink_to(p),
    "nowhere.png": lambda p: p.symlink_to(p.parent / "nothing"),
}
USED = {  # and those of test_datasets.test_folder_of_mixed_modes
    "cmyk.jpg": pixels(40, 40, 3, mode="CMYK"),
    "ycbcr.tif": pixels(40, 40, 3, mode="YCbCr"),
    "lab.tif": pixels(40, 40, 3, mode="LAB"),
    "strip.png": pixels(1, 900, 3),
    "CAPITALS.PNG": pixels(40, 40, 3),
    "camera.mpo": lambda p: frames(p, "MPO"),  # with a preview
    "png_named.jpg": lambda p: Image.fromarray(noise(40, 40, 3)).save(p, "PNG"),
    "linked.png": lambda p: p.symlink_to(p.parent / "000.png"),
    "folder.png": loop_of_folders,
}


@pytest.fixture
def folder(tmp_path):
    for split in datasets.SPLITS:
        (tmp_path / split).mkdir()
        for k in range(2):
            Image.fromarray(noise(40, 40, 3)).save(tmp_path / split / f"{k:03}.png")
    return tmp_path


def load(folder, split="train", name="folder"):
    return datasets.load_split(name, split, folder, progress=False).images


def refused(folder, bad, count):
    """The message, which begins with how many of how many cannot be used."""
    message = said_by(load, folder)
    assert message.startswith(f"{bad} of {count} pictures cannot be used"), message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, folder, caches):
    path = folder / "train" / name
    REFUSED[name](path)
    assert str(path) in refused(folder, 1, 3)
    assert not any(caches.iterdir())
    assert len(load(folder, "val")) == 2
    path.unlink()
    assert len(load(folder)) == 2


@pytest.mark.parametrize("name", USED)
def test_used(name, folder):
    USED[name](folder / "train" / name)
    images = load(folder)
    assert images.shape == (3, 3, 32, 32)
    assert images.flatten(1).max(1).values.min() > 0  # none is left black


def test_all_are_named_at_once(folder):
    for name, make in REFUSED.items():
        make(folder / "train" / name)
    for k in range(30):
        (folder / "train" / f"y{k}.png").write_bytes(b"")
    number = len(REFUSED) + 30
    assert f"and {number - 20} more" in refused(folder, number, number + 2)


# Transparency: one ink, another shape, on white


TOP, LEFT = np.mgrid[:32, :32] < 16  # masks: which pixels are opaque
INK = (10, 200, 60)


def grey(depth):
    """A PNG of grey of so many bits, whose largest value is transparent."""

    def make(path, mask):
        largest, rows = 2**depth - 1, []
        for line in np.where(mask, largest // 3, largest):
            number = int("".join(f"{value:0{depth}b}" for value in line), 2)
            rows.append(number.to_bytes(4 * depth, "big"))
        path.write_bytes(png(32, 32, depth, 0, rows, tRNS=largest.to_bytes(2, "big")))

    return make


def layered(mode, value):
    def make(path, mask):
        ink = Image.new(mode, (32, 32), value)
        ink.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
        ink.save(path)

    return make


def indexed(path, mask):
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, *INK])
    image.save(path, transparency=0)


def keyed(path, mask):
    key = (90, 91, 92)
    colours = np.where(mask[..., None], INK, key).astype(np.uint8)
    Image.fromarray(colours).save(path, transparency=key)


TRANSPARENT = {
    "rgba.png": layered("RGB", INK),
    "rgba.tif": layered("RGB", INK),
    "la.png": layered("L", 90),
    "index.gif": indexed,
    "index.png": indexed,
    "rgb.png": keyed,
    **{f"grey{depth}.png": grey(depth) for depth in (1, 2, 4, 8)},
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name, tmp_path):
    for kind, mask in {"left": LEFT, "top": TOP}.items():
        (tmp_path / kind / "train").mkdir(parents=True)
        TRANSPARENT[name](tmp_path / kind / "train" / name, mask)
        for _ in range(2):  # made, and from the cache
            image = load(tmp_path / kind)[0]
            assert np.array_equal((image.numpy() != 255).any(0), mask)


def test_half_transparent(folder):
    ink = np.full((40, 40, 4), (100, 0, 50, 128), np.uint8)
    Image.fromarray(ink).save(folder / "train" / "zzz.png")
    image = load(folder)[-1]
    assert (image.flatten(1).float() - torch.tensor([[177.0], [127], [152]])).abs().max() <= 1


@pytest.mark.parametrize(
    ("ending", "orientation"),
    [*(("jpg", k) for k in range(1, 9)), *((e, 6) for e in ("png", "webp", "tif", "avif"))],
)
def test_orientation(ending, orientation, folder):
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:24, :16], upright[24:, :16], upright[24:, 16:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    undo = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation]))
    stored.save(folder / "train" / f"zzz.{ending}", exif=exif)
    image = load(folder)[-1].float()
    for corner, colour in (((4, 4), (250, 0, 0)), ((27, 4), (0, 250, 0)), ((27, 27), (0, 0, 250))):
        assert (image[:, corner[0], corner[1]] - torch.tensor(colour)).abs().max() < 40


def test_what_pillow_reads_is_a_picture_or_left_out_on_purpose():
    Image.init()
    endings = Image.registered_extensions()
    ours = {ending for ending in endings if pictures.is_named("x" + ending)}
    assert {endings[ending] for ending in ours} <= {*pictures.FORMATS, "MPO"}
    left_out = {ending for ending, name in endings.items() if name in pictures.FORMATS} - ours
    assert left_out <= {".avifs", ".pfm"}  # films, and numbers without a range


GREY, COLOUR = ((20 * noise(40, width, dtype=np.uint16)).astype(">u2") for width in (40, 120))
TWELVE = {
    "x.png": lambda p: Image.fromarray(GREY.astype(np.uint16)).save(p),
    "x.tif": lambda p: Image.fromarray(GREY.astype(np.uint16)).save(p),
    "y.png": lambda p: p.write_bytes(png(40, 40, 16, 2, COLOUR)),
    "x.ppm": lambda p: p.write_bytes(b"P6 40 40 65535\n" + COLOUR.tobytes()),
    "x.pgm": lambda p: p.write_bytes(b"P5 40 40 65535\n" + GREY.tobytes()),
}


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_bits_in_sixteen_are_refused(name, folder):
    TWELVE[name](folder / "train" / name)
    message = said_by(load, folder)
    assert re.search(r"16 bits per value.* nearly black.*65535", message)


def test_twelve_bits_that_say_so(folder):
    (folder / "train" / "zzz.pgm").write_bytes(b"P5 40 40 4095\n" + GREY.tobytes())
    assert load(folder)[-1].max() > 200


@pytest.mark.parametrize(("scale", "said"), [(0, "about 0"), (80, "about 15"), (300, "")])
def test_the_range_found_is_said(scale, said, folder, capsys):
    image = Image.fromarray(noise(40, 40, dtype=np.uint16) * scale)
    image.save(folder / "train" / "x.png")
    assert (load(folder)[-1].max() == 0) == (scale == 0)
    line = capsys.readouterr().err
    assert said in line
    assert ("16 bits per value: 1, the largest of each" in line) == bool(said)


def test_a_transparent_colour_of_sixteen_bits(folder):
    grey(16)(folder / "train" / "x.png", TOP)
    assert "transparent colour of 16 bits" in refused(folder, 1, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "train" / "pipe.png")  # opening it would wait for ever
    assert len(load(folder)) == 2
