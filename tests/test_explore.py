"""The explorer's pictures follow its controls; without a front end it is a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY, randomise

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, checkpoints
from rgflow_core.errors import UserError
from rgflow_core.flow import lattice_levels
from study import explore, fields


@pytest.fixture
def explorer() -> explore.Explorer:
    torch.manual_seed(0)
    config = RGFlowConfig(**TINY)
    models = {
        f"{name}_laplace": PictureModel(randomise(RGFlow(config), seed), Prior("laplace"))
        for seed, name in enumerate(("msds1", "msds2"))
    }
    sources = {name: torch.randint(256, (3, 3, 32, 32)).byte() for name in models}
    return explore.Explorer(models, sources)


def shown(explorer):
    """The PNG of each panel as it is displayed."""
    columns = explorer.widget.children[1].children
    return dict(zip(explorer.panels, (c.children[1].value for c in columns), strict=True))


@pytest.mark.parametrize(
    ("control", "value", "changed"),
    [
        (lambda e: e.temperatures[3], 0.2, {"samples"}),
        (lambda e: e.draw, 5, {"samples"}),
        (lambda e: e.coarse, 2, {"mixture"}),
        (lambda e: e.split, 0, {"mixture"}),
        (lambda e: e.level, 1, {"field"}),
        (lambda e: e.colour, 2, {"field"}),
        (lambda e: e.column, 31, {"field"}),
        (lambda e: e.model, "msds2_laplace", {"samples", "mixture", "field"}),
    ],
)
def test_a_control_changes_its_pictures_and_no_others(explorer, control, value, changed):
    before = shown(explorer)
    control(explorer).value = value
    after = shown(explorer)
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("level", range(4))
def test_the_latent_nearest_to_the_place_is_shown_and_ringed(explorer, level):
    explorer.level.value, explorer.colour.value = level, 2
    explorer.row.value, explorer.column.value = 26, 10
    colour, *place = explorer.position
    assert colour == 2
    here = lattice_levels(32, 4) == level
    assert here[tuple(place)]
    distances = [(i - 26) ** 2 + (j - 10) ** 2 for i, j in here.nonzero().tolist()]
    assert (place[0] - 26) ** 2 + (place[1] - 10) ** 2 == min(distances)
    assert explorer.field()[place[0] * 8, place[1] * 8].tolist() == [0, 255, 255]


def test_differences_are_close_to_the_derivative(explorer):
    model = explorer._models["msds1_laplace"]
    place = torch.tensor([explorer.position])
    exact = fields.receptive_fields(model, place, explore._SAMPLES).mean(0)[0].float()
    assert torch.allclose(explorer.effect(), exact, rtol=0.02, atol=0.01 * float(exact.max()))


def test_without_a_front_end_it_is_a_picture(explorer, capsys):
    assert not explore.listening()
    still = np.asarray(Image.open(io.BytesIO(explorer.still().data)))
    assert still.shape[1] > still.shape[0] > 200
    explorer._ipython_display_()
    assert "IPython.core.display.Image" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """The pictures that were asked for."""
    asked, original = [], explore.datasets.load_split

    def spy(name, split, root, limit, size):
        asked.append((name, split, str(root), size))
        return original("msds1", split, limit=limit)

    monkeypatch.setattr(explore.datasets, "load_split", spy)
    return asked


def saved(path, dataset, **config):
    model = PictureModel(RGFlow(RGFlowConfig(**TINY | config)), Prior())
    settings = {"dataset": dataset, "data_root": "own"}
    checkpoints.save(model, path, {"settings": settings} if dataset else {})


def test_explore_takes_all_models_of_a_folder(tmp_path, asked):
    """Whatever their names; their pictures are those of the set that they were trained on."""
    for name, dataset in {"a": "msds1", "msds1_laplace": "msds2"}.items():
        saved(tmp_path / f"{name}.safetensors", dataset)
    (tmp_path / "factors.safetensors").write_text("no model")
    explorer = explore.explore(tmp_path, sources=5)
    assert explorer.model.options == ("a", "msds1_laplace")
    assert explorer.fine.max == 4
    assert asked == [("msds1", "test", "data", 32), ("msds2", "test", "data", 32)]


def test_explore_takes_the_file_of_a_model_of_ones_own_pictures(tmp_path, asked):
    saved(tmp_path / "model.safetensors", "folder")
    for weights, root in (("model.safetensors", None), (".", "elsewhere")):
        assert explore.explore(tmp_path / weights, root).model.options == ("model",)
        assert asked.pop() == ("folder", "test", root or "own", 32)


def test_explore_refuses_what_does_not_fit(tmp_path, asked):
    with pytest.raises(UserError, match="safetensors of a model"):
        explore.explore(tmp_path)
    saved(tmp_path / "a.safetensors", None)
    with pytest.raises(UserError, match="does not say its data set"):
        explore.explore(tmp_path)
    saved(tmp_path / "b.safetensors", "folder", image_size=16)
    with pytest.raises(UserError, match="models of 2 shapes; give the file of one"):
        explore.explore(tmp_path)


@pytest.mark.parametrize("size", [4, 16, 32])
def test_one_channel_is_shown_in_grey(size):
    model = PictureModel(randomise(RGFlow(RGFlowConfig(size, 1, **TINY))), Prior())
    sources = {"mnist_laplace": torch.randint(256, (3, 1, size, size)).byte()}
    explorer = explore.Explorer({"mnist_laplace": model}, sources)
    for draw, _ in explorer.panels.values():
        assert draw().shape[2] == 3
    samples = explorer.samples()
    assert (samples == samples[..., :1]).all()
    assert Image.open(io.BytesIO(explorer.still().data)).mode == "RGB"
