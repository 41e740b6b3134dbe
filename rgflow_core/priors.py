"""Factorised priors of the latents, as ``torch.distributions``.

The two published systems agree on the Gaussian but not on the Laplace prior: the authors' has
unit variance (scale 1/sqrt 2), IGF23's has scale 1 (variance 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Laplace, Normal

from rgflow_core.errors import UserError
from rgflow_core.flow import RGFlowConfig, lattice_levels

FAMILIES = {"laplace": Laplace, "gaussian": Normal}
NAMES = tuple(FAMILIES)
CONVENTIONS = ("unit_variance", "unit_scale")


@dataclass(frozen=True)
class Prior:
    """Which prior, "laplace" or "gaussian", and its scale: "unit_variance" or "unit_scale".

    Example:
        >>> config = RGFlowConfig(image_size=8, coupling_layers=1)
        >>> Prior("laplace").distribution(config).variance.mean().round(decimals=4)
        tensor(1.)
    """

    name: str = "laplace"
    convention: str = "unit_variance"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"prior must be one of {NAMES}, not {self.name!r}")
        if self.convention not in CONVENTIONS:
            raise UserError(f"convention must be one of {CONVENTIONS}, not {self.convention!r}")

    @property
    def scale(self) -> float:
        """Scale parameter at temperature 1."""
        narrow = (self.name, self.convention) == ("laplace", "unit_variance")
        return 1 / math.sqrt(2) if narrow else 1.0

    def distribution(
        self,
        config: RGFlowConfig,
        temperature: float | Sequence[float] = 1.0,
        like: Tensor | None = None,
    ) -> Distribution:
        """The prior over latents (C, L, L) of a flow, of the dtype and on the device of ``like``.

        A temperature multiplies the scale (both codes; IGF23's text has a Gaussian of variance T
        instead); it is one value, or one per level, finest first.

        Raises:
            UserError: if a temperature is not positive and finite, or the count is wrong.
        """
        values = torch.as_tensor(temperature, dtype=torch.float64).flatten().tolist()
        if len(values) not in (1, config.levels):
            raise UserError(
                f"temperature must be one value or {config.levels}, one per level, finest first; "
                f"got {len(values)} for {config.levels} levels"
            )
        if not all(math.isfinite(t) and t > 0 for t in values):
            raise UserError(f"temperature must be positive and finite, not {temperature}")
        like = torch.empty(()) if like is None else like
        per_level = like.new_tensor(values).expand(config.levels)
        levels = lattice_levels(config.image_size, config.kernel).to(like.device)
        scale = (self.scale * per_level[levels]).expand(config.shape)
        # No validation of values: a density that is not finite is for the caller to see.
        return Independent(
            FAMILIES[self.name](torch.zeros_like(scale), scale, validate_args=False), 3
        )
