"""Fields with a known action: closed forms, the chain, what weights say, and the records."""

import copy
import json
import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from support import ROOT, close, jacobians, randomise, said_by

from rgflow_core.files import read_json
from study import lattice, records

RECORDS = records.read(ROOT, [f"lattice/{n}" for n in records.plan(ROOT, path=lattice.PLAN)])


def small(edge: int = 8, model: str = "flow", strength: float = 0.3) -> torch.nn.Module:
    torch.manual_seed(0)
    return randomise(lattice.network(edge, model, 1, 6), strength=strength).double()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("edge", [2, 4, 6])
def test_the_action_is_the_published_sum(edge):
    phi, total = normal(3, 1, edge, edge), 0
    for i, j in product(range(edge), repeat=2):
        here = phi[:, 0, i, j]
        total = total - 4 * here**2 + 5.5 * here**4
        for step in ((1, 0), (0, 1)):
            total = total + (phi[:, 0, (i + step[0]) % edge, (j + step[1]) % edge] - here) ** 2
    close(lattice.scalar(phi, -4.0, 5.5), total, 1e-12)


def free_field(edge: int, mass2: float) -> tuple[torch.Tensor, list[float]]:
    """Covariance (L^2, L^2) of the free field; log Z, xi / L and the observables' means."""
    zero = torch.zeros(edge**2, dtype=torch.float64)
    m = torch.func.hessian(lambda x: lattice.scalar(x.view(1, 1, edge, edge), mass2)[0])(zero) / 2
    covariance = m.inverse() / 2
    log_z = (edge**2 * math.log(math.pi) - m.logdet().item()) / 2
    next_power = 1 / (2 * (mass2 + 4 * math.sin(math.pi / edge) ** 2))
    line = covariance[0, : edge // 2 + 1].tolist()
    return covariance, [log_z, mass2**-0.5 / edge, 1 / (2 * mass2), next_power, *line]


def test_the_observables_of_the_free_field_are_those_of_its_gaussian():
    covariance, known = free_field(4, 0.7)
    # Whitened, the field's every observable is known, and fields drawn so give it.
    phi = normal(200_000, 16) @ torch.linalg.cholesky(covariance).T
    means = lattice.observables(phi.view(-1, 1, 4, 4)).mean(0)
    close(means, torch.tensor(known[2:]).double(), 0.01)
    exact = torch.tensor([[0.0, *known[2:]]]).double()
    assert lattice.estimates(exact, 4)[4].item() == pytest.approx(known[1]), "xi = 1 / m, over L"


def test_ising_as_a_field():
    edge, beta = 2, 0.3
    spins = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64).view(-1, 2, 2)
    # With L = 2, every pair of neighbours is there twice, in the sum over spins as in the field's.
    energy = sum((spins * spins.roll(1, d)).sum((1, 2)) for d in (1, 2))
    a = torch.tensor([[0, 2, 2, 0], [2, 0, 0, 2], [2, 0, 0, 2], [0, 2, 2, 0]]).double() * beta
    a += (0.1 + 4 * beta) * torch.eye(4)
    known = torch.logsumexp(beta * energy, 0) + a.logdet() / 2
    known += edge**2 / 2 * (math.log(math.pi / 2) + 0.1 + 4 * beta)
    line = torch.linspace(-9, 9, 46, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * 4).view(-1, 1, 2, 2)
    integral = torch.logsumexp(torch.cat([-lattice.ising(g, beta) for g in grid.split(10**6)]), 0)
    integral += 4 * (line[1] - line[0]).log()
    assert integral.item() == pytest.approx(known.item(), abs=1e-4)


@pytest.mark.parametrize("model", ["flow", "plain", "tied"])
def test_flows_invert_and_have_the_density_that_their_jacobian_says(model):
    flow = small(8, model)
    z = normal(2, 1, 8, 8)
    phi, _ = flow.inverse(z)
    close(flow(phi)[0], z, 1e-9)
    densities = []
    for sign in (1, -1):
        log_prob = torch.distributions.Normal(0, 1).log_prob(flow(sign * phi[:1])[0]).sum()
        densities.append(log_prob + jacobians(flow, sign * phi[:1])[0].slogdet()[1])
    mixed = torch.stack(densities).logsumexp(0) - math.log(2)
    close(lattice.log_density(flow, phi)[0], mixed, 1e-9)
    close(lattice.log_density(flow, -phi), lattice.log_density(flow, phi), 1e-12)
    levels = {id(level) for level in flow.levels}
    assert len(levels) == {"flow": 2, "plain": 1, "tied": 1}[model]


def test_estimates_are_their_definitions():
    log_w, seen = normal(40, seed=3), normal(40, 5)
    w = log_w.exp()
    found = lattice.estimates(torch.cat((log_w[:, None] + 100, seen), 1), 4)
    ess, accepted, log_z, bound = found[:4].tolist()
    assert ess == pytest.approx((w.sum() ** 2 / (40 * w.square().sum())).item())
    pairs = torch.minimum(torch.ones(()), w / w[:, None])
    assert accepted == pytest.approx(((w @ pairs.mean(1)) / w.sum()).item())
    assert log_z == pytest.approx(100 + w.mean().log().item())
    assert bound == pytest.approx(100 + log_w.mean().item())
    close(found[5:], (w @ seen) / w.sum(), 1e-12)


def test_the_jackknife_of_a_mean_is_the_standard_error():
    groups = normal(30, 1, 1)
    ((value, error),) = lattice.jackknife(lambda x: x.mean(0), groups)
    assert value == pytest.approx(groups.mean().item())
    assert error == pytest.approx(groups.std().item() / math.sqrt(30))


def test_the_chain_gives_the_free_field():
    action = partial(lattice.scalar, mass2=1.0)
    found = lattice.chain(action, edge=4, chains=128, steps=400, seed=1)
    for (value, error), exact in zip(found["observables"], free_field(4, 1.0)[1][1:], strict=True):
        assert abs(value - exact) < 4 * error < 0.1 * exact
    assert 0.9 < found["accepted"] < 1
    assert all(0.5 < time < 5 for time in found["times"])


def test_the_autocorrelation_time_is_that_of_a_known_chain(monkeypatch):
    """Fields of a sequence x' = 0.8 x + noise: tau = (1 + 0.8) / (1 - 0.8) / 2."""
    state = normal(500, 5)

    def next_value(phi: torch.Tensor) -> torch.Tensor:
        state.copy_(0.8 * state + 0.6 * torch.randn(state.shape, generator=noise).double())
        return state.clone()

    noise = torch.Generator().manual_seed(2)
    monkeypatch.setattr(lattice, "observables", next_value)
    times = lattice.chain(partial(lattice.scalar, mass2=1.0), 4, 500, 200, seed=1)["times"]
    assert times == pytest.approx([4.5] * 5, rel=0.25)
    assert np.mean(times) == pytest.approx(4.5, rel=0.1)


def test_training_from_the_action_alone_finds_the_free_field():
    action, known = partial(lattice.scalar, mass2=1.0), free_field(4, 1.0)[1]
    torch.manual_seed(0)
    flow = lattice.network(4, "flow", 2, 8)
    before = lattice.evaluate(flow.double(), action, 8, seed=1)["scores"]
    lattice.train(flow.float(), action, steps=150, batch=64)
    after = lattice.evaluate(flow.double(), action, 8, seed=1)
    assert after["scores"][0][0] > max(0.4, 4 * before[0][0])
    assert after["scores"][3][0] < known[0], "the bound is one"
    found = [after["scores"][2], *after["observables"]]
    for (value, error), exact in zip(found, known, strict=True):
        assert abs(value - exact) < 4 * error < 0.4
    bad = partial(lattice.scalar, mass2=math.nan)
    assert "diverged" in said_by(lattice.train, flow.float(), bad, steps=1, batch=2)


def test_gradients_are_by_the_path_alone():
    """Of log q(phi(weights)) + S with the weights within log q fixed, as a copy of the flow has them."""
    torch.manual_seed(0)
    flow = lattice.network(8, "tied", 1, 6)
    randomise(flow)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    phi, _ = flow.inverse(noise)
    frozen = copy.deepcopy(flow).requires_grad_(False)
    loss = (lattice.log_density(frozen, phi) + lattice.scalar(phi, 1.0)).mean()
    expected = torch.autograd.grad(loss, list(flow.parameters()))
    seen = []
    for p in flow.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.clone())))
    lattice.train(flow, partial(lattice.scalar, mass2=1.0), steps=1, batch=4)
    got = {id(p): gradient for p, gradient in seen}
    for p, gradient in zip(flow.parameters(), expected, strict=True):
        close(got[id(p)], gradient, 1e-5)


def test_levels_of_an_identity_hold_what_their_sites_do():
    torch.manual_seed(0)
    flow = lattice.network(8, "flow", 1, 6).double()  # the identity, as every fresh flow
    even = lattice.evaluate(flow, lambda phi: phi.square().sum((1, 2, 3)) / 2, 8, 0)
    assert even["scores"][0] == pytest.approx([1, 0], abs=1e-9), "it is that field's own flow"
    share, gradient = np.array(even["share"]).T
    assert share == pytest.approx([0.75, 0.25], abs=0.05), "48 and 16 of the 64 sites"
    assert gradient.sum() > 1, "pairs across levels count for both"
    assert even["radius"] == pytest.approx([0, 0])
    for value, error in even["bonds"]:
        assert abs(value) < 4 * error < 0.05
    for (variance, error), (correlation, other) in zip(*[iter(even["latents"])] * 2, strict=True):
        assert abs(variance - 1) < 4 * error < 0.1
        assert abs(correlation) < 4 * other < 0.1


def test_the_plan_has_the_couplings_that_it_interpolates():
    published = read_json(ROOT / "data/published.json")["lattice"]["coupling"]
    points = sorted((1 / int(size), value) for size, value in published.items() if size != "source")
    plan = records.plan(ROOT, path=lattice.PLAN)
    for name, run in plan.items():
        if "coupling" in run:
            quarter = np.interp(1 / run["edge"], *zip(*points, strict=True))
            ratio = {"far": 2, "near": 0.7}.get(name.split("_")[2], 1)
            assert run["coupling"] == pytest.approx(ratio * quarter), name
    for record in RECORDS.values():
        assert record["settings"] == plan[record["name"]]


def test_the_command_makes_records_and_lists_what_has_none(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks", "rgflow_core", "data"):
        (tmp_path / folder).mkdir()
    run = {"edge": 4, "mass2": 1.0, "chains": 4, "steps": 50, "seed": 3}
    plan = {"g": {"common": run, "runs": {"a": {}, "b": {}}}}
    (tmp_path / lattice.PLAN).write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lattice", "a"])
    lattice.main()
    path = tmp_path / lattice.FOLDER / "a.json"
    record = read_json(path, by_hand=False)
    assert record["settings"] == run
    assert record["seed"] == 3
    assert record["commit"]
    before = path.stat().st_mtime_ns
    lattice.main()
    assert path.stat().st_mtime_ns == before, "a record is not made twice"
    assert capsys.readouterr().out.split() == [f"{lattice.FOLDER}/a.json"] * 2
    monkeypatch.setattr("sys.argv", ["lattice"])
    lattice.main()
    assert capsys.readouterr().out.split() == ["b"]
    monkeypatch.setattr("sys.argv", ["lattice", "c"])
    assert said_by(lattice.main) == "c is not a run of data/lattice.json; those are: a, b"
