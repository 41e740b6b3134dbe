"""The study's own sets: patches of photographs, cut without overlap; MSDS1 shifted."""

import numpy as np
import pytest
import torch
from PIL import Image

from rgflow_core import PictureModel, Prior, RGFlow, datasets
from rgflow_core.errors import UserError
from rgflow_core.flow import config_of
from study import records, sets


def test_a_photograph_is_in_one_split_and_its_patches_are_of_it(tmp_path):
    for i, name in enumerate(sets.PHOTOGRAPHS):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64), (7 * i, 0, 0)).save(path, format="PNG")
    seen = {}
    for split in datasets.SPLITS:
        data = datasets.load_split("photographs", split, tmp_path, progress=False)
        colours = data.images[:, 0, 0, 0]
        assert (data.images[:, 0] == colours[:, None, None]).all()
        assert data.labels is None
        own, counts = colours.unique_consecutive(return_counts=True)
        assert set(counts.tolist()) == {sets.PATCHES}, "one after the other"
        seen[split] = (own // 7).tolist()
    assert sorted(i for own in seen.values() for i in own) == [*range(len(sets.PHOTOGRAPHS))]
    assert len(seen["test"]) == 7
    assert len(seen["val"]) == 3


def test_patches_lie_side_by_side(tmp_path):
    size = sets.COLUMNS * 32, sets.ROWS * 32
    x, y = np.meshgrid(np.arange(size[0]) // 32, np.arange(size[1]) // 32)
    Image.fromarray(np.stack((x, y, y), 2).astype(np.uint8)).save(tmp_path / "one.png")
    patches = sets._patches(tmp_path / "one.png")
    assert (patches == patches[:, :1, :1]).all()
    places = [(int(row), int(column)) for column, row, _ in patches[:, 0, 0]]
    assert places == [*np.ndindex(sets.ROWS, sets.COLUMNS)]


def test_photographs_that_are_missing_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "PHOTOGRAPHS", ["usr/share/nowhere/one.jpg"])
    with pytest.raises(UserError, match=r"1 of 1 photographs are not here.*mate-backgrounds"):
        datasets.load_split("photographs", "test", tmp_path)


def test_bits_are_kept_by_photograph():
    model = PictureModel(RGFlow(config_of({"hidden": 4, "subnet": "lean"})), Prior("gaussian"))
    images = torch.zeros(2 * sets.PATCHES, 3, 32, 32, dtype=torch.uint8)
    images[sets.PATCHES :] = 128
    judged = records._judged(model, "photographs", images, shipped=False)
    black, grey = judged["by_photograph"]
    assert judged["test"]["bpd"] == pytest.approx((black + grey) / 2)
    assert black != pytest.approx(grey, abs=1e-3)
    assert "by_photograph" not in records._judged(model, "msds1", images[:2], shipped=False)


def test_shifted_pictures_are_each_rolled_by_an_offset_of_its_own(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    source = datasets.Source(lambda *_: {"images": pictures}, lambda root: {}, "msds1")
    monkeypatch.setitem(datasets.SOURCES, "msds1", source)
    offsets = {}
    for split in ("train", "test"):
        images = datasets.load_split("shifted", split, tmp_path).images.permute(0, 2, 3, 1)
        offsets[split] = [
            shift
            for before, after in zip(pictures, images.numpy(), strict=True)
            for shift in np.ndindex(32, 32)
            if np.array_equal(np.roll(before, shift, (0, 1)), after)
        ]
        assert len(offsets[split]) == len(pictures)
        assert len({*offsets[split]}) > 10
    assert offsets["train"] != offsets["test"]
