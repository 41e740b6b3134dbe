"""Every figure of the study, each drawn in one place from stored arrays and numbers."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rgflow_core.files import replacing

COLOURS = {"laplace": "#c1440e", "gaussian": "#2b6ca3"}
DPI = {"png": 150, "pdf": 150}


def save(figure: Figure, folder: str | Path, name: str) -> None:
    """Write a figure as PNG and PDF, without dates, so that equal figures are equal files."""
    for kind, dpi in DPI.items():
        no_date = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with replacing(Path(folder) / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, dpi=dpi, metadata=no_date, bbox_inches="tight")


def _axes(rows: int, columns: int, width: float, height: float, **kwargs: object) -> tuple:
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **kwargs
    )
    return figure, axes


def _bare(axis: plt.Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


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


def picture_sheets(sheets: dict[str, np.ndarray], columns: int, width: float = 7.0) -> Figure:
    """One titled sheet of pictures (N, l, l, 3) under another."""
    tiles = {title: _tile(pictures, columns) for title, pictures in sheets.items()}
    heights = [t.shape[0] / t.shape[1] * width + 0.3 for t in tiles.values()]
    figure, axes = _axes(len(tiles), 1, width, sum(heights), gridspec_kw={"height_ratios": heights})
    for axis, (title, sheet) in zip(axes[:, 0], tiles.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        _bare(axis)
    return figure


def label_histograms(labels: dict[str, np.ndarray]) -> Figure:
    """Marginal distributions of MSDS labels (N, 4, 4, 6): offset, angle, red; a row per set."""
    figure, axes = _axes(len(labels), 3, 7.5, 2.1 * len(labels))
    for row, (name, values) in zip(axes, labels.items(), strict=True):
        offset = values[..., 0] - 8 * np.arange(4)[:, None]
        row[0].hist(offset.ravel(), bins=np.arange(-1.5, 2), rwidth=0.8, density=True)
        row[1].hist(values[..., 2].ravel(), bins=45, density=True)
        row[2].hist(values[..., 3].ravel(), bins=np.arange(0, 257, 8), density=True)
        for axis, label in zip(row, ("offset dx / pixels", "angle / degrees", "red"), strict=True):
            axis.set_xlabel(label)
        row[0].set_ylabel(f"{name}: density")
    return figure


def training_curves(curves: dict[str, dict], published: dict) -> Figure:
    """Validation bpd against images seen; published test values of the same sets as lines."""
    figure, axes = _axes(1, 1, 5.5, 3.4)
    axis = axes[0, 0]
    for name, curve in curves.items():
        prior = name.split("_")[1]
        line = "-" if "msds1" in name else "--"
        label = f"{name.replace('_', ', ')} (validation)"
        images, bpd = np.array(curve["images"]), np.array(curve["bpd"])
        mark = "s" if name.endswith("_shipped") else "o"
        axis.plot(images, bpd, line + mark, ms=3, color=COLOURS[prior], label=label)
    for set_name, prior in sorted({tuple(name.split("_")[:2]) for name in curves}):
        bpd = published["bpd"].get(set_name, {}).get(prior)
        if bpd is not None:
            line = ":" if set_name == "msds1" else "-."
            size = f"{published['parameters'] / 1e6:.1f} M parameters"
            label = f"{set_name}, {prior}: {published['system']}, test, {size}"
            axis.axhline(bpd, ls=line, lw=1, color=COLOURS[prior], label=label)
    axis.set(xlabel="training images seen", ylabel="bits per dimension", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    return figure


def bpd_bars(rows: list[dict]) -> Figure:
    """Test bpd of our models with standard errors, the published values, and the limits."""
    figure, axes = _axes(1, 1, 5.5, 0.55 * len(rows) + 1.1)
    axis = axes[0, 0]
    for k, row in enumerate(rows):
        colour = COLOURS.get(row["prior"], "0.4")
        error = None if row["stderr"] is None else 2 * row["stderr"]
        alpha = 0.4 if row["source"] == "published" else 1.0
        axis.barh(k, row["bpd"], xerr=error, color=colour, alpha=alpha, height=0.6)
        axis.text(row["bpd"], k, f"  {row['bpd']:.3f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.25)
    axis.set_xlabel("test bits per dimension ± 2 standard errors")
    return figure


def level_bits(bits: dict[str, dict]) -> Figure:
    """Bits per dimension that each level pays, of several models; bytes and logit apart."""
    figure, axes = _axes(1, 1, 5.5, 3.0)
    axis, width = axes[0, 0], 0.8 / len(bits)
    for k, (name, of) in enumerate(bits.items()):
        colour = COLOURS[name.split("_")[1]]
        hatch = None if "msds1" in name else "//"
        x = np.arange(len(of["levels"])) + width * (k - (len(bits) - 1) / 2)
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        axis.bar(x, of["levels"], width, yerr=of["stderr"], label=name.replace("_", ", "), **style)
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(len(of["levels"])), [f"h = {h}" for h in range(len(of["levels"]))])
    axis.set(xlabel="RG level (0 the finest)", ylabel="bits per dimension,\nbytes and logit apart")
    axis.legend(fontsize=7, frameon=False)
    return figure


def frechet_curves(curves: dict[str, list[dict]], floors: dict[str, float]) -> Figure:
    """Frechet distance in our own features against temperature; real halves as the floor."""
    sets = sorted(floors)
    figure, axes = _axes(1, len(sets), 3.2 * len(sets) + 0.6, 3.0)
    for axis, set_name in zip(axes[0], sets, strict=True):
        for name, points in curves.items():
            if not name.startswith(set_name):
                continue
            mean, spread = (np.array([p[key] for p in points]) for key in ("value", "spread"))
            t = [p["temperature"] for p in points]
            prior = name.split("_")[1]
            label = ", ".join(name.split("_")[1:])
            axis.errorbar(t, mean, 2 * spread, marker="o", ms=3, color=COLOURS[prior], label=label)
        axis.axhline(floors[set_name], ls=":", color="0.3", label="two halves of real pictures")
        axis.set(xlabel="temperature", title=set_name, yscale="log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Fréchet distance (own features)")
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def seed_points(groups: dict[str, list[float]]) -> Figure:
    """Test bpd of several seeds, a column for each group, paired by seed."""
    figure, axes = _axes(1, 1, 5.5, 3.0)
    axis = axes[0, 0]
    for k, (name, values) in enumerate(groups.items()):
        colour = COLOURS[name.split(", ")[1]]
        axis.plot([k] * len(values), values, "o", ms=5, color=colour, alpha=0.7)
        axis.hlines(np.mean(values), k - 0.25, k + 0.25, color=colour)
    axis.set_xticks(range(len(groups)), [name.replace(", ", "\n") for name in groups], fontsize=8)
    axis.set(ylabel="test bits per dimension", xlim=(-0.6, len(groups) - 0.4))
    axis.grid(alpha=0.3, axis="y")
    return figure


def latent_histograms(histograms: dict[str, np.ndarray], levels: int) -> Figure:
    """Latent densities against the prior, a row per model and a column per level, log scale.

    ``histograms`` holds ``edges``, and ``MODEL/hH`` and ``MODEL/prior`` densities.
    """
    edges = histograms["edges"]
    middle = (edges[1:] + edges[:-1]) / 2
    names = sorted(k.removesuffix("/prior") for k in histograms if k.endswith("/prior"))
    figure, axes = _axes(len(names), levels, 9, 2.2 * len(names), sharex=True, sharey=True)
    for row, name in zip(axes, names, strict=True):
        colour = COLOURS[name.split("_")[1]]
        for h, axis in enumerate(row):
            axis.fill_between(
                middle, histograms[f"{name}/h{h}"], 1e-6, step="mid", alpha=0.5, color=colour,
                label="latents",
            )  # fmt: skip
            axis.plot(middle, histograms[f"{name}/prior"], "k-", lw=1, label="prior")
            axis.set(yscale="log", ylim=(1e-5, 20))
            axis.set_title(f"{name.replace('_', ', ')}, h = {h}", fontsize=8)
        row[0].set_ylabel("density")
    for axis in axes[-1]:
        axis.set_xlabel("latent z")
    axes[0, -1].legend(fontsize=7, frameon=False)
    return figure


def kurtosis_bars(kurtosis: dict[str, list[dict]]) -> Figure:
    """Excess kurtosis per level and model, two standard errors; priors' own as lines."""
    figure, axes = _axes(1, 1, 5.5, 3)
    axis = axes[0, 0]
    width = 0.8 / len(kurtosis)
    for k, (name, levels) in enumerate(kurtosis.items()):
        at = np.arange(len(levels)) + (k - (len(kurtosis) - 1) / 2) * width
        values, errors = ([level[x] for level in levels] for x in ("value", "stderr"))
        axis.bar(
            at, values, width, yerr=2 * np.array(errors), color=COLOURS[name.split("_")[1]],
            label=name.replace("_", ", "), hatch="//" if "msds2" in name else None,
        )  # fmt: skip
    axis.axhline(3, color=COLOURS["laplace"], ls=":", lw=1, label="Laplace density")
    axis.axhline(0, color=COLOURS["gaussian"], ls=":", lw=1, label="Gaussian density")
    axis.set_yscale("symlog", linthresh=1)
    axis.set_xticks(range(len(levels)), [f"h = {h}" for h in range(len(levels))])
    axis.set(xlabel="RG level (0 is the finest)", ylabel="excess kurtosis")
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def sparsity_panels(rows: dict[str, list[dict]], references: dict[str, dict]) -> Figure:
    """Four measures of :mod:`rgflow_core.sparsity` by level, two standard errors.

    Args:
        rows: of each model, the measures of each level.
        references: measure -> prior -> its value for a density of that kind.
    """
    labels = {
        "hoyer": "Hoyer sparsity",
        "near_zero": "share within a tenth\nof a standard deviation",
        "kolmogorov": "Kolmogorov distance\nto the prior",
        "rotation": "fall of log p(z) by rotation\nin nats per latent",
    }
    figure, axes = _axes(2, 2, 7.2, 5.0, sharex=True)
    for axis, (measure, label) in zip(axes.flat, labels.items(), strict=True):
        for k, (name, levels) in enumerate(rows.items()):
            values, errors = ([row[measure][x] for row in levels] for x in ("value", "stderr"))
            at = np.arange(len(levels)) + 0.06 * (k - (len(rows) - 1) / 2)
            prior, line = name.split("_")[1], "-" if "msds1" in name else "--"
            axis.errorbar(
                at, values, 2 * np.array(errors), ls=line, color=COLOURS[prior], ms=4,
                marker="o" if prior == "laplace" else "s", label=name.replace("_", ", "),
            )  # fmt: skip
        for prior, value in references.get(measure, {}).items():
            label_of = f"{prior} density"
            axis.axhline(value, ls=":", lw=1, color=COLOURS[prior], label=label_of)
        axis.set_ylabel(label, fontsize=9)
        axis.set_xticks(range(len(levels)), [f"h = {h}" for h in range(len(levels))])
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in axes[1]:
        axis.set_xlabel("RG level (0 is the finest)")
    return figure


def correlation_maps(tops: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> Figure:
    """Of each model: correlations of the top level's latents, and means of |r| over levels."""
    figure, axes = _axes(2, len(tops), 2.6 * len(tops) + 0.8, 5.0)
    peak = max(float(np.nanmax(m)) for m in means.values())
    for k, name in enumerate(tops):
        signed = axes[0, k].imshow(tops[name], cmap="RdBu_r", vmin=-1, vmax=1)
        axes[0, k].set_title(name.replace("_", ", "), fontsize=9)
        axes[0, k].set(xticks=[], yticks=[], xlabel="latents of the top level")
        mean = axes[1, k].imshow(means[name], cmap="cividis", vmin=0, vmax=peak)
        ticks = range(len(means[name]))
        axes[1, k].set(xticks=ticks, yticks=ticks, xlabel="level h")
        for i, j in np.ndindex(means[name].shape):
            value = means[name][i, j]
            colour = "white" if value < 0.6 * peak else "black"
            axes[1, k].text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour
            )
    axes[1, 0].set_ylabel("level h")
    figure.colorbar(signed, ax=axes[0].tolist(), label="correlation", shrink=0.9)
    figure.colorbar(mean, ax=axes[1].tolist(), label="mean |correlation|", shrink=0.9)
    return figure


def cones(areas: dict[str, list[dict]], touched: dict[str, list[float]]) -> Figure:
    """Receptive fields against their causal cone by level, and latents touched against L."""
    figure, (axes,) = _axes(1, 2, 7.4, 3.2)
    name, rows = next(iter(areas.items()))
    at = range(len(rows))
    lines = {
        "cone": ("causal cone", "0.3", "-"),
        "area": ("90 % of E|∂G/∂z|", COLOURS["laplace"], "-o"),
        "difference": ("90 % of IGF23's difference", COLOURS["gaussian"], "--s"),
    }
    for key, (label, colour, style) in lines.items():
        axes[0].plot(at, [row[key] for row in rows], style, ms=4, color=colour, label=label)
    axes[0].set(yscale="log", xlabel="RG level (0 is the finest)", ylabel="pixels")
    axes[0].set_xticks(at, [f"h = {h}" for h in at])
    axes[0].set_title(name.replace("_", ", "), fontsize=9)
    sizes = np.array(touched["sizes"])
    axes[1].plot(sizes, touched["pixel"], "-o", ms=4, color=COLOURS["laplace"], label="RG-Flow")
    axes[1].plot(sizes, sizes**2, "--", color="0.3", label="all, as in a plain RealNVP: L²")
    axes[1].set(xscale="log", yscale="log", xlabel="edge L of the picture / pixels")
    axes[1].set_ylabel("positions touched by one pixel")
    axes[1].set_xticks(sizes, sizes)
    axes[1].minorticks_off()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    return figure


def factor_maps(maps: dict[str, list[dict[str, dict]]], label: str, top: float) -> Figure:
    """Level by factor, a panel for each model, with values and standard errors written in.

    Args:
        maps: of each model, for each level: factor -> ``value``, ``stderr``.
        label: of the colour bar.
        top: the brightest value shown.
    """
    figure, axes = _axes(len(maps), 1, 6.2, 1.9 * len(maps) + 0.4)
    for axis, (name, levels) in zip(axes[:, 0], maps.items(), strict=True):
        names = list(levels[0])
        values = np.array([[row[f]["value"] for f in names] for row in levels])
        image = axis.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        for i, j in np.ndindex(values.shape):
            text = f"{values[i, j]:.2f} ± {levels[i][names[j]]['stderr']:.2f}"
            colour = "white" if values[i, j] < 0.6 * top else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set_yticks(range(len(levels)), [f"h = {h}" for h in range(len(levels))], fontsize=8)
        axis.set_title(name.replace("_", ", "), fontsize=9)
    figure.colorbar(image, ax=axes[:, 0].tolist(), label=label)
    return figure


def receptive_field_maps(maps: dict[str, np.ndarray], levels: int) -> Figure:
    """Receptive fields, a row per level from the coarsest: single latents, then their mean.

    ``maps`` holds ``hH`` (n, L, L) and ``hH/centred`` (L, L), each row on its own colour scale.
    """
    shown = 5
    figure, axes = _axes(levels, shown + 1, 8, 1.4 * levels)
    for row, h in zip(axes, reversed(range(levels)), strict=True):
        for axis, field in zip(row, maps[f"h{h}"], strict=False):
            axis.imshow(field, cmap="magma", interpolation="nearest")
        row[-1].imshow(maps[f"h{h}/centred"], cmap="magma", interpolation="nearest")
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"h = {h}")
    for k in range(shown):
        axes[0, k].set_title(f"latent {k + 1}", fontsize=8)
    axes[0, -1].set_title("mean, centred", fontsize=8)
    return figure


def receptive_field_areas(areas: dict[str, list[dict]]) -> Figure:
    """Area that holds 90 % of a receptive field against the level, with standard errors."""
    figure, axes = _axes(1, 1, 4.8, 3.2)
    axis = axes[0, 0]
    for name, levels in areas.items():
        mean, error = (np.array([level[x] for level in levels]) for x in ("area", "stderr"))
        colour = COLOURS[name.split("_")[1]]
        line = "o-" if "msds1" in name else "s--"
        axis.errorbar(
            range(len(mean)), mean, 2 * error, fmt=line, ms=4, capsize=3, color=colour,
            label=name.replace("_", ", "),
        )  # fmt: skip
    steps = np.arange(len(mean))
    axis.plot(
        steps,
        mean[0] * 4.0**steps,
        "k:",
        lw=1,
        label="edge doubles each level, from the last model's h = 0",
    )
    axis.set(yscale="log", xlabel="RG level h (0 is the finest)", ylabel="pixels with 90 %")
    axis.set_ylim(1, 2000)
    axis.axhline(1024, color="grey", lw=0.8)
    axis.text(0, 1024, " whole picture", fontsize=7, va="bottom", color="grey")
    axis.set_xticks(steps)
    axis.legend(fontsize=7, frameon=False)
    return figure


def generation(steps: list[np.ndarray]) -> Figure:
    """The picture after each level of generation, coarse to fine; a row per sample."""
    count = len(steps[0])
    figure, axes = _axes(count, len(steps), 1.5 * len(steps), 1.55 * count)
    for k, pictures in enumerate(steps):
        edge = pictures.shape[1]
        axes[0, k].set_title(f"after h = {len(steps) - 1 - k}\n{edge} x {edge}", fontsize=8)
        for axis, picture in zip(axes[:, k], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            _bare(axis)
    return figure


def mixing(pictures: np.ndarray, first: np.ndarray, second: np.ndarray) -> Figure:
    """Mixtures (n + 1, pairs, L, L, 3) between image A (all levels) and image B (all levels)."""
    count, pairs = pictures.shape[:2]
    figure, axes = _axes(pairs, count + 2, 1.1 * (count + 2), 1.2 * pairs + 0.3)
    titles = ["A"] + [f"A: h ≥ {h}" for h in range(count)] + ["B"]
    titles[1], titles[-2] = "A: all", "B: all"
    for p in range(pairs):
        row = [first[p], *pictures[:, p], second[p]]
        for axis, picture, title in zip(axes[p], row, titles, strict=True):
            axis.imshow(picture, interpolation="nearest")
            _bare(axis)
            if p == 0:
                axis.set_title(title, fontsize=8)
    return figure


def benchmark_bars(rates: dict[str, dict]) -> Figure:
    """Images per second and fraction of the matrix-product peak, ours beside the published way."""
    figure, axes = _axes(1, 2, 7, 2.6)
    names = list(dict.fromkeys(key.split("/")[0] for key in rates))
    kinds = (("images_per_second", "images per second"), ("of_peak", "fraction of the peak"))
    for axis, (key, label) in zip(axes[0], kinds, strict=True):
        for k, (who, colour) in enumerate((("ours", "#2b6ca3"), ("theirs", "#aaaaaa"))):
            values = [rates[f"{name}/{who}"][key] for name in names]
            bars = axis.bar(np.arange(len(names)) + 0.4 * k - 0.2, values, 0.4, color=colour)
            axis.bar_label(bars, fmt="%.2g", fontsize=7)
            bars.set_label("this package" if who == "ours" else "the published way")
        axis.set_xticks(range(len(names)), names)
        axis.set_ylabel(label)
        axis.margins(y=0.3)
    axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def cost_per_pixel(costs: dict[str, dict]) -> Figure:
    """Time and memory per pixel of a training step, by lattice edge, batch and checkpointing."""
    figure, axes = _axes(1, 2, 7, 2.8)
    for axis, (key, scale, label) in zip(
        axes[0],
        (("seconds", 1e6, "microseconds per pixel"), ("memory", 1e-3, "kilobytes per pixel")),
        strict=True,
    ):
        values = [cost[key] / cost["pixels"] * scale for cost in costs.values()]
        axis.bar(range(len(costs)), values, color="#2b6ca3")
        axis.set_xticks(range(len(costs)), list(costs), rotation=60, ha="right", fontsize=7)
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
    figure, axes = _axes(1, len(floors), 3.0 * len(floors) + 1.8, 3.0)
    for axis, (set_name, floor) in zip(axes[0], floors.items(), strict=True):
        for name, points in uniform.items():
            if not name.startswith(set_name):
                continue
            value, error = (np.array([p[key] for p in points]) for key in ("value", "stderr"))
            t = [p["temperature"] for p in points]
            prior = name.split("_")[1]
            mark = "o-" if prior == "laplace" else "s--"
            axis.errorbar(
                t, value, 2 * error, fmt=mark, ms=4, color=COLOURS[prior], label=f"{prior}, uniform"
            )
            low, high = (split[name]["value"] + d * split[name]["stderr"] for d in (-2, 2))
            axis.axhspan(
                low, high, color=COLOURS[prior], alpha=0.3, label=f"{prior}, 0.2 at h = 0, else 0.8"
            )
        axis.axhline(floor["value"], ls=":", color="0.3", label="real against real pictures")
        axis.set(xlabel="temperature", title=set_name, yscale="log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Fréchet distance (own features)")
    axes[0, -1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def resemblance(rows: dict[str, list[dict[str, dict]]]) -> Figure:
    """How far mixtures have gone from the fine to the coarse source, factor by factor.

    Args:
        rows: of each model, from :func:`separation.resemblance`.
    """
    figure, axes = _axes(1, len(rows), 2.3 * len(rows) + 0.8, 2.8, sharey=True)
    for axis, (name, levels) in zip(axes[0], rows.items(), strict=True):
        at = range(len(levels))
        for k, factor in enumerate(levels[0]):
            value, error = (
                np.array([r[factor][key] for r in levels]) for key in ("value", "stderr")
            )
            mark = ("o-", "s--", "^-.", "D:")[k]
            axis.errorbar(at, value, 2 * error, fmt=mark, ms=4, color=f"C{k}", label=factor)
        axis.set(xlabel="coarse source gives levels ≥ h", xticks=at)
        axis.set_title(name.replace("_", ", "), fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, frameon=False)
    axes[0, 0].set_ylabel("from fine (0) to coarse (1) source")
    return figure


def mixing_grid(grid: np.ndarray, fine: np.ndarray, coarse: np.ndarray, title: str) -> Figure:
    """Mixtures (rows, columns, L, L, 3): a fine source (L, L, 3) per row, a coarse one per column."""
    rows, columns = grid.shape[:2]
    figure, axes = _axes(rows + 1, columns + 1, 0.95 * (columns + 1), 0.95 * (rows + 1) + 0.5)
    blank = np.full_like(fine[0], 255)
    cells = [[blank, *coarse]] + [[f, *row] for f, row in zip(fine, grid, strict=True)]
    for row, pictures in zip(axes, cells, strict=True):
        for axis, drawn in zip(row, pictures, strict=True):
            axis.imshow(drawn, interpolation="nearest")
            _bare(axis)
    axes[0, 0].text(0.5, 0.5, "coarse →\n\nfine ↓", ha="center", va="center", fontsize=8,
                    transform=axes[0, 0].transAxes)  # fmt: skip
    figure.suptitle(title, fontsize=9)
    return figure


def traversals(pictures: np.ndarray, values: np.ndarray, labels: list[str], title: str) -> Figure:
    """Pictures (n, k, L, L, 3): a row per latent, whose value is above the column."""
    rows, columns = pictures.shape[:2]
    figure, axes = _axes(rows, columns, 0.95 * columns + 0.7, 0.95 * rows + 0.5)
    for row, drawn, label in zip(axes, pictures, labels, strict=True):
        for axis, one in zip(row, drawn, strict=True):
            axis.imshow(one, interpolation="nearest")
            _bare(axis)
        row[0].set_ylabel(label.replace(", at ", "\n"), fontsize=7)
    for axis, value in zip(axes[0], values, strict=True):
        axis.set_title(f"{value:+.0f}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


RESTORATIONS = {
    "grey": ("0.6", "x:"),
    "black": ("0.0", "+:"),
    "interpolated": ("#7a5195", "d:"),
    "search, cone": (COLOURS["laplace"], "o-"),
    "latents of the cone": (COLOURS["gaussian"], "s-"),
    "all latents": (COLOURS["gaussian"], "v--"),
}


def restoration(rows: dict[str, list[dict]]) -> Figure:
    """Error on restored patches, and how many are as probable as the truth, against their edge.

    Args:
        rows: of each model, from :func:`inpaint.compare`, with the ``edge`` of the patch.
    """
    figure, axes = _axes(2, len(rows), 3.2 * len(rows) + 1.4, 4.6, sharex=True, sharey="row")
    for column, (name, of) in zip(axes.T, rows.items(), strict=True):
        for way, (colour, mark) in RESTORATIONS.items():
            mine = [row for row in of if row["way"] == way]
            edges = [row["edge"] for row in mine]
            value, error = ([row["error"][key] for row in mine] for key in ("value", "stderr"))
            style = {"color": colour, "ms": 5}
            column[0].errorbar(edges, value, 2 * np.array(error), fmt=mark, label=way, **style)
            column[1].plot(edges, [row["as_probable"] for row in mine], mark, **style)
        column[0].set_title(name.replace("_", ", "), fontsize=9)
        column[1].set(xlabel="edge of the patch / pixels", xticks=edges, ylim=(-0.05, 1.05))
        for axis in column:
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("error on the patch / bytes")
    axes[1, 0].set_ylabel("share as probable\nas the true picture")
    axes[0, -1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def restored_patches(pictures: dict[str, np.ndarray]) -> Figure:
    """Rows: way of filling in (or the truth) -> pictures (N, L, L, 3)."""
    figure, axes = _axes(len(pictures), 1, 6.5, 0.66 * len(pictures))
    for axis, (way, drawn) in zip(axes[:, 0], pictures.items(), strict=True):
        axis.imshow(_tile(drawn, len(drawn)), interpolation="nearest")
        _bare(axis)
        axis.set_ylabel(way, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def drawn_cones(maps: dict[str, np.ndarray], levels: int) -> Figure:
    """Above: one latent's field at each level, on a logarithmic scale, within its causal cone.

    Below: positions that a change of the picture's middle touches in inference, level by level.
    ``maps`` holds ``hH`` (n, L, L), ``hH/cone`` (L, L) of the first of these, and ``inference/hH``
    (L, L).
    """
    figure, axes = _axes(2, levels, 1.9 * levels + 0.9, 4.2)
    for h in range(levels):
        field = maps[f"h{h}"][0] / maps[f"h{h}"][0].max()
        image = axes[0, h].imshow(
            np.log10(np.maximum(field, 1e-6)),
            cmap="magma",
            vmin=-4,
            vmax=0,
            interpolation="nearest",
        )
        axes[0, h].contour(maps[f"h{h}/cone"], levels=[0.5], colors="cyan", linewidths=1)
        axes[0, h].set_title(f"h = {h}", fontsize=9)
        touched = maps[f"inference/h{h}"]
        axes[1, h].imshow(touched, cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
        axes[1, h].set_xlabel(f"{int(touched.sum())} positions", fontsize=8)
        for axis in axes[:, h]:
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("generation:\nfield, cone")
    axes[1, 0].set_ylabel("inference:\ntouched")
    figure.colorbar(image, ax=axes[0].tolist(), label="log10 of E|∂G/∂z|\nover its maximum")
    return figure


def field_radii(areas: dict[str, list[dict]]) -> Figure:
    """Root mean square radius of receptive fields against the level, and that of their cones."""
    figure, axes = _axes(1, 1, 4.8, 3.2)
    axis = axes[0, 0]
    for name, rows in areas.items():
        at = range(len(rows))
        mean, error = (np.array([row[key] for row in rows]) for key in ("radius", "radius_stderr"))
        line = "o-" if "msds1" in name else "s--"
        colour = COLOURS[name.split("_")[1]]
        axis.errorbar(
            at,
            mean,
            2 * error,
            fmt=line,
            ms=4,
            capsize=3,
            color=colour,
            label=name.replace("_", ", "),
        )
    axis.plot(at, [row["cone_radius"] for row in rows], "-", color="0.3", label="causal cone")
    axis.plot(at, mean[0] * 2.0 ** np.array(at), "k:", lw=1, label="doubles each level")
    axis.set(yscale="log", xlabel="RG level (0 is the finest)", ylabel="radius / pixels", xticks=at)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    return figure
