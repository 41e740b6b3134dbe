"""Figures: size and letters, what is cut off, and that the data beside them are what is drawn."""

from itertools import product

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from study import figures, results

RNG = np.random.default_rng(0)
PLACES = ["background", "ellipse"]
LESS = ["laplace less gaussian", "laplace scale 1 less gaussian", "laplace scale 1 less laplace"]
CHANGES = ["without_rescaling", "batch_512_equal_pictures"]
SHOWN = {"one": (["msds1"], ["laplace"]), "four": (["msds1", "msds2"], ["gaussian", "laplace"])}
OF_TABLE = ["lattice", "curves", "priors", "bits", "growth", "probes", "changes"]
OF_PICTURES = ["data", "fields", "samples", "mixing"]


def measured(sets, priors):
    """A small table of all that figures show, of numbers that are all different."""
    models, four, any_one = [f"{s}_{p}" for s in sets for p in priors], range(4), [("", None)]
    levels = [("", h) for h in four]
    parts = [(f"local {f}", h) for f in ("position", "angle", "colour") for h in four]
    parts += [("global colour", h) for h in four]
    # Quantity -> models; factors and levels; conditions.
    spec = {
        "entropy": (sets, [("bpd", None)], [""]),
        **dict.fromkeys(("ceiling_area", "ceiling_radius"), (sets, any_one, [""])),
        "frechet_real": (sets, any_one, [60]),
        "prior_gap": (sets, [*((p, None) for p in ["all", *PLACES]), *levels], [""]),
        "prior_difference": (sets, [(f, None) for f in LESS], [""]),
        "published_difference": ([*sets, "celeba"], any_one, [""]),
        "published_bpd": (sets, [(p, None) for p in priors], [""]),
        "seed_bpd": (sets, [(p, None) for p in ["gaussian", "laplace", "laplace scale 1"]], [1, 2, 3]),
        "validation": ([*models, "msds1_gaussian_affine"], any_one, [20_000, 300_000]),
        "frechet": (models, any_one, [0.7, 1]),
        "bits_by_place": (models, [(p, None) for p in PLACES], [""]),
        **dict.fromkeys(("growth", "growth_seeds"), ([*models, "random"], [("radius", None)], [""])),
        "separation": (models, [("trained", None), ("untrained", None)], [""]),
        "separation_seeds": (models, [("trained", None)], [""]),
        **dict.fromkeys(("area", "radius"), ([*models, "random"], levels, [""])),
        **dict.fromkeys(("bits_by_level", "area_half", "procedure_area"), (models, levels, [""])),
        **dict.fromkeys(
            ("probe", "probe_untrained", "intervention", "mixing"), (models, parts, [""])
        ),
        "touched": ([""], [("pixel", None)], [8, 16, 32]),
        "change_mean": ([""], [(c, None) for c in CHANGES], [""]),
        "change": ([""], [(c, None) for c in CHANGES], [1, 2]),
        "change_diverged": ([""], [("without_tanh", None)], [""]),
        "bpd": ([*models, "msds1_gaussian_affine"], any_one, ["test"]),
    }  # fmt: skip
    rows = []
    for quantity, where in spec.items():
        for model, (factor, level), at in product(*where):
            value = RNG.uniform(0.2, 0.9)
            ends = {"low": value - 0.1, "high": value + 0.1, "n": 5}
            rows.append(results.row(quantity, value, model, level, factor, at, **ends))
    return pd.DataFrame(rows).assign(notebook="03_bpd_evaluation")


def pictures(sets, priors):
    def drawn(*shape):
        return RNG.integers(256, size=(*shape, 8, 8, 3), dtype=np.uint8)

    arrays = {f"{kind}/{s}": drawn(16) for s in sets for kind in ("pictures", "real")}
    for model in (f"{s}_{p}" for s in sets for p in priors):
        arrays |= {f"samples/{model}/{t}": drawn(9) for t in (1.0, 0.7)}
        arrays |= {f"mixed/{model}": drawn(4, 5), f"fields/{model}": RNG.random((3, 4, 8, 8))}
        arrays[f"cones/{model}"] = RNG.random((3, 4, 8, 8)) < 0.5
    return arrays


@pytest.mark.parametrize("models", SHOWN)
@pytest.mark.parametrize("name", [*OF_TABLE, *OF_PICTURES])
def test_figure_fits_the_page_and_its_rows_are_what_is_drawn(name, models):
    before = dict(matplotlib.rcParams)
    given = [make(*SHOWN[models]) for make in (measured, pictures)][: 1 + (name in OF_PICTURES)]
    figure, rows, arrays = getattr(figures, name)(*given)
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, "cut off"
    assert width in (figures.SINGLE, figures.DOUBLE)
    assert height < 9, "taller than a page"
    assert min(t.get_fontsize() for t in figure.findobj(Text) if t.get_text()) >= 7
    assert len(rows) or arrays
    for bars in (c for axis in figure.axes for c in axis.containers if hasattr(c, "has_yerr")):
        if bars[0] is not None:
            drawn = bars[0].get_ydata() if bars.has_yerr else bars[0].get_xdata()
            assert set(drawn) <= set(rows["value"])
    assert dict(matplotlib.rcParams) == before, "the figure's style leaked"


def test_saved_with_its_data_and_twice_the_same(tmp_path):
    table, arrays = measured(*SHOWN["one"]), pictures(*SHOWN["one"])
    for folder in ("one", "two"):
        figure, rows, shown = figures.mixing(table, arrays)
        figures.save(tmp_path / folder, "f", figure, rows, shown)
        assert pd.read_csv(tmp_path / folder / "f.csv")["value"].count() == len(rows) > 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / k).iterdir()} for k in ("one", "two"))
    assert set(one) == {"f.csv", "f.npz", "f.pdf", "f.png"}
    assert one == two
    key = "mixed/msds1_laplace"
    assert pd.read_csv(tmp_path / "one" / "f.csv")["array"].dropna().tolist() == [key]
    assert (np.load(tmp_path / "one" / "f.npz")[key] == arrays[key][:3]).all()


def test_changes_say_how_many_seeds_there_are():
    rows = [results.row("change_mean", 0.3, factor="with_two", low=0.1, high=0.5, n=2)]
    rows += [results.row("change", k, factor="with_two", at=k) for k in (1, 2)]
    rows += [results.row("change_mean", 1, factor="with_one", n=1)]
    rows += [results.row("change", 1, factor="with_one", at=1)]
    rows += [results.row("change_diverged", 1, factor=f"with_{k}") for k in ("one", "none")]
    figure, *_ = figures.changes(pd.DataFrame(rows))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["with two", "with one\n(n = 1, 1 diverged)", "with none\n(n = 0, 1 diverged)"]
