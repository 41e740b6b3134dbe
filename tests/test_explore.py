"""The explorer's pictures follow its controls; without a front end it is a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY, randomise, said_by

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, checkpoints
from rgflow_core.flow import lattice_levels
from study import explore

PANELS = ("samples", "mixture", "field")


def explorer_of(*names, size=32, channels=3, kernels=(4, 4)):
    configs = [RGFlowConfig(size, channels, kernel, **TINY) for kernel in kernels]
    flows = {name: randomise(RGFlow(configs[k]), k) for k, name in enumerate(names)}
    models = {name: PictureModel(flow, Prior()) for name, flow in flows.items()}
    sources = {name: torch.randint(256, (3, *configs[0].shape)).byte() for name in names}
    return explore.Explorer(models, sources)


@pytest.fixture
def explorer():
    return explorer_of("msds1_laplace", "msds2_laplace")


def shown(explorer):
    """The PNG of each panel as it is displayed."""
    columns = explorer.widget.children[1].children
    return dict(zip(PANELS, (c.children[1].value for c in columns), strict=True))


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


def test_a_slider_beyond_a_models_levels_does_as_at_its_last():
    explorer = explorer_of("four levels", "three", kernels=(4, 8))
    explorer.level.value, explorer.split.value, explorer.model.value = 3, 4, "three"
    before = shown(explorer)
    explorer.level.value, explorer.split.value, explorer.temperatures[3].value = 2, 3, 0.1
    assert shown(explorer) == before


def test_the_latent_nearest_to_the_place_is_shown_and_ringed(explorer):
    explorer.colour.value, explorer.row.value, explorer.column.value = 2, 26, 10
    for level in range(4):
        explorer.level.value = level
        colour, *place = explorer.position
        here = (lattice_levels(32, 4) == level).nonzero().tolist()
        assert colour == 2
        assert place in here
        distances = [(i - 26) ** 2 + (j - 10) ** 2 for i, j in here]
        assert distances[here.index(place)] == min(distances)
        assert explorer.field()[place[0] * 8, place[1] * 8].tolist() == [0, 255, 255]


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 32), (1, 16), (1, 4)])
def test_without_a_front_end_it_is_a_picture(channels, size, capsys):
    """Of one channel in grey."""
    explorer = explorer_of("mnist_laplace", channels=channels, size=size)
    assert not explore.listening()
    still = np.asarray(Image.open(io.BytesIO(explorer.still().data)))
    assert still.shape[2] == 3
    assert size < 32 or still.shape[1] > still.shape[0] > 200
    samples = explorer.samples()
    assert (samples == samples[..., :1]).all() == (channels == 1)
    explorer._ipython_display_()
    assert "IPython.core.display.Image" in capsys.readouterr().out


def saved(path, dataset, **config):
    model = PictureModel(RGFlow(RGFlowConfig(**TINY | config)), Prior())
    checkpoints.save(model, path, {"settings": {"dataset": dataset}} if dataset else {})


def test_explore_takes_all_models_of_a_folder_or_one_file(tmp_path):
    """Whatever their names; their pictures are those of the set that they were trained on."""
    for name, dataset in {"a": "msds1", "msds1_laplace": "msds2"}.items():
        saved(tmp_path / f"{name}.safetensors", dataset)
    (tmp_path / "factors.safetensors").write_text("no model")
    explorer = explore.explore(tmp_path, sources=5)
    assert explorer.model.options == ("a", "msds1_laplace")
    assert explorer.fine.max == 4
    before = shown(explorer)["mixture"]
    explorer.model.value = "msds1_laplace"
    assert shown(explorer)["mixture"] != before
    assert explore.explore(tmp_path / "a.safetensors").model.options == ("a",)


def test_explore_refuses_what_does_not_fit(tmp_path):
    assert "safetensors of a model" in said_by(explore.explore, tmp_path)
    saved(tmp_path / "a.safetensors", None)
    assert "does not say its data set" in said_by(explore.explore, tmp_path)
    saved(tmp_path / "b.safetensors", "msds1", image_size=16)
    assert "models of 2 shapes; give the file of one" in said_by(explore.explore, tmp_path)
