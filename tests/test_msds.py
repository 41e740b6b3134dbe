"""MSDS: pictures equal to Pillow's, labels that are a pure function, and their distributions."""

import hashlib

import numpy as np
import pytest
from scipy import stats
from support import GOLDEN

from rgflow_core import ellipses, msds
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


def unusual(angles):
    """Labels of 50 pictures with these angles, overlapping and off the picture."""

    def make():
        rng = np.random.default_rng(0)
        labels = np.empty((50, 4, 4, 6))
        labels[..., :2] = rng.integers(-8, 33, (50, 4, 4, 2))
        labels[..., 2] = angles(rng).reshape(50, 4, 4)
        labels[..., 3:] = rng.integers(0, 256, (50, 4, 4, 3))
        labels[:25, ..., 3:] = rng.choice([0, 1, 127, 128, 254, 255], (25, 4, 4, 3))
        return labels

    return make


LABELS = {
    "msds1": lambda: msds.labels("msds1", "train", 5000, 5100),
    "msds2": lambda: msds.labels("msds2", "train", 5000, 5100),
    "whole angles": unusual(lambda r: r.integers(0, 225, 800)),
    "multiples of 15": unusual(lambda r: 15 * r.integers(0, 25, 800)),
    "multiples of 90": unusual(lambda r: 90 * r.integers(-4, 9, 800)),
    "next to a quarter": unusual(
        lambda r: 90 * r.integers(0, 4, 800) + r.choice([-1e-9, 1e-9, 1e-4], 800)
    ),
    "any angle": unusual(lambda r: r.uniform(-720, 720, 800)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_pictures_equal_pillows(kind):
    labels = LABELS[kind]()
    drawn = msds.render(labels)
    np.testing.assert_array_equal(drawn, pillow_render(labels))
    np.testing.assert_array_equal(msds.render(labels, chunk=7), drawn)
    for few in (slice(13, 14), slice(0)):
        np.testing.assert_array_equal(msds.render(labels[few]), drawn[few])


def test_coverages_are_as_exact_as_their_slack_says():
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, 2 * np.pi, 20_000)
    turn = np.stack([np.cos(turn), np.sin(turn)])[..., None]
    low, high = (
        ellipses._coverage(*ellipses._source(turn.astype(kind), ellipses._CENTRES.astype(kind)))
        for kind in (np.float32, np.float64)
    )
    assert np.isnan(low).mean() < 1e-4  # where coverage jumps
    assert np.nanmax(np.abs(low - high)) < ellipses._SLACK[low.dtype]


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
    """No picture of a set appears twice: not one angle does, nor a raster."""
    for name in SETS:
        keys = [(split, seed) for split in SPLITS for seed in (0, 1)]
        angles = np.stack([msds.labels(name, s, 0, 100, seed)[..., 2] for s, seed in keys])
        assert np.unique(angles).size == angles.size
    one, other = (
        {x.tobytes() for x in msds.render(msds.labels("msds1", split, 0, 300))}
        for split in ("val", "test")
    )
    assert not one & other


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


@pytest.fixture(scope="module", params=SETS)
def drawn(request):
    """A set's name and labels (N, 16, 6)."""
    return request.param, msds.labels(request.param, "train", 0, N).reshape(N, 16, 6)


def uniform_whole(values, low, high):
    counts = np.bincount((values - low).astype(int).ravel(), minlength=high - low + 1)
    assert len(counts) == high - low + 1
    assert np.array_equal(values, np.floor(values))
    return stats.chisquare(counts).pvalue


def sum_of_uniforms(x, one, other):
    """Distribution function of U[0, one) + U[0, other)."""
    a, b, c, d = (np.maximum(x - k, 0) ** 2 / 2 for k in (0, one, other, one + other))
    return (a - b - c + d) / (one * other)


def test_positions(drawn):
    _, labels = drawn
    for axis in range(2):
        jitter = labels[..., axis] - 8 * np.indices((4, 4))[axis].ravel()
        assert uniform_whole(jitter, -1, 1) > P
        assert all(uniform_whole(jitter[:, k], -1, 1) > P / 16 for k in range(16))


def test_angles(drawn):
    name, labels = drawn
    angles = labels[..., 2]
    assert np.unique(angles).size == angles.size  # full precision
    if name == "msds1":
        assert stats.kstest(angles.ravel() / 180, "uniform").pvalue > P
        return
    assert angles.min() >= 0
    for one, other in [(0, 15), (6, 9)]:
        # Two ellipses differ by their own parts alone.
        difference = angles[:, one] - angles[:, other]
        assert stats.kstest(difference / 45, stats.triang(0.5, -1, 2).cdf).pvalue > P
        assert stats.kstest(angles[:, one], lambda x: sum_of_uniforms(x, 180, 45)).pvalue > P


def test_colours(drawn):
    name, labels = drawn
    colours = labels[..., 3:]
    if name == "msds2":
        assert all(uniform_whole(colours[..., c], 0, 255) > P for c in range(3))
        return
    assert colours.min() >= 0
    for one, other in [(0, 15), (6, 9)]:
        # Two ellipses differ by their own parts alone: the difference of two uniform numbers.
        difference = (colours[:, one] - colours[:, other]).astype(int).ravel()
        counts = np.bincount(difference + 64, minlength=129)
        expected = (65 - np.abs(np.arange(-64, 65))) / 65**2 * difference.size
        middle = slice(14, 115)  # where at least five are expected
        grouped = [np.r_[c[:14].sum(), c[middle], c[115:].sum()] for c in (counts, expected)]
        assert len(counts) == 129
        assert stats.chisquare(*grouped).pvalue > P
    # One ellipse: base plus its own part.
    weights = np.convolve(np.full(192, 1 / 192), np.full(65, 1 / 65))
    for channel in range(3):
        counts = np.bincount(colours[:, 9, channel].astype(int), minlength=256)
        bins = [c.reshape(16, 16).sum(1) for c in (counts, weights * N)]
        assert stats.chisquare(*bins).pvalue > P


def test_what_is_shared_and_what_is_independent(drawn):
    """Correlations of all 16 x 6 labels: the global factor's, and no others."""
    name, labels = drawn
    correlation = np.corrcoef(labels.transpose(2, 1, 0).reshape(96, N))
    shared, own, factors = {
        "msds1": (192**2 - 1, 65**2 - 1, (3, 4, 5)),
        "msds2": (180**2, 45**2, (2,)),
    }[name]
    expected = np.zeros((6, 16, 6, 16))
    for factor in factors:
        expected[factor, :, factor] = shared / (shared + own)
    expected = expected.reshape(96, 96)
    np.fill_diagonal(expected, 1)
    assert np.abs(correlation - expected).max() < 5 / N**0.5


IMPOSSIBLE = {
    "finite": [(2, np.nan), (0, np.inf)],
    "position": [(0, 0.5), (1, -9), (1, 33)],
    "colour": [(3, 256), (5, -1), (4, 0.5)],
}


@pytest.mark.parametrize("word", IMPOSSIBLE)
def test_impossible_labels(word):
    for index, value in IMPOSSIBLE[word]:
        labels = msds.labels("msds1", "train", 0, 2)
        labels[1, 2, 3, index] = value
        with pytest.raises(ValueError, match=word):
            msds.render(labels)
