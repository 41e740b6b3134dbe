"""The study's twelve figures, each drawn by one function from the tidy table of results.

Each gives ``figure, rows, arrays``: the rows that it shows and, of pictures, the arrays.
:func:`save` draws one and writes all three. All are a column or a page wide and readable in grey,
and go from the finest level, h = 0, to the coarsest. No panel shows two data sets.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rgflow_core.files import replacing
from rgflow_core.flow import RGFlow, RGFlowConfig, lattice_levels
from study import results

SINGLE, DOUBLE = 3.4, 7.0  # inches
# Under `with style():` matplotlib draws like the study.
style = partial(matplotlib.rc_context, {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5, "legend.fontsize": 7.5, "axes.linewidth": 0.6, "axes.axisbelow": True,
    "grid.alpha": 0.3, "grid.linewidth": 0.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "legend.frameon": False, "lines.linewidth": 1.1, "lines.markersize": 4, "errorbar.capsize": 2,
    "hatch.linewidth": 0.6, "pdf.fonttype": 42,
})  # fmt: skip
# Okabe and Ito's colours; in grey, markers and dashes tell things apart.
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"
PRIORS = {
    "gaussian": {"color": BLUE, "marker": "s", "linestyle": "-", "label": "Gaussian prior"},
    "laplace": {"color": ORANGE, "marker": "o", "linestyle": "--", "label": "Laplace prior"},
}
# Other lean models of the same data, by what follows the set's name in theirs.
OTHERS = {
    "gaussian_affine": {
        "color": "0.4", "marker": "^", "linestyle": ":", "label": "Gaussian, affine coupling"
    },
    "gaussian_published": {
        "color": RED, "marker": "D", "linestyle": "-", "label": "Gaussian, published network"
    },
    "gaussian_published_narrow": {
        "color": GREEN, "marker": "v", "linestyle": "-.", "label": "Gaussian, published kind, narrow"
    },
    "gaussian_lean8": PRIORS["gaussian"] | {"mfc": "white", "label": "Gaussian, lean8"},
    "laplace_lean8": PRIORS["laplace"] | {"mfc": "white", "label": "Laplace, lean8"},
}  # fmt: skip
FACTORS = {
    "position": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "angle": {"color": BLUE, "marker": "s", "linestyle": "--"},
    "colour": {"color": RED, "marker": "o", "linestyle": ":"},
}
# How each flow of notebook A4 is drawn; those of a colour are of one kind.
FLOWS = {
    "lean": {"color": BLUE, "marker": "s", "linestyle": "-"},
    "laplace": {"color": ORANGE, "marker": "o", "linestyle": "--"},
    "lean_affine": {"color": PURPLE, "marker": "s", "linestyle": "--"},
    "flat": {"color": "0.4", "marker": "s", "linestyle": "-"},
    "glow": {"color": RED, "marker": "^", "linestyle": "-."},
    "realnvp": {"color": GREEN, "marker": "v", "linestyle": ":"},
    "lean8": {"color": BLUE, "marker": "D", "linestyle": "-"},
    "flat8": {"color": "0.4", "marker": "D", "linestyle": "-"},
    "glow8": {"color": RED, "marker": "P", "linestyle": "-."},
}
SEED = {"marker": "o", "linestyle": "none", "mfc": "none", "color": "0.4", "ms": 3.5}
Drawing = tuple[Figure, pd.DataFrame, dict[str, np.ndarray]]


class _Shown:
    """Selects rows of a table and keeps them: what a figure shows."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table, self.parts = table, []

    def __call__(self, quantity: str, **where: object) -> pd.DataFrame:
        self.parts.append(results.select(self.table, quantity, **where))
        return self.parts[-1]

    def by_set(self, quantity: str) -> dict[str, dict[str, dict]]:
        """Set -> its models of which a quantity is known -> how each is drawn."""
        sets = {}
        for name in sorted(set(results.select(self.table, quantity)["model"])):
            set_name, _, prior = name.partition("_")
            if prior in PRIORS:
                sets.setdefault(set_name, {})[name] = PRIORS[prior]
        return sets

    @property
    def rows(self) -> pd.DataFrame:
        return pd.concat(self.parts).drop_duplicates()


@style()
def save(folder: str | Path, name: str, draw: Callable[..., Drawing], *given: object) -> None:
    """Draw a figure; write NAME.pdf and .png, NAME.csv with its rows and, of pictures, NAME.npz.

    Without dates, so that equal figures are equal files.
    """
    (figure, rows, arrays), path = draw(*given), Path(folder) / name
    for kind, no_date in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        drawn = io.BytesIO()  # on a full disk matplotlib fails in a way of its own
        figure.savefig(drawn, format=kind, dpi=200, metadata=no_date)
        with replacing(path.with_suffix(f".{kind}")) as temporary:
            temporary.write_bytes(drawn.getbuffer())
    sources = pd.DataFrame([{"file": f"{name}.npz", "array": key} for key in arrays])
    results.write_csv(
        path.with_suffix(".csv"), pd.concat([sources, rows]).dropna(axis=1, how="all")
    )
    if arrays:
        with replacing(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, **arrays)


def _axes(width: float, height: float, rows: int, columns: int, **kwargs: object) -> tuple:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _points(axis: Axes, at: object, rows: pd.DataFrame, flat: bool = False, **look: object) -> None:
    """Values with their 95 % intervals, where there are; ``flat``: along the horizontal axis."""
    value = rows["value"].to_numpy(float)
    error = np.nan_to_num(np.abs(rows[["low", "high"]].to_numpy(float).T - value))
    x, y, which = (value, at, "xerr") if flat else (at, value, "yerr")
    axis.errorbar(x, y, **{which: error}, **look)


def _line(axis: Axes, x: str, rows: pd.DataFrame, shift: float = 0, **look: object) -> None:
    """Values against the level, or whatever condition the column ``x`` holds."""
    rows = rows.assign(x=rows[x].astype(float)).sort_values("x")
    _points(axis, rows["x"] + shift, rows, **look)
    if x == "level":
        axis.set_xticks(sorted(set(rows["x"].astype(int))))
        axis.set_xlabel("RG level h (0 = finest)")
    axis.grid(alpha=0.3)


def _legend(figure: Figure, columns: int) -> None:
    """One legend below all panels, where it covers nothing."""
    parts = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    keys = {label: handle for part in parts for handle, label in part}
    figure.legend(keys.values(), keys, loc="outside lower center", ncols=columns)


def _sheet(axis: Axes, pictures: np.ndarray, labels: list[str] | None = None) -> None:
    """Pictures (rows, columns, L, L, 3) side by side on white; column k is centred at x = k."""
    rows, columns = pictures.shape[:2]
    padded = np.pad(pictures, [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)], constant_values=255)
    sheet = padded.swapaxes(1, 2).reshape(rows * padded.shape[2], -1, 3)
    axis.imshow(sheet, interpolation="none", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axis.set(xticks=[], yticks=range(rows), yticklabels=labels or [""] * rows)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)


def _last(arrays: dict[str, np.ndarray], kind: str) -> list[str]:
    """Of each set the last model by name of which there are arrays KIND/MODEL."""
    names = sorted(key.split("/")[1] for key in arrays if key.startswith(f"{kind}/"))
    return [*{results.split_name(name)[0]: name for name in names}.values()]


def data(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> Drawing:
    """Test pictures; ``pictures/SET`` (N, L, L, 3)."""
    shared = {"msds1": ("colour", "angle"), "msds2": ("angle", "colour")}
    arrays = {key: arrays[key][:16] for key in sorted(arrays) if key.startswith("pictures/")}
    figure, axes = _axes(DOUBLE, 1.25, 1, len(arrays))
    for axis, (key, pictures) in zip(axes[0], arrays.items(), strict=True):
        whole, local = shared[key[9:]]
        _sheet(axis, pictures.reshape(2, -1, *pictures.shape[1:]))
        axis.set_title(f"{key[9:].upper()}. Global: one {whole} a picture")
        axis.set_xlabel(f"Local, of each ellipse: {local}, position, {whole} jitter")
    return figure, table[:0], arrays


LAYERS = {
    "decimator": {"edgecolor": GREEN, "linestyle": "-", "linewidth": 1.2},
    "disentangler": {"edgecolor": PURPLE, "linestyle": (0, (3, 1.5)), "linewidth": 1.2},
}


def _box(axis: Axes, x: float, y: float, wide: float, high: float, text: str = "", **look) -> None:
    look = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.8} | look
    axis.add_patch(Rectangle((x, y), wide, high, **look))
    axis.text(x + wide / 2, y + high / 2, text, ha="center", va="center", fontsize=7.5)


def _arrow(axis: Axes, start: tuple, end: tuple) -> None:
    look = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8, "color": "black"}
    axis.annotate("", end, start, arrowprops=look)


def _flow_chart(axis: Axes, config: RGFlowConfig) -> None:
    """From picture to latents: layers, priors, and what goes on; in units of an inch."""
    size = config.image_size
    axis.set(xlim=(0, DOUBLE), ylim=(0, 2.15))
    axis.axis("off")
    _box(axis, 0.02, 0.45, 0.62, 0.6, f"picture\n{size} × {size}\n→ logit")
    start, small = (0.64, 0.75), {"fontsize": 7, "ha": "center"}
    for h in range(config.levels):
        x, edge, last = 0.95 + 1.42 * h, size >> h, h == config.levels - 1
        _box(axis, x, 0.42, 1.05, 0.96, facecolor="0.94", edgecolor="none")
        axis.text(x + 0.52, 0.46, f"level h = {h}, {edge} × {edge}", **small)
        for k, (name, look) in enumerate(LAYERS.items()):
            _box(axis, x + 0.08, 0.61 + 0.42 * k, 0.89, 0.28, name, **look)
        _box(axis, x + 0.12, 1.72, 0.81, 0.36, f"latents $z_{h}$\nprior $p(z_{h})$")
        for low, high in ((0.89, 1.03), (1.38, 1.72)):
            _arrow(axis, (x + 0.52, low), (x + 0.52, high))
        _arrow(axis, start, (x + 0.08, 0.75))
        axis.text(x + 0.57, 1.5, "all" if last else "3 of 4 sites", fontsize=7)
        axis.text(x + 1.235, 0.6, "" if last else "1 of 4", **small)
        start = (x + 0.97, 1.17)
    right = x + 1.05
    _arrow(axis, (0.02, 0.22), (right, 0.22))
    _arrow(axis, (right, 0.12), (0.02, 0.12))
    axis.text(right / 2, 0.26, "inference: log-derivatives add up", **small)
    axis.text(right / 2, 0.09, "generation: the same, inverted", va="top", **small)
    for i, j in np.ndindex(config.kernel, config.kernel):
        shade = "white" if (i + j) % 2 else "0.35"
        _box(axis, 5.75 + 0.17 * j, 1.6 - 0.17 * i, 0.17, 0.17, facecolor=shade)
    axis.text(6.1, 1.83, f"a {config.kernel} × {config.kernel} block", ha="center")
    text = "goes through K coupling layers:\nnetworks S and T of the dark\nsites move the light ones, then"
    text += "\nthe other way round; the same\nfor all blocks"
    axis.text(5.33, 1, text, va="top", fontsize=7)


def _level(axis: Axes, flow: RGFlow, h: int, levels: np.ndarray) -> None:
    """The lattice of level h: blocks of its two layers, sites that go on and sites that stay."""
    size, step = len(levels), 2**h
    for name, look in LAYERS.items():
        layer = getattr(flow.levels[h], name)
        edge, offset = flow.config.kernel * step, layer.offset * step
        # The last blocks wrap around: they are drawn at both ends and cut off there.
        starts = np.arange(offset - edge if offset else 0, size, edge)
        for i, j in ((i, j) for i in starts for j in starts):
            one = i % size == j % size == offset
            face = look["edgecolor"] + "40" if one else "none"
            _box(axis, j - 0.5, i - 0.5, edge, edge, **look | {"facecolor": face})
    for sites, mark, face in ((levels > h, "s", "black"), (levels == h, "o", "white")):
        axis.plot(*np.nonzero(sites)[::-1], mark, color="black", mfc=face, ms=2.7, mew=0.6)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"h = {h}: lattice of {size // step} × {size // step}")
    axis.set_xlabel(f"{(levels == h).sum()} positions become\nlatents $z_{h}$")


def lattice(_: pd.DataFrame | None = None) -> Drawing:
    """Schematic of the architecture, drawn from the code's own lattice and layers."""
    image_size = 16
    config = RGFlowConfig(image_size, channels=1, coupling_layers=1, res_blocks=1, hidden=1)
    flow, levels = RGFlow(config), lattice_levels(image_size, config.kernel).numpy()
    figure = Figure((DOUBLE, 4.6), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(2.15, 2.45))
    _flow_chart(top.subplots(), config)
    *axes, final = below.subplots(1, config.levels + 1)
    for h, axis in enumerate(axes):
        _level(axis, flow, h, levels)
    shade = 1 - 0.75 * levels / levels.max()
    final.imshow(shade, cmap="gray", vmin=0, vmax=1, interpolation="none")
    for (i, j), h in np.ndenumerate(levels):
        colour = "black" if shade[i, j] > 0.6 else "white"
        final.text(j, i, h, ha="center", va="center", fontsize=7, color=colour)
    final.set(xticks=[], yticks=[], title="all latents, by level h")
    final.set_xlabel("a latent is kept at the\npixel where it was left")
    blocks = [Rectangle((0, 0), 1, 1, fc=k["edgecolor"] + "40", **k) for k in LAYERS.values()]
    names = ["goes on to h + 1", "stays: latent", "decimator's blocks (one filled)"]
    names += ["disentangler's blocks"]
    below.legend([*axes[0].lines, *blocks], names, loc="outside lower center", ncols=4)
    h = np.arange(config.levels)
    rows = {"level": h, "lattice edge": image_size >> h, "latents": np.bincount(levels.flat)}
    return figure, pd.DataFrame(rows), {}


def curves(table: pd.DataFrame) -> Drawing:
    """Bits per dimension against pictures seen, at the end of the test split; and two limits."""
    shown = _Shown(table[~table["notebook"].str.startswith("02")])  # records, no short runs
    sets = shown.by_set("validation")
    figure, axes = _axes(DOUBLE, 2.8, 1, len(sets), sharex=True, sharey=True)
    end = {"fmt": "*", "mfc": "white", "ms": 7, "zorder": 3, "label": "test split, at the end"}
    for axis, (set_name, models) in zip(axes[0], sets.items(), strict=True):
        for name, look in (models | {f"{set_name}_{k}": v for k, v in OTHERS.items()}).items():
            if not len(rows := shown("validation", model=name)):
                continue
            rows = rows.assign(at=rows["at"].astype(float) / 1000)
            _line(axis, "at", rows, **look)
            tested = shown("bpd", model=name, at="test")
            _points(axis, [rows["at"].max()] * len(tested), tested, color="black", **end)
        limits = {"IGF23, test split": shown("published_bpd", model=set_name)}
        limits["entropy (estimate)"] = shown("entropy", model=set_name, factor="bpd")
        for text, rows in limits.items():
            for value in rows["value"]:
                axis.axhline(value, color="black", lw=0.6, zorder=0)
            at = (0.98, rows["value"].max() + 0.04)
            axis.annotate(text, at, xycoords=("axes fraction", "data"), ha="right")
        axis.set(ylim=(0, None), title=set_name.upper())
        axis.set_xlabel("training pictures seen / thousands")
    axes[0, 0].set_ylabel("bits per dimension")
    _legend(figure, 4)
    return figure, shown.rows, {}


def priors(table: pd.DataFrame) -> Drawing:
    """Differences between priors: of seeds, their mean with its interval, and IGF23's."""
    shown, published = _Shown(table), "laplace scale 1 less gaussian"  # is what IGF23 compares
    sets = [*sorted(set(results.select(table, "seed_bpd")["model"])), "celeba"]
    widths = [3] * (len(sets) - 1) + [1.2]
    figure, axes = _axes(DOUBLE, 2.6, 1, len(sets), sharey=True, width_ratios=widths)
    for axis, name in zip(axes[0], sets, strict=True):
        ours, theirs = (shown(f"{k}_difference", model=name) for k in ("prior", "published"))
        seeds = shown("seed_bpd", model=name).pivot(index="at", columns="factor", values="value")
        kinds = sorted({*ours["factor"], published})
        for kind in ours["factor"]:
            first, second = kind.split(" less ")
            gap = seeds[first] - seeds[second]
            axis.plot([kinds.index(kind) - 0.15] * len(gap), gap, label="a seed", **SEED)
        at = ours["factor"].map(kinds.index).astype(float)
        _points(axis, at, ours, fmt="D", color="black", label="mean, 95 % interval")
        at = [kinds.index(published) + 0.15] * len(theirs)
        axis.plot(at, theirs["value"], "x", color=RED, ms=6, label="IGF23, one run each")
        axis.axhline(0, color="black", lw=0.6)
        names = (kind.title().replace(" Scale 1", ",\nscale b = 1") for kind in kinds)
        axis.set_xticks(range(len(kinds)), [name.replace(" Less ", "\n− ") for name in names])
        axis.set(xlim=(-0.6, len(kinds) - 0.4), title=name.upper().replace("CELEBA", "CelebA"))
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("difference in test bpd, same seed")
    _legend(figure, 3)
    return figure, shown.rows, {}


def bits(table: pd.DataFrame) -> Drawing:
    """Where the bits go: by level, by place, and where the two priors differ."""
    shown, places = _Shown(table), ["background", "ellipse"]
    sets = shown.by_set("bits_by_place")
    layout = {"sharex": "col", "width_ratios": (4, 3, 4)}
    figure, axes = _axes(DOUBLE, 1.9 * len(sets) + 0.7, len(sets), 3, **layout)
    for (left, middle, right), (set_name, models) in zip(axes, sets.items(), strict=True):
        for k, (name, look) in enumerate(models.items()):
            look, shift = look | {"linestyle": "none"}, 0.14 * k - 0.07
            _line(left, "level", shown("bits_by_level", model=name), shift, **look)
            rows = shown("bits_by_place", model=name)
            _points(middle, rows["factor"].map(places.index) + shift, rows, **look)
        rows = shown("prior_gap", model=set_name)
        rows = rows.sort_values(["level", "factor"], na_position="first")
        at = np.arange(len(rows)) + 0.5 * rows["level"].notna().to_numpy()
        right.barh(at, rows["value"], 0.6, color="0.8")
        _points(right, at, rows, flat=True, fmt="none", ecolor="black", elinewidth=0.8)
        parts = zip(rows["factor"], rows["level"], strict=True)
        right.set_yticks(at, [place or f"h = {h}" for place, h in parts])
        right.axvline(0, color="black", lw=0.6)
        right.locator_params(axis="x", nbins=5)
        right.invert_yaxis()
        left.set_ylabel(f"{set_name.upper()}: bits per dimension")
        left.label_outer()
        left.axhline(0, color="black", lw=0.6)
        middle.set(xlim=(-0.5, 1.5), ylim=(0, None), xticks=range(2), xticklabels=places)
        middle.grid(axis="y")
        right.grid(axis="x")
    top = max(axis.get_ylim()[1] for axis in axes[:, 1])
    for axis in axes[:, 1]:
        axis.set_ylim(0, top)
    axes[0, 0].set_title("added by each level,\nwithout bytes and logit")
    axes[0, 1].set_title("of each place,\nper value there")
    axes[0, 2].set_title("Laplace less Gaussian,\nper dimension")
    axes[-1, 2].set_xlabel("bits per dimension")
    _legend(figure, 2)
    return figure, shown.rows, {}


def fields(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> Drawing:
    """Receptive fields of two latents a level, with the edge of their causal cones.

    ``fields/MODEL`` and ``cones/MODEL`` (n, levels, L, L); of each set the last model is shown.
    """
    models = _last(arrays, "fields")
    arrays = {f"{k}/{m}": arrays[f"{k}/{m}"][:2] for m in models for k in ("fields", "cones")}
    levels = next(iter(arrays.values())).shape[1]
    figure, axes = _axes(DOUBLE, 2.6, 2, len(models) * levels)
    for (k, column), axis in np.ndenumerate(axes):
        model, h = models[column // levels], column % levels
        field, cone = (arrays[f"{kind}/{model}"][k, h] for kind in ("fields", "cones"))
        relative = np.log10(np.maximum(field / field.max(), 1e-6))
        image = axis.imshow(relative, cmap="magma", vmin=-4, vmax=0, interpolation="none")
        if not cone.all():
            axis.contour(cone, [0.5], colors="white", linewidths=1)
        axis.set(xticks=[], yticks=[], title="" if k else f"h = {h}")
        if h == 0:
            axis.set_ylabel("latent 2" if k else f"{results.title(model)}\nlatent 1")
    bar = figure.colorbar(image, ax=list(axes.flat), location="bottom", aspect=50, fraction=0.06)
    bar.set_label("E|∂G/∂z| over its maximum, log10 (white line: edge of the causal cone)")
    return figure, table[:0], arrays


def growth(table: pd.DataFrame) -> Drawing:
    """Radius and area of receptive fields by level, and what one pixel touches in inference."""
    shown, sets = _Shown(table), _Shown(table).by_set("radius")
    random = {"color": "0.4", "marker": "x", "linestyle": "none", "label": "random weights"}
    figure, axes = _axes(DOUBLE, 4.4, 2, len(sets) + 1)
    for (above, below), (set_name, models) in zip(axes.T, sets.items(), strict=False):
        for k, (name, look) in enumerate((models | {"random": random}).items()):
            shift, kind = 0.1 * k - 0.1, look["label"].split()[0]
            rates = [shown("growth", model=name, factor="radius").assign(of=kind)]
            rates += [shown("growth_seeds", model=name, factor="radius").assign(of="seeds")]
            rates = pd.concat(rates).to_dict("records")
            text = "\n".join(map("{of}: {value:.2f} ({low:.2f}–{high:.2f})".format_map, rates))
            _line(above, "level", shown("radius", model=name), shift, **look | {"label": text})
            _line(below, "level", shown("area", model=name), shift, **look)
            if name == "random":
                continue
            few, label = shown("area_half", model=name), None if k else "half the samples"
            below.plot(few["level"] + shift, few["value"], "k_", ms=9, zorder=3, label=label)
            theirs = {"linestyle": "none", "mfc": "white", "label": f"{kind}, IGF23's way"}
            _line(below, "level", shown("procedure_area", model=name), shift, **look | theirs)
        for axis, quantity, factor in ((above, "radius", 2), (below, "area", 4)):
            start = shown(quantity, model=next(iter(models)), level=0)["value"].item()
            doubled = start * factor ** np.arange(len(few))
            axis.plot(doubled, "k:", lw=0.8, zorder=0, label="doubling of length")
            for value in shown(f"ceiling_{quantity}", model=set_name)["value"]:
                axis.axhline(value, color="0.4", lw=0.8, zorder=0, label="the mean picture")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
        where = {"loc": "upper left", "handlelength": 1.5, "handletextpad": 0.5, "fontsize": 7}
        above.legend(handles=above.containers, title="growth per level, h = 0 … 2", **where)
        above.set(ylim=(None, 200), title=set_name.upper())
    axes[0, 0].set_ylabel("radius / pixels")
    axes[1, 0].set_ylabel("area with 90 % of effect / pixels")
    reach, key = axes[:, -1]
    _line(reach, "at", shown("touched", factor="pixel"), color="black", marker="D")
    reach.set_xscale("log", base=2)
    reach.xaxis.set_major_formatter("{x:g}")
    reach.set(xlabel="edge L of the picture / pixels", ylabel="positions touched")
    reach.set_title("inference, one pixel changed")
    key.axis("off")
    key.legend(*axes[1, 0].get_legend_handles_labels(), loc="center")
    return figure, shown.rows, {}


def samples(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> Drawing:
    """Real pictures and samples, and the Frechet distance between the two against temperature.

    ``real/SET`` and ``samples/MODEL/T`` (N, L, L, 3); of the T measured, 1 and the lowest drawn.
    """
    shown, sheets, sets = _Shown(table), {}, _Shown(table).by_set("frechet")
    figure, axes = _axes(DOUBLE, 4.2, 2, len(sets), height_ratios=(5, 3.2))
    for (above, below), (set_name, models) in zip(axes.T, sets.items(), strict=True):
        rows = {"real": f"real/{set_name}"}
        for k, (name, look) in enumerate(models.items()):
            distances = shown("frechet", model=name)
            _line(below, "at", distances, 0.01 * k - 0.005, **look)
            drawn = (t for t in map(float, distances["at"]) if f"samples/{name}/{t}" in arrays)
            for t in sorted({1.0, min(drawn)}, reverse=True):
                rows[f"{look['label'].split()[0]}, T = {t:g}"] = f"samples/{name}/{t}"
        pictures = {key: arrays[key][:8] for key in rows.values()}
        _sheet(above, np.stack([*pictures.values()]), [*rows])
        for _, real in shown("frechet_real", model=set_name).iterrows():
            label = f"as many real pictures: {real['at']}, {real['n']} times"
            below.axhspan(real["low"], real["high"], color="0.85", zorder=0)
            below.axhline(real["value"], color="black", lw=0.8, ls=":", label=label)
        above.set_title(set_name.upper())
        below.set(xlabel="temperature T of the samples", ylim=(0, None))
        sheets |= pictures
    axes[1, 0].set_ylabel("Fréchet distance\n(own features)")
    _legend(figure, 3)
    return figure, shown.rows, sheets


def _factors(axis: Axes, rows: pd.DataFrame) -> None:
    """A line for each factor against the level; the global one is filled and drawn through."""
    for k, (name, part) in enumerate(rows.groupby("factor")):
        scope, kind = name.split()
        more = {"linestyle": "-"} if scope == "global" else {"mfc": "white"}
        _line(axis, "level", part, 0.08 * k - 0.12, label=name, **FACTORS[kind] | more)


def mixing(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> Drawing:
    """Mixtures of two pictures by level and, below each column, what every factor did.

    ``mixed/MODEL`` (pairs, n + 1, L, L, 3); of each set the last model is shown.
    """
    shown, models = _Shown(table), _last(arrays, "mixed")
    arrays = {f"mixed/{model}": arrays[f"mixed/{model}"][:3] for model in models}
    figure, axes = _axes(DOUBLE, 4.8, 2, len(models), height_ratios=(2.3, 2))
    for (above, below), model in zip(axes.T, models, strict=True):
        pictures = arrays[f"mixed/{model}"]
        _sheet(above, pictures, [f"pair {k + 1}" for k in range(len(pictures))])
        above.set_title(f"{results.title(model)}: from B, left, to A, right")
        _factors(below, shown("mixing", model=model))
        below.set(xlim=above.get_xlim(), ylim=(-0.1, 1.1))
        below.set_xlabel("h: levels ≥ h are B's, finer ones A's")
    axes[1, 0].set_ylabel("factor: as in A (0) … in B (1)")
    _legend(figure, 3)
    return figure, shown.rows, arrays


def probes(table: pd.DataFrame) -> Drawing:
    """What a linear probe reads off each level, beside what redrawing the level changes."""
    shown, sets = _Shown(table), _Shown(table).by_set("probe")
    count = max(map(len, sets.values()))
    layout = {"sharex": True, "sharey": True}
    figure, axes = _axes(DOUBLE, 1.9 * len(sets) + 0.6, len(sets), 1 + 2 * count, **layout)
    for line, (set_name, models) in zip(axes, sets.items(), strict=True):
        _factors(line[0], shown("probe_untrained", model=next(iter(models))))
        line[0].set_title("probe of pixels")
        for k, (name, look) in enumerate(models.items()):
            left, right, prior = line[1 + k], line[1 + count + k], look["label"].split()[0]
            _factors(left, shown("probe", model=name))
            _factors(right, shown("intervention", model=name))
            left.set_title(f"probe, {prior}")
            title = f"redrawn, {prior}\nseparation "
            scores = shown("separation", model=name).sort_values("factor")["value"]
            title += "{:.2f} ({:.2f})".format(*scores)
            for row in shown("separation_seeds", model=name, factor="trained").to_dict("records"):
                title += "\nseeds {value:.2f} ({low:.2f}–{high:.2f})".format(**row)
            right.set_title(title, fontsize=7)
        for axis in line:
            axis.set_xlabel("level h")
            axis.label_outer()
        line[0].set_ylabel(f"{set_name.upper()}: held-out R²")
        line[1 + count].set_ylabel("change / another picture's")
    _legend(figure, 5)
    return figure, shown.rows, {}


def changes(table: pd.DataFrame) -> Drawing:
    """What one change does to the test bpd: each seed, and the mean with its interval."""
    shown = _Shown(table)
    means, runs, lost = (shown(f"change{part}") for part in ("_mean", "", "_diverged"))
    lost = lost[lost["value"] > 0].set_index("factor")["value"]
    count = runs["factor"].value_counts()
    names = [*means.sort_values("value")["factor"], *lost.index.difference(means["factor"])]
    figure, ((axis,),) = _axes(SINGLE, 0.27 * len(names) + 0.8, 1, 1)
    axis.plot(runs["value"], runs["factor"].map(names.index) + 0.25, **SEED)
    at = means["factor"].map(names.index)
    _points(axis, at, means, flat=True, fmt="D", color="black")
    for k, name in enumerate(names):
        few = f"\n(n = {count.get(name, 0)}, {lost.get(name, 0):.0f} diverged)"
        few = few if count.get(name, 0) < count.max() else ""
        names[k] = name.replace("_", " ") + few
    axis.set_yticks(range(len(names)), names)
    axis.axvline(0, color="black", lw=0.6)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.1)
    axis.set_xlabel("test bpd less that of the unchanged\nnetwork, by seed (circles) and mean")
    axis.grid(axis="x")
    return figure, shown.rows, {}


def peers(table: pd.DataFrame) -> Drawing:
    """Other flows: bits against minutes, differences by seed, and what levels of latents know."""
    shown, means = _Shown(table), results.select(table, "peer_mean")["model"]
    titles = {"msds1": "MSDS1", "fashion": "Fashion-MNIST", "photographs": "photographs"}
    sets = [name for name in titles if means.str.startswith(f"{name}_").any()]
    tall = [1.5 if name == "photographs" else 2.4 for name in sets]
    layout = {"width_ratios": (3, 2.2, 2.4), "height_ratios": tall}
    figure, axes = _axes(DOUBLE, sum(tall) + 0.6, len(sets), 3, **layout)
    for (left, middle, right), set_name in zip(axes, sets, strict=True):
        flows = [flow for flow in FLOWS if f"{set_name}_{flow}" in set(means)]
        for k, flow in enumerate(flows):
            name, look = f"{set_name}_{flow}", FLOWS[flow]
            for budget, more in (("pictures", {"label": flow}), ("minutes", {"mfc": "white"})):
                bits = shown("peer", model=name, factor=budget)["value"]
                spent = shown("peer_run", model=name, factor="minutes", at=budget)["value"]
                left.plot([*spent] * len(bits), bits, **look | more | {"linestyle": "none"})
            # Of known factors, how far levels are apart; otherwise what each says of the class.
            white = {"mfc": "white", "linestyle": "none"}
            for kind, more in (("untrained", white), ("trained", {"linestyle": "none"})):
                rows = shown("peer_separation", model=name, factor=kind)
                _points(right, [k] * len(rows), rows, True, **look | more)
            rows = shown("peer_separation_means", model=name, factor="trained")
            cross = {"marker": "x", "linestyle": "none", "ms": 6}
            _points(right, [k] * len(rows), rows, True, **look | cross)
            for quantity, more in (("peer_probe_untrained", white), ("peer_probe", {})):
                if len(rows := shown(quantity, model=name, factor="class")):
                    _line(right, "level", rows, 0.05 * k - 0.2, **look | more)
        gaps = shown("peer_difference", model=set_name)
        _points(middle, np.arange(len(gaps)), gaps, True, fmt="D", color="black")
        names = gaps["factor"].str.replace("_uniform", "").str.replace("less", "−")
        names += gaps["factor"].str.contains("uniform").map({True: ", uniform noise", False: ""})
        names += gaps["at"].map({"pictures": "", "minutes": ", minutes"})
        middle.set_yticks(range(len(gaps)), names, fontsize=7)
        middle.axvline(0, color="black", lw=0.6)
        middle.set_ylim(max(1, len(gaps)) - 0.5, -0.5)
        for axis in (left, middle, right):
            axis.grid(axis="both" if axis is left else "x", alpha=0.3)
        left.set_ylabel(f"{titles[set_name]}: test bpd")
        if set_name == "fashion":
            right.set(xticks=range(4), ylabel="R² of a probe for the class\n(white: untrained)")
            continue
        names = flows
        if set_name == "photographs":
            over = shown("photograph_mean")
            each, names = shown("photograph"), over["factor"].str.replace("less", "−")
            right.plot(each["value"], each["factor"].map([*over["factor"]].index), **SEED)
            _points(right, np.arange(len(over)), over, True, fmt="D", color="black")
            right.axvline(0, color="black", lw=0.6)
            right.set_xlabel("difference on each\nphotograph, and mean")
        else:
            right.set(xlabel="separation (×: means;\nwhite: untrained)", xlim=(-0.05, 1))
        right.set_yticks(range(len(names)), names)
        right.set_ylim(len(names) - 0.5, -0.5)
    axes[0, 0].set_title("equal pictures (filled),\nequal minutes (white)")
    axes[0, 1].set_title("difference, same seed")
    axes[-1, 0].set_xlabel("minutes of one core")
    axes[-1, 1].set_xlabel("bits per dimension")
    _legend(figure, 5)
    return figure, shown.rows, {}
