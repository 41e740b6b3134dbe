"""Strangers' pictures: used, or refused with their number and names, before any training."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rgflow_core import datasets, pictures
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


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Where a user's caches lie."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_are_named_at_once(folder, counts):
    for name, make in REFUSED.items():
        make(folder / "train" / name)
    for k in range(30):
        (folder / "train" / f"y{k}.png").write_bytes(b"")
    number = len(REFUSED) + 30
    assert f"and {number - 20} more" in refused(folder, number, number + 2)
    counts("strangers' pictures", "refused by name")


# Transparency: one ink, another shape, on a stated background


def chunked(width, height, depth, kind, rows, transparent, palette=b""):
    """A PNG of any bit depth with a transparent colour."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return len(content).to_bytes(4, "big") + name + content + crc.to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    if palette:
        content += chunk(b"PLTE", palette)
    content += chunk(b"tRNS", transparent)
    content += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return content + chunk(b"IEND", b"")


def shape(kind):
    """Which of 32 x 32 pixels are opaque."""
    y, x = np.mgrid[:32, :32]
    return {"left": x < 16, "top": y < 16}[kind]


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


def keyed(depth, ink, key, kind=0, samples=1, transparent=None, palette=b""):
    transparent = key.to_bytes(2, "big") * samples if transparent is None else transparent

    def make(path, mask):
        rows = bits(mask, depth, ink, key, samples)
        path.write_bytes(chunked(32, 32, depth, kind, rows, transparent, palette))

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
    "palette.png": keyed(8, 1, 0, 3, transparent=b"\0\xff", palette=bytes([0, 0, 0, *INK])),
    "palette_keyed.png": keyed(4, 1, 0, 3, transparent=b"\0", palette=bytes([0, 0, 0, *INK])),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_shows_the_background(name, tmp_path, monkeypatch, counts):
    """Where nothing is, the background is, white or another, and the cache knows which."""
    monkeypatch.setitem(datasets.SOURCES, "black", datasets.folder((0, 0, 0)))
    monkeypatch.setitem(datasets.SOURCES, "blue", datasets.folder((0, 0, 250)))
    for kind in ("left", "top"):
        (tmp_path / kind / "train").mkdir(parents=True)
        TRANSPARENT[name](tmp_path / kind / "train" / name, shape(kind))
        clear = torch.from_numpy(~shape(kind))
        for source, colour in (("folder", (255, 255, 255)), ("blue", (0, 0, 250))):
            for _ in range(2):  # made, and from the cache
                image = load(tmp_path / kind, name=source)[0]
                differs = image.permute(1, 2, 0).ne(torch.tensor(colour)).any(-1)
                assert torch.equal(differs, ~clear)
    counts("strangers' pictures", "used")


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA", "RGBA", "PA"])
def test_transparency_of_each_mode(mode):
    mask = shape("top")
    image = Image.new("PA", (32, 32)) if mode == "PA" else layers(mode, mask)
    if mode == "PA":
        image.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
    shown = np.asarray(pictures.on_background(image, (1, 2, 3)))
    assert (shown[~mask] == (1, 2, 3)).all()
    assert (shown[mask] != (1, 2, 3)).any()


def test_half_transparent(folder):
    ink = np.full((40, 40, 4), (100, 0, 50, 128), np.uint8)
    Image.fromarray(ink).save(folder / "train" / "zzz.png")
    image = load(folder)[-1]
    assert (image.flatten(1).float() - torch.tensor([[177.0], [127], [152]])).abs().max() <= 1


# Orientation


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(ending, orientation, folder):
    """A photograph stands as its camera says."""
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


# Names


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


# More than eight bits


def twelve_bits(path):
    Image.fromarray(noise(40, 40, dtype=np.uint16) * 20).save(path)


def twelve_bits_colour(path):
    rows = noise(40, 120, dtype=np.uint16) * 20
    content = chunked(40, 40, 16, 2, [row.astype(">u2").tobytes() for row in rows], b"")
    path.write_bytes(content.replace(b"\0\0\0\0tRNS" + struct.pack(">I", zlib.crc32(b"tRNS")), b""))


def twelve_bits_ppm(path):
    rows = noise(40, 40, 3, dtype=np.uint16) * 20
    path.write_bytes(b"P6 40 40 65535\n" + rows.astype(">u2").tobytes())


def twelve_bits_pgm(path):
    rows = noise(40, 40, dtype=np.uint16) * 20
    path.write_bytes(b"P5 40 40 65535\n" + rows.astype(">u2").tobytes())


TWELVE = {
    "x.png": twelve_bits, "x.tif": twelve_bits, "y.png": twelve_bits_colour,
    "x.ppm": twelve_bits_ppm, "x.pgm": twelve_bits_pgm,
}  # fmt: skip


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_bits_in_sixteen_are_refused(name, folder):
    TWELVE[name](folder / "train" / name)
    with pytest.raises(UserError, match=r"16 bits per value.* nearly black.*65535") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_twelve_bits_that_say_so(folder):
    rows = noise(40, 40, dtype=np.uint16) * 20
    (folder / "train" / "zzz.pgm").write_bytes(b"P5 40 40 4095\n" + rows.astype(">u2").tobytes())
    assert load(folder)[-1].max() > 200


def test_the_range_found_is_said(folder, capsys):
    Image.fromarray(noise(40, 40, dtype=np.uint16) * 80).save(folder / "train" / "x.png")
    load(folder)
    assert "16 bits per value: 1, the largest of each about 15" in capsys.readouterr().err
    Image.fromarray(noise(40, 40, dtype=np.uint16) * 300).save(folder / "train" / "x.png")
    capsys.readouterr()
    load(folder)
    assert "16 bits" not in capsys.readouterr().err


def test_black_in_sixteen_bits_is_black(folder):
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "train" / "zzz.png")
    assert load(folder)[-1].max() == 0


@pytest.mark.parametrize("kind", [0, 2])
def test_a_transparent_colour_of_sixteen_bits(kind, folder):
    keyed(16, 40000, 40001, kind, samples=kind + 1)(folder / "train" / "x.png", shape("top"))
    assert "transparent colour of 16 bits" in refused(folder, 1, 3)


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
