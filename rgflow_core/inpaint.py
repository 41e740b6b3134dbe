"""Restore a corrupted patch by optimising latents: those that it touches, or all."""

import time

import torch
from torch import Tensor

from rgflow_core import cones, images
from rgflow_core.analysis import encode
from rgflow_core.model import PictureModel

SIGMA = 0.05  # how far known pixels may be off, in [0, 1]


def patch(size: int, edge: int) -> Tensor:
    """A square patch in the middle of a picture, bool (L, L)."""
    marked = torch.zeros(size, size, dtype=torch.bool)
    start = (size - edge) // 2
    marked[start : start + edge, start : start + edge] = True
    return marked


def restore(
    model: PictureModel,
    pictures: Tensor,
    missing: Tensor,
    local: bool,
    steps: int = 60,
    rate: float = 0.1,
    seed: int = 0,
) -> tuple[Tensor, dict[str, float]]:
    """Fill in missing pixels by the latents that best explain the known ones.

    Minimises -log p(z) + |known pixels' error|^2 / (2 SIGMA^2) by Adam, starting at the latents of
    the pictures with the patch set to grey.

    Args:
        model: flow and prior.
        pictures: uint8 (N, C, L, L).
        missing: pixels that are not known, bool (L, L).
        local: free only the latents that the patch can touch (Hu et al.: O(log L) of them); else
            all.
        steps, rate: of Adam.
        seed: of the dequantisation noise.

    Returns:
        Pictures in [0, 1] with the patch restored; and ``psnr`` of the patch in decibel, the number
        of free ``variables`` of a picture, and ``seconds`` for all.
    """
    config, flow = model.flow.config, model.flow.fold()
    corrupted = torch.where(missing, torch.full_like(pictures, 128), pictures)
    z = encode(model, corrupted, seed)
    free = cones.inference_cone(config, missing) if local else torch.ones_like(missing)
    prior = model.prior.distribution(config, like=z)
    truth, known = pictures / 255, ~missing
    moved = z[..., free].clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=rate)
    start = time.perf_counter()
    for _ in range(steps):
        whole = z.clone()
        whole[..., free] = moved
        x = images.from_logit(flow.inverse(whole)[0], clip=False)
        error = (x - truth)[..., known].square().sum() / (2 * SIGMA**2)
        loss = error - prior.log_prob(whole).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        z[..., free] = moved
        x = images.from_logit(flow.inverse(z)[0])
    restored = torch.where(missing, x, truth)
    psnr = -10 * (restored - truth)[..., missing].square().mean().log10().item()
    variables = config.channels * int(free.sum())
    return restored, {"psnr": psnr, "variables": variables, "seconds": seconds}
