"""Figures: their size, what is cut off, their files; and the tables beside them."""

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from study import figures, tables

RNG = np.random.default_rng(0)
NAMES = [f"{s}_{p}" for s in ("msds1", "msds2") for p in ("gaussian", "laplace")]
ESTIMATE = {"value": 0.5, "stderr": 0.01}
PUBLISHED = {"system": "IGF23", "bpd": {s: {"laplace": 1.9, "gaussian": 1.8} for s in ("msds1", "msds2")}}  # fmt: skip
CURVE = {"images": [1000, 2000, 300_000], "bpd": [3.0, 2.0, 1.2], "stderr": [0.01] * 3}
POINTS = [{"temperature": t, "value": 2.0 - t, "spread": 0.01} for t in (0.5, 1.0)]
AREA = {"area": 30.0, "stderr": 1.0, "cone": 64.0, "difference": 20.0}
AREA |= {"radius": 3.0, "radius_stderr": 0.1, "cone_radius": 4.0}
FACTORS = {f"{kind} of it": ESTIMATE for kind in ("global colour", "position", "angle", "colour")}
MEASURES = {m: ESTIMATE for m in ("hoyer", "near_zero", "kolmogorov", "rotation")}
RESTORED = [
    {"edge": edge, "way": way, "error": ESTIMATE, "as_probable": 0.5}
    for edge in (2, 4, 8)
    for way in figures.RESTORATIONS
]
BARS = [
    {"label": f"{n}: lean nlsq, 1.8 M, ours", "prior": p, "source": source, "bpd": 1.3, "stderr": e}
    for n, p, source, e in (
        ("MSDS1, Laplace", "laplace", "ours", 0.001),
        ("MSDS1, Laplace", "laplace", "published", None),
        ("MSDS1", None, "limit", None),
    )
]
ABLATION_CURVE = {"images": [10, 20], "bpd": [4.0, 3.0]}
ABLATIONS = {
    "unchanged": {"less_unchanged": [0.0, 0.0], "diverged": 0, "curve": ABLATION_CURVE},
    "without_rescaling": {"less_unchanged": [0.3, 4.0], "diverged": 0, "curve": ABLATION_CURVE},
    "flips": {"less_unchanged": [-0.01], "diverged": 1, "curve": ABLATION_CURVE},
}
COMPARED = {"msds1, laplace, scale 1 less msds1, laplace": {"mean": 0.1, "low": -0.1, "high": 0.3}}


def pictures(*shape):
    return RNG.random((*shape, 3))


def densities(names):
    edges = {"edges": np.linspace(-8, 8, 17)}
    keys = [f"{n}/{k}" for n in names for k in ("h0", "h1", "h2", "h3", "prior")]
    return edges | {key: np.full(16, 0.1) for key in keys}


def fields():
    single = {f"h{h}": RNG.random((5, 8, 8)) for h in range(4)}
    for key in ("h{}/centred", "h{}/cone", "inference/h{}"):
        single |= {key.format(h): RNG.random((8, 8)) for h in range(4)}
    return single


DRAWN = {
    "picture_sheets": lambda n: figures.picture_sheets(
        {f"{k}, T = [0.2, 0.8, 0.8, 0.8]": pictures(8, 4, 4) for k in n}, columns=8, across=2
    ),
    "label_histograms": lambda n: figures.label_histograms({"msds1": RNG.random((9, 4, 4, 6))}),
    "training_curves": lambda n: figures.training_curves(
        {k: CURVE for k in [*n, *(f"{k}_shipped" for k in n)]}, PUBLISHED
    ),
    "bpd_bars": lambda n: figures.bpd_bars(BARS * len(n)),
    "level_bits": lambda n: figures.level_bits(
        {k: {"levels": [-3.0, -0.4, 0.02, 0.01], "stderr": [0.01] * 4} for k in n}
    ),
    "frechet_curves": lambda n: figures.frechet_curves(
        {k: POINTS for k in n}, {k.split("_")[0]: 0.03 for k in n}
    ),
    "seed_points": lambda n: figures.seed_points(
        {k.replace("_", ", "): [1.9, 2.0, 2.1] for k in n}, COMPARED
    ),
    "ablation_points": lambda n: figures.ablation_points(ABLATIONS),
    "latent_histograms": lambda n: figures.latent_histograms(densities(n), 4),
    "kurtosis_bars": lambda n: figures.kurtosis_bars({k: [ESTIMATE] * 4 for k in n}),
    "sparsity_panels": lambda n: figures.sparsity_panels(
        {k: [MEASURES] * 4 for k in n}, {"hoyer": {"laplace": 0.3, "gaussian": 0.2}}
    ),
    "correlation_maps": lambda n: figures.correlation_maps(
        {k: np.eye(48) for k in n}, {k: np.full((4, 4), 0.018) for k in n}
    ),
    "cones": lambda n: figures.cones(
        {k: [AREA] * 4 for k in n}, {"sizes": [8, 16, 512], "pixel": [64.0, 112.0, 905.0]}
    ),
    "factor_maps": lambda n: figures.factor_maps({k: [FACTORS] * 4 for k in n}, "R²", 1.0),
    "temperature_split": lambda n: figures.temperature_split(
        {k: [p | ESTIMATE for p in POINTS] for k in n},
        {k: ESTIMATE for k in n},
        {k.split("_")[0]: ESTIMATE for k in n},
    ),
    "drawn_cones": lambda n: figures.drawn_cones(fields(), 4),
    "field_radii": lambda n: figures.field_radii({k: [AREA] * 4 for k in n}),
    "resemblance": lambda n: figures.resemblance({k: [FACTORS] * 5 for k in n}),
    "mixing_grid": lambda n: figures.mixing_grid(
        pictures(4, 4, 8, 8), pictures(4, 8, 8), pictures(4, 8, 8), "MSDS1, Laplace"
    ),
    "traversals": lambda n: figures.traversals(
        pictures(3, 7, 8, 8), np.arange(-3, 4), ["colour 0, at (16, 24)"] * 3, "MSDS1, Laplace"
    ),
    "restoration": lambda n: figures.restoration({k: RESTORED for k in n[::2]}),
    "receptive_field_maps": lambda n: figures.receptive_field_maps(fields(), 4),
    "receptive_field_areas": lambda n: figures.receptive_field_areas({k: [AREA] * 4 for k in n}),
    "generation": lambda n: figures.generation([pictures(4, e, e) for e in (4, 8, 16, 32)]),
    "mixing": lambda n: figures.mixing(pictures(5, 3, 8, 8), pictures(3, 8, 8), pictures(3, 8, 8)),
}


@pytest.mark.parametrize("names", [NAMES[:1], NAMES], ids=["one", "four"])
@pytest.mark.parametrize("drawn", DRAWN)
def test_figure_fits_the_printed_page(drawn, names):
    figure = DRAWN[drawn](names)
    figure.draw_without_rendering()
    assert figure.get_figwidth() in (figures.COLUMN, figures.PAGE)
    assert figure.get_figheight() < 9.5, "taller than a page"
    assert all(text.get_fontsize() >= 6 for text in figure.findobj(Text) if text.get_text())
    page = figure.bbox.padded(1)
    for part in [*figure.axes, *figure.legends]:
        box = part.get_tightbbox()
        assert page.x0 <= box.x0, part
        assert box.x1 <= page.x1, part
        assert page.y0 <= box.y0, part
        assert box.y1 <= page.y1, part
    plt.close(figure)


def test_every_model_is_told_apart_without_colour():
    lines = [figures._line(name) for name in NAMES]
    assert len({(line["marker"], line["linestyle"]) for line in lines}) == len(NAMES)


def test_saved_with_its_data_and_twice_the_same(tmp_path):
    rows = tables.table({"a": [ESTIMATE], "b": [ESTIMATE]}, "model", "level")
    for folder in ("one", "two"):
        figure = figures.kurtosis_bars({name: [ESTIMATE] * 4 for name in NAMES})
        figures.save(figure, tmp_path / folder, "f", rows)
        plt.close(figure)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["f.csv", "f.pdf", "f.png"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with (tmp_path / "one" / "f.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"model": m, "level": "0", "value": "0.5", "stderr": "0.01"} for m in "ab"
        ]


def test_table_unfolds_nested_data():
    curves = {"m": {"x": [1, 2], "y": np.array([3, 4])}}
    assert tables.table(curves, "model") == [
        {"model": "m", "x": 1, "y": 3},
        {"model": "m", "x": 2, "y": 4},
    ]
    assert tables.table([[1.5]], "i", "j") == [{"i": 0, "j": 0, "value": 1.5}]
    with pytest.raises(ValueError, match="shorter"):
        tables.table({"x": [1, 2], "y": [3]})


def test_csv_has_the_columns_of_all_rows(tmp_path):
    tables.write_csv(tmp_path / "t.csv", [{"a": 1}, {"b": 2}])
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,\n,2\n"
    arrays = {"steps/0": np.zeros((4, 2, 2, 3))}
    assert tables.sources("06_x", arrays) == [
        {"file": "results/06_x.npz", "array": "steps/0", "shape": "4 x 2 x 2 x 3"}
    ]
