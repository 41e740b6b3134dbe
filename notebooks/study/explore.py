"""Play with a model's latents in JupyterLab: temperatures, mixtures, receptive fields."""

import io
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib import colormaps
from PIL import Image as Pillow
from torch import Tensor

from rgflow_core import datasets, evaluate
from rgflow_core.checkpoints import load
from rgflow_core.errors import UserError
from rgflow_core.flow import lattice_levels
from rgflow_core.model import PictureModel
from study import analysis, fields, results


def _png(sheet: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


class Explorer:
    """Controls, and the three pictures that follow them; :func:`explore` makes one.

    At the end of a cell it shows its ``widget`` where a front end listens, else :meth:`still`.

    Args:
        models: name -> flow and prior, of pictures of one shape; a slider beyond a model's levels
            does as at its last.
        sources: name of a model -> pictures of its set, uint8 (N, C, L, L), to mix.
    """

    def __init__(self, models: dict[str, PictureModel], sources: dict[str, Tensor]) -> None:
        self._models = {name: model.fold() for name, model in models.items()}
        self._sources = sources
        config = next(iter(models.values())).flow.config
        levels = max(model.flow.config.levels for model in models.values())
        last = min(map(len, sources.values())) - 1

        def slider(description: str, largest: int, value: int = 0) -> widgets.IntSlider:
            return widgets.IntSlider(value, 0, largest, description=description)

        self.model = widgets.Dropdown(options=list(models), description="model")
        self.temperatures = [
            widgets.FloatSlider(0.8, min=0.05, max=1.2, step=0.05, description=f"T, h = {h}")
            for h in range(levels)
        ]
        self.draw = slider("draw", 99)
        self.fine = slider("fine from", last)
        self.coarse = slider("coarse from", last, min(1, last))
        self.split = slider("coarse: h ≥", levels, max(0, levels - 2))
        self.level = slider("level h", levels - 1, levels - 1)
        self.colour = slider("colour", config.channels - 1)
        self.row = slider("row", config.image_size - 1)
        self.column = slider("column", config.image_size - 1)
        mixed = (self.fine, self.coarse, self.split)
        place = (self.level, self.colour, self.row, self.column)
        ringed = "Receptive field of the latent nearest to row and column (ringed)"
        panels = (
            ("Samples, a temperature per level", self.samples, *self.temperatures, self.draw),
            ("Fine source, coarse source, mixture", self.mixture, *mixed),
            (ringed, self.field, *place),
        )
        wrap = widgets.Layout(flex_flow="row wrap")
        columns = widgets.HBox([self._panel(*panel) for panel in panels], layout=wrap)
        self.widget = widgets.VBox([self.model, columns])

    def _panel(self, title: str, draw: Callable, *controls: widgets.Widget) -> widgets.VBox:
        """A picture above its controls, which draw it again, as the choice of a model does."""
        image = widgets.Image(format="png")

        def redraw(_: object = None) -> None:
            image.value = _png(draw())

        redraw()
        for control in (self.model, *controls):
            control.observe(redraw, "value")
        return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), image, *controls])

    @property
    def _chosen(self) -> PictureModel:
        return self._models[self.model.value]

    @property
    def position(self) -> tuple[int, int, int]:
        """Channel, row and column of the level's latent nearest to the place chosen."""
        config = self._chosen.flow.config
        lattice = lattice_levels(config.image_size, config.kernel)
        here = (lattice == min(self.level.value, config.levels - 1)).nonzero()
        wanted = torch.tensor([self.row.value, self.column.value])
        return (self.colour.value, *here[(here - wanted).square().sum(1).argmin()].tolist())

    def samples(self) -> np.ndarray:
        """Nine samples at the temperatures chosen, as a picture uint8 (H, W, 3)."""
        sliders = self.temperatures[: self._chosen.flow.config.levels]
        drawn = self._chosen.sample(9, [slider.value for slider in sliders], self.draw.value)
        return analysis.sheet(analysis.shown(drawn), 3)

    @torch.no_grad()
    def mixture(self) -> np.ndarray:
        """Both sources and their mixture, as a picture uint8 (H, W, 3)."""
        sources = self._sources[self.model.value][[self.fine.value, self.coarse.value]]
        fine, coarse = self._chosen.infer(sources).split(1)
        split = min(self.split.value, self._chosen.flow.config.levels)
        mixed = analysis.mix(self._chosen.flow, fine, coarse, split)
        pictures = (sources.permute(0, 2, 3, 1).numpy(), analysis.shown(mixed))
        return analysis.sheet(np.concatenate(pictures), 3)

    def field(self) -> np.ndarray:
        """The receptive field chosen, on its own colour scale, uint8 (H, W, 3)."""
        place = torch.tensor([self.position])
        # Few samples, to react at once.
        effect = fields.receptive_fields(self._chosen, place, samples=8).mean(0)[0]
        shades = colormaps["magma"]((effect / effect.max().clamp_min(1e-30)).numpy())
        drawn = analysis.sheet((255 * shades[None, ..., :3]).astype(np.uint8), 1, zoom=8)
        top, left = (8 * k for k in self.position[1:])
        square = drawn[top : top + 8, left : left + 8]
        for side in (square[:2], square[-2:], square[:, :2], square[:, -2:]):
            side[:] = (0, 255, 255)
        return drawn

    def _ipython_display_(self) -> None:
        display(self.widget if listening() else self.still())

    def still(self) -> Image:
        """All three pictures side by side, for readers without a kernel."""
        drawn = [self.samples(), self.mixture(), self.field()]
        rims = [((0, max(map(len, drawn)) - len(one)), (0, 12), (0, 0)) for one in drawn]
        framed = [
            np.pad(one, rim, constant_values=255) for one, rim in zip(drawn, rims, strict=True)
        ]
        return Image(_png(np.concatenate(framed, 1)))


def listening() -> bool:
    """Whether an interactive front end runs this cell.

    Those say which cell they want run; programs that run whole notebooks do not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and "cellId" in kernel.get_parent("shell").get("metadata", {})


def explore(
    weights: str | Path | None = None, data_root: str | Path | None = None, sources: int = 12
) -> Explorer:
    """Show sliders for models, or one picture where no front end listens.

    Args:
        weights: a model's file, or a folder of models of one shape of pictures, such as a run's;
            by default the repository's.
        data_root: folder of the data set; by default each model's own.
        sources: pictures of the test split to choose from for mixtures.

    Raises:
        UserError: if there are no models, of several shapes, or one does not say its data set.
    """
    weights = results.root() / "weights" if weights is None else Path(weights)
    files = [weights] if weights.is_file() else sorted(weights.glob("*.safetensors"))
    models = {path.stem: load(path) for path in files if path.stem != "factors"}
    shapes = {model.flow.config.shape for model in models.values()}
    if len(shapes) != 1:
        count = f"models of {len(shapes)} shapes" if models else "no .safetensors of a model"
        raise UserError(f"{weights}: {count}; give the file of one")
    pictures = {}
    for name, model in models.items():
        data = evaluate.chosen_data(weights, model, data_root=data_root)
        size = model.flow.config.image_size
        pictures[name] = datasets.load_split(data[0], "test", data[1], sources, size=size).images
    return Explorer(models, pictures)
