"""Causal cones of the lattice: what can touch what, whatever the weights are."""

import torch
from torch import Tensor

from rgflow_core.flow import RGFlowConfig, lattice_levels


def _offsets(config: RGFlowConfig) -> tuple[int, int]:
    """Block offsets of a level's layers in units of its lattice, in inference order."""
    order = (0, config.kernel // 2)
    return order if config.order == "code" else order[::-1]


def _spread(grid: Tensor, kernel: int, offset: int) -> Tensor:
    """Every block of a layer that holds a marked site becomes marked: (n, n) to (n, n)."""
    blocks = len(grid) // kernel
    rolled = grid.roll((-offset, -offset), (0, 1)).reshape(blocks, kernel, blocks, kernel)
    marked = rolled.any(3).any(1)
    marked = marked.repeat_interleave(kernel, 0).repeat_interleave(kernel, 1)
    return marked.roll((offset, offset), (0, 1))


def generation_cone(config: RGFlowConfig, row: int, column: int) -> Tensor:
    """Pixels that the latents left at a pixel can change in generation, bool (L, L)."""
    size = config.image_size
    marked = torch.zeros(size, size, dtype=torch.bool)
    marked[row, column] = True
    start = int(lattice_levels(size, config.kernel)[row, column])
    for h in range(start, -1, -1):
        grid = marked[:: 2**h, :: 2**h]
        for offset in reversed(_offsets(config)):
            grid = _spread(grid, config.kernel, offset)
        marked[:: 2**h, :: 2**h] = grid
    return marked


def inference_cone(config: RGFlowConfig, changed: Tensor) -> Tensor:
    """Positions whose latents a change of the marked pixels can touch, bool (L, L).

    For one pixel their number grows by the same amount with every doubling of L: O(log L), as Hu
    et al. claim.
    """
    marked = changed.clone()
    for h in range(config.levels):
        grid = marked[:: 2**h, :: 2**h]
        for offset in _offsets(config):
            grid = _spread(grid, config.kernel, offset)
        # What is not on the next level's lattice stays; it was touched by this level.
        marked[:: 2**h, :: 2**h] = grid
    return marked
