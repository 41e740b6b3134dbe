"""Every figure of the study, each drawn in one place from stored arrays and numbers.

Sizes are those of the printed page: figures are ``COLUMN`` or ``PAGE`` inches wide.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgflow_core.files import replacing
from study import tables
from study.results import title

COLUMN, PAGE = 3.5, 7.0
# Of Okabe and Ito's colours, which the colour-blind can tell apart. In grey, markers (of the prior)
# and lines or hatches (of the set) do.
COLOURS = {"laplace": "#e69f00", "gaussian": "#0072b2"}
GREEN, GREY = "#009e73", "0.35"
# Of things that are no priors.
SERIES = ("#000000", "#d55e00", "#009e73", "#cc79a7")
MARKERS = {"laplace": "o", "gaussian": "s"}
DPI = {"png": 200, "pdf": 300}
plt.rcParams |= {
    "figure.dpi": 150,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.grid.axis": "both",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "errorbar.capsize": 2,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
}


def save(figure: Figure, folder: str | Path, name: str, rows: list[dict]) -> None:
    """Write a figure as PNG and PDF, and its data (:mod:`study.tables`) as CSV beside them.

    No dates are written, so that equal figures are equal files.
    """
    for kind, dpi in DPI.items():
        no_date = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with replacing(Path(folder) / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, dpi=dpi, metadata=no_date)
    tables.write_csv(Path(folder) / f"{name}.csv", rows)


def _axes(rows: int, columns: int, width: float, height: float, **kwargs: object) -> tuple:
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **kwargs
    )
    return figure, axes


def _width(panels: int) -> float:
    return COLUMN if panels == 1 else PAGE


def _bare(axis: plt.Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _line(name: str, one_set: bool = False) -> dict:
    """How a model is drawn as a line: colour and marker of its prior, dashes of its set.

    In a panel of ``one_set`` all are drawn through, and the label leaves the set out.
    """
    set_name, prior, *_ = name.split("_")
    first = one_set or set_name == "msds1"
    return {
        "color": COLOURS[prior], "marker": MARKERS[prior],
        "label": title(name).removeprefix(f"{set_name.upper()}, " if one_set else ""),
        "linestyle": "-" if first else "--", "markerfacecolor": None if first else "white",
    }  # fmt: skip


def _bar(name: str) -> dict:
    """How a model is drawn as a bar, with black error bars."""
    set_name, prior, *_ = name.split("_")
    return {
        "color": COLOURS[prior], "hatch": None if set_name == "msds1" else "/////",
        "edgecolor": "white", "linewidth": 0, "label": title(name),
        "error_kw": {"elinewidth": 0.8, "capsize": 1.5},
    }  # fmt: skip


def _legend(figure: Figure, columns: int = 2) -> None:
    """One legend of all panels below them, where it covers nothing; reference lines come last."""
    shown = {}
    for axis in figure.axes:
        shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    labels = sorted(shown, key=lambda label: isinstance(shown[label], Line2D))
    handles = [shown[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _beside(k: int, count: int, levels: int) -> np.ndarray:
    """Where the k-th of several models is drawn at each level, so that marks do not hide others."""
    return np.arange(levels) + 0.06 * (k - (count - 1) / 2)


def _levels(axis: plt.Axes, levels: int) -> None:
    axis.set_xticks(range(levels))
    axis.set_xlabel("RG level h (0 is the finest)")


def _write_in(axis: plt.Axes, values: np.ndarray, texts: list[list[str]], top: float) -> object:
    """Values (rows, columns) as colours from 0 to ``top``, with a text in each cell."""
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value < 0.6 * top else "black"
        axis.text(j, i, texts[i][j], ha="center", va="center", fontsize=6, color=colour)
    return image


def _tile(pictures: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Pictures (N, l, l, 3) side by side on white, at most ``columns`` in a row."""
    rows = -(-len(pictures) // columns)
    edge = pictures.shape[1] + gap
    kind = pictures.dtype
    white = 255 if kind == np.uint8 else 1
    sheet = np.full((rows * edge - gap, columns * edge - gap, 3), white, kind)
    for k, picture in enumerate(pictures):
        i, j = divmod(k, columns)
        sheet[i * edge :, j * edge :][: edge - gap, : edge - gap] = picture
    return sheet


def picture_sheets(
    sheets: dict[str, np.ndarray], columns: int, width: float = PAGE, across: int = 1
) -> Figure:
    """Titled sheets of pictures (N, l, l, 3), as many ``across``, ``columns`` pictures in a row."""
    tiles = {name: _tile(pictures, columns) for name, pictures in sheets.items()}
    shape = next(iter(tiles.values())).shape
    rows = -(-len(tiles) // across)
    height = shape[0] / shape[1] * width / across + 0.2
    figure, axes = _axes(rows, across, width, rows * height)
    for axis in axes.flat:
        _bare(axis)
    for axis, (name, sheet) in zip(axes.flat, tiles.items(), strict=False):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(name, loc="left", pad=3)
    return figure


def label_histograms(labels: dict[str, np.ndarray]) -> Figure:
    """Marginal distributions of MSDS labels (N, 4, 4, 6): offset, angle, red; a row per set."""
    figure, axes = _axes(len(labels), 3, PAGE, 1.6 * len(labels))
    style = {"density": True, "color": GREY}
    for row, (name, values) in zip(axes, labels.items(), strict=True):
        offset = values[..., 0] - 8 * np.arange(4)[:, None]
        row[0].hist(offset.ravel(), bins=np.arange(-1.5, 2), rwidth=0.8, **style)
        row[1].hist(values[..., 2].ravel(), bins=45, **style)
        row[2].hist(values[..., 3].ravel(), bins=np.arange(0, 257, 8), **style)
        for axis, label in zip(row, ("offset dx / pixels", "angle / degrees", "red"), strict=True):
            axis.set_xlabel(label)
        row[0].set_ylabel(f"{name.upper()}: density")
    return figure


def training_curves(curves: dict[str, dict], published: dict) -> Figure:
    """Validation bpd against images seen; published test values of the same sets as lines.

    Args:
        curves: of each model, ``images``, ``bpd`` and its ``stderr`` (two are drawn).
        published: the content of ``data/published.json``.
    """
    sets = sorted({name.split("_")[0] for name in curves})
    figure, axes = _axes(1, len(sets), _width(len(sets)), 2.7, sharey=True)
    for axis, set_name in zip(axes[0], sets, strict=True):
        for name in (name for name in curves if name.startswith(set_name)):
            images, error = (np.array(curves[name][key]) for key in ("images", "stderr"))
            style = _line(name, one_set=True)
            if not name.endswith("_shipped"):
                style |= {"marker": "x", "linestyle": ":"}
            axis.errorbar(images / 1000, curves[name]["bpd"], 2 * error, **style)
        for prior, bpd in published["bpd"].get(set_name, {}).items():
            label = f"{prior.capitalize()}, {published['system']}"
            axis.axhline(bpd, ls="-.", lw=0.8, color=COLOURS[prior], label=label)
        axis.set(xlabel="training pictures seen / thousands", title=set_name.upper())
        axis.grid()
    axes[0, 0].set_ylabel("bits per dimension")
    _legend(figure, 2 * len(sets))
    return figure


def bpd_bars(rows: list[dict]) -> Figure:
    """Test bpd of our models with standard errors, the published values, and the limits."""
    figure, axes = _axes(1, 1, COLUMN, 0.32 * len(rows) + 0.5)
    axis = axes[0, 0]
    for k, row in enumerate(rows):
        colour = COLOURS.get(row["prior"], GREY)
        error = None if row["stderr"] is None else 2 * row["stderr"]
        theirs = {"facecolor": "white", "edgecolor": colour, "hatch": "/////"}
        style = theirs if row["source"] == "published" else {"color": colour}
        axis.barh(k, row["bpd"], xerr=error, height=0.6, **style)
        value = row["bpd"] if row["source"] == "published" else f"{row['bpd']:.3f}"
        axis.text(row["bpd"], k, f"  {value}", va="center", fontsize=7)
    axis.set_yticks(range(len(rows)), [row["label"].replace(": ", ":\n") for row in rows])
    axis.tick_params(axis="y", labelsize=6.5)
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.set_xlabel("test bits per dimension\n± 2 standard errors")
    return figure


def level_bits(bits: dict[str, dict]) -> Figure:
    """Bits per dimension that each level pays, of several models; bytes and logit apart.

    Coarse levels have their own scale, being of few latents; two standard errors are drawn.
    """
    levels = len(next(iter(bits.values()))["levels"])
    figure, axes = _axes(1, 2, COLUMN, 2.2)
    for axis, part in zip(axes[0], np.array_split(np.arange(levels), 2), strict=True):
        width = 0.8 / len(bits)
        for k, (name, of) in enumerate(bits.items()):
            values, errors = (np.array(of[key])[part] for key in ("levels", "stderr"))
            at = part + width * (k - (len(bits) - 1) / 2)
            axis.bar(at, values, width, yerr=2 * errors, **_bar(name))
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xticks(part, [f"h = {h}" for h in part])
    axes[0, 0].set_ylabel("bits per dimension,\nbytes and logit apart")
    _legend(figure)
    return figure


def frechet_curves(curves: dict[str, list[dict]], floors: dict[str, float]) -> Figure:
    """Frechet distance in our own features against temperature; real halves as the floor."""
    sets = sorted(floors)
    figure, axes = _axes(1, len(sets), _width(len(sets)), 2.6, sharey=True)
    for axis, set_name in zip(axes[0], sets, strict=True):
        for name, points in curves.items():
            if not name.startswith(set_name):
                continue
            mean, spread = (np.array([p[key] for p in points]) for key in ("value", "spread"))
            t = [p["temperature"] for p in points]
            axis.errorbar(t, mean, 2 * spread, **_line(name, one_set=True))
        axis.axhline(floors[set_name], ls=":", color=GREY, label="real pictures")
        axis.set(xlabel="temperature (factor of the prior's scale)", yscale="log")
        axis.set_title(set_name.upper())
        axis.grid()
    axes[0, 0].set_ylabel("Fréchet distance (own features)")
    _legend(figure, columns=3)
    return figure


def seed_points(
    groups: dict[str, list[float]], comparisons: dict[str, dict] | None = None
) -> Figure:
    """Test bpd of several seeds by group and, of paired seeds, differences with 95 % intervals."""
    figure, axes = _axes(1, 1 + bool(comparisons), _width(1 + bool(comparisons)), 2.4)
    axis = axes[0, 0]
    for k, (name, values) in enumerate(groups.items()):
        prior = name.split(", ")[1]
        at = k + np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [k]
        axis.plot(at, values, MARKERS[prior], color=COLOURS[prior], markerfacecolor="none")
        axis.hlines(np.mean(values), k - 0.3, k + 0.3, color=COLOURS[prior])
    labels = ["\n".join(title(name.replace(", ", "_")).split(", ")) for name in groups]
    axis.set_xticks(range(len(groups)), labels, fontsize=6.5)
    axis.set(ylabel="test bits per dimension", xlim=(-0.6, len(groups) - 0.4))
    axis.grid(axis="y")
    if comparisons:
        axis = axes[0, 1]
        for k, of in enumerate(comparisons.values()):
            ends = [[of["mean"] - of["low"]], [of["high"] - of["mean"]]]
            axis.errorbar(of["mean"], k, xerr=ends, fmt="D", color="black")
        names = [
            "\nless ".join(title(side.replace(", ", "_")) for side in name.split(" less "))
            for name in comparisons
        ]
        axis.set_yticks(range(len(names)), names, fontsize=6.5)
        axis.set(ylim=(len(names) - 0.5, -0.5))
        axis.set_xlabel("difference in test bpd, 95 % interval")
        axis.axvline(0, color=GREY, lw=0.8)
        axis.grid(axis="x")
    return figure


def ablation_points(rows: dict[str, dict]) -> Figure:
    """What each change of the narrow network does to the test bpd, a point for each seed.

    Beside it the validation curves of the last seed: unchanged in black, the rest in grey, the
    one that ends highest with its name.
    """
    changed = {n: row for n, row in rows.items() if n != "unchanged" and row["less_unchanged"]}
    names = sorted(changed, key=lambda name: np.mean(changed[name]["less_unchanged"]))
    figure, axes = _axes(1, 2, PAGE, 0.22 * len(names) + 0.9)
    axis, curves = axes[0]
    for k, name in enumerate(names):
        values = changed[name]["less_unchanged"]
        axis.plot(values, [k] * len(values), "o", color=GREEN, markerfacecolor="none")
        axis.plot(np.mean(values), k, "|", ms=9, color="black")
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.margins(x=0.1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set(ylim=(-0.6, len(names) - 0.4))
    axis.set_xlabel(
        "test bpd less that of the unchanged network\n(linear up to ± 0.1, then logarithmic)"
    )
    axis.grid(axis="x")
    drawn = {name: row["curve"] for name, row in rows.items() if "curve" in row}
    for name, curve in drawn.items():
        style = {"color": GREY, "lw": 0.8}
        if name == "unchanged":
            style = {"color": "black", "lw": 1.4, "zorder": 3, "label": name}
        curves.plot([n / 1000 for n in curve["images"]], curve["bpd"], ".-", **style)
    if "unchanged" in drawn:
        curves.legend(loc="lower left")
    worst = max(drawn, key=lambda name: drawn[name]["bpd"][-1])
    curves.annotate(
        worst.replace("_", " "), (drawn[worst]["images"][-1] / 1000, drawn[worst]["bpd"][-1]),
        (0, 10), textcoords="offset points", ha="right", fontsize=7,
    )  # fmt: skip
    curves.set(xlabel="training pictures seen / thousands", ylabel="validation bpd")
    return figure


def latent_histograms(histograms: dict[str, np.ndarray], levels: int) -> Figure:
    """Latent densities against the prior, a row per model and a column per level, log scale.

    ``histograms`` holds ``edges``, and ``MODEL/hH`` and ``MODEL/prior`` densities.
    """
    edges = histograms["edges"]
    middle = (edges[1:] + edges[:-1]) / 2
    names = sorted(k.removesuffix("/prior") for k in histograms if k.endswith("/prior"))
    figure, axes = _axes(
        len(names), levels, PAGE, 1.25 * len(names) + 0.5, sharex=True, sharey=True
    )
    for row, name in zip(axes, names, strict=True):
        for h, axis in enumerate(row):
            axis.fill_between(
                middle, histograms[f"{name}/h{h}"], 1e-6, step="mid", linewidth=0, alpha=0.6,
                color=COLOURS[name.split("_")[1]],
            )  # fmt: skip
            axis.plot(middle, histograms[f"{name}/prior"], "k-", lw=0.8)
            axis.set(yscale="log", ylim=(1e-5, 3))
        row[0].set_ylabel(f"{title(name)}\ndensity")
    for h, axis in enumerate(axes[0]):
        axis.set_title(f"h = {h}")
    for axis in axes[-1]:
        axis.set_xlabel("latent z")
    return figure


def kurtosis_bars(kurtosis: dict[str, list[dict]]) -> Figure:
    """Excess kurtosis per level and model, two standard errors; priors' own as lines."""
    figure, axes = _axes(1, 1, COLUMN, 2.5)
    axis = axes[0, 0]
    width = 0.8 / len(kurtosis)
    for k, (name, levels) in enumerate(kurtosis.items()):
        at = np.arange(len(levels)) + (k - (len(kurtosis) - 1) / 2) * width
        values, errors = ([level[x] for level in levels] for x in ("value", "stderr"))
        axis.bar(at, values, width, yerr=2 * np.array(errors), **_bar(name))
    axis.axhline(3, color=COLOURS["laplace"], ls=":", lw=0.8, label="Laplace density")
    axis.axhline(0, color=COLOURS["gaussian"], ls="-.", lw=0.8, label="Gaussian density")
    _levels(axis, len(levels))
    axis.set_ylabel("excess kurtosis")
    _legend(figure)
    return figure


def sparsity_panels(rows: dict[str, list[dict]], references: dict[str, dict]) -> Figure:
    """Four measures of :mod:`study.sparsity` by level, two standard errors.

    Args:
        rows: of each model, the measures of each level.
        references: measure -> prior -> its value for a density of that kind.
    """
    labels = {
        "hoyer": "Hoyer sparsity",
        "near_zero": "share within a tenth\nof a standard deviation",
        "kolmogorov": "Kolmogorov distance\nto the prior",
        "rotation": "fall of log p(z) by rotation\n/ nats per latent",
    }
    figure, axes = _axes(2, 2, PAGE, 4.2, sharex=True)
    for axis, (measure, label) in zip(axes.flat, labels.items(), strict=True):
        for k, (name, levels) in enumerate(rows.items()):
            values, errors = ([row[measure][x] for row in levels] for x in ("value", "stderr"))
            at = _beside(k, len(rows), len(levels))
            axis.errorbar(at, values, 2 * np.array(errors), **_line(name))
        for prior, value in references.get(measure, {}).items():
            line = {"laplace": ":", "gaussian": "-."}[prior]
            label_of = f"{prior.capitalize()} density"
            axis.axhline(value, ls=line, lw=1, color=COLOURS[prior], label=label_of)
        axis.set_ylabel(label)
        axis.grid()
    for axis in axes[1]:
        _levels(axis, len(levels))
    _legend(figure, columns=3)
    return figure


def correlation_maps(tops: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> Figure:
    """Of each model: correlations of the top level's latents, and means of |r| over levels."""
    figure, axes = _axes(2, len(tops), _width(len(tops)), 3.6)
    peak = max(float(np.nanmax(m)) for m in means.values())
    for (top, bottom), name in zip(axes.T, tops, strict=True):
        signed = top.imshow(tops[name], cmap="RdBu_r", vmin=-1, vmax=1)
        top.set(title=title(name), xticks=[], yticks=[], xlabel="latents of the top level")
        texts = [[f"{value:.3f}" for value in row] for row in means[name]]
        mean = _write_in(bottom, means[name], texts, peak)
        ticks = range(len(means[name]))
        bottom.set(xticks=ticks, yticks=ticks, xlabel="RG level h", box_aspect=1)
    axes[1, 0].set_ylabel("RG level h")
    figure.colorbar(signed, ax=axes[0].tolist(), label="correlation")
    figure.colorbar(mean, ax=axes[1].tolist(), label="mean |correlation|")
    return figure


def cones(areas: dict[str, list[dict]], touched: dict[str, list[float]]) -> Figure:
    """Receptive fields against their causal cone by level, and latents touched against L."""
    figure, (axes,) = _axes(1, 2, PAGE, 2.6)
    name, rows = next(iter(areas.items()))
    at = range(len(rows))
    lines = {
        "cone": ("causal cone", {"color": "black", "marker": "^"}),
        "area": ("90 % of E|∂G/∂z|", {"color": GREEN, "marker": "o"}),
        "difference": ("90 % of IGF23's difference", {"color": GREY, "marker": "D", "ls": "--"}),
    }
    for key, (label, style) in lines.items():
        error = [2 * row["stderr"] for row in rows] if key == "area" else None
        axes[0].errorbar(at, [row[key] for row in rows], error, label=label, **style)
    axes[0].set(yscale="log", ylim=(4, 2000), ylabel="area / pixels", title=title(name))
    _levels(axes[0], len(rows))
    sizes = np.array(touched["sizes"])
    axes[1].plot(sizes, touched["pixel"], "-o", color=GREEN, label="RG-Flow")
    axes[1].plot(sizes, sizes**2, "--", color=GREY, label="all, as in a plain RealNVP: L²")
    axes[1].set(xscale="log", yscale="log", xlabel="edge L of the picture / pixels")
    axes[1].set_ylabel("positions touched by one pixel")
    axes[1].set_xticks(sizes, sizes)
    axes[1].minorticks_off()
    for axis in axes:
        axis.grid()
        axis.legend()
    return figure


def factor_maps(maps: dict[str, list[dict[str, dict]]], label: str, top: float) -> Figure:
    """Level by factor, a panel for each model, with values and standard errors written in.

    Args:
        maps: of each model, for each level: factor -> ``value``, ``stderr``.
        label: of the colour bar.
        top: the brightest value shown.
    """
    across = min(2, len(maps))
    down = -(-len(maps) // across)
    figure, axes = _axes(down, across, across * COLUMN, 1.8 * down + 0.5)
    for axis, (name, levels) in zip(axes.flat, maps.items(), strict=False):
        names = list(levels[0])
        values = np.array([[row[f]["value"] for f in names] for row in levels])
        texts = [
            # Adding 0 makes a rounded -0 positive.
            [f"{round(row[f]['value'], 3) + 0:.3f}\n± {row[f]['stderr']:.3f}" for f in names]
            for row in levels
        ]
        image = _write_in(axis, values, texts, top)
        axis.set_xticks(range(len(names)), [f.replace(" ", "\n") for f in names])
        axis.set_yticks(range(len(levels)), [f"h = {h}" for h in range(len(levels))])
        axis.set_title(title(name))
    for axis in axes.flat[len(maps) :]:
        axis.remove()
    bar = figure.colorbar(image, ax=axes.ravel().tolist(), location="bottom", aspect=60, pad=0.03)
    bar.set_label(f"{label} ± standard error")
    return figure


def receptive_field_maps(maps: dict[str, np.ndarray], levels: int) -> Figure:
    """Receptive fields, a row per level from the coarsest: single latents, then their mean.

    ``maps`` holds ``hH`` (n, L, L) and ``hH/centred`` (L, L), each drawn relative to its maximum.
    """
    shown = 5
    figure, axes = _axes(levels, shown + 1, PAGE, 1.12 * levels + 0.2)
    for row, h in zip(axes, reversed(range(levels)), strict=True):
        for axis, field in [
            *zip(row, maps[f"h{h}"][:shown], strict=False),
            (row[-1], maps[f"h{h}/centred"]),
        ]:
            image = axis.imshow(field / field.max(), cmap="magma", interpolation="nearest", vmin=0)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"h = {h}")
    for k in range(shown):
        axes[0, k].set_title(f"latent {k + 1}")
    axes[0, -1].set_title("mean, centred")
    bar = figure.colorbar(image, ax=axes.ravel().tolist(), aspect=50, pad=0.01)
    bar.set_label("E|∂G/∂z|, relative to its maximum")
    return figure


def receptive_field_areas(areas: dict[str, list[dict]]) -> Figure:
    """Area that holds 90 % of a receptive field against the level, two standard errors."""
    figure, axes = _axes(1, 1, COLUMN, 2.8)
    axis = axes[0, 0]
    for k, (name, levels) in enumerate(areas.items()):
        mean, error = (np.array([level[x] for level in levels]) for x in ("area", "stderr"))
        axis.errorbar(_beside(k, len(areas), len(mean)), mean, 2 * error, **_line(name))
    steps = np.arange(len(mean))
    start = np.mean([levels[0]["area"] for levels in areas.values()])
    axis.plot(steps, start * 4.0**steps, "k:", lw=0.8, label="edge doubles each level")
    axis.set(yscale="log", ylabel="pixels with 90 % of the effect", ylim=(10, 3000))
    axis.axhline(1024, color=GREY, lw=0.8)
    axis.text(0, 1070, "whole picture", fontsize=7, va="bottom", color=GREY)
    _levels(axis, len(mean))
    axis.grid()
    _legend(figure)
    return figure


def generation(steps: list[np.ndarray]) -> Figure:
    """The picture after each level of generation, coarse to fine; a row per sample."""
    count = len(steps[0])
    edge = COLUMN / len(steps)
    figure, axes = _axes(count, len(steps), COLUMN, edge * count + 0.3)
    for k, pictures in enumerate(steps):
        size = pictures.shape[1]
        axes[0, k].set_title(f"h = {len(steps) - 1 - k}\n{size} × {size}")
        for axis, picture in zip(axes[:, k], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            _bare(axis)
    return figure


def mixing(pictures: np.ndarray, first: np.ndarray, second: np.ndarray) -> Figure:
    """Mixtures (n + 1, pairs, L, L, 3) between image A (all levels) and image B (all levels)."""
    count, pairs = pictures.shape[:2]
    edge = PAGE / (count + 2)
    figure, axes = _axes(pairs, count + 2, PAGE, edge * pairs + 0.2)
    titles = ["A"] + [f"A: h ≥ {h}" for h in range(count)] + ["B"]
    titles[1], titles[-2] = "A: all", "B: all"
    for p in range(pairs):
        row = [first[p], *pictures[:, p], second[p]]
        for axis, picture, name in zip(axes[p], row, titles, strict=True):
            axis.imshow(picture, interpolation="nearest")
            _bare(axis)
            if p == 0:
                axis.set_title(name)
    return figure


def benchmark_bars(rates: dict[str, dict]) -> Figure:
    """Images per second and fraction of the matrix-product peak, ours beside the published way."""
    figure, axes = _axes(1, 2, PAGE, 2.4)
    names = list(dict.fromkeys(key.split("/")[0] for key in rates))
    kinds = (("images_per_second", "images per second"), ("of_peak", "fraction of the peak"))
    for axis, (key, label) in zip(axes[0], kinds, strict=True):
        for k, (who, colour) in enumerate((("ours", GREEN), ("theirs", "0.7"))):
            values = [rates[f"{name}/{who}"][key] for name in names]
            bars = axis.bar(np.arange(len(names)) + 0.4 * k - 0.2, values, 0.4, color=colour)
            axis.bar_label(bars, fmt="%.2g", fontsize=7)
            bars.set_label("this package" if who == "ours" else "the published way")
        axis.set_xticks(range(len(names)), names)
        axis.set_ylabel(label)
        axis.margins(y=0.3)
    axes[0, 0].legend(loc="upper left")
    return figure


def cost_per_pixel(costs: dict[str, dict]) -> Figure:
    """Time and memory per pixel of a training step, by lattice edge, batch and checkpointing."""
    figure, axes = _axes(1, 2, PAGE, 2.6)
    for axis, (key, scale, label) in zip(
        axes[0],
        (("seconds", 1e6, "microseconds per pixel"), ("memory", 1e-3, "kilobytes per pixel")),
        strict=True,
    ):
        values = [cost[key] / cost["pixels"] * scale for cost in costs.values()]
        axis.bar(range(len(costs)), values, color=GREEN)
        axis.set_xticks(range(len(costs)), list(costs), rotation=60, ha="right")
        axis.set_ylabel(label)
    return figure


def temperature_split(
    uniform: dict[str, list[dict]], split: dict[str, dict], floors: dict[str, dict]
) -> Figure:
    """Frechet distance against a uniform temperature, and that of the authors' split as a band.

    Args:
        uniform: of each model, ``temperature``, ``value`` and ``stderr`` of each point.
        split: of each model, ``value`` and ``stderr``.
        floors: of each set, those of real pictures against others.
    """
    figure, axes = _axes(1, len(floors), _width(len(floors)), 2.8, sharey=True)
    for axis, (set_name, floor) in zip(axes[0], floors.items(), strict=True):
        for name in (name for name in uniform if name.startswith(set_name)):
            t, value, error = (
                np.array([p[key] for p in uniform[name]])
                for key in ("temperature", "value", "stderr")
            )
            style = _line(name, one_set=True)
            axis.errorbar(t, value, 2 * error, **style)
            low, high = (split[name]["value"] + d * split[name]["stderr"] for d in (-2, 2))
            axis.axhspan(
                low, high, color=style["color"], alpha=0.4, linewidth=0,
                hatch={"o": "////", "s": None}[style["marker"]], label=f"{style['label']}, split",
            )  # fmt: skip
        axis.axhline(floor["value"], ls=":", color=GREY, label="real pictures")
        axis.set(xlabel="temperature", title=set_name.upper(), yscale="log", xticks=t)
        axis.grid()
    axes[0, 0].set_ylabel("Fréchet distance (own features)")
    _legend(figure, 2 + len(floors))
    return figure


def resemblance(rows: dict[str, list[dict[str, dict]]]) -> Figure:
    """How far mixtures have gone from the fine to the coarse source, factor by factor.

    Args:
        rows: of each model, from :func:`separation.resemblance`.
    """
    across = min(2, len(rows))
    down = -(-len(rows) // across)
    figure, axes = _axes(down, across, across * COLUMN, 1.7 * down + 0.6, sharex=True, sharey=True)
    for axis, (name, levels) in zip(axes.flat, rows.items(), strict=False):
        for k, factor in enumerate(levels[0]):
            value, error = (
                np.array([r[factor][key] for r in levels]) for key in ("value", "stderr")
            )
            style = {"color": SERIES[k], "marker": "os^D"[k], "ls": ("-", "--", "-.", ":")[k]}
            at = _beside(k, len(levels[0]), len(levels))
            axis.errorbar(at, value, 2 * error, label=factor, **style)
        axis.set(title=title(name), xticks=range(len(levels)))
        axis.grid()
    for axis in axes[-1]:
        axis.set_xlabel("levels ≥ h are of the coarse source: h")
    figure.supylabel("nearness to the coarse source", fontsize=8)
    _legend(figure, 2 * across)
    return figure


def mixing_sheet(grid: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Mixtures (n, m, L, L, 3) with the coarse sources above and the fine ones to the left.

    Returns:
        ((n + 1) (m + 1), L, L, 3), row by row.
    """
    white = 255 if grid.dtype == np.uint8 else 1
    head = np.concatenate([np.full_like(fine[:1], white), coarse])[None]
    return np.concatenate([head, np.concatenate([fine[:, None], grid], 1)]).reshape(
        -1, *fine.shape[1:]
    )


def mixing_grid(grid: np.ndarray, fine: np.ndarray, coarse: np.ndarray, title: str) -> Figure:
    """Mixtures (rows, columns, L, L, 3): a fine source (L, L, 3) per row, a coarse one per column."""
    sheet = {title: mixing_sheet(grid, fine, coarse)}
    return picture_sheets(sheet, grid.shape[1] + 1, COLUMN)


def traversals(pictures: np.ndarray, values: np.ndarray, labels: list[str], title: str) -> Figure:
    """Pictures (n, k, L, L, 3): a row per latent, whose value is above the column."""
    rows, columns = pictures.shape[:2]
    edge = (PAGE - 1) / columns
    figure, axes = _axes(rows, columns, PAGE, edge * rows + 0.5)
    for row, drawn, label in zip(axes, pictures, labels, strict=True):
        for axis, one in zip(row, drawn, strict=True):
            axis.imshow(one, interpolation="nearest")
            _bare(axis)
        row[0].set_ylabel(label.replace(", at ", "\n"))
    for axis, value in zip(axes[0], values, strict=True):
        axis.set_title(f"{value:+.0f}")
    figure.suptitle(title, fontsize=8)
    return figure


RESTORATIONS = {
    "grey": (GREY, "x:"),
    "black": ("black", "+:"),
    "interpolated": (SERIES[3], "d:"),
    "search, cone": (SERIES[1], "o-"),
    "latents of the cone": (SERIES[0], "s-"),
    "all latents": (SERIES[0], "v--"),
}


def restoration(rows: dict[str, list[dict]]) -> Figure:
    """Error on restored patches, and how many are as probable as the truth, against their edge.

    Args:
        rows: of each model, from :func:`inpaint.compare`, with the ``edge`` of the patch.
    """
    figure, axes = _axes(2, len(rows), _width(len(rows)), 4.2, sharex=True, sharey="row")
    for column, (name, of) in zip(axes.T, rows.items(), strict=True):
        for way, (colour, mark) in RESTORATIONS.items():
            mine = [row for row in of if row["way"] == way]
            edges = [row["edge"] for row in mine]
            value, error = ([row["error"][key] for row in mine] for key in ("value", "stderr"))
            column[0].errorbar(edges, value, 2 * np.array(error), fmt=mark, color=colour, label=way)
            column[1].plot(edges, [row["as_probable"] for row in mine], mark, color=colour)
        column[0].set_title(title(name))
        column[1].set(xlabel="edge of the patch / pixels", xticks=edges, ylim=(-0.05, 1.05))
        for axis in column:
            axis.grid()
    axes[0, 0].set_ylabel("error on the patch / bytes")
    axes[1, 0].set_ylabel("share as probable\nas the true picture")
    _legend(figure, 2 if len(rows) == 1 else 3)
    return figure


def restored_patches(pictures: dict[str, np.ndarray]) -> Figure:
    """Rows: way of filling in (or the truth) -> pictures (N, L, L, 3)."""
    edge, count = 0.7, len(next(iter(pictures.values())))
    figure, axes = _axes(len(pictures), 1, edge * (2 + count), edge * len(pictures))
    for axis, (way, drawn) in zip(axes[:, 0], pictures.items(), strict=True):
        axis.imshow(_tile(drawn, len(drawn)), interpolation="nearest")
        _bare(axis)
        axis.set_ylabel(way, rotation=0, ha="right", va="center")
    return figure


def drawn_cones(maps: dict[str, np.ndarray], levels: int) -> Figure:
    """Above: one latent's field at each level, on a logarithmic scale, within its causal cone.

    Below: positions that a change of the picture's middle touches in inference, level by level.
    ``maps`` holds ``hH`` (n, L, L), ``hH/cone`` (L, L) of the first of these, and ``inference/hH``
    (L, L).
    """
    figure, axes = _axes(2, levels, PAGE, 3.6)
    for h, (above, below) in enumerate(axes.T):
        field = maps[f"h{h}"][0] / maps[f"h{h}"][0].max()
        logarithm = np.log10(np.maximum(field, 1e-6))
        image = above.imshow(logarithm, cmap="magma", vmin=-4, vmax=0, interpolation="nearest")
        above.contour(maps[f"h{h}/cone"], levels=[0.5], colors="white", linewidths=0.8)
        above.set_title(f"h = {h}")
        touched = maps[f"inference/h{h}"]
        below.imshow(touched, cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
        below.set_xlabel(f"{int(touched.sum())} positions")
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("generation:\nfield, cone")
    axes[1, 0].set_ylabel("inference:\ntouched")
    figure.colorbar(image, ax=axes[0].tolist(), label="log10 of E|∂G/∂z|\nover its maximum")
    return figure


def field_radii(areas: dict[str, list[dict]]) -> Figure:
    """Root mean square radius of receptive fields against the level, and that of their cones."""
    figure, axes = _axes(1, 1, COLUMN, 2.8)
    axis = axes[0, 0]
    for k, (name, rows) in enumerate(areas.items()):
        mean, error = (np.array([row[key] for row in rows]) for key in ("radius", "radius_stderr"))
        axis.errorbar(_beside(k, len(areas), len(rows)), mean, 2 * error, **_line(name))
    at = np.arange(len(rows))
    axis.plot(at, [row["cone_radius"] for row in rows], "^-", color="black", label="causal cone")
    start = np.mean([rows[0]["radius"] for rows in areas.values()])
    axis.plot(at, start * 2.0**at, "k:", lw=0.8, label="doubles each level")
    axis.set(yscale="log", ylabel="effective radius / pixels")
    _levels(axis, len(rows))
    axis.grid()
    _legend(figure)
    return figure
