"""Data sets: made once, verified whenever loaded, made again when damaged."""

import gzip
import hashlib
import json
import os
import pickle
import sys
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from support import contents, files_below, said_by

from rgflow_core import datasets, files, msds, pictures, sample

pytestmark = pytest.mark.usefixtures("caches")


def load(name, split, root, limit=None, workers=2, size=32):
    return datasets.load_split(name, split, root, limit, workers, False, size)


def arrays(data):
    return data.images.permute(0, 2, 3, 1).numpy()


def smooth(width, height, seed=0):
    """A picture without noise, so that interpolation has something to do but not too much."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin((seed + k + 1) * (x / width + k * y / height)) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.fixture
def small_msds(monkeypatch):
    monkeypatch.setattr(msds, "SPLITS", {"train": 2050, "val": 30, "test": 20})


@pytest.mark.parametrize("name", msds.SETS)
def test_msds_is_drawn_once(name, small_msds, tmp_path, monkeypatch, capsys):
    first = {}
    for split, count in msds.SPLITS.items():
        first[split] = data = load(name, split, tmp_path, workers=5 if split == "train" else 1)
        labels = msds.labels(name, split, 0, count)
        assert data.images.shape == (count, 3, 32, 32)
        assert data.images.dtype == torch.uint8
        assert np.array_equal(arrays(data), msds.render(labels))
        assert np.array_equal(data.labels, labels)
        assert data.fingerprint == hashlib.sha256(np.ascontiguousarray(arrays(data))).hexdigest()
    expected = {f"{s}_{what}.npy" for s in msds.SPLITS for what in ("images", "labels")}
    assert set(files_below(tmp_path / name)) == expected | {f"{s}.json" for s in msds.SPLITS}
    monkeypatch.setattr(msds, "render", None)
    for split, data in first.items():
        for _ in range(2):
            again = load(name, split, tmp_path)
            assert torch.equal(again.images, data.images)
            assert np.array_equal(again.labels, data.labels)
            assert again.fingerprint == data.fingerprint
            again.images[0] = 0  # a copy: the file stays as it is
    assert capsys.readouterr() == ("", "")


def older(folder):
    content = json.loads((folder / "test.json").read_text())
    content["parameters"]["version"] = 0
    files.write_json(folder / "test.json", {k: content[k] for k in ("parameters", "arrays")})


DAMAGES = {  # and those of faults/test_damage: cut, flipped, blank
    "missing file": lambda f: (f / "test_images.npy").unlink(),
    "foreign manifest": lambda f: (f / "test.json").write_text('{"arrays": []}'),
    "another version": older,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_once_and_repaired(damage, small_msds, tmp_path, monkeypatch, capsys):
    """And the other splits are left alone."""
    images, folder = load("msds1", "test", tmp_path).images, tmp_path / "msds1"
    val, before = load("msds1", "val", tmp_path).images, contents(folder)
    DAMAGES[damage](folder)
    assert contents(folder) != before
    assert torch.equal(load("msds1", "test", tmp_path).images, images)
    said = capsys.readouterr().err
    assert said.count("made again") == 1
    assert str(folder) in said
    assert contents(folder) == before
    monkeypatch.setattr(msds, "render", None)
    for split, wanted in (("test", images), ("val", val)):
        assert torch.equal(load("msds1", split, tmp_path).images, wanted)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_a_limit_draws_in_memory(limit, small_msds, tmp_path):
    data = load("msds1", "test", tmp_path, limit=limit)
    labels = msds.labels("msds1", "test", 0, min(limit, 20))
    assert np.array_equal(data.labels, labels)
    assert np.array_equal(arrays(data), msds.render(labels))
    assert files_below(tmp_path) == []


@pytest.fixture
def celeba(tmp_path):
    """Six pictures in the layout of torchvision.datasets.CelebA."""
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    for number in range(1, 7):
        path = tmp_path / "celeba" / "img_align_celeba" / f"{number:06d}.jpg"
        smooth(178, 218, seed=number).save(path, quality=95)
    lines = [f"{number:06d}.jpg {split}\n" for number, split in enumerate("000112", 1)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    return tmp_path


CROPS = {"celeba": Image.Resampling.BICUBIC, "celeba_authors": Image.Resampling.BILINEAR}


def test_celeba(celeba):
    numbers = {"train": (1, 2, 3), "val": (4, 5), "test": (6,)}
    for (name, mode), split in product([*CROPS.items()] * 2, numbers):
        expected = []
        for number in numbers[split]:
            with Image.open(celeba / "celeba" / "img_align_celeba" / f"{number:06d}.jpg") as image:
                left, top = (178 - 148) // 2, (218 - 148) // 2
                square = image.crop((left, top, left + 148, top + 148))
                expected.append(np.asarray(square.resize((32, 32), mode)))
        data = load(name, split, celeba)
        assert np.array_equal(arrays(data), np.stack(expected))
        assert data.labels is None
        assert np.array_equal(arrays(load(name, split, celeba, limit=1)), expected[:1])


PARTITION, PICTURE = "list_eval_partition.txt", "img_align_celeba/000004.jpg"
CELEBA = {  # the pictures' own faults are in faults/test_pictures
    "no pictures": (lambda f: (f / "img_align_celeba").rename(f / "x"), "img_align_celeba.zip"),
    "a picture missing": (lambda f: (f / PICTURE).unlink(), "000004.jpg 1 of 2"),
    "a small picture": (lambda f: smooth(178, 140).save(f / PICTURE), "000004.jpg 178 x 140"),
    "empty partition": (lambda f: (f / PARTITION).write_text(""), "damaged val"),
    "foreign partition": (lambda f: (f / PARTITION).write_text("a b c"), "damaged"),
}


@pytest.mark.parametrize("fault", CELEBA)
def test_unfit_celeba(fault, celeba):
    """It is said what to put where; nothing is left behind."""
    spoil, words = CELEBA[fault]
    spoil(celeba / "celeba")
    before = files_below(celeba)
    message = said_by(load, "celeba", "val", celeba)
    assert all(word in message for word in [str(celeba / "celeba"), *words.split()])
    assert files_below(celeba) == before


# CIFAR-10 and both MNISTs, in torchvision's layout; Debian's Fashion-MNIST


def draw(*shape):
    return np.random.default_rng(shape[0]).integers(0, 256, shape, np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def write_mnist(folder, packed=False):
    """Files in MNIST's layout; their pictures and labels."""
    folder.mkdir(parents=True)
    written = {"train": (draw(5010, 28, 28), draw(5010)), "t10k": (draw(20, 28, 28), draw(20))}
    for name, arrays in written.items():
        for what, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            path = folder / f"{name}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return written


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Files in torchvision's layout, and what to find in them: name -> (training, test)."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder, batches = tmp_path / "cifar-10-batches-py", draw(6, 1002, 3, 32, 32)
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, images in zip(names, batches, strict=True):
        content = {"data": images.reshape(1002, 3072), "labels": [0] * 1002}
        (folder / name).write_bytes(pickle.dumps(content))
    written = write_mnist(tmp_path / "MNIST" / "raw").values()
    padded = (np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] for images, _ in written)
    return {"cifar10": (np.concatenate(batches[:5]), batches[5]), "mnist": tuple(padded)}


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_validation_is_the_end_of_the_training_set(name, published, tmp_path):
    training, test = published[name]
    for split, wanted in {"train": training[:-5000], "val": training[-5000:], "test": test}.items():
        assert np.array_equal(load(name, split, tmp_path).images.numpy(), wanted)


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "usr/fashion-mnist"])
def test_fashion_mnist_and_its_labels_wherever_it_lies(place, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "usr")
    message = said_by(load, "fashion_mnist", "val", tmp_path)
    raw = tmp_path / "FashionMNIST" / "raw"
    assert all(part in message for part in ("train-images-idx3-ubyte", f"{raw}", "Debian"))
    written = write_mnist(tmp_path / place, packed="usr" in place)
    (images, labels), test = written["train"], written["t10k"]
    splits = {"train": (images[:10], labels[:10]), "val": (images[10:], labels[10:]), "test": test}
    for split, (wanted, classes) in splits.items():
        data = load("fashion_mnist", split, tmp_path)
        assert np.array_equal(data.images[:, 0, 2:30, 2:30].numpy(), wanted)
        assert np.array_equal(data.labels, classes)
    assert not datasets.SOURCES["fashion_mnist"].flip


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:1000],
        lambda b: b + b"x",
        lambda b: gzip.compress(b)[:500],
        lambda b: idx(np.zeros((20, 8, 8), np.uint8)),
    ],
)
def test_damaged_mnist(damage, published, tmp_path):
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = damage(path.read_bytes())
    path.unlink()
    path.with_suffix(".gz" if content[:2] == b"\x1f\x8b" else "").write_bytes(content)
    assert "mnist" in said_by(load, "mnist", "test", tmp_path).lower()
    assert not (tmp_path / "mnist").exists()


# A folder of pictures


def fill(folder, count=20):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        smooth(40, 50, seed=i).save(folder / f"{i:03d}.png")


def bicubic(image, size=32):
    """Largest centred square, resized, as the test understands it."""
    width, height = image.size
    edge = min(width, height)
    left, top = round((width - edge) / 2), round((height - edge) / 2)
    square = image.crop((left, top, left + edge, top + edge))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def test_folder_is_split_by_name(tmp_path):
    fill(tmp_path / "deep" / "er")
    (tmp_path / "notes.txt").write_text("not a picture")
    expected = np.stack([bicubic(smooth(40, 50, seed=i)) for i in range(20)])
    parts = {"val": [8, 18], "test": [9, 19]}
    parts["train"] = [i for i in range(20) if i % 10 < 8]
    for split, numbers in parts.items():
        assert np.array_equal(arrays(load("folder", split, tmp_path)), expected[numbers])


@pytest.mark.parametrize("size", [4, 40, 64])
def test_folder_at_another_size(size, tmp_path, monkeypatch, capsys):
    """Each size has a cache of its own; what is enlarged is said, once."""
    fill(tmp_path, 10)
    first = load("folder", "train", tmp_path)
    images = load("folder", "train", tmp_path, size=size)
    expected = [bicubic(smooth(40, 50, seed=i), size) for i in range(8)]
    assert np.array_equal(arrays(images), np.stack(expected))
    assert ("64 x 64, enlarged: 8 of 8" in capsys.readouterr().err) == (size > 40)
    monkeypatch.setattr(pictures, "read", None)
    assert load("folder", "train", tmp_path).fingerprint == first.fingerprint
    assert load("folder", "train", tmp_path, size=size).fingerprint == images.fingerprint
    assert capsys.readouterr().err == ""


def test_pictures_that_memory_does_not_hold(tmp_path, monkeypatch):
    """They are refused before one is read, and how many would fit is said."""
    fill(tmp_path)
    monkeypatch.setattr(datasets, "MEMORY", 10 * 3 * 64**2)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read", None)
        message = said_by(load, "folder", "train", tmp_path, size=128)
    for words in ("16 pictures of 128 x 128", "2 would fit", "smaller --image-size"):
        assert words in message
    assert len(load("folder", "train", tmp_path, size=32).images) == 16
    assert len(load("folder", "val", tmp_path, size=128).images) == 2


def test_folder_of_mixed_modes(tmp_path):
    """Each mode shows the picture that it shows in any viewer."""
    colour = smooth(32, 32)
    grey, palette, bits = colour.convert("L"), colour.quantize(64), colour.convert("1")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (palette.mode, wide.mode) == ("P", "I;16")
    stored = {
        "0_rgb.png": (colour, colour),
        "1_grey.png": (grey, grey),
        "2_rgba.png": (colour.convert("RGBA"), colour),
        "3_palette.png": (palette, palette),
        "4_grey_alpha.png": (grey.convert("LA"), grey),
        "5_sixteen_bits.png": (wide, grey),
        "6_one_bit.png": (bits, bits),
        "7_sixteen_bits.tif": (wide, grey),
    }
    for name, (image, _) in stored.items():
        image.save(tmp_path / name)
    found = arrays(load("folder", "train", tmp_path))
    for image, (name, (_, shown)) in zip(found, stored.items(), strict=True):
        assert np.array_equal(image, np.asarray(shown.convert("RGB"))), name


def test_what_this_package_has_drawn_is_no_data(tmp_path):
    fill(tmp_path)
    first = load("folder", "train", tmp_path)
    for name in ("000_samples.png", "runs/x/samples/epoch001.png"):
        sample.write_grid(torch.rand(5, 1, 32, 32), tmp_path / name)
        assert load("folder", "train", tmp_path).fingerprint == first.fingerprint
    with Image.open(tmp_path / name) as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)


WHICH = {  # in the first of these folders lie ten files, in the next eleven, and so on
    (10, 11, 12): [
        "train/ val/ test/", "Train/a/ Valid/a/ Test/a/", "train/ VALIDATION/ TEST/a/",
    ],
    (10, 0, 11): ["train/ test/"],  # a missing split is not made from the others
    (17, 2, 2): [
        "a/ trains/", "a/ valley/", "a/ testudo/", "a/ a/train/", "a/ develop/",
    ],
    (8, 1, 1): [
        "a/ .ipynb_checkpoints/", "a/ ._0.png", "a/ a/__MACOSX/", "a/ @eaDir/0.png/",
        "a/ a/.DS_Store",
    ],
    "refused": [
        "training/ testing/", "train2017/ val2017/", "trainA/ trainB/ testA/ testB/",
        "Training_Set/ a/", "train/ valid/ dev/", "val/ valid/ train/", "test-images/ a/",
        "deep/er/Train/ deep/er/Validation/", "holdout/ a/", "evaluation/ a/",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("counts", "names"), [(c, n) for c in WHICH for n in WHICH[c]])
def test_which_files_are_of_which_split(counts, names, tmp_path):
    """Junk is of none, and is not spoken of; what only looks like a split is refused."""
    root = tmp_path / ".cache" / "__MACOSX"  # above the pictures any name will do
    (root / "test_notes").mkdir(parents=True)  # without pictures it is nothing
    for number, name in enumerate(names.split(), 10):
        for end in [f"{i}.png" for i in range(number)] if name[-1] == "/" else [""]:
            path = root / (name + end)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    if counts == "refused":
        assert str(root) in said_by(pictures.splits, root)
    else:
        found, left_out = pictures.splits(root)
        assert tuple(len(found[split]) for split in datasets.SPLITS) == counts
        assert left_out == ""


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    for split in datasets.SPLITS:
        fill(tmp_path / split, 3)
    fill(tmp_path / "elsewhere", 2)
    for name in ("a.heic", "b.HEIC", "Thumbs.db", "README"):
        (tmp_path / "train" / name).write_text("x")
    load("folder", "train", tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for words in ("2 pictures beside the splits", "2 .heic", "1 .db", "1 without an ending"):
        assert words in said


def test_key_and_reader_see_the_same(tmp_path):
    """Whatever is read is in the key, also behind a link, and nothing else."""
    root, elsewhere, key = tmp_path / "a", tmp_path / "b", datasets.SOURCES["folder"].parameters
    fill(root / "train", 10)
    fill(elsewhere, 1)
    (root / "train" / "b").symlink_to(elsewhere)
    for name in ("train/.hidden.png", "train/c.heic", "beside_the_splits.png"):
        (root / name).write_text("x")
    seen = {path.resolve() for paths in pictures.splits(root)[0].values() for path in paths}
    assert len(seen) == 11
    before = key(root)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        assert (key(root) != before) == (path.resolve() in seen), path
        before = key(root)
    (root / "train" / "003.png").rename(root / "train" / "d.png")
    assert key(root) != before


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    fill(tmp_path / "a", 10)
    fill(tmp_path / "locked", 10)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert str(tmp_path / "locked") in said_by(load, "folder", "train", tmp_path)


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_each_folder_has_a_cache_elsewhere(value, tmp_path, caches, monkeypatch, capsys):
    """Where the user says, else below the home folder."""
    if value is not None:
        monkeypatch.setenv("HOME", str(caches))
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    for name, count in (("a", 10), ("b", 20)):
        fill(tmp_path / name / "train", count)
    before = files_below(tmp_path)
    first = {name: load("folder", "train", tmp_path / name) for name in ("a", "b")}
    assert files_below(tmp_path) == before
    assert f"{'.cache/' if value is not None else ''}rgflow_core" in files_below(caches)
    monkeypatch.setattr(pictures, "read", None)  # from now on from the cache, by whatever path
    for name, data in first.items():
        monkeypatch.chdir(tmp_path / name)
        assert load("folder", "train", ".").fingerprint == data.fingerprint
    assert [len(data.images) for data in first.values()] == [10, 20]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["a file", "", "/proc/none", "a full disk", "read only"])
def test_in_memory_where_nothing_can_be_written(place, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "a", 10)
    (tmp_path / "a file").write_text("precious")
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", place and str(tmp_path / place))
    if place == "a full disk":
        monkeypatch.setattr(np, "save", Mock(side_effect=OSError(28, "No space left on device")))
    if place == "read only":
        monkeypatch.setattr(os, "access", lambda *_: False)
    before = files_below(tmp_path)
    assert len(load("folder", "train", tmp_path / "a").images) == 8
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "memory" in said
    assert files_below(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_name_that_is_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path)
    for k in range(10):
        smooth(40, 50, seed=k).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", folder + b"/caf\xe9%d.png" % k)
    assert len(load("folder", "train", tmp_path).images) == 8
    with open(folder + b"/\n\xff.png", "wb") as file:
        file.write(b"x")
    message = said_by(load, "folder", "train", tmp_path)
    assert "/ \\udcff.png" in message
    message.encode()


def test_without_workers_there_is_no_other_thread(small_msds, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ThreadPoolExecutor", None)
    fill(tmp_path, 10)
    assert len(load("msds1", "test", tmp_path, workers=0).images) == 20
    assert len(load("folder", "train", tmp_path, workers=np.int64(0)).images) == 8


def test_a_set_of_ones_own_is_made_once(tmp_path, monkeypatch, capsys):
    make = Mock(return_value={"images": np.full((4, 32, 32, 1), 7, np.uint8)})
    # JSON does not keep a tuple.
    source = datasets.Source(make, lambda root: {"size": (1, 2)}, "own", channels=1)
    monkeypatch.setitem(datasets.SOURCES, "own", source)
    for _ in range(2):
        assert torch.all(load("own", "val", tmp_path, limit=3).images == 7)
    make.assert_called_once()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("edge", "dtype"), [(32, np.float32), (28, np.uint8)])
def test_a_source_that_makes_something_else_is_refused(edge, dtype, tmp_path, monkeypatch):
    images = np.zeros((3, edge, edge, 3), dtype)
    source = datasets.Source(lambda *_: {"images": images}, lambda root: {}, "mine")
    monkeypatch.setitem(datasets.SOURCES, "mine", source)
    assert "uint8" in said_by(load, "mine", "train", tmp_path)
    assert files_below(tmp_path) == []
