"""The generator's entropy, against parts that are known."""

import numpy as np
import pytest

from rgflow_core import msds
from study import entropy


def ellipses(angles, colour):
    """Labels of 16 ellipses a picture in the middle of their tiles, one for each angle."""
    label = np.zeros((len(angles) // 16, 4, 4, 6))
    label[..., :2] = msds.TILE * np.stack(np.indices((4, 4)), -1)
    label[..., 2] = angles.reshape(-1, 4, 4)
    label[..., 3:] = colour
    return label


@pytest.mark.parametrize("colour", [(60, 25, 10), (9, 3, 0)])
def test_cells_give_the_entropy_of_the_rasters_of_a_fine_grid(colour):
    angles = 2**15
    labels = ellipses(180 * np.arange(angles) / angles, colour)
    tiles = msds.render(labels).reshape(-1, 4, 8, 4, 8, 3).transpose(0, 3, 1, 2, 4, 5)
    counts = np.unique(tiles.reshape(angles, -1), axis=0, return_counts=True)[1]
    wanted = -(counts / angles * np.log2(counts / angles)).sum()
    drawn = np.random.default_rng(0).uniform(0, 180, 512)
    bits = -np.log2(entropy.cells(ellipses(drawn, colour)) / 180)
    # The grid does not tell apart all rasters of the first colour, by 0.05 bits or less.
    assert bits.mean() == pytest.approx(wanted, abs=0.05 + 3 * bits.std() / 512**0.5)


def test_a_black_ellipse_can_be_turned_anywhere_and_covers_what_lies_below():
    labels = ellipses(np.full(16, 20.0), (200, 120, 60))
    alone = entropy.cells(labels)
    labels[0, 1, 1, 3:] = 0
    assert entropy.cells(labels)[0, 1, 1] == 180
    labels[0, 2, 2, :2] -= 4  # over a part of it
    assert (entropy.cells(labels) > 1.5 * alone).sum() >= 1
