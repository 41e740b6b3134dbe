"""Flow and prior together: a density over pictures, and a sampler of pictures."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rgflow_core.dequantiser import Dequantiser
from rgflow_core.errors import UserError, check_counts
from rgflow_core.flow import RGFlow
from rgflow_core.noise import HALF_STEP, stream, uniform
from rgflow_core.pixels import bits_per_dim, check_images, dequantise, from_logit, to_logit
from rgflow_core.priors import Prior

NOISE_STREAM, SAMPLE_STREAM = 1, 2


class PictureModel(nn.Module):
    """log p(picture) and samples, pictures in and pictures out.

    ``metadata`` says where a model was read from; without a dequantiser, the noise is uniform.

    Example:
        >>> from rgflow_core import LEAN, RGFlowConfig
        >>> config = RGFlowConfig(image_size=8, coupling_layers=1, **LEAN)
        >>> model = PictureModel(RGFlow(config), Prior("gaussian"))
        >>> model.sample(2, seed=0).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        flow: RGFlow,
        prior: Prior,
        metadata: dict | None = None,
        dequantiser: Dequantiser | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(prior, Prior):
            raise UserError(f'prior must be a Prior, such as Prior("laplace"), not {prior!r}')
        self.flow, self.prior, self.metadata = flow, prior, metadata or {}
        self.dequantiser = dequantiser

    @property
    def _like(self) -> Tensor:
        like = next(self.flow.parameters())
        if like.dtype.itemsize < 4:
            raise UserError(f"weights of {like.dtype} are too coarse; call .float() on the model")
        return like

    def noise(self, index: Tensor, seed: int = 0, epoch: int | Tensor = 0) -> Tensor:
        """Dequantisation noise (N, C, L, L), a function of (seed, epoch, image index)."""
        keys = stream(NOISE_STREAM, seed, epoch, index=index.to(self._like.device))
        noise = uniform(keys, self.flow.config.dim, self._like.dtype)
        return noise.reshape(-1, *self.flow.config.shape)

    def fold(self) -> "PictureModel":
        """For inference, see :meth:`RGFlow.fold`; the dequantiser is shared."""
        return PictureModel(self.flow.fold(), self.prior, self.metadata, self.dequantiser)

    def transform(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, uint8, and noise in [0, 1), both (B, C, L, L), to what the flow takes.

        Returns:
            y (B, C, L, L); the log-determinant (B,) of its logit, float64; and the
            log-derivatives (B, C, L, L) of the noise, zero where that is uniform.

        Raises:
            UserError: if images or noise have the wrong shape or type.
        """
        check_images(images, self.flow.config.shape)
        if noise.shape != images.shape:
            raise UserError(f"noise must have the images' shape, not {tuple(noise.shape)}")
        if not ((noise >= 0) & (noise < 1)).all():
            raise UserError("noise must lie in [0, 1)")
        like = self._like
        images = images.to(like.device)
        noise = noise.to(like).clamp(max=1 - 2 * HALF_STEP)  # rounded, it may be 1
        log_slope = torch.zeros_like(noise)
        if self.dequantiser is not None:
            noise, log_slope = self.dequantiser(images, noise)
        return *to_logit(dequantise(images, noise)), log_slope

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Log-density (B,), float64, of pictures; arguments of :meth:`transform`."""
        y, logit_log_det, log_slope = self.transform(images, noise)
        z, log_det = self.flow(y)
        base = self.prior.distribution(self.flow.config, like=z).base_dist
        log_prior = base.log_prob(z).flatten(1).sum(1, dtype=torch.float64)
        noise_log_det = log_slope.flatten(1).sum(1, dtype=torch.float64)
        return log_prior + log_det.double() + logit_log_det + noise_log_det

    def log_prob(self, images: Tensor, noise: Tensor | None = None, seed: int = 0) -> Tensor:
        """Log-density of dequantised pictures x = (x8 + u) / 256 in [0, 1)^D.

        Averaged over the noise it bounds log P(x8) + D log 256 from below. Of a model that learns
        its noise u = u(v, x8) it is log p(x) - log q(u | x8), with v in place of ``noise``: the
        same bound, tighter.

        Args:
            images: uint8 (B, C, L, L).
            noise: u in [0, 1), same shape; by default that of image indices 0 ... B-1, the same
                in every call: give ``seed=step`` in a training of your own.
            seed: of the default noise.

        Returns:
            (B,) float64, in nats.

        Raises:
            UserError: if images or noise have the wrong shape or type.
        """
        if noise is None:
            noise = self.noise(torch.arange(len(images)), seed)
        return self(images, noise)

    def bits_per_dim(self, images: Tensor, noise: Tensor | None = None, seed: int = 0) -> Tensor:
        """Bits per dimension of each picture, (B,) float64; arguments of :meth:`log_prob`."""
        return bits_per_dim(self.log_prob(images, noise, seed) / self.flow.config.dim)

    def latents(
        self, n: int, temperature: float | Sequence[float] = 1.0, seed: int = 0, start: int = 0
    ) -> Tensor:
        """Latents (n, C, L, L) drawn from the prior: numbers start ... start+n-1 of a seed.

        The same for any batching; a temperature per level is given finest first.
        """
        config, index = self.flow.config, torch.arange(start, start + n, device=self._like.device)
        keys = stream(SAMPLE_STREAM, seed, index=index)
        # The quantile function is infinite at 0 and 1.
        u = uniform(keys, config.dim, torch.float64) + HALF_STEP
        prior = self.prior.distribution(config, temperature, like=u).base_dist
        return prior.icdf(u.reshape(-1, *config.shape)).to(self._like.dtype)

    @torch.no_grad()
    def infer(self, images: Tensor, seed: int = 0, batch: int = 200) -> Tensor:
        """Latents of pictures uint8, both (N, C, L, L); the noise is that of :meth:`log_prob`.

        :meth:`RGFlow.split` makes levels of them, :meth:`RGFlow.join` puts levels together.
        """
        flow, latents = self.flow.fold(), []
        for which in torch.arange(len(images)).split(batch):
            y, *_ = self.transform(images[which], self.noise(which, seed))
            latents.append(flow(y)[0])
        return torch.cat(latents)

    @torch.no_grad()
    def generate(self, z: Tensor) -> Tensor:
        """Pictures in [0, 1] of latents, both (N, C, L, L)."""
        return from_logit(self.flow.inverse(z)[0])

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float | Sequence[float] = 1.0, seed: int = 0, batch: int = 256
    ) -> Tensor:
        """Pictures in [0, 1], shape (n, C, L, L); arguments of :meth:`latents`.

        Raises:
            UserError: for a temperature so high that pictures are not finite.
        """
        return torch.cat([from_logit(y) for _, _, y in self._draw(n, temperature, seed, batch)])

    @torch.no_grad()
    def sample_with_error(
        self, n: int, temperature: float | Sequence[float] = 1.0, seed: int = 0, batch: int = 256
    ) -> tuple[Tensor, Tensor]:
        """The pictures of :meth:`sample`, and how exactly they are those of their latents.

        The error (n,) is the largest difference between a latent drawn and that of its picture.
        """
        pictures, errors = [], []
        for flow, z, y in self._draw(n, temperature, seed, batch):
            pictures.append(from_logit(y))
            errors.append((flow(y)[0] - z).abs().flatten(1).amax(1))
        return torch.cat(pictures), torch.cat(errors)

    def _draw(
        self, n: int, temperature: float | Sequence[float], seed: int, batch: int
    ) -> Iterator[tuple[RGFlow, Tensor, Tensor]]:
        """The folded flow, and batches of latents z and their transformed pictures y."""
        n, batch = check_counts(n=n, batch=batch)
        flow = self.flow.fold()
        for start in range(0, n, batch):
            z = self.latents(min(batch, n - start), temperature, seed, start)
            y, _ = flow.inverse(z)
            if not y.isfinite().all():
                raise UserError(
                    f"temperature {temperature} gives pictures that are not finite; try a lower one"
                )
            yield flow, z, y
