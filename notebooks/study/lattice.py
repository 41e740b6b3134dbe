"""Fields with a known action on a periodic lattice, learnt by a flow from the action alone.

``python -m study.lattice NAME`` makes a run of ``data/lattice.json``, a training or a Markov chain:
``data/records/lattice/NAME.json``. Without NAME, the runs that have no record are listed.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad

from rgflow_core import RGFlow, RGFlowConfig, cli
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, write_json
from rgflow_core.muon import Muon
from study import fields, records, results

PLAN, FOLDER = "data/lattice.json", f"{records.FOLDER}/lattice"
SIZES = {"channels": 1, "subnet": "lean", "coupling": "nlsq", "res_blocks": 1, "mlp_depth": 2}


def scalar(phi: Tensor, mass2: float, coupling: float = 0.0) -> Tensor:
    """Sum of m^2 phi^2 + lambda phi^4 + sum_mu (phi(x + mu) - phi(x))^2, without halves."""
    bonds = sum((phi.roll(-1, direction) - phi).square() for direction in (-2, -1))
    return (mass2 * phi**2 + coupling * phi**4 + bonds).sum((1, 2, 3))


def ising(phi: Tensor, beta: float = math.log1p(math.sqrt(2)) / 2) -> Tensor:
    """x^T A^-1 x / 2 - sum log cosh x: the Ising model, at T_c, as a field (arXiv:1802.02840).

    A = K + a with K the couplings, a = 0.1 less the smallest eigenvalue of K.
    """
    cosine = torch.cos(2 * torch.pi * torch.arange(phi.shape[-1]).to(phi) / phi.shape[-1])
    spectrum = 2 * beta * (cosine[:, None] + cosine) + 4 * beta + 0.1
    power = torch.fft.fft2(phi, norm="ortho").abs().square()
    log_cosh = torch.logaddexp(phi, -phi) - math.log(2)
    return (power / (2 * spectrum) - log_cosh).sum((1, 2, 3))


def observables(phi: Tensor) -> Tensor:
    """Power at k = 0 (the susceptibility) and at the next k, two-point function at 0 ... L/2."""
    power = torch.fft.fft2(phi[:, 0], norm="ortho").abs().square()
    line = torch.fft.ifft((power.mean(1) + power.mean(2)) / 2).real[:, : phi.shape[-1] // 2 + 1]
    return torch.cat((power[:, :1, 0], (power[:, :1, 1] + power[:, 1, :1]) / 2, line), 1)


def network(edge: int, model: str, layers: int, hidden: int) -> RGFlow:
    """RG-Flow, "flow" or "tied" (all levels have the same weights), or "plain": a block, a RealNVP."""
    sizes = SIZES | {"kernel": edge if model == "plain" else 4}
    flow = RGFlow(RGFlowConfig(image_size=edge, coupling_layers=layers, hidden=hidden, **sizes))
    if model == "tied":
        flow.levels = torch.nn.ModuleList([flow.levels[0]] * len(flow.levels))
    return flow


def log_density(flow: RGFlow, phi: Tensor) -> Tensor:
    """log of the symmetrised density (q(phi) + q(-phi)) / 2, (B,)."""
    z, log_det = flow(torch.cat((phi, -phi)))
    log_q = log_det - (z.square().sum((1, 2, 3)) + flow.config.dim * math.log(2 * math.pi)) / 2
    return torch.logaddexp(*log_q.chunk(2)) - math.log(2)


def train(flow: RGFlow, action: Callable, steps: int, batch: int, seed: int = 0) -> None:
    """Minimise the reverse KL, E_q[log q + S], by path gradients (arXiv:1703.09194)."""
    square = [p for p in flow.parameters() if p.shape[:1] == p.shape[1:]]
    rest = [p for p in flow.parameters() if p.shape[:1] != p.shape[1:]]
    peaks = {torch.optim.Adam(rest, betas=(0.9, 0.99)): 3e-3, Muon(square, lr=0.02): 0.02}
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        phi, _ = flow.inverse(torch.randn(batch, *flow.config.shape, generator=generator))
        flow.requires_grad_(False)  # log q depends on the weights by phi alone
        loss = (log_density(flow, phi) + action(phi)).mean()
        flow.requires_grad_(True)
        if not loss.isfinite():
            raise UserError(f"the training diverged: its loss is {loss.item()}")
        flow.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        rate = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
        for optimizer, peak in peaks.items():
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()


def estimates(samples: Tensor, edge: int) -> Tensor:
    """From log-weights and, beside them, :func:`observables` and others (N, 1 + K), to (5 + K,):

    effective sample size over N, acceptance (min(1, w' / w) of all pairs, weighted by w), log Z and
    its lower bound, second-moment correlation length over L, and weighted means.
    """
    log_w, n = samples[:, 0], len(samples)
    w = log_w.softmax(0)
    accepted = w.sort().values @ torch.arange(2 * n - 1, 0, -2, dtype=w.dtype) / n
    ess, log_z, means = 1 / (n * w.square().sum()), log_w.logsumexp(0) - math.log(n), w @ samples
    length = (means[1] / means[2] - 1).clamp_min(0).sqrt() / (2 * math.sin(math.pi / edge))
    return torch.stack((ess, accepted, log_z, log_w.mean(), length / edge, *means[1:]))


def jackknife(function: Callable, groups: Tensor) -> list:
    """[value, standard error] of a function of samples (N, K), from independent groups (G, n, K)."""
    left = [torch.cat((groups[:g], groups[g + 1 :])).flatten(0, 1) for g in range(len(groups))]
    error = torch.stack([function(x) for x in left]).std(0, correction=0) * (len(left) - 1) ** 0.5
    return torch.stack((function(groups.flatten(0, 1)), error), -1).tolist()


def chain(action: Callable, edge: int, chains: int, steps: int, seed: int) -> dict:
    """Hybrid Monte Carlo without the first tenth of its steps; the errors are between chains.

    A step is 1 to 16 leaps: always as many, and a mode that just turns over in that time would
    never move. ``times`` are tau of var(mean of T values) = 2 tau / T var(value), by the chains.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, chains, 1, edge, edge, generator=generator, dtype=torch.float64)
    slope, size = grad(lambda phi: action(phi).sum()), 0.1
    phi, kept, accepted = normal() / 2, [], 0.0
    for _ in range(steps):
        new, start = phi, normal()
        momentum = start - size / 2 * slope(new)
        for leap in reversed(range(torch.randint(1, 17, (), generator=generator))):
            new = new + size * momentum
            momentum = momentum - size * slope(new) / (1 if leap else 2)
        gain = action(new) - action(phi) + (momentum**2 - start**2).sum((1, 2, 3)) / 2
        accept = torch.rand(chains, generator=generator, dtype=torch.float64) < torch.exp(-gain)
        phi = torch.where(accept[:, None, None, None], new, phi)
        kept.append(observables(phi))
        accepted += accept.double().mean().item() / steps
    values = torch.stack(kept[steps // 10 :])
    means = torch.cat((torch.zeros(chains, 1), values.mean(0)), 1)[:, None]  # equal weights
    times = len(values) / 2 * values.mean(0).var(0) / values.flatten(0, 1).var(0)
    found = jackknife(partial(estimates, edge=edge), means)[4:]
    return {"observables": found, "times": times.tolist(), "accepted": accepted}


@torch.no_grad()
def evaluate(flow: RGFlow, action: Callable, groups: int, seed: int) -> dict:
    """What groups of 256 samples of a float64 flow say, with errors, and what its levels hold.

    ``scores`` and weighted ``observables``; ``latents``, of each level the weighted variance and
    correlation of neighbours; ``bonds``, <phi(x) phi(x + 1)> without weights by column, mod 4;
    ``share``, of each level the part of the variances of mean field and gradient energy that goes
    when its latents are drawn anew (total Sobol index); ``radius`` of its receptive fields.
    """
    shape, generator = (groups, 256, *flow.config.shape), torch.Generator().manual_seed(seed)
    weighted, bonds, redrawn = [], [], []
    for z in map(flow.split, torch.randn(shape, generator=generator, dtype=torch.float64)):
        mixed = [z, *([x.roll(1, 0) if x is level else x for x in z] for level in z)]
        phi, *others = (flow.inverse(flow.join(latents))[0] for latents in mixed)
        log_w = -action(phi) - log_density(flow, phi)
        pairs = [(x * y).flatten(1).mean(1) for x in z for y in (x, x.roll(1, -1))]
        weighted.append(torch.cat((log_w[:, None], observables(phi), torch.stack(pairs, 1)), 1))
        bonds.append((phi * phi.roll(-1, -1)).mean((1, 2)).unflatten(1, (-1, 4)).mean(1))
        both = [torch.stack((x.mean((1, 2, 3)), scalar(x, 0.0)), 1) for x in (phi, *others)]
        redrawn.append(torch.stack(both))
    found = jackknife(partial(estimates, edge=phi.shape[-1]), torch.stack(weighted))
    old, *new = torch.cat(redrawn, 1)
    share = [((x - old).square().mean(0) / (2 * old.var(0))).tolist() for x in new]
    positions = fields.choose(flow, 8, seed).flatten(0, 1)
    changes = fields.differences(lambda z: flow.inverse(z)[0], flow.join(z)[:16], positions)
    radius = fields.radius(torch.stack([change.abs().mean(0).sum(0) for change in changes]))
    return {
        "scores": found[:4], "observables": found[4 : -2 * len(z)], "latents": found[-2 * len(z) :],
        "bonds": jackknife(lambda x: x.mean(0), torch.stack(bonds)), "share": share,
        "radius": radius.unflatten(0, (-1, 8)).mean(1).tolist(),
    }  # fmt: skip


def measure(edge: int, seed: int, mass2: float | None = None, coupling: float = 0.0, **run) -> dict:
    """A run of the plan: a chain, or a flow's training; without ``mass2`` the action is Ising's."""
    action = ising if mass2 is None else partial(scalar, mass2=mass2, coupling=coupling)
    if "chains" in run:
        return chain(action, edge, seed=seed, **run)
    torch.manual_seed(seed)
    flow = network(edge, run["model"], run["layers"], run["hidden"])
    train(flow, action, run["steps"], run["batch"], seed)
    return evaluate(flow.double(), action, run["groups"], seed)


def main() -> None:
    parser = cli.Parser("Make records of the runs on lattice fields, or list those without one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run; without any, list them")
    names, plan = parser.parse_args().names, records.plan(results.root(), path=PLAN)
    paths = {name: results.root() / FOLDER / f"{name}.json" for name in plan}
    if not names:
        print(*(name for name, path in paths.items() if not path.exists()), sep="\n")
    for name in names:
        if name not in plan:
            raise UserError(f"{name} is not a run of {PLAN}; those are: {', '.join(plan)}")
        if not paths[name].exists():
            start, facts = time.process_time(), {"name": name, "settings": plan[name]}
            facts |= measure(**plan[name]) | {"seconds": time.process_time() - start}
            write_json(paths[name], facts | provenance(seed=plan[name]["seed"]))
        print(paths[name])


if __name__ == "__main__":
    cli.run(main)
