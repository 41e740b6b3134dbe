"""MSDS: pictures equal to Pillow's, labels that are a pure function, and their distributions."""

import hashlib

import numpy as np
import pytest
from scipy import stats
from support import GOLDEN

from rgflow_core import msds
from study.benchmarks import pillow_render

SETS = ("msds1", "msds2")
SPLITS = ("train", "val", "test")


# Pictures


@pytest.mark.parametrize("name", SETS)
def test_golden_pictures(name):
    with np.load(GOLDEN / "msds_golden.npz") as file:
        labels, images = file[f"{name}_labels"], file[f"{name}_images"]
    drawn = msds.render(labels)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, images)
    np.testing.assert_array_equal(pillow_render(labels[:8]), images[:8])


@pytest.mark.parametrize("name", SETS)
def test_pictures_equal_pillows(name):
    labels = msds.labels(name, "train", 5000, 5200)
    np.testing.assert_array_equal(msds.render(labels), pillow_render(labels))


ANGLES = {
    "whole": lambda r: r.integers(0, 225, 1600),
    "multiples of 15": lambda r: 15 * r.integers(0, 25, 1600),
    "multiples of 90": lambda r: 90 * r.integers(-4, 9, 1600),
    "next to a quarter": lambda r: (
        90 * r.integers(0, 4, 1600) + r.choice([-1e-9, 1e-9, 1e-4], 1600)
    ),
    "any": lambda r: r.uniform(-720, 720, 1600),
}


@pytest.mark.parametrize("kind", ANGLES)
def test_unusual_labels_equal_pillows(kind):
    rng = np.random.default_rng(0)
    labels = np.empty((100, 4, 4, 6))
    labels[..., :2] = rng.integers(-8, 33, (100, 4, 4, 2))  # overlapping and off the picture
    labels[..., 2] = ANGLES[kind](rng).reshape(100, 4, 4)
    labels[..., 3:] = rng.integers(0, 256, (100, 4, 4, 3))
    labels[:50, ..., 3:] = rng.choice([0, 1, 127, 128, 254, 255], (50, 4, 4, 3))
    np.testing.assert_array_equal(msds.render(labels), pillow_render(labels))


def test_rendering_does_not_depend_on_the_chunk():
    labels = msds.labels("msds1", "test", 0, 20)
    whole = msds.render(labels)
    np.testing.assert_array_equal(msds.render(labels, chunk=7), whole)
    np.testing.assert_array_equal(msds.render(labels[13:14]), whole[13:14])
    assert msds.render(labels[:0]).shape == (0, 32, 32, 3)


# Labels: a pure function of their arguments


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", SPLITS)
def test_any_shard_can_be_made_anywhere(name, split):
    whole = msds.labels(name, split, 0, 50)
    assert whole.shape == (50, 4, 4, 6)
    assert whole.dtype == np.float64
    for start, stop in [(49, 50), (17, 31), (0, 1), (5, 5), (1, 50)]:
        np.testing.assert_array_equal(msds.labels(name, split, start, stop), whole[start:stop])
    far = msds.labels(name, split, 89_990, 90_000)
    np.testing.assert_array_equal(msds.labels(name, split, 89_999, 90_000), far[9:])


def test_streams_are_different():
    keys = [(s, t, seed) for s in SETS for t in SPLITS for seed in (0, 1)]
    columns = [msds.labels(s, t, 0, 100, seed)[..., 2].ravel() for s, t, seed in keys]
    assert len({column.tobytes() for column in columns}) == len(keys)
    # Angles of one set's streams have nothing in common: no picture appears twice.
    for name in SETS:
        mine = np.stack([c for c, key in zip(columns, keys, strict=True) if key[0] == name])
        assert np.unique(mine).size == mine.size
    names = ("val", "test")
    images = [{x.tobytes() for x in msds.render(msds.labels("msds1", s, 0, 300))} for s in names]
    assert not images[0] & images[1]


DIGESTS = {
    "msds1": (
        "12cbe20aa7da616ad48223f3940617a5fc3e8f089e0b0004c4c756f722ec5fe6",
        "f64e0455a2ff0847d8a899dce1b6726ec3e6fae2c27106a98339d77350598d5f",
    ),
    "msds2": (
        "7a78f161cc1954a658317390665968a0b780021749abd5752d5f664613f0cac1",
        "e5a26e0bf9c1c1c5e478b8a9314c1354bb3df0af85351165bb26c97b9d7e6bcc",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_the_same_on_every_machine(name):
    labels = msds.labels(name, "val", 1000, 1020, seed=7)
    digests = tuple(
        hashlib.sha256(array.astype(kind).tobytes()).hexdigest()
        for array, kind in ((labels, "<f8"), (msds.render(labels), "u1"))
    )
    assert digests == DIGESTS[name]


def test_sizes_of_the_splits():
    assert msds.SPLITS == {"train": 90_000, "val": 10_000, "test": 10_000}


# Distributions: seeds are fixed, so these hold or not once and for all


N = 4000
P = 1e-3


@pytest.fixture(scope="module")
def drawn():
    return {name: msds.labels(name, "train", 0, N) for name in SETS}


def uniform_whole(values, low, high):
    counts = np.bincount((values - low).astype(int).ravel(), minlength=high - low + 1)
    assert len(counts) == high - low + 1
    assert np.array_equal(values, np.floor(values))
    return stats.chisquare(counts).pvalue


def sum_of_uniforms(u, width):
    """Distribution function of U[0, 180) + U[0, width)."""
    u = np.asarray(u, float)

    def ramp(x):
        return np.maximum(x, 0) ** 2 / 2

    return (ramp(u) - ramp(u - 180) - ramp(u - width) + ramp(u - 180 - width)) / (180 * width)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("axis", [0, 1])
def test_positions(drawn, name, axis):
    index = np.indices((4, 4))[axis]
    jitter = drawn[name][..., axis] - 8 * index
    assert uniform_whole(jitter, -1, 1) > P
    for i in range(4):
        for j in range(4):
            assert uniform_whole(jitter[:, i, j], -1, 1) > P / 16


def test_msds1_angles(drawn):
    angles = drawn["msds1"][..., 2]
    assert stats.kstest(angles.ravel() / 180, "uniform").pvalue > P
    correlation = np.corrcoef(angles.reshape(N, 16).T)
    assert np.abs(correlation - np.eye(16)).max() < 5 / N**0.5


def test_msds1_colours(drawn):
    colours = drawn["msds1"][..., 3:]
    assert colours.min() >= 0
    assert colours.max() <= 255
    # Two ellipses differ by their jitters alone: the difference of two uniform numbers.
    for one, other in [((0, 0), (3, 3)), ((1, 2), (2, 1))]:
        difference = (colours[:, *one] - colours[:, *other]).astype(int).ravel()
        counts = np.bincount(difference + 64, minlength=129)
        expected = (65 - np.abs(np.arange(-64, 65))) / 65**2 * difference.size
        middle = slice(14, 115)  # where at least five are expected
        grouped = [np.r_[c[:14].sum(), c[middle], c[115:].sum()] for c in (counts, expected)]
        assert len(counts) == 129
        assert stats.chisquare(*grouped).pvalue > P
    # One ellipse: base plus jitter.
    weights = np.convolve(np.full(192, 1 / 192), np.full(65, 1 / 65))
    for channel in range(3):
        counts = np.bincount(colours[:, 2, 1, channel].astype(int), minlength=256)
        bins = [c.reshape(16, 16).sum(1) for c in (counts, weights * N)]
        assert stats.chisquare(*bins).pvalue > P


def test_msds1_shares_its_colour(drawn):
    colours = drawn["msds1"][..., 3:]
    base, jitter = (192**2 - 1) / 12, (65**2 - 1) / 12
    flat = colours.transpose(3, 1, 2, 0).reshape(48, N)
    correlation = np.corrcoef(flat).reshape(3, 16, 3, 16)
    for c in range(3):
        for d in range(3):
            expected = np.full((16, 16), base / (base + jitter) if c == d else 0.0)
            if c == d:
                np.fill_diagonal(expected, 1)
            assert np.abs(correlation[c, :, d] - expected).max() < 5 / N**0.5


def test_msds2_angles(drawn):
    angles = drawn["msds2"][..., 2]
    assert angles.min() >= 0
    assert angles.max() < 225
    # Two ellipses differ by their jitters alone.
    for one, other in [((0, 0), (3, 3)), ((1, 2), (2, 1))]:
        difference = angles[:, *one] - angles[:, *other]
        assert stats.kstest(difference / 45, stats.triang(0.5, -1, 2).cdf).pvalue > P
    for one in [(0, 0), (2, 3)]:
        assert stats.kstest(angles[:, *one], lambda x: sum_of_uniforms(x, 45)).pvalue > P
    correlation = np.corrcoef(angles.reshape(N, 16).T)
    expected = np.full((16, 16), 180**2 / (180**2 + 45**2))
    np.fill_diagonal(expected, 1)
    assert np.abs(correlation - expected).max() < 5 / N**0.5


def test_msds2_colours(drawn):
    colours = drawn["msds2"][..., 3:]
    for channel in range(3):
        assert uniform_whole(colours[..., channel], 0, 255) > P
    correlation = np.corrcoef(colours.reshape(N, 48).T)
    assert np.abs(correlation - np.eye(48)).max() < 5 / N**0.5


@pytest.mark.parametrize("name", SETS)
def test_angles_keep_their_precision(drawn, name):
    angles = drawn[name][..., 2]
    assert np.unique(angles).size == angles.size


@pytest.mark.parametrize("name", SETS)
def test_positions_angles_and_colours_are_independent(drawn, name):
    flat = drawn[name].transpose(3, 1, 2, 0).reshape(96, N)
    correlation = np.corrcoef(flat).reshape(6, 16, 6, 16)
    for one in range(6):
        for other in range(one):
            assert np.abs(correlation[one, :, other]).max() < 5 / N**0.5, (one, other)


# Errors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("msds3", "train", 0, 1), "set"),
        (("msds1", "valid", 0, 1), "split"),
        (("msds1", "train", -1, 1), "range"),
        (("msds1", "train", 2, 1), "range"),
        (("msds1", "train", 0, 1, -1), "seed"),
        (("msds1", "train", 0, 1, 2**64), "seed"),
    ],
)
def test_bad_arguments(arguments, word):
    with pytest.raises(ValueError, match=word):
        msds.labels(*arguments)


def with_value(index, value):
    labels = msds.labels("msds1", "train", 0, 2)
    labels[1, 2, 3, index] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.zeros((4, 4, 6)), "shape"),
        (np.zeros((1, 4, 4, 5)), "shape"),
        (with_value(2, np.nan), "finite"),
        (with_value(0, np.inf), "finite"),
        (with_value(0, 0.5), "position"),
        (with_value(1, -9), "position"),
        (with_value(1, 33), "position"),
        (with_value(3, 256), "colour"),
        (with_value(5, -1), "colour"),
        (with_value(4, 0.5), "colour"),
    ],
)
def test_impossible_labels(labels, word):
    with pytest.raises(ValueError, match=word):
        msds.render(labels)


def test_the_table_of_coverages_is_as_exact_as_its_slack_says():
    starts, rises, positions = (table.reshape(msds._STEPS, -1) for table in msds._table())
    rng = np.random.default_rng(0)
    step, part = rng.integers(msds._STEPS, size=20_000), rng.random((20_000, 1), np.float32)
    row, column = np.divmod(positions[step], msds._EDGE)
    turn = -(step[:, None] + part.astype(float)) * 2 * np.pi / msds._STEPS
    x, y = msds._source(np.cos(turn), np.sin(turn), column + 0.5, row + 0.5)
    exact = msds._bicubic(x.ravel(), y.ravel(), 1.0).reshape(x.shape)
    exact[(x < 0) | (x >= 8) | (y < 0) | (y >= 8)] = 0
    error = np.abs(starts[step] + part * rises[step] - exact)
    assert np.isnan(error).mean() < 1e-3  # where coverage jumps, the table says nothing
    assert np.nanmax(error) < msds._SLACK


# Entropy


def test_entropy_of_known_parts():
    found = msds.entropy("msds1", angles=2**12, draws=2000)
    assert found["position"] == pytest.approx(np.log2(9))
    assert found["colour"] == pytest.approx(3 * np.log2(65))
    # A grid of 2^12 angles cannot tell apart more rasters than that, nor far fewer.
    assert 11 < found["raster"] <= 12
    assert found["picture"] == pytest.approx(
        found["global"] + 16 * (found["colour"] + found["position"] + found["raster"])
    )
    assert found["bpd"] == found["picture"] / 3072
    other = msds.entropy("msds2", angles=2**12, draws=2000)
    assert other["raster"] == found["raster"] - 2
    with pytest.raises(ValueError, match="set must be one of"):
        msds.entropy("msds3")


def test_entropy_of_the_global_factor():
    """Mutual information of base and 16 sums, against its closed form for a wide base.

    Given the sums the base is uniform over 65 - (max - min of the jitter) values.
    """
    rng = np.random.default_rng(1)
    jitter = rng.integers(-32, 33, (20_000, 16))
    left = np.log2(65 - np.ptp(jitter, 1)).mean()
    found = msds.entropy("msds1", angles=16, draws=20_000)["global"]
    assert found == pytest.approx(3 * (np.log2(192) - left), abs=0.35)  # base's own ends: less left
