"""The entropy of MSDS's generator: no model can need fewer bits per picture on average."""

import numpy as np
import torch
import torch.nn.functional as F

from rgflow_core import msds
from study import statistics

_STEP = 2.0**-10  # degrees, less than nearly all cells


def cells(labels: np.ndarray) -> np.ndarray:
    """Degrees over which an ellipse, turned alone, shows as the same picture: (N, 4, 4)."""
    pictures, widths = msds.render(labels), np.zeros(labels.shape[:3])
    for i, j, turn in np.ndindex(2, 2, 2):
        # Ellipses two tiles apart never meet, so that a quarter of them are turned at once.
        ours = (slice(None), slice(i, None, 2), slice(j, None, 2))

        def changes(by: np.ndarray, ours: tuple = ours, turn: int = turn) -> np.ndarray:
            turned = labels.copy()
            turned[(*ours, 2)] += (2 * turn - 1) * by
            differs = torch.from_numpy((msds.render(turned) != pictures).any(-1))
            # A tile and the pixel around it that it may be moved by; labels are [column, row].
            near = F.max_pool2d(differs.float(), msds.TILE + 2, msds.TILE, padding=1)
            return near.numpy().swapaxes(1, 2)[ours] > 0

        high = np.full(widths[ours].shape, _STEP)
        while (same := ~changes(high) & (high < 180)).any():
            high = np.where(same, 2 * high, high)
        low = np.where(high > _STEP, high / 2, 0)
        for _ in range(10):
            middle = (low + high) / 2
            changed = changes(middle)
            low, high = np.where(changed, low, middle), np.where(changed, middle, high)
        widths[ours] += (low + high) / 2
    return np.minimum(widths, 180)


def bits(name: str, pictures: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Entropy of a set: the mean over test pictures of -log2 of a picture's probability.

    That is the probability of its colours and positions times that of the angles that show as
    this picture. The global factor is integrated out: of MSDS1's base colour, and of MSDS2's base
    angle, a picture tells the range that its 16 ellipses leave. Not counted is that a raster can
    come back at distant angles, about a hundredth of a bit an ellipse.

    Args:
        name: "msds1" or "msds2".
        pictures: how many.
        seed: of the pictures.

    Returns:
        Bits of all ``colour``s, ``angle``s and ``position``s, of the ``picture``, and ``bpd``, each
        as of :func:`statistics.mean` over pictures.
    """
    labels = msds.labels(name, "test", 0, pictures, seed)
    angle, colour = labels[..., 2].reshape(pictures, -1), labels[..., 3:].reshape(pictures, -1, 3)
    if name == "msds1":
        # Whole numbers: the base from 32 to 223, each ellipse's own part from -32 to 32.
        left = np.minimum(colour.min(1) + 32, 223) - np.maximum(colour.max(1) - 32, 32) + 1
        colours = 3 * 16 * np.log2(65) - np.log2(left / 192).sum(1)
        shared, own = 0, 180
    else:
        left = np.minimum(angle.min(1), 180) - np.maximum(angle.max(1) - 45, 0)
        colours = np.full(pictures, 3 * 16 * 8)
        shared, own = -np.log2(left / 180), 45
    angles = shared - np.log2(cells(labels) / own).sum((1, 2))
    parts = {"colour": colours, "angle": angles, "position": np.full(pictures, 16 * np.log2(9))}
    parts["picture"] = sum(parts.values())
    parts["bpd"] = parts["picture"] / (3 * msds.SIZE**2)
    return {part: statistics.mean(values) for part, values in parts.items()}
