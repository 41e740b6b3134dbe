"""Multi-scale dSprites (MSDS): 32 x 32 pictures of a 4 x 4 grid of ellipses on black.

MSDS1 shares a colour among the ellipses of a picture and leaves their angles free; MSDS2 shares
an angle and leaves the colours free (Hu et al., arXiv:2010.00029, section on synthetic data).
Labels are (N, 4, 4, 6) float64: x, y, angle in degrees, R, G, B of the ellipse in column i and
row j, indexed [i, j]. Pictures equal those of the published Pillow loop, pixel for pixel.
"""

import math
from functools import cache

import numpy as np

from rgflow_core.errors import check_counts

SETS = ("msds1", "msds2")
SPLITS = {"train": 90_000, "val": 10_000, "test": 10_000}
VERSION = 1
SIZE, GRID, TILE = 32, 4, 8

_DRAWS = 16 * 6 + 4  # random numbers of one picture: a multiple of 4, Philox's block


def labels(name: str, split: str, start: int, stop: int, seed: int = 0) -> np.ndarray:
    """Labels of pictures start ... stop-1: a pure function of the arguments.

    Any range can be made anywhere: the generator (Philox) is moved to the first picture's
    counter. Angles keep their full precision; the published generators truncate them.

    Args:
        name: "msds1" or "msds2".
        split: "train", "val" or "test"; splits have streams of their own.
        start, stop: range of picture numbers; there is no upper end.
        seed: whole number >= 0.

    Returns:
        float64, shape (stop - start, 4, 4, 6).

    Raises:
        ValueError: names the argument and what is allowed.
    """
    if name not in SETS:
        raise ValueError(f"set must be one of {SETS}, not {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {tuple(SPLITS)}, not {split!r}")
    if not 0 <= start <= stop:
        raise ValueError(f"the range must have 0 <= start <= stop, not {start} ... {stop}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}")
    n = stop - start
    stream = SETS.index(name) * len(SPLITS) + list(SPLITS).index(split)
    bits = np.random.Philox(key=[seed, stream])
    bits.advance(start * _DRAWS // 4)
    u = (bits.random_raw(n * _DRAWS).reshape(n, _DRAWS) >> np.uint64(11)) * 2.0**-53

    def whole(uniform: np.ndarray, low: int, high: int) -> np.ndarray:
        return low + np.floor((high - low + 1) * uniform)

    shared, own = u[:, :4], u[:, 4:].reshape(n, GRID, GRID, 6)
    column, row = np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij")
    out = np.empty((n, GRID, GRID, 6))
    out[..., 0] = TILE * column + whole(own[..., 0], -1, 1)
    out[..., 1] = TILE * row + whole(own[..., 1], -1, 1)
    if name == "msds1":
        out[..., 2] = 180 * own[..., 2]
        out[..., 3:] = whole(shared[:, None, None, :3], 32, 223) + whole(own[..., 3:], -32, 32)
    else:
        out[..., 2] = 180 * shared[:, None, None, 3] + 45 * own[..., 2]
        out[..., 3:] = whole(own[..., 3:], 0, 255)
    return out


# The tile's ellipse, bounding box (1, 3)-(7, 5), as Pillow fills it.
_ELLIPSE = np.zeros((TILE, TILE))
_ELLIPSE[3:6, 2:7] = 1
_ELLIPSE[4, 1:8] = 1
_PX, _PY = (axis.ravel() + 0.5 for axis in np.meshgrid(np.arange(TILE), np.arange(TILE)))
_TURNED = np.stack([np.rot90(_ELLIPSE, k).ravel() for k in range(4)])
_TAPS = np.arange(-1, 3)[:, None]
_EDGE = SIZE + 2 * TILE  # a margin of one tile takes what hangs over the picture's edge


def _source(cos: np.ndarray, sin: np.ndarray, px: np.ndarray, py: np.ndarray) -> tuple:
    """Where the tile's pixels come from under Pillow's rotation, in Pillow's order of operations.

    ``cos`` and ``sin`` are of minus the angle.
    """
    x = cos * px + sin * py + (cos * -4.0 + sin * -4.0 + 4.0)
    y = -sin * px + cos * py + (-sin * -4.0 + cos * -4.0 + 4.0)
    return x, y


def _bicubic(x: np.ndarray, y: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """Pillow's bicubic interpolation of scale * ellipse at points (x, y) of the tile, (P,)."""
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x), np.floor(y)
    dx, dy = x - left, y - top
    # Four rows of four taps each, (4, 4, P); beyond the tile its edge repeats.
    rows, columns = ((a.astype(int) + _TAPS).clip(0, TILE - 1) for a in (top, left))
    taps = _ELLIPSE[rows[:, None], columns] * scale

    def cubic(v: np.ndarray, d: np.ndarray) -> np.ndarray:
        v1, v2, v3, v4 = v
        p2, p3, p4 = -v1 + v3, 2 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4
        return v2 + d * (p2 + d * (p3 + d * p4))

    return cubic(cubic(taps.swapaxes(0, 1), dx), dy)


def _exact(angle: np.ndarray, pixel: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Premultiplied values (P,) of single pixels of rotated tiles, rounded as Pillow rounds.

    Args:
        angle: (P,), degrees counter-clockwise in [0, 360).
        pixel: (P,), 0 ... 63 in the tile.
        colour: (P,), the ellipse's value in this channel.
    """
    radians = [-math.radians(a) for a in angle]
    cos, sin = (np.array([round(f(a), 15) for a in radians]) for f in (math.cos, math.sin))
    x, y = _source(cos, sin, _PX[pixel], _PY[pixel])
    inside = (x >= 0) & (x < TILE) & (y >= 0) & (y < TILE)
    value = np.where(inside, _bicubic(x, y, colour), 0.0)
    # Pillow turns multiples of 90 degrees without interpolating.
    quarter, rest = np.divmod(angle, 90.0)
    value = np.where(rest == 0, _TURNED[quarter.astype(int), pixel] * colour, value)
    return np.floor(value.clip(0, 255))


_STEPS = 2**15  # of a full turn, in the table
_SLACK = np.float32(6e-7)  # the table's error, from above


@cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much of each pixel of its tile an ellipse covers, against the angle.

    Returns:
        For each of ``_STEPS`` intervals of the angle the K pixels that the ellipse can touch:
        coverage at its start, the rise over it (float32, NaN where the coverage jumps), and the
        pixels' positions on a canvas, each (_STEPS * K,).
    """
    turn = -np.arange(_STEPS + 1) * (2 * math.pi / _STEPS)
    points = [_source(np.cos(turn), np.sin(turn), px, py) for px, py in zip(_PX, _PY, strict=True)]
    cover = np.stack([_bicubic(x, y, 1.0) for x, y in points], 1)
    margin = TILE / 2 - abs(np.array(points) - TILE / 2).max(1).T
    seen = cover > 1 / 300  # below 1/255 nothing is drawn
    # At the tile's edge coverage jumps to 0; no pixel moves further than 0.0011 in an interval.
    cover[margin < 0] = 0
    cover[seen & (abs(margin) < 0.0011)] = np.nan
    touched = ~(cover < 1 / 300)
    touched = touched[1:] | touched[:-1]
    count = touched.sum(1).max()
    pixel = np.argsort(~touched, axis=1, kind="stable")[:, :count]
    start, end = (
        np.take_along_axis(c, pixel, 1).astype(np.float32) for c in (cover[:-1], cover[1:])
    )
    position = pixel // TILE * _EDGE + pixel % TILE
    return start.ravel(), (end - start).ravel(), position.ravel()


def _check_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 4 or labels.shape[1:] != (GRID, GRID, 6):
        raise ValueError(f"labels must have shape (N, 4, 4, 6), not {labels.shape}")
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite")
    position, colour = labels[..., :2], labels[..., 3:]
    if not ((position % 1 == 0) & (position >= -TILE) & (position <= SIZE)).all():
        raise ValueError(f"positions must be whole numbers from {-TILE} to {SIZE}")
    if not ((colour % 1 == 0) & (colour >= 0) & (colour <= 255)).all():
        raise ValueError("colours must be whole numbers from 0 to 255")
    return labels


def _turn(angle: np.ndarray) -> np.ndarray:
    """Degrees in [0, 360): the remainder of a tiny negative angle rounds to 360."""
    angle = angle % 360.0
    return np.where(angle == 360.0, 0.0, angle)


def _premultiplied(angle: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the pixels of n rotated tiles hold before they are pasted.

    Args:
        angle: (n,), degrees counter-clockwise in [0, 360).
        colour: (4, n), R, G, B and 255.

    Returns:
        Premultiplied whole numbers (4, K, n), float32, and their positions on a canvas (K, n).
    """
    starts, rises, positions = _table()
    count = len(starts) // _STEPS
    step, part = np.divmod(angle * (_STEPS / 360.0), 1.0)
    # The last interval ends where the first begins; rounding can put a tiny angle beyond it.
    entry = step.astype(np.intp) % _STEPS * count + np.arange(count)[:, None]
    cover = rises.take(entry)
    cover *= part.astype(np.float32)
    cover += starts.take(entry)
    # One coverage serves all four channels: a premultiplied channel is trunc(colour * coverage).
    low = np.maximum(cover - _SLACK, 0)
    high = low + 2 * _SLACK
    position = positions.take(entry)
    values, above = np.empty((2, 4, count, len(angle)), np.float32)
    for c in range(4):  # one by one: broadcasting over the first axis is slow
        np.floor(np.multiply(low, colour[c], out=values[c]), out=values[c])
        np.floor(np.multiply(high, colour[c], out=above[c]), out=above[c])
    # Where the table cannot decide, draw as Pillow does. NaN differs from itself.
    doubtful = values != above
    doubtful[..., angle % 90.0 == 0] = True
    doubtful = np.flatnonzero(doubtful)
    if len(doubtful):
        channel, slot, tile = np.unravel_index(doubtful, values.shape)
        row, column = np.divmod(position[slot, tile], _EDGE)
        exact = _exact(angle[tile], row * TILE + column, colour[channel, tile].astype(float))
        values.reshape(-1)[doubtful] = exact
    return np.minimum(values, 255, out=values), position


def render(labels: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Draw pictures, pixel for pixel as the published Pillow loop does.

    Args:
        labels: (N, 4, 4, 6), see the module's text.
        chunk: pictures drawn at a time; changes nothing but memory and speed.

    Returns:
        uint8, shape (N, 32, 32, 3).

    Raises:
        ValueError: if labels have another shape or impossible values.

    Example:
        >>> render(labels("msds1", "train", 0, 2)).shape
        (2, 32, 32, 3)
    """
    labels = _check_labels(labels)
    check_counts(chunk=chunk)
    out = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    whole = np.empty((3, min(chunk, len(labels)) * _EDGE**2), np.float32)
    for start in range(0, len(labels), chunk):
        part = labels[start : start + chunk]
        n = len(part)
        canvas = whole[:, : n * _EDGE**2]
        canvas[:] = 0
        colour = np.full((GRID, GRID, 4, n), 255, np.float32)
        colour[:, :, :3] = part[..., 3:].transpose(1, 2, 3, 0)
        for i in range(GRID):
            for j in range(GRID):
                x, y, angle = part[:, i, j, :3].T
                angle = _turn(angle)
                values, position = _premultiplied(angle, colour[i, j])
                corner = (y + TILE) * _EDGE + x + TILE + np.arange(n) * _EDGE**2
                position += corner.astype(np.intp)
                *values, alpha = values
                divisor, rest = np.maximum(alpha, 1), 255 - alpha
                for plain, plane in zip(values, canvas, strict=True):
                    # In place; every quotient is exact or far enough from a whole number.
                    plain *= 255
                    plain /= divisor
                    np.floor(plain, out=plain)
                    plain *= alpha
                    plain += plane.take(position) * rest
                    plain *= np.float32(1 / 255)
                    plain += np.float32(0.5)
                    plane[position] = np.floor(plain, out=plain)
        canvas = canvas.reshape(3, n, _EDGE, _EDGE)[:, :, TILE:-TILE, TILE:-TILE]
        out[start : start + n] = canvas.transpose(1, 2, 3, 0)
    return out


def entropy(
    name: str, angles: int = 2**17, draws: int = 100_000, seed: int = 0
) -> dict[str, float]:
    """Entropy of the generator, in bits per picture: no model can go below it.

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
    if name not in SETS:
        raise ValueError(f"set must be one of {SETS}, not {name!r}")
    check_counts(angles=angles, draws=draws)
    if angles % GRID**2:
        raise ValueError(f"angles must be a multiple of {GRID**2}, not {angles}")
    random = np.random.default_rng(seed)
    cells = GRID * GRID
    tile = TILE * np.stack(np.meshgrid(*[np.arange(GRID)] * 2, indexing="ij"), -1)
    label = np.empty((angles // cells, GRID, GRID, 6))
    label[..., :2] = tile
    label[..., 2] = 180 * np.arange(angles).reshape(-1, GRID, GRID) / angles
    rasters = []
    for colour in random.integers(32, 224, (3, 3)):
        label[..., 3:] = colour
        drawn = render(label).reshape(-1, GRID, TILE, GRID, TILE, 3).transpose(0, 1, 3, 2, 4, 5)
        _, counts = np.unique(drawn.reshape(angles, -1), axis=0, return_counts=True)
        rasters.append(-(counts / angles * np.log2(counts / angles)).sum())
    raster, position = float(np.mean(rasters)), math.log2(9)
    if name == "msds1":
        # Of each channel: base colour, 192 values; jitter, 65. They show only as their sum.
        jitter = random.integers(-32, 33, (draws, cells))
        base = random.integers(32, 224, draws)
        low = np.maximum(base + jitter.max(1) - 32, 32)
        high = np.minimum(base + jitter.min(1) + 32, 223)
        shared = 3 * (math.log2(192) - np.log2(high - low + 1).mean())
        colour = 3 * math.log2(65)
    else:
        # The angle: 180 degrees around, of which an ellipse's own part is 45.
        own = random.uniform(0, 45, (draws, cells))
        shared = math.log2(180) - np.log2(45 - (own.max(1) - own.min(1))).mean()
        colour, raster = 3 * math.log2(256), raster - math.log2(180 / 45)
    picture = shared + cells * (colour + position + raster)
    return {
        "global": float(shared),
        "colour": colour,
        "position": position,
        "raster": raster,
        "picture": float(picture),
        "bpd": float(picture / (3 * SIZE**2)),
    }
