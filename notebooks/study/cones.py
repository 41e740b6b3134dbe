"""Causal cones of the lattice: what can touch what, whatever the weights are."""

from collections.abc import Iterable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from rgflow_core.flow import RGFlowConfig, lattice_levels


def _spread(config: RGFlowConfig, marked: Tensor, levels: Iterable[int], inverse: bool) -> Tensor:
    """Layer by layer, all of a block that holds a marked pixel becomes marked: bool (L, L)."""
    m, marked = config.kernel, marked.clone()
    offsets = (0, m // 2) if (config.order == "code") != inverse else (m // 2, 0)
    for h, offset in product(levels, offsets):
        grid = marked[:: 2**h, :: 2**h]  # what is not on the level's lattice stays
        blocks = F.max_pool2d(grid.roll((-offset, -offset), (0, 1)).float()[None], m)[0]
        grid.copy_(torch.kron(blocks, torch.ones(m, m)).roll((offset, offset), (0, 1)))
    return marked


def generation_cone(config: RGFlowConfig, row: int, column: int) -> Tensor:
    """Pixels that the latents left at a pixel can change in generation, bool (L, L)."""
    levels = lattice_levels(config.image_size, config.kernel)
    marked = torch.zeros(levels.shape, dtype=torch.bool)
    marked[row, column] = True
    return _spread(config, marked, range(int(levels[row, column]), -1, -1), inverse=True)


def inference_cone(config: RGFlowConfig, changed: Tensor) -> Tensor:
    """Positions whose latents a change of the marked pixels can touch, bool (L, L).

    For one pixel their number grows by the same amount with every doubling of L: O(log L), as Hu
    et al. claim.
    """
    return _spread(config, changed, range(config.levels), inverse=False)
