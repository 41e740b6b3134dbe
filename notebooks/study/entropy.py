"""How many angles of an ellipse show as the same picture: what notebook 01 needs for the entropy."""

import numpy as np
import torch
import torch.nn.functional as F

from rgflow_core import msds

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
