"""The generator's entropy, against parts that are known."""

import numpy as np
import pytest

from study import entropy


def test_parts():
    one, two = (entropy.bits(name, angles=2**10, draws=2000) for name in ("msds1", "msds2"))
    for parts, colour in ((one, 3 * np.log2(65)), (two, 24)):
        assert parts["colour"] == pytest.approx(colour)
        assert parts["position"] == pytest.approx(np.log2(9))
        ellipse = parts["colour"] + parts["position"] + parts["raster"]
        assert parts["picture"] == pytest.approx(parts["global"] + 16 * ellipse)
        assert parts["bpd"] == parts["picture"] / 3072
    # A grid of 2^10 angles cannot tell apart more rasters than that, nor far fewer.
    assert 9 < one["raster"] <= 10
    assert two["raster"] == one["raster"] - 2
    with pytest.raises(ValueError, match="set must be one of"):
        entropy.bits("msds3")


def test_global_factor():
    """Mutual information of base and 16 sums, against its closed form for a wide base.

    Given the sums the base is uniform over 65 - (max - min of the jitter) values.
    """
    rng = np.random.default_rng(1)
    jitter = rng.integers(-32, 33, (20_000, 16))
    left = np.log2(65 - np.ptp(jitter, 1)).mean()
    shared = entropy.bits("msds1", angles=16, draws=20_000)["global"]
    assert shared == pytest.approx(3 * (np.log2(192) - left), abs=0.35)  # base's own ends: less
