"""The entropy of MSDS's generator: no model can need fewer bits per picture."""

import math

import numpy as np

from rgflow_core import msds
from rgflow_core.errors import check_counts

_CELLS = msds.GRID**2


def _raster(angles: int, random: np.random.Generator) -> float:
    """Bits of the rasters that an ellipse of known centre shows over 180 degrees."""
    label = np.zeros((angles // _CELLS, msds.GRID, msds.GRID, 6))
    label[..., :2] = msds.TILE * np.stack(np.indices((msds.GRID, msds.GRID)), -1)
    label[..., 2] = 180 * np.arange(angles).reshape(label.shape[:3]) / angles
    bits = []
    for colour in random.integers(32, 224, (3, 3)):
        label[..., 3:] = colour
        tiles = msds.render(label).reshape(-1, msds.GRID, msds.TILE, msds.GRID, msds.TILE, 3)
        tiles = tiles.swapaxes(2, 3).reshape(angles, -1)
        share = np.unique(tiles, axis=0, return_counts=True)[1] / angles
        bits.append(-(share * np.log2(share)).sum())
    return float(np.mean(bits))


def bits(name: str, angles: int = 2**17, draws: int = 100_000, seed: int = 0) -> dict[str, float]:
    """Entropy of a set, by factor.

    Factors are counted up to what a picture shows of them. An angle shows as one of many rasters
    of an ellipse, whose probabilities come from drawing it at ``angles`` angles evenly over 180
    degrees, in a few colours. What 16 ellipses tell of the global factor is the logarithm of the
    range it is left with, by Monte Carlo. What an ellipse loses by being covered or cut, and dark
    colours in which rasters look alike, are not taken off: the number is an upper bound, by a few
    bits per ellipse at most.

    Args:
        name: "msds1" or "msds2".
        angles: a multiple of 16; of the grid of angles.
        draws: Monte-Carlo draws.
        seed: of the draws.

    Returns:
        Bits of ``global`` factor, ``colour`` and ``position`` of an ellipse, ``raster`` of a known
        centre, ``picture`` in all, and ``bpd``, all over 3 x 32 x 32 values.
    """
    if name not in msds.SETS:
        raise ValueError(f"set must be one of {msds.SETS}, not {name!r}")
    check_counts(angles=angles, draws=draws)
    if angles % _CELLS:
        raise ValueError(f"angles must be a multiple of {_CELLS}, not {angles}")
    random = np.random.default_rng(seed)
    raster, position = _raster(angles, random), math.log2(9)
    if name == "msds1":
        # Of each channel: base colour, 192 values; jitter, 65. They show only as their sum.
        jitter = random.integers(-32, 33, (draws, _CELLS))
        base = random.integers(32, 224, draws)
        left = np.minimum(base + jitter.min(1) + 32, 223) - np.maximum(
            base + jitter.max(1) - 32, 32
        )
        shared, colour = 3 * (math.log2(192) - np.log2(left + 1).mean()), 3 * math.log2(65)
    else:
        # The angle: 180 degrees around, of which an ellipse's own part is 45.
        own = random.uniform(0, 45, (draws, _CELLS))
        shared = math.log2(180) - np.log2(45 - np.ptp(own, 1)).mean()
        colour, raster = 3 * math.log2(256), raster - math.log2(180 / 45)
    picture = float(shared + _CELLS * (colour + position + raster))
    parts = {"global": float(shared), "colour": colour, "position": position, "raster": raster}
    return parts | {"picture": picture, "bpd": picture / (3 * msds.SIZE**2)}
