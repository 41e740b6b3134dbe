"""Multi-scale dSprites (MSDS): 32 x 32 pictures of a 4 x 4 grid of ellipses on black.

MSDS1 shares a colour among the ellipses of a picture and leaves their angles free; MSDS2 shares
an angle and leaves the colours free (Hu et al., arXiv:2010.00029, section on synthetic data).
Labels are (N, 4, 4, 6) float64: x, y, angle in degrees, R, G, B of the ellipse in column i and
row j, indexed [i, j]. Pictures equal those of the published Pillow loop, pixel for pixel.
"""

import math

import numpy as np

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


def _row_polynomials() -> np.ndarray:
    """Pillow's bicubic polynomial of each row at each position, (4, rows, columns).

    Entry [:, y + 3, x + 3] is for the taps x ... x+3 of row y; beyond the tile its edge repeats.
    """
    padded = np.pad(_ELLIPSE, 3, mode="edge")
    v1, v2, v3, v4 = (padded[:, k : k + 11] for k in range(4))
    return np.stack((v2, v3 - v1, 2 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4))


_POLYNOMIALS = _row_polynomials()
_COLUMNS = _POLYNOMIALS.shape[2]
_ROWS = [np.ascontiguousarray(p.ravel()) for p in _POLYNOMIALS]
# Which first taps (y, x) have any tap inside the ellipse: the others give exactly 0.
_TOUCHED = np.zeros(_POLYNOMIALS.shape[1:], bool)
for _k in range(4):
    _TOUCHED[: 14 - _k] |= (_POLYNOMIALS != 0).any(0)[_k:]
_TOUCHED = _TOUCHED.ravel()

_PX, _PY = (axis.ravel() + 0.5 for axis in np.meshgrid(np.arange(TILE), np.arange(TILE)))


def _source(cos: np.ndarray, sin: np.ndarray, px: np.ndarray, py: np.ndarray) -> tuple:
    """Where the tile's pixels come from under Pillow's rotation, in Pillow's order of operations.

    ``cos`` and ``sin`` are of minus the angle.
    """
    x = cos * px + sin * py + (cos * -4.0 + sin * -4.0 + 4.0)
    y = -sin * px + cos * py + (-sin * -4.0 + cos * -4.0 + 4.0)
    return x, y


def _bicubic(x: np.ndarray, y: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """Pillow's bicubic interpolation of scale * ellipse at points (x, y) inside the tile."""
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x), np.floor(y)
    dx, dy = x - left, y - top
    first = ((top + 2) * _COLUMNS + left + 2).astype(np.int64)
    v = []
    for k in range(4):
        p1, p2, p3, p4 = (row[first + k * _COLUMNS] * scale for row in _ROWS)
        v.append(p1 + dx * (p2 + dx * (p3 + dx * p4)))
    v1, v2, v3, v4 = v
    p2, p3, p4 = -v1 + v3, 2 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4
    return v2 + dy * (p2 + dy * (p3 + dy * p4))


def _rotated_ellipse(angle: np.ndarray, colour: np.ndarray) -> tuple:
    """Rotate n ellipses: what a tile's pixels hold before it is pasted.

    Args:
        angle: (n,), degrees counter-clockwise.
        colour: (n, 4), R, G, B and 255.

    Returns:
        Flat positions (P,) in n x 64 of the pixels the ellipses may touch, and there the
        premultiplied bytes (P, 4).
    """
    # One coverage w serves all four channels: a premultiplied channel is trunc(colour * w).
    radians = -np.radians(angle % 360.0)[:, None]
    x, y = _source(np.cos(radians), np.sin(radians), _PX, _PY)
    inside = (x >= 0) & (x < TILE) & (y >= 0) & (y < TILE)
    first = (np.floor(y - 0.5) + 2) * _COLUMNS + np.floor(x - 0.5) + 2
    touched = inside & _TOUCHED[np.where(inside, first, 0).astype(np.int64)]
    quarter = angle % 90.0 == 0
    touched[quarter] = True
    where = np.flatnonzero(touched)
    tile, pixel = np.divmod(where, TILE * TILE)
    w = _bicubic(x.ravel()[where].clip(0, 8 - 1e-9), y.ravel()[where].clip(0, 8 - 1e-9), 1.0)
    # Pillow turns multiples of 90 degrees without interpolating.
    turned = np.stack([np.rot90(_ELLIPSE, k).ravel() for k in range(4)])
    exact = quarter[tile]
    w[exact] = turned[(angle[tile[exact]] % 360 // 90).astype(np.int64), pixel[exact]]
    value = colour[tile] * w[:, None]
    # Next to a whole number, rounding decides what truncation gives: repeat it as Pillow does.
    doubtful, channel = np.nonzero((np.abs(value - np.rint(value)) < 1e-7) & ~exact[:, None])
    if len(doubtful):
        turns = [-math.radians(a % 360.0) for a in angle[tile[doubtful]]]
        cos = np.array([round(math.cos(a), 15) for a in turns])
        sin = np.array([round(math.sin(a), 15) for a in turns])
        px, py = _PX[pixel[doubtful]], _PY[pixel[doubtful]]
        xy = _source(cos, sin, px, py)
        value[doubtful, channel] = _bicubic(*xy, colour[tile[doubtful], channel])
    return where, value.clip(0, 255).astype(np.int32)


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
    out = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    edge = SIZE + 2 * TILE
    tile_pixels = (np.arange(TILE)[:, None] * edge + np.arange(TILE)).ravel()
    for start in range(0, len(labels), chunk):
        part = labels[start : start + chunk]
        n = len(part)
        # A margin of one tile takes what hangs over the picture's edge.
        canvas = np.zeros((n * edge * edge, 3), np.int32)
        for i in range(GRID):
            for j in range(GRID):
                ellipse = part[:, i, j]
                colour = np.concatenate((ellipse[:, 3:], np.full((n, 1), 255.0)), 1)
                where, premultiplied = _rotated_ellipse(ellipse[:, 2], colour)
                tile, pixel = np.divmod(where, TILE * TILE)
                corner = (ellipse[:, 1] + TILE) * edge + ellipse[:, 0] + TILE
                corner = corner.astype(np.int64) + np.arange(n) * edge * edge
                target = corner[tile] + tile_pixels[pixel]
                alpha = premultiplied[:, 3:]
                plain = np.minimum(255 * premultiplied[:, :3] // np.maximum(alpha, 1), 255)
                mixed = canvas[target] * (255 - alpha) + plain * alpha + 128
                canvas[target] = ((mixed >> 8) + mixed) >> 8
        canvas = canvas.reshape(n, edge, edge, 3)
        out[start : start + n] = canvas[:, TILE:-TILE, TILE:-TILE]
    return out
