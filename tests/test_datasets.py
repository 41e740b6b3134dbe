"""Data sets: made once, verified whenever loaded, made again when damaged."""

import hashlib
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import RUN, contents, files_below

from rgflow_core import (
    PictureModel,
    Prior,
    RGFlow,
    RGFlowConfig,
    datasets,
    evaluate,
    files,
    msds,
    pictures,
    sample,
    train,
)
from rgflow_core.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Where a user's caches lie."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def load(name, split, root, limit=None, workers=2, size=32):
    return datasets.load_split(name, split, root, limit, workers, False, size)


def arrays(data):
    return data.images.permute(0, 2, 3, 1).numpy()


def smooth(width, height, seed=0):
    """A picture without noise, so that interpolation has something to do but not too much."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin((seed + k + 1) * (x / width + k * y / height)) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def said_by(function, *arguments, **named):
    """The message of the UserError that a call raises: one line."""
    with pytest.raises(UserError) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


# MSDS on disk


@pytest.fixture
def small_msds(monkeypatch):
    monkeypatch.setattr(msds, "SPLITS", {"train": 2050, "val": 30, "test": 20})


@pytest.mark.parametrize("name", ["msds1", "msds2"])
def test_msds_files(name, small_msds, tmp_path, capsys):
    for split, count in msds.SPLITS.items():
        data = load(name, split, tmp_path, workers=5 if split == "train" else 1)
        labels = msds.labels(name, split, 0, count)
        assert data.images.shape == (count, 3, 32, 32)
        assert data.images.dtype == torch.uint8
        assert np.array_equal(arrays(data), msds.render(labels))
        assert np.array_equal(data.labels, labels)
        digest = hashlib.sha256(np.ascontiguousarray(arrays(data))).hexdigest()
        assert data.fingerprint == digest
    expected = {f"{s}_{what}.npy" for s in msds.SPLITS for what in ("images", "labels")}
    assert set(files_below(tmp_path / name)) == expected | {f"{s}.json" for s in msds.SPLITS}
    assert capsys.readouterr() == ("", "")


def test_msds_is_drawn_once(small_msds, tmp_path, monkeypatch):
    first = load("msds1", "test", tmp_path)
    monkeypatch.setattr(msds, "render", None)
    again = load("msds1", "test", tmp_path)
    assert torch.equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert again.fingerprint == first.fingerprint
    again.images[0] = 0  # a copy: the file stays as it is
    assert torch.equal(load("msds1", "test", tmp_path).images, first.images)


def flip_byte(folder):
    path = folder / "test_images.npy"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def edit(change):
    """Another program's manifest, without a checksum of its own."""

    def damage(folder):
        content = json.loads((folder / "test.json").read_text())
        change(content)
        del content["sha256"]
        (folder / "test.json").write_text(json.dumps(content))

    return damage


DAMAGES = {
    "flipped byte": flip_byte,
    "missing file": lambda f: (f / "test_images.npy").unlink(),
    "empty manifest": lambda f: (f / "test.json").write_text(""),
    "foreign manifest": lambda f: (f / "test.json").write_text("[1, 2]"),
    "no parameters": edit(lambda c: c.pop("parameters")),
    "no arrays": edit(lambda c: c.pop("arrays")),
    "arrays of another type": edit(lambda c: c.update(arrays=[])),
    "another version": edit(lambda c: c["parameters"].update(version=0)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_said_and_repaired(damage, small_msds, tmp_path, capsys):
    images = load("msds1", "test", tmp_path).images.clone()  # not a map of the file
    folder = tmp_path / "msds1"
    before = contents(folder)
    DAMAGES[damage](folder)
    assert contents(folder) != before
    assert torch.equal(load("msds1", "test", tmp_path).images, images)
    said = capsys.readouterr().err
    assert said.count("made again") == 1
    assert str(folder) in said
    assert contents(folder) == before
    load("msds1", "test", tmp_path)
    assert capsys.readouterr().err == ""


def test_damage_to_one_split_leaves_the_others(small_msds, tmp_path, monkeypatch):
    val = load("msds1", "val", tmp_path)
    load("msds1", "test", tmp_path)
    flip_byte(tmp_path / "msds1")
    load("msds1", "test", tmp_path)
    monkeypatch.setattr(msds, "render", None)
    assert torch.equal(load("msds1", "val", tmp_path).images, val.images)


def test_an_interrupted_generation_is_taken_up(small_msds, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.files, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            load("msds1", "test", tmp_path)
    expected = msds.render(msds.labels("msds1", "test", 0, 20))
    assert np.array_equal(arrays(load("msds1", "test", tmp_path)), expected)

    with monkeypatch.context() as patch:
        patch.setattr(msds, "render", stop)
        with pytest.raises(KeyboardInterrupt):
            load("msds2", "test", tmp_path)
    assert not (tmp_path / "msds2").exists()


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_a_limit_draws_in_memory(limit, small_msds, tmp_path):
    data = load("msds1", "test", tmp_path, limit=limit)
    labels = msds.labels("msds1", "test", 0, min(limit, 20))
    assert np.array_equal(data.labels, labels)
    assert np.array_equal(arrays(data), msds.render(labels))
    assert files_below(tmp_path) == []


# CelebA


@pytest.fixture
def celeba(tmp_path):
    """Six pictures in the layout of torchvision.datasets.CelebA."""
    pictures = tmp_path / "celeba" / "img_align_celeba"
    pictures.mkdir(parents=True)
    lines = []
    for number, split in enumerate([0, 0, 0, 1, 1, 2], 1):
        name = f"{number:06d}.jpg"
        smooth(178, 218, seed=number).save(pictures / name, quality=95)
        lines.append(f"{name} {split}\n")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    return tmp_path


CROPS = {"celeba": Image.Resampling.BICUBIC, "celeba_authors": Image.Resampling.BILINEAR}


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_celeba(split, celeba):
    """Both crops, each with a cache of its own."""
    for name, mode in [*CROPS.items()] * 2:
        expected = []
        for number in {"train": (1, 2, 3), "val": (4, 5), "test": (6,)}[split]:
            with Image.open(celeba / "celeba" / "img_align_celeba" / f"{number:06d}.jpg") as image:
                left, top = (178 - 148) // 2, (218 - 148) // 2
                square = image.crop((left, top, left + 148, top + 148))
                expected.append(np.asarray(square.resize((32, 32), mode)))
        data = load(name, split, celeba)
        assert np.array_equal(arrays(data), np.stack(expected))
        assert data.labels is None
        assert np.array_equal(arrays(load(name, split, celeba, limit=1)), expected[:1])


CELEBA = {
    "no partition": (lambda f: (f / "list_eval_partition.txt").unlink(), "000001.jpg"),
    "no pictures": (lambda f: (f / "img_align_celeba").rename(f / "x"), "img_align_celeba.zip"),
    "a picture missing": (lambda f: picture(f).unlink(), "000004.jpg 1 of 2"),
    "a small picture": (lambda f: smooth(178, 140).save(picture(f)), "000004.jpg 178 x 140"),
    "empty partition": (lambda f: (f / "list_eval_partition.txt").write_text(""), "incomplete"),
    "cut partition": (lambda f: (f / "list_eval_partition.txt").write_text("1.jpg\n"), "damaged"),
    "foreign partition": (lambda f: (f / "list_eval_partition.txt").write_text("a b c"), "damaged"),
}


def picture(folder):
    return folder / "img_align_celeba" / "000004.jpg"


@pytest.mark.parametrize("fault", CELEBA)
def test_unfit_celeba(fault, celeba):
    """It is said what to put where; nothing is left behind."""
    spoil, words = CELEBA[fault]
    spoil(celeba / "celeba")
    before = files_below(celeba)
    message = said_by(load, "celeba", "val", celeba)
    assert str(celeba / "celeba") in message
    assert all(word in message for word in words.split())
    assert files_below(celeba) == before


# CIFAR-10 and MNIST, in torchvision's layout


def test_cifar10(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images[name] = RNG.integers(0, 256, (1002, 3, 32, 32), dtype=np.uint8)
        content = {"data": images[name].reshape(1002, 3072), "labels": [0] * 1002}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))

    train = np.concatenate([images[f"data_batch_{i}"] for i in range(1, 6)])
    expected = {"train": train[:10], "val": train[10:], "test": images["test_batch"]}
    for split, wanted in expected.items():
        assert np.array_equal(load("cifar10", split, tmp_path).images.numpy(), wanted)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = {}
    for name, count in [("train", 5010), ("t10k", 20)]:
        images[name] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images[name]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(count, np.uint8)))
    return tmp_path, images


def test_mnist_is_padded(mnist):
    root, images = mnist
    train = images["train"]
    for split, wanted in {"train": train[:10], "val": train[10:], "test": images["t10k"]}.items():
        data = load("mnist", split, root).images
        assert data.shape == (len(wanted), 1, 32, 32)
        assert np.array_equal(data[:, 0, 2:30, 2:30].numpy(), wanted)
        assert data.sum() == wanted.sum(dtype=np.int64)


def test_damaged_mnist(mnist):
    root, _ = mnist
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(root / "MNIST") in said_by(load, "mnist", "test", root)
    assert not (root / "mnist").exists()


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
    fill(tmp_path / "deep" / "er", 20)
    (tmp_path / "notes.txt").write_text("not a picture")
    expected = np.stack([bicubic(smooth(40, 50, seed=i)) for i in range(20)])
    parts = {"val": [8, 18], "test": [9, 19]}
    parts["train"] = [i for i in range(20) if i % 10 < 8]
    for split, numbers in parts.items():
        assert np.array_equal(arrays(load("folder", split, tmp_path)), expected[numbers])


@pytest.mark.parametrize("size", [4, 16, 40, 64])
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
    """They are refused before one is read, and what would fit is said and fits."""
    fill(tmp_path, 20)
    monkeypatch.setattr(datasets, "MEMORY", 10 * 3 * 64**2)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read", None)
        message = said_by(load, "folder", "train", tmp_path, size=128)
    for words in ("16 pictures of 128 x 128", "2 would fit", "--image-size 32"):
        assert words in message
    assert len(load("folder", "train", tmp_path, size=32).images) == 16
    assert len(load("folder", "val", tmp_path, size=128).images) == 2


def test_folder_with_splits_of_its_own(tmp_path, capsys):
    """Test pictures never train, and a missing split is not made from the others."""
    for split, count in (("train", 3), ("test", 2)):
        fill(tmp_path / split / "class", count)
    for _ in range(2):
        for split, count in (("train", 3), ("test", 2)):
            expected = np.stack([bicubic(smooth(40, 50, seed=i)) for i in range(count)])
            assert np.array_equal(arrays(load("folder", split, tmp_path)), expected)
        fill(tmp_path / "elsewhere", 1)  # what is not read does not count
    assert capsys.readouterr().err == ""
    assert "val" in said_by(load, "folder", "val", tmp_path)


def test_folder_of_mixed_modes(tmp_path):
    """Each mode shows the picture that it shows in any viewer."""
    colour = smooth(32, 32)
    grey = colour.convert("L")
    palette = colour.quantize(64)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (palette.mode, wide.mode) == ("P", "I;16")
    pictures = {
        "0_rgb.png": (colour, colour),
        "1_grey.png": (grey, grey.convert("RGB")),
        "2_rgba.png": (colour.convert("RGBA"), colour),
        "3_palette.png": (palette, palette.convert("RGB")),
        "4_grey_alpha.png": (grey.convert("LA"), grey.convert("RGB")),
        "5_sixteen_bits.png": (wide, grey.convert("RGB")),
        "6_one_bit.png": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "7_sixteen_bits.tif": (wide, grey.convert("RGB")),
    }
    for name, (stored, _) in pictures.items():
        stored.save(tmp_path / name)
    found = arrays(load("folder", "train", tmp_path))
    for image, (name, (_, shown)) in zip(found, pictures.items(), strict=True):
        assert np.array_equal(image, np.asarray(shown)), name


def repaint(folder):
    """Another picture of the same size in bytes."""
    path = folder / "000.bmp"
    smooth(40, 50, seed=99).save(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 2_000_000_000))


CHANGES = {
    "removed": lambda folder: (folder / "003.png").unlink(),
    "added": lambda folder: smooth(40, 50, seed=99).save(folder / "0035.png"),
    "replaced": lambda folder: smooth(80, 50, seed=99).save(folder / "003.png"),
    "renamed": lambda folder: (folder / "003.png").rename(folder / "999.png"),
    "repainted": repaint,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_read_again(change, tmp_path, capsys):
    fill(tmp_path, 5)
    smooth(40, 50, seed=50).save(tmp_path / "000.bmp")
    first = load("folder", "train", tmp_path)
    assert load("folder", "train", tmp_path).fingerprint == first.fingerprint
    assert capsys.readouterr().err == ""
    CHANGES[change](tmp_path)
    assert load("folder", "train", tmp_path).fingerprint != first.fingerprint
    assert "again" in capsys.readouterr().err


JUNK = [
    ".ipynb_checkpoints/008-checkpoint.png", "._000.png", ".hidden/deep/000.png", "__MACOSX/0.png",
    "a/__MACOSX/0.png", "a/.git/0.png", "a/._0.jpg", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", [*JUNK, "Thumbs.db", "desktop.ini", "a/.DS_Store"])
def test_hidden_names_and_junk_are_no_data(name, tmp_path, capsys):
    """Neither a good picture of such a name nor a bad one changes anything."""
    fill(tmp_path, 20)
    before = {split: load("folder", split, tmp_path).fingerprint for split in datasets.SPLITS}
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    smooth(40, 50, seed=77).save(tmp_path / name, "PNG")
    for split, fingerprint in before.items():
        assert load("folder", split, tmp_path).fingerprint == fingerprint
    (tmp_path / name).write_bytes(b"Mac OS X")
    assert load("folder", "train", tmp_path).fingerprint == before["train"]
    assert capsys.readouterr().err == ""


def test_what_this_package_drew_is_no_data(tmp_path, monkeypatch):
    """Train in the pictures' own folder, draw samples there, and go on."""
    fill(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    first = load("folder", "train", ".")
    sample.write_grid(torch.rand(4, 3, 32, 32), "runs/folder_20260101_000000/samples/epoch001.png")
    sample.write_grid(torch.rand(5, 1, 32, 32), "000_samples.png")
    with Image.open("000_samples.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)
    assert load("folder", "train", ".").fingerprint == first.fingerprint


def test_training_goes_on_in_the_pictures_own_folder(tmp_path, monkeypatch):
    fill(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    for epochs in (1, 2):
        settings = replace(RUN, dataset="folder", data_root=".", epochs=epochs)
        train.train(settings, "runs/x", progress=False)
    assert len(files.read_json("runs/x/record.json")["validation"]) == 2


SPELT = ["train val test", "Train Valid Test", "TRAIN validation test", "train VALIDATION TEST"]


@pytest.mark.parametrize("names", SPELT)
def test_splits_of_any_case(names, tmp_path):
    folders = dict(zip(datasets.SPLITS, names.split(), strict=True))
    for count, name in enumerate(folders.values(), 1):
        fill(tmp_path / name / "class", count)
    for count, split in enumerate(folders, 1):
        assert len(load("folder", split, tmp_path).images) == count


LIKE_SPLITS = [
    "training testing", "train2017 val2017", "trainA trainB testA testB", "Training_Set rest",
    "train valid dev", "train val val2", "val valid train", "test-images a",
    "a/train a/test", "bottle/train/good bottle/test/broken", "deep/er/Train deep/er/Validation",
    "holdout a", "evaluation a",
]  # fmt: skip


@pytest.mark.parametrize("names", LIKE_SPLITS)
def test_what_looks_like_a_split_is_refused(names, tmp_path):
    for name in names.split():
        fill(tmp_path / name, 10)
    for split in datasets.SPLITS:
        assert str(tmp_path) in said_by(load, "folder", split, tmp_path)


@pytest.mark.parametrize("name", ["trains", "valley", "testudo", "a/train", "develop", "Trainers"])
def test_what_is_no_split_is_a_class(name, tmp_path):
    root = tmp_path / ".cache" / "__MACOSX"  # above the pictures any name will do
    fill(root / "cats", 10)
    fill(root / name, 10)
    (root / "test_notes").mkdir()  # without pictures it is nothing
    assert len(load("folder", "train", root).images) == 16


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    for split in datasets.SPLITS:
        fill(tmp_path / split, 3)
    fill(tmp_path / "elsewhere", 2)
    for name in ("a.heic", "b.HEIC", "c.psd", "README"):
        (tmp_path / "train" / name).write_text("x")
    load("folder", "train", tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for words in ("2 pictures beside the splits", "2 .heic", "1 .psd", "1 without an ending"):
        assert words in said


def test_linked_classes_are_read_and_in_the_key(tmp_path, capsys):
    """Links to folders are followed, each folder once, and a change behind them is seen."""
    pictures, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    fill(elsewhere, 10)
    pictures.mkdir()
    (pictures / "class").symlink_to(elsewhere)
    (pictures / "same").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    (elsewhere / "loop").symlink_to(elsewhere)
    first = load("folder", "train", pictures)
    assert len(first.images) == 8
    assert load("folder", "train", pictures).fingerprint == first.fingerprint
    assert capsys.readouterr().err == ""
    smooth(40, 50, seed=99).save(elsewhere / "000.png")
    assert load("folder", "train", pictures).fingerprint != first.fingerprint


def test_key_and_reader_see_the_same(tmp_path, monkeypatch):
    """Whatever is read is in the key, and nothing else."""
    fill(tmp_path / "a", 10)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / ".hidden.png").write_text("x")
    (tmp_path / "c.heic").write_text("x")
    key = datasets.SOURCES["folder"].parameters
    seen = sorted(p for paths in pictures.splits(tmp_path)[0].values() for p in paths)
    before = key(tmp_path)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        assert (key(tmp_path) != before) == (path in seen), path
        before = key(tmp_path)


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


def test_nothing_is_written_among_the_pictures(tmp_path, caches, monkeypatch):
    fill(tmp_path / "train", 10)
    before = files_below(tmp_path)
    first = load("folder", "train", tmp_path)
    assert files_below(tmp_path) == before
    assert files_below(caches)
    monkeypatch.setattr(pictures, "read", None)  # from now on from the cache, by whatever path
    monkeypatch.chdir(tmp_path)
    assert load("folder", "train", ".").fingerprint == first.fingerprint


def test_each_folder_has_a_cache_of_its_own(tmp_path, capsys):
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 20)
    for _ in range(2):
        assert len(load("folder", "train", tmp_path / "a").images) == 8
        assert len(load("folder", "train", tmp_path / "b").images) == 16
    assert capsys.readouterr().err == ""


def test_without_a_cache_of_the_user_home_is_asked(tmp_path, monkeypatch):
    fill(tmp_path / "a", 10)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        load("folder", "train", tmp_path / "a")
    assert any(name.startswith(".cache/rgflow_core/") for name in files_below(tmp_path / "home"))


@pytest.mark.parametrize("where", ["in a file", "nowhere", "/proc/none", "on a full disk"])
def test_in_memory_where_nothing_can_be_written(where, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "a", 10)
    (tmp_path / "file").write_text("precious")
    caches = {"in a file": str(tmp_path / "file"), "nowhere": "", "/proc/none": where}
    monkeypatch.delenv("HOME")
    if where == "on a full disk":
        (tmp_path / "full").mkdir()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
    monkeypatch.setenv("XDG_CACHE_HOME", caches.get(where, str(tmp_path / "full")))
    before = files_below(tmp_path)
    assert len(load("folder", "train", tmp_path / "a").images) == 8
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "memory" in said
    assert files_below(tmp_path) == before


def test_a_read_only_data_root(mnist, monkeypatch, capsys):
    root, images = mnist
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: str(root) not in str(p) and access(p, mode))
    assert len(load("mnist", "test", root).images) == len(images["t10k"])
    assert "memory" in capsys.readouterr().err
    assert not (root / "mnist").exists()


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_a_name_that_is_not_utf8(tmp_path, capsys):
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


def test_torchvision_advises_nothing(tmp_path, mnist):
    for name in ("cifar10", "mnist"):
        assert "download" not in said_by(load, name, "train", tmp_path / "empty")


def test_without_workers_there_is_no_other_thread(small_msds, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ThreadPoolExecutor", None)
    fill(tmp_path, 10)
    assert len(load("msds1", "test", tmp_path, workers=0).images) == 20
    assert len(load("folder", "train", tmp_path, workers=np.int64(0)).images) == 8


def test_numpy_numbers(small_msds, tmp_path):
    whole = load("msds1", "test", tmp_path, limit=np.int64(3), workers=np.uint8(1))
    assert len(whole.images) == 3
    assert len(load("msds1", "test", tmp_path, limit=torch.tensor(3)).images) == 3
    for value in (True, np.True_, 2.0, np.float64(2), "2", np.int8(0)):
        assert "whole number" in said_by(load, "msds1", "test", tmp_path, value)


def test_numpy_numbers_elsewhere():
    """Configs, settings, models and drawing take numpy's numbers and keep Python's."""
    i = np.int64
    config = RGFlowConfig(i(8), np.uint8(1), i(4), ((i(1), i(2)), i(1)), i(1), i(4), (i(1), 1))
    assert config == RGFlowConfig(8, 1, 4, ((1, 2), 1), 1, 4, 1)
    json.dumps(config.to_dict())
    model = PictureModel(RGFlow(config), Prior())
    assert len(model.sample(i(3), seed=i(1), batch=np.uint8(2))) == 3
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert len(evaluate.evaluate(model, images, batch=i(2), progress=False)) == 3
    labels = msds.labels("msds1", "test", i(2), np.int32(4), np.uint8(3))
    assert np.array_equal(labels, msds.labels("msds1", "test", 2, 4, 3))
    assert np.array_equal(msds.render(labels, i(1)), msds.render(labels))
    settings = train.Settings(epochs=i(2), lr=np.float32(0.5))
    assert (type(settings.epochs), settings.lr) == (int, 0.5)
    with pytest.raises(UserError):
        msds.labels("msds1", "test", 0, 1.5)
    with pytest.raises(UserError):
        RGFlowConfig(hidden=True)


def test_too_few_pictures(tmp_path):
    assert str(tmp_path / "no") in said_by(load, "folder", "train", tmp_path / "no")
    fill(tmp_path, 5)
    assert "val" in said_by(load, "folder", "val", tmp_path)


# A set of one's own


def test_a_set_of_ones_own_is_made_once(tmp_path, monkeypatch, capsys):
    made = []

    def make(split, root, *_):
        made.append(split)
        return {"images": np.full((4, 32, 32, 1), 7, np.uint8)}

    # JSON does not keep a tuple.
    source = datasets.Source(make, lambda root: {"size": (1, 2)}, "own", channels=1)
    monkeypatch.setitem(datasets.SOURCES, "own", source)
    for _ in range(2):
        assert torch.all(load("own", "val", tmp_path, limit=3).images == 7)
    assert made == ["val"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "images", [np.zeros((3, 32, 32, 3), np.float32), np.zeros((3, 28, 28, 3), np.uint8)]
)
def test_a_source_that_makes_something_else_is_refused(images, tmp_path, monkeypatch):
    source = datasets.Source(lambda *_: {"images": images}, lambda root: {}, "mine")
    monkeypatch.setitem(datasets.SOURCES, "mine", source)
    assert "uint8" in said_by(load, "mine", "train", tmp_path)
    assert files_below(tmp_path) == []
