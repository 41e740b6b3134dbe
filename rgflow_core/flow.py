"""RG-Flow: an invertible renormalization group on a lattice of pixels.

Level h = 0 (finest) ... n-1 (coarsest) acts on the pixels whose row and column are multiples of
2^h. It cuts that sub-lattice into m x m blocks, twice: the decimator's blocks start at (0, 0),
the disentangler's at (m/2, m/2), periodically. After a level one pixel of every 2 x 2 cell goes
on to the next level; the other three stay where they are as latents of this level, as in a
multi-scale entanglement renormalization ansatz (MERA). Source: Hu et al., arXiv:2010.00029.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgflow_core.couplings import COUPLINGS
from rgflow_core.networks import SUBNETS, PublishedSubnet, merge_parity, split_parity

_CHOICES = {
    "first_parity": ("even", "odd"),
    "order": ("code", "paper"),
    "subnet": SUBNETS,
    "coupling": COUPLINGS,
}


LARGEST = 4096
"""Edge of a picture: beyond it, a damaged or malicious file is more likely than a use."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _as_pair(value: object) -> tuple:
    """Coupling layers of a level's decimator and disentangler."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return pair if len(pair) == 2 else (None, None)


@dataclass(frozen=True)
class RGFlowConfig:
    """Everything that defines the function an :class:`RGFlow` computes, but its weights.

    Args:
        image_size: edge L of the picture, kernel * 2^k.
        channels: colours C of a pixel.
        kernel: block edge m, even.
        coupling_layers: coupling layers in each block, one value per level, finest first; one
            value alone holds for all levels. A level's value can be a pair, for its decimator
            and its disentangler.
        res_blocks: residual blocks per network; one value, or one per level, finest first.
        hidden: width of the hidden layers; likewise.
        mlp_depth: hidden layers in a residual block; likewise.
        first_parity: checkerboard half that conditions the first half-step: "even" in the
            authors' code, "odd" in IGF23's.
        order: "code" runs the decimator before the disentangler from picture to latents, as
            both published codes do; "paper" the other way round, as in the paper's text.
        subnet: "published", "lean", or an ablation of the former, see
            :data:`rgflow_core.networks.SUBNETS`.
        coupling: "affine", as published, or "nlsq" (lean subnets only), see
            :mod:`rgflow_core.couplings`.

    Raises:
        ValueError: names the field and the rule it breaks.

    Example:
        >>> RGFlowConfig(image_size=16, coupling_layers=(4, 4, 4)).levels
        3
    """

    image_size: int = 32
    channels: int = 3
    kernel: int = 4
    coupling_layers: tuple[int | tuple[int, int], ...] | int = (4, 4, 4, 4)
    res_blocks: tuple[int, ...] | int = 4
    hidden: tuple[int, ...] | int = 512
    mlp_depth: tuple[int, ...] | int = 2
    first_parity: str = "even"
    order: str = "code"
    subnet: str = "published"
    coupling: str = "affine"

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "kernel"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number >= 1, not {getattr(self, name)!r}")
        if self.image_size > LARGEST:
            raise ValueError(f"image_size must be at most {LARGEST}, not {self.image_size}")
        if self.kernel % 2:
            raise ValueError(f"kernel must be even, not {self.kernel}")
        ratio, rest = divmod(self.image_size, self.kernel)
        if rest or ratio < 1 or ratio & (ratio - 1):
            raise ValueError(
                f"image_size must be kernel * 2^k = {self.kernel}, {2 * self.kernel}, "
                f"{4 * self.kernel}, ..., not {self.image_size}"
            )
        for name in ("coupling_layers", "res_blocks", "hidden", "mlp_depth"):
            value = getattr(self, name)
            one_for_all = not isinstance(value, tuple | list)
            values = (value,) * self.levels if one_for_all else tuple(value)
            if name == "coupling_layers":
                values = tuple(map(_as_pair, values))
                good = all(map(_is_count, sum(values, ())))
            else:
                good = all(map(_is_count, values))
            if not good:
                raise ValueError(f"{name} must hold whole numbers >= 1, not {value!r}")
            if len(values) != self.levels:
                raise ValueError(
                    f"{name} must have one value per level, finest first: {self.levels} values "
                    f"for image_size {self.image_size} and kernel {self.kernel}, not {value!r}"
                )
            # One spelling for each config: a number for all levels, or a pair of equal ones.
            values = tuple(v[0] if isinstance(v, tuple) and v[0] == v[1] else v for v in values)
            object.__setattr__(self, name, values)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {tuple(allowed)}, not {getattr(self, name)!r}"
                )
        if self.subnet != "lean" and self.coupling != "affine":
            raise ValueError(
                f"coupling must be 'affine' with {self.subnet} subnets, not {self.coupling!r}"
            )

    @property
    def levels(self) -> int:
        """Number n = log2(L / m) + 1 of RG levels."""
        return (self.image_size // self.kernel).bit_length()

    @property
    def couplings(self) -> tuple[tuple[int, int], ...]:
        """Coupling layers of each level's (decimator, disentangler), finest level first."""
        return tuple(map(_as_pair, self.coupling_layers))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, L, L) of one picture and of its latents."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def dim(self) -> int:
        """Dimensions D = C L^2."""
        return self.channels * self.image_size**2

    def to_dict(self) -> dict:
        """Plain values for JSON; ``RGFlowConfig(**d)`` takes them back."""
        return json.loads(json.dumps(asdict(self)))


LEAN_AFFINE = {"subnet": "lean", "res_blocks": 1, "hidden": 96, "mlp_depth": 2}
"""Config fields of the lean model with the published coupling: 1.64 M parameters at 32 x 32 x 3."""

LEAN = LEAN_AFFINE | {"hidden": 88, "coupling": "nlsq"}
"""Config fields of the lean model: 1.83 M parameters at 32 x 32 x 3."""


def lattice_levels(image_size: int, kernel: int) -> Tensor:
    """Level at which each pixel becomes a latent, shape (L, L), whole numbers 0 ... n-1."""
    levels = torch.zeros(image_size, image_size, dtype=torch.long)
    h = 0
    while image_size >> h > kernel:
        h += 1
        levels[:: 2**h, :: 2**h] = h
    return levels


def decimate(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Split every 2 x 2 cell into the pixel that goes on and the three that stay.

    Args:
        grid: (B, C, l, l).

    Returns:
        The coarse grid (B, C, l/2, l/2) and the latents (B, C, 3, l/2, l/2), at the cell's
        (row, column) = (0, 1), (1, 0), (1, 1).
    """
    latents = (grid[..., 0::2, 1::2], grid[..., 1::2, 0::2], grid[..., 1::2, 1::2])
    return grid[..., ::2, ::2], torch.stack(latents, -3)


def undecimate(coarse: Tensor, latents: Tensor) -> Tensor:
    """Inverse of :func:`decimate`."""
    top = torch.stack((coarse, latents[..., 0, :, :]), -1).flatten(-2)
    bottom = torch.stack((latents[..., 1, :, :], latents[..., 2, :, :]), -1).flatten(-2)
    return torch.stack((top, bottom), -2).flatten(-3, -2)


class CouplingLayer(nn.Module):
    """One layer of RealNVP (Dinh et al. 2016): each checkerboard half moves the other once."""

    def __init__(self, subnet: nn.Module, coupling: str) -> None:
        super().__init__()
        self.subnet = subnet
        self.map, self.inverse_map, _ = COUPLINGS[coupling]

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Halves (N, d/2) to halves and log-determinant (N,); a conditions first."""
        a, b, of_a, of_b = self.log_derivatives(a, b)
        return a, b, of_b.sum(-1) + of_a.sum(-1)

    def log_derivatives(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:meth:`forward` with the log-derivative of every value: a, b, and theirs (N, d/2)."""
        parameters = self.subnet.prepare()
        b, of_b = self.map(b, *parameters(a, 0))
        a, of_a = self.map(a, *parameters(b, 1))
        return a, b, of_a, of_b

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Undo :meth:`forward`, the second half-step first; log-determinant of the inverse."""
        parameters = self.subnet.prepare()
        a, log_det2 = self.inverse_map(a, *parameters(b, 1))
        b, log_det1 = self.inverse_map(b, *parameters(a, 0))
        return a, b, log_det1.sum(-1) + log_det2.sum(-1)


class BlockBijection(nn.Module):
    """One bijection applied to all m x m blocks of a grid: a decimator or a disentangler.

    Args:
        config: the flow's configuration.
        level: RG level, which selects the network sizes.
        couplings: number of coupling layers.
        offset: where the blocks start in rows and columns, 0 or m/2; they wrap around.
    """

    def __init__(self, config: RGFlowConfig, level: int, couplings: int, offset: int) -> None:
        super().__init__()
        self.channels, self.kernel, self.offset = config.channels, config.kernel, offset
        self.odd_first = config.first_parity == "odd"
        self.checkpointing = False
        sizes = (config.res_blocks[level], config.hidden[level], config.mlp_depth[level])
        self.couplings = nn.ModuleList(
            CouplingLayer(
                SUBNETS[config.subnet](
                    config.channels,
                    config.kernel,
                    *sizes,
                    config.first_parity,
                    COUPLINGS[config.coupling][2],
                ),
                config.coupling,
            )
            for _ in range(couplings)
        )

    def _blocks(self, grid: Tensor) -> Tensor:
        """(B, C, l, l) to flattened blocks (B * (l/m)^2, C m^2), channel first, row-major."""
        batch, channels, edge, _ = grid.shape
        m = self.kernel
        grid = torch.roll(grid, (-self.offset, -self.offset), (-2, -1)) if self.offset else grid
        cells = grid.reshape(batch, channels, edge // m, m, edge // m, m)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * m * m)

    def _grid(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        batch, channels, edge, _ = shape
        m = self.kernel
        cells = blocks.reshape(batch, edge // m, edge // m, channels, m, m)
        grid = cells.permute(0, 3, 1, 4, 2, 5).reshape(shape)
        return torch.roll(grid, (self.offset, self.offset), (-2, -1)) if self.offset else grid

    def _run(self, grid: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        blocks = self._blocks(grid)
        # Without gradients, part by part: intermediate values then stay in a CPU's cache.
        whole = torch.is_grad_enabled() or blocks.is_cuda
        parts = [self._run_blocks(p, inverse) for p in ([blocks] if whole else blocks.split(4096))]
        blocks, log_det = (torch.cat(p) for p in zip(*parts, strict=True))
        return self._grid(blocks, grid.shape), log_det.reshape(len(grid), -1).sum(1)

    def _run_blocks(self, blocks: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Blocks (N, C m^2) to blocks and log-determinant (N,)."""
        even, odd = split_parity(blocks, self.channels, self.kernel)
        a, b = (odd, even) if self.odd_first else (even, odd)
        log_det = a.new_zeros(len(a))
        layers = reversed(self.couplings) if inverse else self.couplings
        for layer in layers:
            step = layer.inverse if inverse else layer
            if self.checkpointing and torch.is_grad_enabled():
                step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
            a, b, layer_log_det = step(a, b)
            log_det = log_det + layer_log_det
        even, odd = (b, a) if self.odd_first else (a, b)
        return merge_parity(even, odd, self.channels, self.kernel), log_det

    def site_log_derivatives(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`forward` with the log-determinant's parts at their sites, both (B, C, l, l)."""
        halves = split_parity(self._blocks(grid), self.channels, self.kernel)
        a, b = halves[::-1] if self.odd_first else halves
        total_a, total_b = torch.zeros_like(a), torch.zeros_like(b)
        for layer in self.couplings:
            a, b, of_a, of_b = layer.log_derivatives(a, b)
            total_a, total_b = total_a + of_a, total_b + of_b
        pairs = ((a, b), (total_a, total_b))
        return tuple(
            self._grid(
                merge_parity(*(p[::-1] if self.odd_first else p), self.channels, self.kernel),
                grid.shape,
            )
            for p in pairs
        )

    def update(self, grid: Tensor, marked: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`forward` where only the blocks that hold a marked site are run.

        Args:
            grid: (B, C, l, l).
            marked: sites that differ from another grid, bool (B, l, l).
            before: what :meth:`forward` gave for that grid, (B, C, l, l).

        Returns:
            The output; the log-determinant of the blocks that were run, (B,); and the sites of
            these blocks, bool (B, l, l).
        """
        blocks, out = self._blocks(grid), self._blocks(before).clone()
        chosen = self._blocks(marked[:, None].expand(grid.shape)).any(1)
        out[chosen], log_det = self._run_blocks(blocks[chosen], inverse=False)
        picture = chosen.nonzero()[:, 0] // (len(blocks) // len(grid))
        total = log_det.new_zeros(len(grid)).index_add(0, picture, log_det)
        grown = self._grid(chosen[:, None].expand(blocks.shape), grid.shape)[:, 0]
        return self._grid(out, grid.shape), total, grown

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Grid (B, C, l, l) to grid of the same shape and log-determinant (B,)."""
        return self._run(grid, inverse=False)

    def inverse(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`; log-determinant of the inverse, (B,)."""
        return self._run(grid, inverse=True)


class Level(nn.Module):
    """One renormalization step on its own sub-lattice: decimator and disentangler."""

    def __init__(self, config: RGFlowConfig, level: int) -> None:
        super().__init__()
        decimator, disentangler = config.couplings[level]
        self.decimator = BlockBijection(config, level, decimator, offset=0)
        self.disentangler = BlockBijection(config, level, disentangler, offset=config.kernel // 2)
        self.order = config.order

    def layers(self) -> tuple[BlockBijection, BlockBijection]:
        """The two layers in the order from picture to latents."""
        if self.order == "code":
            return self.decimator, self.disentangler
        return self.disentangler, self.decimator

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Grid (B, C, l, l) of this level to the renormalised grid and log-determinant (B,)."""
        first, second = self.layers()
        grid, log_det1 = first(grid)
        grid, log_det2 = second(grid)
        return grid, log_det1 + log_det2

    def site_log_derivatives(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`forward` with the log-determinant's parts at their sites, both (B, C, l, l)."""
        first, second = self.layers()
        grid, log_derivative1 = first.site_log_derivatives(grid)
        grid, log_derivative2 = second.site_log_derivatives(grid)
        return grid, log_derivative1 + log_derivative2

    def inverse(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`; log-determinant of the inverse, (B,)."""
        first, second = self.layers()
        grid, log_det2 = second.inverse(grid)
        grid, log_det1 = first.inverse(grid)
        return grid, log_det1 + log_det2


class RGFlow(nn.Module):
    """The hierarchical flow between transformed pictures y and latents z, both (B, C, L, L).

    Latents are kept at the pixel where they were left (see :func:`lattice_levels`).

    Args:
        config: see :class:`RGFlowConfig`.

    Example:
        >>> flow = RGFlow(RGFlowConfig(image_size=8, coupling_layers=1, **LEAN))
        >>> z, log_det = flow(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, config: RGFlowConfig) -> None:
        super().__init__()
        if not isinstance(config, RGFlowConfig):
            raise ValueError(f"config must be an RGFlowConfig, not {type(config).__name__}")
        self.config = config
        self.levels = nn.ModuleList(Level(config, h) for h in range(config.levels))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1:] != self.config.shape or not len(x):
            raise ValueError(f"expected shape (B >= 1, {self.config.shape}), got {tuple(x.shape)}")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype:
            raise ValueError(f"expected {dtype} like the weights, got {x.dtype}")

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inference (renormalization): y (B, C, L, L) to z and log|det dz/dy| (B,).

        Raises:
            ValueError: if y does not have the configured shape.
        """
        self._check(y)
        latents, total = [], y.new_zeros(len(y))
        for h in range(self.config.levels):
            y, level_latents, log_det = self.level_forward(h, y)
            latents.append(level_latents)
            total = total + log_det
        return self.join(latents), total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Generation, coarse to fine: z (B, C, L, L) to y and log|det dy/dz| (B,).

        Raises:
            ValueError: if z does not have the configured shape.
        """
        total = z.new_zeros(len(z))
        y = z
        for _, y, log_det in self.inverse_steps(z):  # noqa: B007
            total = total + log_det
        return y, total

    def inverse_steps(self, z: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Generation, one level at a time: yields (h, grid (B, C, l, l), log_det (B,))."""
        self._check(z)
        latents = self.split(z)
        grid = None
        for h in reversed(range(self.config.levels)):
            grid, log_det = self.level_inverse(h, grid, latents[h])
            yield h, grid, log_det

    def level_forward(self, h: int, grid: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Run level h alone: grid to (coarse grid, latents, log_det).

        At the coarsest level everything is latent and the coarse grid is ``None``.
        """
        grid, log_det = self.levels[h](grid)
        if h == self.config.levels - 1:
            return None, grid, log_det
        return *decimate(grid), log_det

    def level_inverse(
        self, h: int, coarse: Tensor | None, latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Undo :meth:`level_forward`: (coarse grid or ``None``, latents) to (grid, log_det)."""
        grid = latents if coarse is None else undecimate(coarse, latents)
        return self.levels[h].inverse(grid)

    def split(self, z: Tensor) -> list[Tensor]:
        """Latents of each level, finest first: (B, C, 3, l/2, l/2), at the top (B, C, m, m)."""
        latents = []
        for _ in range(self.config.levels - 1):
            z, level_latents = decimate(z)
            latents.append(level_latents)
        return [*latents, z]

    def join(self, latents: list[Tensor]) -> Tensor:
        """Inverse of :meth:`split`: back to the lattice, (B, C, L, L)."""
        if len(latents) != self.config.levels:
            raise ValueError(f"latents must be {self.config.levels} tensors, not {len(latents)}")
        z = latents[-1]
        for level_latents in reversed(latents[:-1]):
            z = undecimate(z, level_latents)
        return z

    def use_checkpointing(self, on: bool = True) -> "RGFlow":
        """Recompute each coupling layer in the backward pass: less memory, more time."""
        for module in self.modules():
            if isinstance(module, BlockBijection):
                module.checkpointing = on
        return self

    def fold(self) -> "RGFlow":
        """A copy for inference, with weight normalisation folded into plain weights."""
        folded = copy.deepcopy(self).requires_grad_(False)
        for module in folded.modules():
            if isinstance(module, PublishedSubnet):
                module.fold_()
        return folded
