"""RG-Flow: an invertible renormalization group on a lattice of pixels.

Level h = 0 (finest) ... n-1 (coarsest) acts on the pixels whose row and column are multiples of
2^h. It cuts that sub-lattice into m x m blocks, twice: the decimator's blocks start at (0, 0),
the disentangler's at (m/2, m/2), periodically. After a level one pixel of every 2 x 2 cell goes
on to the next level; the other three stay where they are as latents of this level, as in a
multi-scale entanglement renormalization ansatz (MERA). Source: Hu et al., arXiv:2010.00029.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgflow_core.couplings import COUPLINGS
from rgflow_core.errors import UserError, check_counts
from rgflow_core.networks import SUBNETS, PublishedSubnet, merge_parity, split_parity

OURS = ("lean", "autoregressive")  # subnets that serve every coupling and can start from data
LARGEST = 4096  # edge: beyond it, a damaged or malicious file is more likely than a use


def _pair(value: object) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


@dataclass(frozen=True)
class RGFlowConfig:
    """Everything that defines the function an :class:`RGFlow` computes, but its weights.

    Args:
        image_size: edge L of the picture, kernel * 2^k.
        channels: colours C of a pixel.
        kernel: block edge m, even.
        coupling_layers: of each block; one value for all levels, or one per level, finest first,
            which can be a pair, for its decimator and its disentangler.
        res_blocks, hidden, mlp_depth: residual blocks per network, width of the hidden layers,
            and hidden layers in a residual block; one value for all levels, or one per level.
        first_parity: checkerboard half that conditions the first half-step: "even" in the
            authors' code, "odd" in IGF23's.
        order: from picture to latents, "code" runs the decimator first, as both published codes
            do; "paper" the disentangler, as in the paper's text.
        subnet: "published", "lean", or "autoregressive", with which each layer is an
            :class:`AutoregressiveLayer`; see :data:`rgflow_core.networks.SUBNETS`.
        coupling: "affine", as published, or "nlsq" (not with published subnets), see
            :mod:`rgflow_core.couplings`.

    Example:
        >>> RGFlowConfig(image_size=16, coupling_layers=(4, 4, 4)).levels
        3
    """

    image_size: int = 32
    channels: int = 3
    kernel: int = 4
    coupling_layers: tuple[int | tuple[int, int], ...] | int = 4
    res_blocks: tuple[int, ...] | int = 4
    hidden: tuple[int, ...] | int = 512
    mlp_depth: tuple[int, ...] | int = 2
    first_parity: str = "even"
    order: str = "code"
    subnet: str = "published"
    coupling: str = "affine"

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, rule: str) -> None:
            if not holds:
                raise UserError(f"{field} must {rule}, not {getattr(self, field)!r}")

        for field in ("image_size", "channels", "kernel"):
            (value,) = check_counts(**{field: getattr(self, field)})
            object.__setattr__(self, field, value)
        require(self.kernel % 2 == 0, "kernel", "be even")
        fits = self.image_size == self.kernel << max(self.levels - 1, 0) <= LARGEST
        require(fits, "image_size", f"be kernel ({self.kernel}) * 2^k, at most {LARGEST}")
        for field in ("coupling_layers", "res_blocks", "hidden", "mlp_depth"):
            value = getattr(self, field)
            values = value if isinstance(value, tuple | list) else (value,) * self.levels
            rule = f"have one value per level, finest first: {self.levels}"
            require(len(values) == self.levels, field, rule)
            pairs = [_pair(v) if field == "coupling_layers" else (v, v) for v in values]
            require(all(len(pair) == 2 for pair in pairs), field, "hold numbers or pairs of them")
            # One spelling for each config: a number stands for two equal ones.
            plain = [[check_counts(**{field: n})[0] for n in pair] for pair in pairs]
            object.__setattr__(self, field, tuple(a if a == b else (a, b) for a, b in plain))
        choices = {
            "first_parity": ("even", "odd"),
            "order": ("code", "paper"),
            "subnet": tuple(SUBNETS),
            "coupling": tuple(COUPLINGS),
        }
        for field, allowed in choices.items():
            require(getattr(self, field) in allowed, field, f"be one of {allowed}")
        fits = self.coupling == "affine" or self.subnet in OURS
        require(fits, "coupling", f"be 'affine' with {self.subnet} subnets")

    @property
    def levels(self) -> int:
        """Number n = log2(L / m) + 1 of RG levels."""
        return (self.image_size // self.kernel).bit_length()

    @property
    def couplings(self) -> tuple[tuple[int, int], ...]:
        """Coupling layers of each level's (decimator, disentangler), finest level first."""
        return tuple(map(_pair, self.coupling_layers))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, L, L) of one picture and of its latents."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def dim(self) -> int:
        """Dimensions D = C L^2."""
        return self.channels * self.image_size**2

    def to_dict(self) -> dict:
        """Plain values for JSON; :func:`config_of` takes them back."""
        return json.loads(json.dumps(asdict(self)))

    def build(self) -> "RGFlow":
        return RGFlow(self)


CONFIGS: dict[str, type[RGFlowConfig]] = {"rgflow": RGFlowConfig}
"""By the field "flow", which ours does not have; a study may add flows of its own."""


def config_of(fields: dict) -> RGFlowConfig:
    """The config of :meth:`RGFlowConfig.to_dict`; :class:`UserError` if its flow is not known."""
    if (name := fields.get("flow", "rgflow")) not in CONFIGS:
        raise UserError(f"flow {name!r} is none of {tuple(CONFIGS)}; import what adds it")
    return CONFIGS[name](**fields)


# Config fields of our models, and how many parameters each has at 32 x 32 x 3.
LEAN_AFFINE = {"subnet": "lean", "res_blocks": 1, "hidden": 96, "mlp_depth": 2}  # 1.64 M
LEAN = LEAN_AFFINE | {"hidden": 88, "coupling": "nlsq"}  # 1.83 M
LEAN8 = LEAN | {"kernel": 8, "coupling_layers": (6, 2, 1), "order": "paper"}  # 2.41 M
LEAN8_AUTOREGRESSIVE = LEAN8 | {"subnet": "autoregressive", "hidden": 96}  # 2.34 M


def lattice_levels(image_size: int, kernel: int) -> Tensor:
    """Level at which each pixel becomes a latent, shape (L, L), whole numbers 0 ... n-1."""
    levels = torch.zeros(image_size, image_size, dtype=torch.long)
    for h in range(1, (image_size // kernel).bit_length()):
        levels[:: 2**h, :: 2**h] = h
    return levels


def decimate(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Split every 2 x 2 cell of a grid (B, C, l, l) into the pixel that goes on and the others.

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

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Halves a, b (N, d/2), a conditions first, to halves and the log-derivatives of each."""
        parameters = self.subnet.prepare()
        b, log_b = self.map(b, *parameters(a, 0))
        a, log_a = self.map(a, *parameters(b, 1))
        return a, b, log_a, log_b

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Undo :meth:`forward`, the second half-step first; log-derivatives of the inverse."""
        parameters = self.subnet.prepare()
        a, log_a = self.inverse_map(a, *parameters(b, 1))
        b, log_b = self.inverse_map(b, *parameters(a, 0))
        return a, b, log_a, log_b


class AutoregressiveLayer(CouplingLayer):
    """Each position is moved given those before it; the Jacobian is triangular in their order.

    Both halves are one block here. Inference is one pass (Papamakarios et al. 2017,
    arXiv:1705.07057), generation a pass of the network for each of the m^2 positions.
    """

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = torch.cat((a, b), -1)
        y, log_derivative = self.map(x, *self.subnet.prepare()(x))
        return *y.chunk(2, -1), *log_derivative.chunk(2, -1)

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, parameters = torch.cat((a, b), -1), self.subnet.prepare()
        x = log_derivative = torch.zeros_like(y)
        for which in self.subnet.order:
            value, log = self.inverse_map(y[:, which], *parameters(x, which))
            x = x.index_copy(1, which, value)
            log_derivative = log_derivative.index_copy(1, which, log)
        return *x.chunk(2, -1), *log_derivative.chunk(2, -1)


class BlockBijection(nn.Module):
    """One bijection applied to all m x m blocks of a grid: a decimator or a disentangler.

    It has so many ``couplings`` of the sizes of its RG level. Blocks start at row and column
    ``offset``, 0 or m/2, and wrap around.
    """

    def __init__(self, config: RGFlowConfig, level: int, couplings: int, offset: int) -> None:
        super().__init__()
        self.block, self.offset = (config.channels, config.kernel), offset
        self.odd_first = config.first_parity == "odd"
        self.checkpointing = False
        sizes = (config.res_blocks[level], config.hidden[level], config.mlp_depth[level])
        autoregressive, outputs = config.subnet == "autoregressive", COUPLINGS[config.coupling][2]
        layer = AutoregressiveLayer if autoregressive else CouplingLayer
        self.couplings = nn.ModuleList()
        for k in range(couplings):
            # The order of positions alternates.
            flag = k % 2 == 1 if autoregressive else self.odd_first
            subnet = SUBNETS[config.subnet](self.block, sizes, flag, outputs)
            self.couplings.append(layer(subnet, config.coupling))

    def forward(
        self, grid: Tensor, inverse: bool = False, sites: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform a grid (B, C, l, l), or undo it.

        Returns:
            Grid of the same shape, and log-determinant (B,) or, with ``sites``, the
            log-derivatives (B, C, l, l) where they arise.
        """
        blocks = self.blocks(grid)
        # Without gradients, part by part: intermediate values then stay in a CPU's cache.
        whole = torch.is_grad_enabled() or blocks.is_cuda
        parts = [blocks] if whole else blocks.split(4096)
        results = [self._run(part, inverse, sites) for part in parts]
        blocks, log_det = map(torch.cat, zip(*results, strict=True))
        log_det = self._grid(log_det, grid) if sites else log_det.reshape(len(grid), -1).sum(1)
        return self._grid(blocks, grid), log_det

    def _run(self, blocks: Tensor, inverse: bool, sites: bool) -> tuple[Tensor, Tensor]:
        """Blocks (N, C m^2) to blocks and log-determinant (N,) or log-derivatives (N, C m^2)."""

        def merge(a: Tensor, b: Tensor) -> Tensor:
            return merge_parity(*((b, a) if self.odd_first else (a, b)), *self.block)

        (a, b), total = self.halves(blocks), 0
        for layer in reversed(self.couplings) if inverse else self.couplings:
            step = layer.inverse if inverse else layer
            if self.checkpointing and torch.is_grad_enabled():
                step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
            a, b, log_a, log_b = step(a, b)
            total = total + (merge(log_a, log_b) if sites else log_b.sum(-1) + log_a.sum(-1))
        return merge(a, b), total

    def halves(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """The checkerboard halves of blocks (N, C m^2), that which conditions first first."""
        even, odd = split_parity(blocks, *self.block)
        return (odd, even) if self.odd_first else (even, odd)

    def blocks(self, grid: Tensor) -> Tensor:
        """(B, C, l, l) to flattened blocks (B * (l/m)^2, C m^2), channel first, row-major."""
        (batch, channels, edge, _), m = grid.shape, self.block[1]
        grid = torch.roll(grid, (-self.offset, -self.offset), (-2, -1)) if self.offset else grid
        cells = grid.reshape(batch, channels, edge // m, m, edge // m, m)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * m * m)

    def _grid(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Inverse of :meth:`blocks`, of the shape of ``like``."""
        (batch, channels, edge, _), m = like.shape, self.block[1]
        cells = blocks.reshape(batch, edge // m, edge // m, channels, m, m)
        grid = cells.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)
        return torch.roll(grid, (self.offset, self.offset), (-2, -1)) if self.offset else grid


class Level(nn.Module):
    """One renormalization step on its own sub-lattice: decimator and disentangler."""

    def __init__(self, config: RGFlowConfig, level: int) -> None:
        super().__init__()
        decimator, disentangler = config.couplings[level]
        self.decimator = BlockBijection(config, level, decimator, offset=0)
        self.disentangler = BlockBijection(config, level, disentangler, offset=config.kernel // 2)
        self.order = config.order

    def layers(self) -> list[BlockBijection]:
        """Decimator and disentangler in the order of inference."""
        layers = [self.decimator, self.disentangler]
        return layers[::-1] if self.order == "paper" else layers

    def standardise(self, grid: Tensor) -> None:
        """Let the first layer give grids (B, C, l, l) mean 0 and deviation 1."""
        first = self.layers()[0]
        first.couplings[0].subnet.standardise(*first.halves(first.blocks(grid)))

    def forward(
        self, grid: Tensor, inverse: bool = False, sites: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both layers, each as :meth:`BlockBijection.forward`; same arguments and results."""
        total = 0
        for layer in reversed(self.layers()) if inverse else self.layers():
            grid, log_det = layer(grid, inverse, sites)
            total = total + log_det
        return grid, total


class RGFlow(nn.Module):
    """The hierarchical flow between transformed pictures y and latents z, both (B, C, L, L).

    Latents are kept at the pixel where they were left (see :func:`lattice_levels`).

    Example:
        >>> flow = RGFlow(RGFlowConfig(image_size=8, coupling_layers=1, **LEAN))
        >>> z, log_det = flow(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, config: RGFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(Level(config, h) for h in range(config.levels))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1:] != self.config.shape or not len(x):
            raise UserError(f"expected shape (B >= 1, *{self.config.shape}), got {tuple(x.shape)}")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype:
            raise UserError(f"expected {dtype} like the weights, got {x.dtype}")

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inference (renormalization): y (B, C, L, L) to z and log|det dz/dy| (B,).

        Raises:
            UserError: if y does not have the configured shape, or not the weights' dtype.
        """
        _, _, latents, log_dets = zip(*self.encode(y), strict=True)
        return self.join(latents), sum(log_dets)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Generation, coarse to fine: z (B, C, L, L) to y and log|det dy/dz| (B,)."""
        self._check(z)
        _, grids, log_dets = zip(*self.decode(self.split(z)), strict=True)
        return grids[-1], sum(log_dets)

    def encode(
        self, y: Tensor, sites: bool = False
    ) -> Iterator[tuple[int, Tensor | None, Tensor, Tensor]]:
        """Inference of y (B, C, L, L) level by level, finest first.

        Yields:
            (h, grid, latents, log_det): the grid (B, C, l/2, l/2) that goes on to level h + 1,
            ``None`` at the top; the latents of level h, as in :meth:`split`; the level's
            log-determinant (B,), or with ``sites`` its log-derivatives (B, C, l, l).
        """
        self._check(y)
        for h, level in enumerate(self.levels):
            y, log_det = level(y, sites=sites)
            y, latents = decimate(y) if h < len(self.levels) - 1 else (None, y)
            yield h, y, latents, log_det

    def decode(self, latents: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Generation level by level, coarsest first, from latents as of :meth:`split`.

        Yields:
            (h, grid (B, C, l, l), log-determinant of the level's inverse (B,)).
        """
        grid = None
        for h, (level, own) in reversed([*enumerate(zip(self.levels, latents, strict=True))]):
            grid = own if grid is None else undecimate(grid, own)
            grid, log_det = level(grid, inverse=True)
            yield h, grid, log_det

    def split(self, z: Tensor) -> list[Tensor]:
        """Latents of each level, finest first: (B, C, 3, l/2, l/2), at the top (B, C, m, m)."""
        if z.shape[1:] != self.config.shape:
            raise UserError(f"latents must be (B, *{self.config.shape}), not {tuple(z.shape)}")
        latents = []
        for _ in range(self.config.levels - 1):
            z, left = decimate(z)
            latents.append(left)
        return [*latents, z.clone()]  # none of them is a view of z

    def join(self, latents: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`split`: back to the lattice, (B, C, L, L)."""
        if len(latents) != self.config.levels:
            raise UserError(f"latents of {self.config.levels} levels, not {len(latents)}")
        z = latents[-1]
        for left in reversed(latents[:-1]):
            z = undecimate(z, left)
        return z

    def standardise(self, y: Tensor) -> None:
        """Start a new flow from data y (B, C, L, L): its first layer gives them mean 0, deviation 1.

        Raises:
            UserError: of published subnets, whose gain starts at zero.
        """
        if self.config.subnet not in OURS:
            raise UserError(f"only {OURS} subnets start from data, not {self.config.subnet}")
        self._check(y)
        self.levels[0].standardise(y)

    def use_checkpointing(self) -> None:
        """Recompute each coupling layer in the backward pass: less memory, more time."""
        for module in self.modules():
            if isinstance(module, BlockBijection):
                module.checkpointing = True

    def fold(self) -> "RGFlow":
        """A copy for inference, with weight normalisation folded into plain weights."""
        folded = copy.deepcopy(self).requires_grad_(False).eval()
        for module in folded.modules():
            if isinstance(module, PublishedSubnet):
                module.fold_()
        return folded
