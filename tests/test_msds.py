"""MSDS: pictures equal to Pillow's, labels that are a pure function, and their distributions."""

import hashlib

import numpy as np
import pytest
from scipy import stats
from support import GOLDEN, said_by

from rgflow_core import ellipses, msds
from study.benchmarks import pillow_render

SETS, SPLITS = msds.SETS, tuple(msds.SPLITS)


@pytest.mark.parametrize("name", SETS)
def test_golden_pictures(name):
    with np.load(GOLDEN / "msds_golden.npz") as file:
        labels, images = file[f"{name}_labels"], file[f"{name}_images"]
    drawn = msds.render(labels)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, images)


def unusual(angles):
    """Labels of 50 pictures with these angles (800,), overlapping and off the picture."""
    rng = np.random.default_rng(0)
    labels = np.empty((50, 4, 4, 6))
    labels[..., :2] = rng.integers(-8, 33, (50, 4, 4, 2))
    labels[..., 2] = angles(rng).reshape(50, 4, 4)
    labels[..., 3:] = rng.integers(0, 256, (50, 4, 4, 3))
    labels[:25, ..., 3:] = rng.choice([0, 1, 127, 128, 254, 255], (25, 4, 4, 3))
    return labels


ANGLES = {
    "whole": lambda r: r.integers(0, 225, 800),
    "multiples of 15": lambda r: 15 * r.integers(0, 25, 800),
    "multiples of 90": lambda r: 90 * r.integers(-4, 9, 800),
    "next to a quarter": lambda r: 90 * r.integers(0, 4, 800) + r.choice([-1e-9, 1e-9, 1e-4], 800),
    "any": lambda r: r.uniform(-720, 720, 800),
}


@pytest.mark.parametrize("kind", [*SETS, *ANGLES])
def test_pictures_equal_pillows(kind):
    labels = msds.labels(kind, "train", 5000, 5100) if kind in SETS else unusual(ANGLES[kind])
    drawn = msds.render(labels)
    np.testing.assert_array_equal(drawn, pillow_render(labels))
    for few in (slice(13, 14), slice(5, 71), slice(0)):
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


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", SPLITS)
def test_any_shard_can_be_made_anywhere(name, split):
    whole, far = (msds.labels(name, split, start, start + 50) for start in (0, 89_950))
    assert (whole.shape, whole.dtype) == ((50, 4, 4, 6), np.float64)
    for start, stop in [(49, 50), (17, 31), (0, 1), (5, 5), (1, 50)]:
        np.testing.assert_array_equal(msds.labels(name, split, start, stop), whole[start:stop])
    np.testing.assert_array_equal(msds.labels(name, split, 89_999, 90_000), far[-1:])
    # No angle appears twice in a split, and none of another seed's.
    angles = [x[..., 2] for x in (whole, far, msds.labels(name, split, 0, 50, seed=1))]
    assert np.unique(angles).size == 3 * 50 * 16


DIGESTS = {  # of 20 labels
    "msds1": "12cbe20aa7da616ad48223f3940617a5fc3e8f089e0b0004c4c756f722ec5fe6",
    "msds2": "7a78f161cc1954a658317390665968a0b780021749abd5752d5f664613f0cac1",
}


@pytest.mark.parametrize("name", SETS)
def test_the_same_on_every_machine(name):
    labels = msds.labels(name, "val", 1000, 1020, seed=7)
    assert hashlib.sha256(labels.astype("<f8").tobytes()).hexdigest() == DIGESTS[name]


def described(name, n):
    """Labels (n, 16, 6) as the published text has it, positions within their tile."""
    rng = np.random.default_rng(0)
    position = rng.integers(-1, 2, (n, 16, 2))
    if name == "msds1":
        angle = 180 * rng.random((n, 16, 1))
        colour = rng.integers(32, 224, (n, 1, 3)) + rng.integers(-32, 33, (n, 16, 3))
    else:
        angle = 180 * rng.random((n, 1, 1)) + 45 * rng.random((n, 16, 1))
        colour = rng.integers(0, 256, (n, 16, 3))
    return np.concatenate([position, angle, colour], -1)


@pytest.mark.parametrize("name", SETS)
def test_labels_are_drawn_as_described(name):
    """Seeds are fixed, so this holds or not once and for all."""
    n = 4000
    wanted, drawn = described(name, 4 * n), msds.labels(name, "train", 0, n).reshape(n, 16, 6)
    drawn[..., :2] -= 8 * np.indices((4, 4)).reshape(2, 16).T
    for factor in range(6):
        ours, theirs = drawn[..., factor], wanted[..., factor]
        assert ours.min() >= 0 if factor > 1 else set(ours.flat) == {-1, 0, 1}
        assert factor == 2 or np.array_equal(ours, np.floor(ours))
        assert ours.max() <= theirs.max() + (factor == 2)
        # One ellipse; and two less what they share.
        for view in (lambda x: x[:, 9], lambda x: x[:, 0] - x[:, 15], lambda x: x[:, 6] - x[:, 9]):
            assert stats.ks_2samp(view(ours), view(theirs)).pvalue > 1e-3
    # Shared is the global factor, and nothing else.
    correlations = [np.corrcoef(x.reshape(len(x), 96).T) for x in (drawn, wanted)]
    assert np.abs(correlations[0] - correlations[1]).max() < 6 / n**0.5


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
        assert word in said_by(msds.render, labels)
