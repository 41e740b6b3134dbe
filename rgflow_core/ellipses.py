"""Many rotated ellipses at once, pixel for pixel as Pillow draws one.

Pillow fills an ellipse on an 8 x 8 tile, rotates the tile with bicubic interpolation, in
premultiplied alpha, and pastes it with its own alpha. The tile has one colour only, so a pixel of
the rotated tile is one number, how much of it the ellipse covers, times the colour and times
alpha. Two facts make that number cheap.

Interpolation is separable, and the ellipse has two kinds of rows: 3 and 5, filled from column 2 to
6, and 4, filled from 1 to the tile's edge. So the coverage at a point (x, y) of the tile is
``outer(y) * short(x) + middle(y) * long(x)``, four piecewise cubic polynomials (:func:`_coverage`).

Pillow cuts products off to whole numbers. Where an error of the coverage could change one of them,
single precision gives way to double, and that to Pillow itself (:func:`draw`).
"""

import numpy as np

TILE = 8
_SLACK = {np.dtype(np.float32): 6e-6, np.dtype(np.float64): 1e-11}  # more than a coverage's error
# Centres of the tile's 64 pixels, row by row, from the centre of rotation.
_CENTRES = np.stack(np.meshgrid(np.arange(TILE), np.arange(TILE))).reshape(2, -1) - 3.5


def _row(t: np.ndarray) -> np.ndarray:
    """A filled row that ends, interpolated ``t`` pixels beyond the last filled one.

    With w Pillow's cubic kernel this is w(t) + w(t + 1) + w(t + 2) + ...: 1 where t <= -1, 1 - t
    between 0 and 1, 0 where t >= 2, and more or less than that by a cubic in between.
    """
    t = np.minimum(np.maximum(t, -1), 2)
    before, behind = np.minimum(t, 0), np.maximum(t - 1, 0)
    return 1 - t - before * before * (t + 2) + behind * behind * (3 - t)


def _source(turn: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a pixel of the rotated tile comes from: x from the tile's centre, u from the middle row.

    Args:
        turn: cosine and sine of the angle, counter-clockwise.
        centre: x and y of the pixel, from the tile's centre; all four are broadcast.
    """
    (cos, sin), (x, y) = turn, centre
    return cos * x - sin * y, abs(sin * x + cos * y - 0.5)


def _coverage(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """How much of a pixel that comes from (x, u), see :func:`_source`, the ellipse covers.

    Returns:
        The coverage, at times below 0 or above 1; NaN at the tile's edge, where it jumps.
    """
    # w(t) = (1 - t) max(2 - t, 0)^2 + (2 t - 3) max(1 - t, 0)^2 for t >= 0.
    one, two, three = (np.maximum(k - u, 0) for k in (1, 2, 3))
    one, two, three = one * one, two * two, three * three
    middle = (1 - u) * two + (2 * u - 3) * one  # w(u)
    outer = (2 - u) * three + (2 * u - 5) * two + (2 - 3 * u) * one  # w(u - 1) + w(u + 1)
    # The short rows end on both sides; the long one only on the left, for the edge repeats.
    cover = outer * _row(abs(x - 0.5) - 2) + middle * _row(-2.5 - x)
    outside = abs(x) - TILE / 2
    cover[outside >= 0] = 0
    cover[abs(outside) < _SLACK[cover.dtype]] = np.nan
    return cover


def _premultiplied(cover: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels (4, P) of P pixels, cut off, and which pixels (P,) an error could change."""
    slack = _SLACK[cover.dtype]
    bounds = np.maximum(cover - slack, 0), cover + slack
    low, high = (np.minimum(np.floor(bound * colour), 255) for bound in bounds)
    return low, (low != high).any(0)  # NaN differs from itself


def _by_pillow(angle: float, colour: np.ndarray) -> np.ndarray:
    """R, G, B and alpha (4, 64) of one rotated tile."""
    from PIL import Image, ImageDraw

    tile = Image.new("RGBA", (TILE, TILE), (255, 255, 255, 0))
    ImageDraw.Draw(tile).ellipse((1, 3, 7, 5), fill=tuple(int(c) for c in colour))
    return np.asarray(tile.rotate(angle, Image.Resampling.BICUBIC)).reshape(-1, 4).T


def draw(angle: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw an ellipse on each of n transparent tiles, and rotate them.

    Args:
        angle: (n,), degrees counter-clockwise.
        colour: (4, n) float32, whole numbers: R, G, B, and 255.

    Returns:
        R, G, B and alpha (4, P), uint16, of all P pixels that are not transparent; the numbers of
        their tiles (P,), in order; and their positions on those (P,), 0 ... 63.
    """
    turn = np.radians(angle)
    turn = np.stack([np.cos(turn), np.sin(turn)])
    x, u = _source(turn.astype(np.float32)[..., None], _CENTRES.astype(np.float32))
    seen = np.flatnonzero((u < 3) & (abs(x) < TILE / 2 + 1e-5))
    cover = _coverage(x.take(seen), u.take(seen))
    visible = np.flatnonzero(~(cover < 1 / 256))  # alpha counts 255ths
    seen, cover = seen.take(visible), cover.take(visible)
    tile, pixel = seen >> 6, seen & 63
    colours = colour.take(tile, axis=1)
    rgba, doubtful = _premultiplied(cover, colours)
    doubtful = np.flatnonzero(doubtful)
    exact = _coverage(*_source(turn[:, tile[doubtful]], _CENTRES[:, pixel[doubtful]]))
    rgba[:, doubtful], left = _premultiplied(exact, colours[:, doubtful])
    # No longer premultiplied: every quotient is exact or far enough from a whole number.
    rgba[:3] = np.floor(rgba[:3] * 255 / np.maximum(rgba[3], 1))
    for number in np.unique(tile[doubtful[left]]):  # multiples of 90 degrees, and few others
        here = tile == number
        rgba[:, here] = _by_pillow(angle[number], colour[:, number])[:, pixel[here]]
    return rgba.astype(np.uint16), tile, pixel


def paste(canvas: np.ndarray, position: np.ndarray, rgba: np.ndarray) -> None:
    """Paste pixels with their alpha, rounded as Pillow rounds.

    Args:
        canvas: uint32, R, G, B and an idle byte in each, so that a pixel is moved at once.
        position: (P,), where on it; no place twice.
        rgba: (4, P) uint16.
    """
    pixels = canvas.take(position)
    *colours, alpha = rgba
    for value, channel in zip(colours, pixels.view(np.uint8).reshape(-1, 4).T, strict=False):
        mixed = value * alpha + channel * (255 - alpha) + np.uint16(128)
        channel[:] = ((mixed >> 8) + mixed) >> 8
    canvas[position] = pixels
