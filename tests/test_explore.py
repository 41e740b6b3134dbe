"""The explorer's pictures follow its controls; without a front end it is a picture."""

import io
from types import SimpleNamespace

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
    z, place = model.latents(explore._SAMPLES).double(), torch.tensor([explorer.position])
    exact = fields.derivatives(model.flow.double(), z, place)[0].abs().sum(1).mean(0).float()
    model.flow.float()
    assert torch.allclose(explorer.effect(), exact, rtol=0.02, atol=0.01 * float(exact.max()))


def test_without_a_front_end_it_is_a_picture(explorer, capsys):
    assert not explore.listening()
    still = np.asarray(Image.open(io.BytesIO(explorer.still().data)))
    assert still.shape[1] > still.shape[0] > 200
    explorer._ipython_display_()
    assert "IPython.core.display.Image" in capsys.readouterr().out


def test_explore_takes_all_models_of_a_folder(tmp_path, monkeypatch):
    config = RGFlowConfig(**TINY)
    for name in ("msds1_laplace", "msds2_gaussian"):
        checkpoints.save(
            PictureModel(RGFlow(config), Prior("laplace")), tmp_path / f"{name}.safetensors", {}
        )
    pictures = torch.randint(256, (5, 3, 32, 32)).byte()
    split = SimpleNamespace(images=pictures)
    monkeypatch.setattr(explore.datasets, "load_split", lambda *_: split)
    explorer = explore.explore(tmp_path)
    assert explorer.model.options == ("msds1_laplace", "msds2_gaussian")
    assert explorer.fine.max == 4


def test_one_channel_is_shown_in_grey():
    model = PictureModel(randomise(RGFlow(RGFlowConfig(**TINY, channels=1))), Prior())
    sources = {"mnist_laplace": torch.randint(256, (3, 1, 32, 32)).byte()}
    explorer = explore.Explorer({"mnist_laplace": model}, sources)
    for draw, _ in explorer.panels.values():
        assert draw().shape[2] == 3
    samples = explorer.samples()
    assert (samples == samples[..., :1]).all()
    assert Image.open(io.BytesIO(explorer.still().data)).mode == "RGB"


def test_explore_says_which_files_it_looked_for(tmp_path):
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(UserError, match=r"no msds\*\.safetensors"):
        explore.explore(tmp_path)


def test_a_models_pictures_are_of_the_set_it_was_trained_on(tmp_path, monkeypatch):
    settings, asked = {"settings": {"dataset": "msds2"}}, []
    flow = RGFlow(RGFlowConfig(**TINY))
    checkpoints.save(PictureModel(flow, Prior()), tmp_path / "msds1_laplace.safetensors", settings)
    original = explore.datasets.load_split
    monkeypatch.setattr(
        explore.datasets, "load_split", lambda name, *a: asked.append(name) or original(name, *a)
    )
    explore.explore(tmp_path, tmp_path, sources=2)
    assert asked == ["msds2"]
