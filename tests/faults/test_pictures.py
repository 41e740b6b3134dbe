"""Strangers' pictures: used, or refused with their number and names, before any training."""

import os
import zlib

import numpy as np
import pytest
from PIL import Image

from rgflow_core import datasets
from rgflow_core.errors import UserError


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def png_of_size(path, width, height):
    """A PNG that says it is of this size, with no more than a few bytes."""
    Image.fromarray(noise(8, 8, 3)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def broken_chunk(data):
    """A PNG whose pixels go on in a chunk of an impossible name."""
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    pixels, rest = data[at + 4 : at + 4 + length], data[at + 8 + length :]

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return len(content).to_bytes(4, "big") + name + content + crc.to_bytes(4, "big")

    half = length // 2
    parts = chunk(b"IDAT", pixels[:half]) + chunk(b"\0\1\2\3", pixels[half:])
    return data[: at - 4] + parts + rest


def bad_chunk(path):
    Image.fromarray(noise(40, 40, 3)).save(path)
    path.write_bytes(broken_chunk(path.read_bytes()))


def truncated(path):
    Image.fromarray(noise(200, 200, 3)).save(path, "JPEG" if path.suffix == ".jpg" else None)
    path.write_bytes(path.read_bytes()[:-2000])


def animated(path):
    frames = [Image.fromarray(noise(40, 40, 3) // k) for k in (1, 2, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def loop(path):
    path.symlink_to(path)


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
    "text.png": lambda p: p.write_text("not a picture"),
    "cut.png": truncated,
    "chunk.png": bad_chunk,
    "cut.jpg": truncated,
    "page.png": lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "animated.gif": animated,
    "animated.png": animated,
    "enormous.png": lambda p: png_of_size(p, 60_000, 60_000),
    "large.png": lambda p: png_of_size(p, 12_000, 12_000),
    "empty.png": lambda p: png_of_size(p, 0, 8),
    "float.tif": pixels(40, 40, dtype=np.float32),
    "long.tif": pixels(40, 40, dtype=np.int32),
    "loop.png": loop,
    "nowhere.png": lambda p: p.symlink_to(p.parent / "nothing"),
}
USED = {  # and those of test_datasets.test_folder_of_mixed_modes
    "palette.gif": pixels(40, 40, 3, mode="P"),
    "cmyk.jpg": pixels(40, 40, 3, mode="CMYK"),
    "ycbcr.tif": pixels(40, 40, 3, mode="YCbCr"),
    "lab.tif": pixels(40, 40, 3, mode="LAB"),
    "pixel.bmp": pixels(1, 1, 3),
    "strip.png": pixels(1, 900, 3),
    "large.webp": pixels(900, 700, 3),
    "CAPITALS.PNG": pixels(40, 40, 3),
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


def refused(folder, bad, count, name="folder"):
    """The message, which begins with how many of how many cannot be used."""
    with pytest.raises(UserError, match=f"^{bad} of {count} pictures cannot be used") as error:
        load(folder, "train", name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refused(name, folder, counts):
    path = folder / "train" / name
    REFUSED[name](path)
    assert str(path) in refused(folder, 1, 3)
    assert not (folder / ".rgflow32").exists()
    assert len(load(folder, "val")) == 2
    path.unlink()
    assert len(load(folder)) == 2
    counts("strangers' pictures", "refused by name")


@pytest.mark.parametrize("name", USED)
def test_used(name, folder, counts):
    USED[name](folder / "train" / name)
    images = load(folder)
    assert images.shape == (3, 3, 32, 32)
    assert images.flatten(1).max(1).values.min() > 0  # none is left black
    counts("strangers' pictures", "used")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_are_named_at_once(folder, counts):
    for name, make in REFUSED.items():
        make(folder / "train" / name)
    for k in range(30):
        (folder / "train" / f"y{k}.png").write_bytes(b"")
    number = len(REFUSED) + 30
    assert f"and {number - 20} more" in refused(folder, number, number + 2)
    counts("strangers' pictures", "refused by name")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "train" / "pipe.png")  # opening it would wait for ever
    assert len(load(folder)) == 2


def test_celeba(tmp_path, counts):
    pictures = tmp_path / "celeba" / "img_align_celeba"
    pictures.mkdir(parents=True)
    for k in range(3):
        Image.fromarray(noise(218, 178, 3)).save(pictures / f"{k}.jpg")
    bad = ["zero.png", "text.png", "cut.jpg", "enormous.png", "animated.gif", "float.tif"]
    for name in bad:
        REFUSED[name](pictures / name)
    lines = [f"{path.name} 0" for path in sorted(pictures.iterdir())]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    message = refused(tmp_path, len(bad), 9, "celeba")
    assert all(name in message for name in bad)
    counts("strangers' pictures", "refused by name")
