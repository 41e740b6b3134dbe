"""Play with a model's latents in JupyterLab: temperatures, mixtures, receptive fields."""

import io
import time
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib import colormaps
from PIL import Image as Pillow
from torch import Tensor

from rgflow_core import datasets, pixels
from rgflow_core.checkpoints import load
from rgflow_core.flow import lattice_levels
from rgflow_core.model import PictureModel
from study import analysis, results

_ZOOM, _GAP = 4, 1
_PLACES = 8
"""Places to click in a row."""
_SAMPLES, _STEP = 8, 0.05
"""Of z in a receptive field, and the step of its differences: few and cheap, to react at once."""


def _sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures uint8 (N, l, l, 3) side by side on white, N a multiple of ``columns``, enlarged."""
    framed = np.pad(pictures, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    rows = [np.concatenate(list(row), 1) for row in framed.reshape(-1, columns, *framed.shape[1:])]
    return np.concatenate(rows).repeat(_ZOOM, 0).repeat(_ZOOM, 1)


def _png(sheet: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _bytes(x: Tensor) -> np.ndarray:
    return pixels.to_bytes(x).permute(0, 2, 3, 1).numpy()


class Explorer:
    """Controls, and the three pictures that follow them; :func:`explore` makes one.

    At the end of a cell it shows its ``widget`` where a front end listens, else :meth:`still`.

    Args:
        models: name, SET_PRIOR, -> flow and prior.
        sources: set -> pictures uint8 (N, 3, L, L) to mix.
    """

    def __init__(self, models: dict[str, PictureModel], sources: dict[str, Tensor]) -> None:
        self._models = {
            name: PictureModel(model.flow.fold(), model.prior) for name, model in models.items()
        }
        self._sources = sources
        config = next(iter(models.values())).flow.config
        self._lattice, levels = lattice_levels(config.image_size, config.kernel), config.levels
        count = min(len(of) for of in sources.values())

        slider = partial(widgets.IntSlider, min=0, value=0)
        self.model = widgets.Dropdown(options=list(models), description="model")
        self.temperatures = [
            widgets.FloatSlider(0.8, min=0.05, max=1.2, step=0.05, description=f"T, h = {h}")
            for h in range(levels)
        ]
        self.draw = slider(max=99, description="draw")
        self.fine = slider(max=count - 1, description="fine from")
        self.coarse = slider(max=count - 1, value=min(1, count - 1), description="coarse from")
        self.split = slider(max=levels, value=levels - 2, description="coarse: h ≥")
        self.level = slider(max=levels - 1, value=levels - 1, description="level h")
        self.latent = slider(max=1, description="latent")
        self.places = [widgets.Button(layout={"width": "auto"}) for _ in range(_PLACES**2)]
        for k, button in enumerate(self.places):
            button.on_click(partial(self._click, k))
        self.panels = {
            "samples": (self.samples, [self.model, *self.temperatures, self.draw]),
            "mixture": (self.mixture, [self.model, self.fine, self.coarse, self.split]),
            "field": (self.field, [self.model, self.level, self.latent]),
        }
        titles = {
            "samples": "Samples, a temperature per level",
            "mixture": "Fine source, coarse source, mixture",
            "field": "Receptive field of one latent (ringed: its pixel)",
        }
        self.level.observe(self._of_level, "value")
        self._of_level()
        columns = []
        for name, (draw, controls) in self.panels.items():
            image = widgets.Image(format="png", value=_png(draw()))
            for control in controls:
                control.observe(partial(self._redraw, image, draw), "value")
            own = controls[1:]
            if name == "field":
                own.append(self._map())
            columns.append(widgets.VBox([widgets.HTML(f"<b>{titles[name]}</b>"), image, *own]))
        wrap = widgets.Layout(flex_flow="row wrap")
        self.widget = widgets.VBox([self.model, widgets.HBox(columns, layout=wrap)])

    def _of_level(self, _: object = None) -> None:
        """Let ``latent`` count the latents of the level chosen."""
        here = self._lattice == self.level.value
        channels = self._chosen.flow.config.channels
        self._positions = here.expand(channels, -1, -1).nonzero().tolist()
        self.latent.max = len(self._positions) - 1

    def _map(self) -> widgets.Widget:
        """Buttons in a square that stands for the picture."""
        layout = {"grid_template_columns": f"repeat({_PLACES}, 28px)", "grid_gap": "0"}
        label = widgets.Label("or click: the latent of the level nearest to that place")
        return widgets.VBox([label, widgets.GridBox(self.places, layout=layout)])

    def _click(self, place: int, _: object) -> None:
        """Choose the latent of the level, in the colour chosen, nearest to a place on the map."""
        size = len(self._lattice)
        wanted = [(k + 0.5) * size / _PLACES for k in divmod(place, _PLACES)]
        colour = self._position[0]
        distances = [
            (c != colour, (i - wanted[0]) ** 2 + (j - wanted[1]) ** 2)
            for c, i, j in self._positions
        ]
        self.latent.value = distances.index(min(distances))

    @staticmethod
    def _redraw(image: widgets.Image, draw: object, _: object) -> None:
        image.value = _png(draw())

    @property
    def _position(self) -> list[int]:
        """Channel, row and column of the latent chosen."""
        return self._positions[min(self.latent.value, len(self._positions) - 1)]

    @property
    def _chosen(self) -> PictureModel:
        return self._models[self.model.value]

    def samples(self) -> np.ndarray:
        """Nine samples at the temperatures chosen, as a picture uint8 (H, W, 3)."""
        temperatures = [slider.value for slider in self.temperatures]
        return _sheet(_bytes(self._chosen.sample(9, temperatures, self.draw.value)), 3)

    @torch.no_grad()
    def mixture(self) -> np.ndarray:
        """Both sources and their mixture, as a picture uint8 (H, W, 3)."""
        which = [self.fine.value, self.coarse.value]
        sources = self._sources[self.model.value.split("_")[0]][which]
        fine, coarse = analysis.encode(self._chosen, sources).split(1)
        mixed = analysis.mix(self._chosen.flow, fine, coarse, self.split.value)
        pictures = np.concatenate((sources.permute(0, 2, 3, 1).numpy(), _bytes(mixed)))
        return _sheet(pictures, 3)

    @torch.no_grad()
    def effect(self) -> Tensor:
        """Mean of :func:`analysis.effect` over some z, by central differences: (L, L)."""
        model = self._chosen
        position = self._position
        z = model.latents(_SAMPLES)
        step = torch.zeros_like(z)
        step[(slice(None), *position)] = _STEP
        up, down = pixels.from_logit(
            model.flow.inverse(torch.cat((z + step, z - step)))[0], clip=False
        ).chunk(2)
        return (up - down).abs().sum(1).mean(0) / (2 * _STEP)

    def field(self) -> np.ndarray:
        """The receptive field chosen, on its own colour scale, uint8 (H, W, 3)."""
        found = self.effect()
        position = self._position
        shades = colormaps["magma"]((found / found.max().clamp_min(1e-30)).numpy())
        drawn = _sheet((255 * shades[None, ..., :3]).astype(np.uint8), 1).repeat(2, 0).repeat(2, 1)
        top, left = (2 * _ZOOM * k for k in position[1:])
        square = drawn[top : top + 2 * _ZOOM, left : left + 2 * _ZOOM]
        inside = square[2:-2, 2:-2].copy()
        square[:] = (0, 255, 255)
        square[2:-2, 2:-2] = inside
        return drawn

    def seconds(self, repeats: int = 5) -> dict[str, float]:
        """How long each picture takes to be drawn anew, the median of some repeats."""
        found = {}
        for name, (draw, _) in self.panels.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                _png(draw())
                times.append(time.perf_counter() - start)
            found[name] = float(np.median(times))
        return found

    def _ipython_display_(self) -> None:
        display(self.widget if listening() else self.still())

    def still(self) -> Image:
        """All three pictures side by side, for readers without a kernel."""
        drawn = [draw() for draw, _ in self.panels.values()]
        height = max(len(one) for one in drawn)
        whole = [
            np.pad(one, ((0, height - len(one)), (0, 12), (0, 0)), constant_values=255)
            for one in drawn
        ]
        return Image(_png(np.concatenate(whole, 1)))


def listening() -> bool:
    """Whether an interactive front end runs this cell.

    Those say which cell they want run; programs that run whole notebooks do not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and "cellId" in kernel.get_parent("shell").get("metadata", {})


def explore(
    weights: str | Path | None = None, data_root: str | Path | None = None, sources: int = 12
) -> Explorer:
    """Show sliders for all models of a folder, or one picture where no front end listens.

    Args:
        weights: folder of the models; by default the repository's.
        data_root: folder of the data sets; likewise.
        sources: pictures of the test split to choose from for mixtures.

    Raises:
        UserError: if there are no models.
    """
    weights = results.root() / "weights" if weights is None else weights
    data_root = results.root() / "data" if data_root is None else data_root
    models = {name: load(path) for name, path in results.models(weights).items()}
    sets = dict.fromkeys(name.split("_")[0] for name in models)
    pictures = {name: datasets.load_split(name, "test", data_root, sources).images for name in sets}
    return Explorer(models, pictures)
