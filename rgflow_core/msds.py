"""Multi-scale dSprites (MSDS): 32 x 32 pictures of a 4 x 4 grid of ellipses on black.

MSDS1 shares a colour among the ellipses of a picture and leaves their angles free; MSDS2 shares
an angle and leaves the colours free (Hu et al., arXiv:2010.00029, section on synthetic data).
Labels are (N, 4, 4, 6) float64: x, y, angle in degrees, R, G, B of the ellipse in column i and
row j, indexed [i, j]. Pictures equal those of the published Pillow loop, pixel for pixel.
"""

from itertools import pairwise

import numpy as np

from rgflow_core import ellipses
from rgflow_core.ellipses import TILE
from rgflow_core.errors import UserError, check_counts

SETS = ("msds1", "msds2")
SPLITS = {"train": 90_000, "val": 10_000, "test": 10_000}
VERSION = 1
SIZE, GRID = 32, 4

_DRAWS = 16 * 6 + 4  # random numbers of one picture: a multiple of 4, Philox's block
_CHUNK = 128  # pictures drawn at a time: what is at work then fits into a cache


def labels(name: str, split: str, start: int, stop: int, seed: int = 0) -> np.ndarray:
    """Labels (stop - start, 4, 4, 6) of pictures start ... stop-1: a pure function of the arguments.

    Any range can be made anywhere, and there is no upper end: the generator (Philox) is moved to
    the first picture's counter. Splits have streams of their own. Angles keep their full
    precision; the published generators truncate them.

    Raises:
        UserError: names the argument, what is allowed and what was given.
    """
    if name not in SETS:
        raise UserError(f"set must be one of {SETS}, not {name!r}")
    if split not in SPLITS:
        raise UserError(f"split must be one of {tuple(SPLITS)}, not {split!r}")
    start, stop, seed = check_counts(0, start=start, stop=stop, seed=seed)
    if seed >= 2**63:
        raise UserError(f"seed must be below 2^63, not {seed}")
    if stop < start:
        raise UserError(f"the range must have start <= stop, not {start} ... {stop}")
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


def _check_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 4 or labels.shape[1:] != (GRID, GRID, 6):
        raise UserError(f"labels must have shape (N, 4, 4, 6), not {labels.shape}")
    if not np.isfinite(labels).all():
        raise UserError("labels must be finite")
    position, colour = labels[..., :2], labels[..., 3:]
    if not ((position == np.floor(position)) & (position >= -TILE) & (position <= SIZE)).all():
        raise UserError(f"positions must be whole numbers from {-TILE} to {SIZE}")
    if not ((colour == np.floor(colour)) & (colour >= 0) & (colour <= 255)).all():
        raise UserError("colours must be whole numbers from 0 to 255")
    return labels


def render(labels: np.ndarray) -> np.ndarray:
    """Draw labels (N, 4, 4, 6) as pictures, uint8 (N, 32, 32, 3).

    Raises:
        UserError: if labels are not finite, or positions or colours impossible.

    Example:
        >>> render(labels("msds1", "train", 0, 2)).shape
        (2, 32, 32, 3)
    """
    labels = _check_labels(labels)
    out = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    edge = SIZE + 2 * TILE  # a margin of one tile takes what hangs over the picture's edge
    offset = np.add.outer(np.arange(TILE) * edge, np.arange(TILE)).ravel()
    for start in range(0, len(labels), _CHUNK):
        part = labels[start : start + _CHUNK]
        n = len(part)
        # All first ellipses, all second ones, ...: later ones cover earlier ones.
        x, y, angle, *colour = part.reshape(n, -1, 6).transpose(2, 1, 0).reshape(6, -1)
        colour = np.stack([*colour, np.full(len(angle), 255)]).astype(np.float32)
        rgba, tile, pixel = ellipses.draw(angle, colour)
        corner = ((np.arange(len(angle)) % n * edge + y + TILE) * edge + x + TILE).astype(int)
        position = corner.take(tile) + offset.take(pixel)
        canvas = np.zeros(n * edge**2, np.uint32)
        for first, end in pairwise(np.searchsorted(tile, n * np.arange(GRID**2 + 1))):
            ellipses.paste(canvas, position[first:end], rgba[:, first:end])
        canvas = canvas.view(np.uint8).reshape(n, edge, edge, 4)
        for channel in range(3):  # one by one is quicker
            out[start : start + n, ..., channel] = canvas[:, TILE:-TILE, TILE:-TILE, channel]
    return out
