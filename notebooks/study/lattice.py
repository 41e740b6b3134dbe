"""Fields with a known action on a periodic lattice, learnt by a flow from the action alone.

``python -m study.lattice NAME`` makes a run of ``data/lattice.json``, a training or a Markov chain:
``data/records/lattice/NAME.json``. Without NAME, the runs that have no record are listed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from rgflow_core import RGFlow, RGFlowConfig, cli
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, write_json
from rgflow_core.muon import Muon
from study import fields, records, results

PLAN, FOLDER = "data/lattice.json", "lattice"
SIZES = {"channels": 1, "subnet": "lean", "coupling": "nlsq", "res_blocks": 1, "mlp_depth": 2}


@dataclass(frozen=True)
class Action:
    """S = sum_k M_k |phi_k|^2 + sum_x V(phi_x) of fields (B, 1, L, L), phi_k as :func:`power` has it.

    ``spectrum`` is M (L, L); ``log_z`` the log of the integral of exp(-S), where it is known.
    """

    spectrum: Tensor
    potential: Callable[[Tensor], Tensor]
    log_z: float | None = None

    def __call__(self, phi: Tensor) -> Tensor:
        return (self.spectrum.to(phi.dtype) * power(phi) + self.potential(phi)).sum((1, 2, 3))


def power(phi: Tensor) -> Tensor:
    """|phi_k|^2 of the unitary Fourier transform; its mean in the free field is 1 / (2 M_k)."""
    return torch.view_as_real(torch.fft.fft2(phi, norm="ortho")).square().sum(-1)


def laplacian(edge: int) -> Tensor:
    """Sum over both directions of 4 sin^2(k / 2), (L, L)."""
    line = 4 * torch.sin(torch.pi * torch.arange(edge, dtype=torch.float64) / edge).square()
    return line[:, None] + line


def scalar(edge: int, mass2: float, coupling: float = 0.0) -> Action:
    """Sum of m^2 phi^2 + lambda phi^4 + sum_mu (phi(x + mu) - phi(x))^2, without halves."""
    spectrum = mass2 + laplacian(edge)
    log_z = None if coupling else (torch.pi / spectrum).log().sum().item() / 2
    return Action(spectrum, lambda phi: coupling * phi**4, log_z)


def ising_log_z(edge: int, beta: float) -> float:
    """log Z of the Ising model by its transfer matrix, 2^L by 2^L."""
    spins = 1.0 - 2 * (torch.arange(2**edge)[:, None] >> torch.arange(edge) & 1).double()
    own = (spins * spins.roll(1, 1)).sum(1)
    exponent = beta * (spins @ spins.T + (own[:, None] + own) / 2)
    values = torch.linalg.eigvalsh(torch.exp(exponent - exponent.max()))
    return edge * exponent.max().item() + values.pow(edge).sum().log().item()


def ising(edge: int, beta: float = math.log1p(math.sqrt(2)) / 2) -> Action:
    """x^T A^-1 x / 2 - sum log cosh x, the Ising model, at T_c, as a field (Li and Wang 2018).

    A = K + a with K the couplings, a = 0.1 less the smallest eigenvalue of K: the sum over spins s
    of exp(s x - x^T A^-1 x / 2). Source: arXiv:1802.02840.
    """
    shift = 0.1 + 4 * beta
    spectrum = beta * (4 - laplacian(edge)) + shift
    log_z = ising_log_z(edge, beta) + spectrum.log().sum().item() / 2
    log_z -= edge**2 / 2 * (math.log(2 / math.pi) - shift)

    def potential(phi: Tensor) -> Tensor:
        return math.log(2) - phi.abs() - F.softplus(-2 * phi.abs())

    return Action(1 / (2 * spectrum), potential, log_z)


def network(edge: int, model: str, layers: int, hidden: int) -> RGFlow:
    """An RG-Flow ("flow"), one of levels with the same weights ("tied"), or a RealNVP ("plain").

    The last has one level, whose block is the whole lattice.
    """
    kernel = edge if model == "plain" else 4
    sizes = {"coupling_layers": layers, "hidden": hidden} | SIZES
    flow = RGFlow(RGFlowConfig(image_size=edge, kernel=kernel, **sizes))
    if model == "tied":
        flow.levels = torch.nn.ModuleList([flow.levels[0]] * len(flow.levels))
    return flow


def log_density(flow: RGFlow, phi: Tensor, weights: dict | None = None) -> Tensor:
    """log of the symmetrised density (q(phi) + q(-phi)) / 2, (B,)."""
    both = (torch.cat((phi, -phi)),)
    # Tied levels are one module: torch would put its weights back twice, the second time wrongly.
    z, log_det = functional_call(flow, weights or {}, both, tie_weights=False)
    log_q = log_det - (z.square().sum((1, 2, 3)) + flow.config.dim * math.log(2 * math.pi)) / 2
    return torch.logaddexp(*log_q.chunk(2)) - math.log(2)


def train(flow: RGFlow, action: Action, steps: int, batch: int, seed: int = 0) -> None:
    """Minimise the reverse KL, E_q[log q + S], by path gradients.

    They hold the weights in log q fixed: what that leaves out has mean zero, and the noise of the
    rest goes to zero with the divergence (Roeder et al. 2017, arXiv:1703.09194).
    """
    generator = torch.Generator().manual_seed(seed)
    square, rest = [], []
    for p in flow.parameters():
        (square if p.ndim == 2 and p.shape[0] == p.shape[1] else rest).append(p)
    optimizers = [torch.optim.Adam(rest, lr=3e-3, betas=(0.9, 0.99)), Muon(square, lr=0.02)]

    def rate(step: int) -> float:
        return min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    for _ in range(steps):
        phi, _ = flow.inverse(torch.randn(batch, *flow.config.shape, generator=generator))
        fixed = {name: p.detach() for name, p in flow.named_parameters()}
        loss = (log_density(flow, phi, fixed) + action(phi)).mean()
        if not loss.isfinite():
            raise UserError(f"the training diverged: its loss is {loss.item()}")
        flow.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*square, *rest], 10.0)
        for each in (*optimizers, *schedules):
            each.step()


def jackknife(function: Callable[[Tensor], Tensor], groups: Tensor) -> list:
    """[value, standard error] of a function of samples (N, K), from independent groups (G, n, K)."""
    left = [torch.cat((groups[:g], groups[g + 1 :])).flatten(0, 1) for g in range(len(groups))]
    spread = torch.stack([function(samples) for samples in left]).std(0, correction=0)
    both = function(groups.flatten(0, 1)), spread * math.sqrt(len(groups) - 1)
    return torch.stack(both, -1).tolist()


def observables(phi: Tensor) -> Tensor:
    """Power at k = 0 (the susceptibility) and at the next k, two-point function at 0 ... L/2."""
    power_k, half = power(phi)[:, 0], phi.shape[-1] // 2
    line = torch.fft.ifft((power_k.mean(1) + power_k.mean(2)) / 2).real[:, : half + 1]
    return torch.cat((power_k[:, :1, 0], (power_k[:, :1, 1] + power_k[:, 1, :1]) / 2, line), 1)


def with_length(means: Tensor) -> Tensor:
    """Means of :func:`observables`, and before them the second-moment correlation length over L."""
    edge = 2 * (len(means) - 3)
    length = (means[:1] / means[1] - 1).clamp_min(0).sqrt() / (2 * math.sin(math.pi / edge))
    return torch.cat((length / edge, means))


def weighted(samples: Tensor) -> Tensor:
    """Means (K,) of values (N, K) whose log-weights are the first column of ``samples``."""
    return samples[:, 0].softmax(0) @ samples[:, 1:]


def scores(log_w: Tensor) -> Tensor:
    """Effective sample size over N, acceptance, log Z and its lower bound from log-weights (N, 1).

    Acceptance is that of Metropolis with independent proposals in equilibrium: min(1, w' / w),
    the mean over all pairs, weighted by w.
    """
    log_w = log_w[:, 0].sort().values
    w, twice = torch.exp(log_w - log_w[-1]), torch.arange(2 * len(log_w) - 1, 0, -2)
    accepted = (w * twice).sum() / (len(w) * w.sum())
    ess, log_z = w.mean().square() / w.square().mean(), log_w[-1] + w.mean().log()
    return torch.stack((ess, accepted, log_z, log_w.mean()))


def correlation_time(series: Tensor) -> float:
    """Integrated autocorrelation time of chains (T, C): 1/2 + the sum of rho(t) up to W.

    W is the first that is at least five times that sum (Madras and Sokal 1988).
    """
    x, times = series - series.mean(), len(series)
    spectrum = torch.view_as_real(torch.fft.rfft(x, 2 * times, 0)).square().sum(-1)
    covariance = torch.fft.irfft(spectrum, dim=0)[:times].mean(1) / torch.arange(times, 0, -1)
    sums = (covariance / covariance[0]).cumsum(0) - 0.5
    return sums[torch.nonzero(torch.arange(times) >= 5 * sums)[0]].item()


def chain(action: Action, chains: int, steps: int, seed: int, size: float = 0.1) -> dict:
    """Hybrid Monte Carlo without the first tenth of its steps; the errors are between chains.

    A step is 1 to 16 leaps of a ``size``: were it always as many, a mode that just turns over in
    that time would never move.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    shape = (chains, 1, *action.spectrum.shape)

    def energy(phi: Tensor, momentum: Tensor) -> Tensor:
        return action(phi) + momentum.square().sum((1, 2, 3)) / 2

    def force(phi: Tensor) -> Tensor:
        phi = phi.detach().requires_grad_()
        return -torch.autograd.grad(action(phi).sum(), phi)[0]

    phi, kept, accepted = normal(shape) / 2, [], 0.0
    for _ in range(steps):
        new, start = phi, normal(shape)
        momentum = start + size / 2 * force(new)
        for leap in reversed(range(torch.randint(1, 17, (), generator=generator))):
            new = new + size * momentum
            momentum = momentum + size * force(new) / (1 if leap else 2)
        ratio = torch.exp(energy(phi, start) - energy(new, momentum))
        accept = torch.rand(chains, generator=generator, dtype=torch.float64) < ratio
        phi = torch.where(accept[:, None, None, None], new, phi)
        kept.append(observables(phi))
        accepted += accept.double().mean().item() / steps
    values = torch.stack(kept[steps // 10 :])
    times = [correlation_time(values[..., k]) for k in range(values.shape[-1])]
    means = jackknife(lambda x: with_length(x.mean(0)), values.mean(0)[:, None])
    return {"observables": means, "times": times, "accepted": accepted}


@torch.no_grad()
def evaluate(flow: RGFlow, action: Action, groups: int, seed: int) -> dict:
    """What groups of 256 samples of a float64 flow say, each number with its error.

    ``scores``; weighted ``observables``; of each level's ``latents``, the weighted variance and
    correlation of neighbours; and of the flow's own fields <phi(x) phi(x + 1)> by column, mod 4.
    """
    generator, columns = torch.Generator().manual_seed(seed), []
    for _ in range(groups):
        z = torch.randn(256, *flow.config.shape, generator=generator, dtype=torch.float64)
        phi, _ = flow.inverse(z)
        levels = [x.flatten(1, -3) for x in flow.split(z)]
        pairs = [(x * y).mean((1, 2, 3)) for x in levels for y in (x, x.roll(1, -1))]
        bonds = (phi * phi.roll(-1, -1)).mean((1, 2)).unflatten(1, (-1, 4)).mean(1)
        log_w = -action(phi) - log_density(flow, phi)
        columns.append((log_w[:, None], observables(phi), torch.stack(pairs, 1), bonds))
    log_w, seen, pairs, bonds = map(torch.stack, zip(*columns, strict=True))
    return {
        "scores": jackknife(scores, log_w),
        "observables": jackknife(lambda x: with_length(weighted(x)), torch.cat((log_w, seen), -1)),
        "latents": jackknife(weighted, torch.cat((log_w, pairs), -1)),
        "bonds": jackknife(lambda x: x.mean(0), bonds),
    }


@torch.no_grad()
def content(flow: RGFlow, seed: int, samples: int = 4096) -> dict:
    """What the levels of a float64 flow hold, finest first.

    ``share`` of the variance of the mean field, and of its gradient's energy, that goes when the
    level's latents are drawn anew (total Sobol indices); ``radius`` of receptive fields.
    """
    shape, generator = (2, samples, *flow.config.shape), torch.Generator().manual_seed(seed)
    one, two = torch.randn(shape, generator=generator, dtype=torch.float64)

    def measured(z: Tensor) -> Tensor:
        phi, _ = flow.inverse(z)
        energy = sum((phi - phi.roll(1, d)).square() for d in (-1, -2))
        return torch.stack((phi.mean((1, 2, 3)), energy.mean((1, 2, 3))), 1)

    base, old, new = measured(one), flow.split(one), flow.split(two)
    mixed = [flow.join([*old[:h], new[h], *old[h + 1 :]]) for h in range(len(old))]
    share = [(measured(z) - base).square().mean(0) / (2 * base.var(0)) for z in mixed]
    positions = fields.choose(flow, 8, seed)
    changes = fields.differences(lambda z: flow.inverse(z)[0], one[:16], positions.flatten(0, 1))
    maps = torch.stack([change.abs().mean(0).sum(0) for change in changes])
    radius = fields.radius(maps).unflatten(0, (-1, 8)).mean(1)
    return {"share": torch.stack(share).tolist(), "radius": radius.tolist()}


def measure(edge: int, seed: int, mass2: float | None = None, coupling: float = 0.0, **run) -> dict:
    """A run of the plan: a chain, or a flow's training; without ``mass2`` the action is Ising's."""
    action = ising(edge) if mass2 is None else scalar(edge, mass2, coupling)
    if "chains" in run:
        return chain(action, seed=seed, **run)
    torch.manual_seed(seed)
    flow = network(edge, run["model"], run["layers"], run["hidden"])
    train(flow, action, run["steps"], run["batch"], seed)
    facts = {"parameters": sum(p.numel() for p in flow.parameters()), "log_z": action.log_z}
    flow = flow.double()
    return facts | evaluate(flow, action, run["groups"], seed) | content(flow, seed)


def make(name: str, root: Path) -> Path:
    """Make a run's record, if there is none; :class:`UserError` if it is not in the plan."""
    path, plan = root / records.FOLDER / FOLDER / f"{name}.json", records.plan(root, path=PLAN)
    if name not in plan:
        raise UserError(f"{name} is not a run of {PLAN}; those are: {', '.join(plan)}")
    if not path.exists():
        start, run = time.process_time(), plan[name]
        facts = {"name": name, "settings": run} | measure(**run)
        seconds = time.process_time() - start
        write_json(path, facts | {"seconds": seconds} | provenance(seed=run["seed"]))
    return path


def main() -> None:
    parser = cli.Parser("Make records of the runs on lattice fields, or list those without one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run; without any, list them")
    names, root = parser.parse_args().names, results.root()
    if not names:
        left = records.plan(root, path=PLAN)
        print(*(n for n in left if not records.read(root, [f"{FOLDER}/{n}"])), sep="\n")
    for name in names:
        print(make(name, root))


if __name__ == "__main__":
    cli.run(main)
