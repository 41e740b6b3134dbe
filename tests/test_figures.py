"""Figures: size and letters, what is cut off, and that the data beside them are what is drawn."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from support import ROOT

from study import figures, results

RNG = np.random.default_rng(0)
TABLE = results.read(ROOT / "figures")
SHOWN = {"one": (["msds1"], ["laplace"]), "four": (["msds1", "msds2"], ["gaussian", "laplace"])}
OF_TABLE = ["lattice", "curves", "priors", "bits", "growth", "probes", "changes", "peers"]
OF_PICTURES = ["data", "fields", "samples", "mixing"]


def measured(sets, priors):
    """What the study measured of some models."""
    kept = ["", "random", "celeba", "msds1_gaussian_affine", *sets]
    kept += [f"{s}_{p}" for s in sets for p in priors]
    return TABLE[TABLE["model"].isin([*kept, *results.select(TABLE, "peer_mean")["model"]])]


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
    given = [make(*SHOWN[models]) for make in (measured, pictures)][: 1 + (name in OF_PICTURES)]
    with figures.style():
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


def test_saved_with_its_data_and_twice_the_same(tmp_path):
    table, arrays = measured(*SHOWN["one"]), pictures(*SHOWN["one"])
    _, rows, _ = figures.mixing(table, arrays)
    for folder in ("one", "two"):
        figures.save(tmp_path / folder, "f", figures.mixing, table, arrays)
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
