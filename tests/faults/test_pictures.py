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
from rgflow_core.errors import UserError

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


def bad_chunk(path):
    """Its pixels go on in a chunk of an impossible name."""
    whole = png(40, 40, 8, 2, noise(40, 120))
    start, end = whole.index(b"IDAT"), len(chunk(b"IEND", b""))
    pixels = whole[start + 4 : -end - 4]
    parts = chunk(b"IDAT", pixels[:2000]) + chunk(b"\0\1\2\3", pixels[2000:])
    path.write_bytes(whole[: start - 4] + parts + whole[-end:])


def truncated(path):
    Image.fromarray(noise(200, 200, 3)).save(path)
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
    "enormous.png": png_of_size(60_000, 60_000),
    "large.png": png_of_size(12_000, 12_000),
    "empty.png": png_of_size(0, 8),
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
    message = said_by(load, folder, "train", name)
    assert message.startswith(f"{bad} of {count} pictures cannot be used"), message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, folder, caches, counts):
    path = folder / "train" / name
    REFUSED[name](path)
    assert str(path) in refused(folder, 1, 3)
    assert not any(caches.iterdir())
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


def test_all_are_named_at_once(folder, counts):
    for name, make in REFUSED.items():
        make(folder / "train" / name)
    for k in range(30):
        (folder / "train" / f"y{k}.png").write_bytes(b"")
    number = len(REFUSED) + 30
    assert f"and {number - 20} more" in refused(folder, number, number + 2)
    counts("strangers' pictures", "refused by name")


# Transparency: one ink, another shape, on a stated background


TOP, LEFT = np.mgrid[:32, :32] < 16  # masks: which pixels are opaque
INK = (10, 200, 60)


def layers(mode, mask):
    """A picture of one ink, opaque where the mask is, in a mode with a layer of transparency."""
    ink = INK if "RGB" in mode else (90,)
    premultiplied = mode in ("La", "RGBa")
    planes = [np.where(mask, v, 0 if premultiplied else v).astype(np.uint8) for v in ink]
    planes.append((mask * 255).astype(np.uint8))
    return Image.merge(mode, [Image.fromarray(p) for p in planes])


def bits(mask, depth, ink, key, samples=1):
    """Rows of a PNG: ``ink`` where the mask is, else ``key``, in ``depth`` bits per sample."""
    rows = []
    for line in mask:
        number = "".join(f"{ink if m else key:0{depth}b}" * samples for m in line)
        rows.append(int(number, 2).to_bytes(len(number) // 8, "big"))
    return rows


def keyed(depth, ink, key, kind=0, samples=1, tRNS=None, **palette):
    def make(path, mask):
        transparent = key.to_bytes(2, "big") * samples if tRNS is None else tRNS
        rows = bits(mask, depth, ink, key, samples)
        path.write_bytes(png(32, 32, depth, kind, rows, **palette, tRNS=transparent))

    return make


def layered(mode, **how):
    return lambda path, mask: layers(mode, mask).save(path, **how)


def gif(path, mask):
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, *INK])
    image.save(path, transparency=0)


def palette_alpha(path, mask):
    image = Image.new("PA", (32, 32))
    image.putpalette(list(INK))
    image.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
    image.save(path)


TRANSPARENT = {
    "rgba.png": layered("RGBA"),
    "rgba.webp": layered("RGBA", lossless=True),
    "rgba.tif": layered("RGBA"),
    "rgba.jp2": layered("RGBA"),
    "la.png": layered("LA"),
    "la.tif": layered("LA"),
    "pa.tif": palette_alpha,
    "index.gif": gif,
    "one_bit.png": keyed(1, 0, 1),
    "grey2.png": keyed(2, 1, 3),
    "grey4.png": keyed(4, 5, 15),
    "grey8.png": keyed(8, 90, 91),
    "rgb8.png": keyed(8, 90, 91, kind=2, samples=3),
    "palette.png": keyed(8, 1, 0, 3, tRNS=b"\0\xff", PLTE=bytes([0, 0, 0, *INK])),
    "palette_keyed.png": keyed(4, 1, 0, 3, tRNS=b"\0", PLTE=bytes([0, 0, 0, *INK])),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_shows_the_background(name, tmp_path, monkeypatch, counts):
    """Where nothing is, the background is, white or another, and the cache knows which."""
    monkeypatch.setitem(datasets.SOURCES, "blue", datasets.folder((0, 0, 250)))
    for kind, mask in {"left": LEFT, "top": TOP}.items():
        (tmp_path / kind / "train").mkdir(parents=True)
        TRANSPARENT[name](tmp_path / kind / "train" / name, mask)
        for source, colour in (("folder", (255, 255, 255)), ("blue", (0, 0, 250))):
            for _ in range(2):  # made, and from the cache
                image = load(tmp_path / kind, name=source)[0].permute(1, 2, 0)
                assert np.array_equal((image.numpy() != colour).any(-1), mask)
    counts("strangers' pictures", "used")


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_transparency_of_modes_that_no_file_has(mode):
    shown = np.asarray(pictures.on_background(layers(mode, TOP), (1, 2, 3)))
    assert (shown[~TOP] == (1, 2, 3)).all()
    assert (shown[TOP] != (1, 2, 3)).any()


def test_half_transparent(folder):
    ink = np.full((40, 40, 4), (100, 0, 50, 128), np.uint8)
    Image.fromarray(ink).save(folder / "train" / "zzz.png")
    image = load(folder)[-1]
    assert (image.flatten(1).float() - torch.tensor([[177.0], [127], [152]])).abs().max() <= 1


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data")
def test_damaged_orientation(folder):
    """Bytes of a camera's notes may be anything: used, or refused by name."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    path = folder / "train" / "zzz.jpg"
    Image.fromarray(noise(40, 40, 3)).save(path, exif=exif)
    content = path.read_bytes()
    start, named = content.index(b"Exif"), []
    for _ in range(60):
        damaged = bytearray(content)
        for at in random.integers(start + 6, start + 30, 3):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert len(load(folder)) == 3
        except UserError as error:
            named.append(str(path) in str(error))
    assert all(named)


ENDINGS = "apng bmp dib gif jfif jpe jpeg JPG jp2 j2k mpo pbm pgm ppm pnm png tif tiff webp avif"


@pytest.mark.parametrize("ending", ENDINGS.split())
def test_endings(ending, folder):
    grey = Image.fromarray(noise(40, 40)).convert("1" if ending == "pbm" else "L")
    grey.save(folder / "train" / f"zzz.{ending}")
    assert len(load(folder)) == 3


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


@pytest.mark.parametrize(("scale", "said"), [(80, True), (300, False)])
def test_the_range_found_is_said(scale, said, folder, capsys):
    image = Image.fromarray(noise(40, 40, dtype=np.uint16) * scale)
    image.save(folder / "train" / "x.png")
    load(folder)
    line = capsys.readouterr().err
    assert ("16 bits per value: 1, the largest of each about 15" in line) == said
    assert ("16 bits" in line) == said


def test_black_in_sixteen_bits_is_black(folder):
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "train" / "zzz.png")
    assert load(folder)[-1].max() == 0


@pytest.mark.parametrize("kind", [0, 2])
def test_a_transparent_colour_of_sixteen_bits(kind, folder):
    keyed(16, 40000, 40001, kind, samples=kind + 1)(folder / "train" / "x.png", TOP)
    assert "transparent colour of 16 bits" in refused(folder, 1, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "train" / "pipe.png")  # opening it would wait for ever
    assert len(load(folder)) == 2


def test_celeba(tmp_path, counts):
    aligned = tmp_path / "celeba" / "img_align_celeba"
    aligned.mkdir(parents=True)
    for k in range(3):
        Image.fromarray(noise(218, 178, 3)).save(aligned / f"{k}.jpg")
    bad = ["zero.png", "text.png", "cut.jpg", "enormous.png", "animated.gif", "float.tif"]
    for name in bad:
        REFUSED[name](aligned / name)
    lines = [f"{path.name} 0" for path in sorted(aligned.iterdir())]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    message = refused(tmp_path, len(bad), 9, "celeba")
    assert all(name in message for name in bad)
    counts("strangers' pictures", "refused by name")
