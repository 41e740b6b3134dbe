"""Fields with a known action: closed forms, the chain, the scores of weights, and the records."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from support import close, jacobians, randomise, said_by

from rgflow_core.files import read_json
from study import fields, lattice, records, results

ROOT = results.root()
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
    close(lattice.scalar(edge, -4.0, 5.5)(phi), total, 1e-12)


def matrix(action: lattice.Action) -> torch.Tensor:
    """M of S = phi^T M phi, from the action's second derivatives."""
    edge = len(action.spectrum)
    zero = torch.zeros(edge**2, dtype=torch.float64)
    hessian = torch.func.hessian(lambda x: action(x.view(1, 1, edge, edge))[0])
    return hessian(zero) / 2


def test_the_free_field_is_its_gaussian():
    action = lattice.scalar(4, 0.7)
    m = matrix(action)
    assert action.log_z == pytest.approx((8 * math.log(math.pi) - m.logdet() / 2).item())
    # Whitened, the field's every observable is known, and fields drawn so give it.
    covariance = m.inverse() / 2
    phi = normal(200_000, 16) @ torch.linalg.cholesky(covariance).T
    means = lattice.observables(phi.view(-1, 1, 4, 4)).mean(0)
    known = [covariance.sum() / 16, 1 / (2 * (0.7 + 2)), *covariance[0, :3]]
    close(means, torch.stack(list(map(torch.as_tensor, known))).double(), 0.01)
    length = lattice.with_length(torch.tensor([1 / (2 * 0.7), 1 / (2 * 2.7), 0, 0, 0]).double())
    assert length[0].item() == pytest.approx(0.7**-0.5 / 4), "xi = 1 / m, over L"


def test_ising_by_its_transfer_matrix_and_as_a_field():
    beta = 0.3
    spins = torch.tensor(list(product((-1.0, 1.0), repeat=9)), dtype=torch.float64).view(-1, 3, 3)
    energy = sum((spins * spins.roll(1, d)).sum((1, 2)) for d in (1, 2))
    exact = torch.logsumexp(beta * energy, 0).item()
    assert lattice.ising_log_z(3, beta) == pytest.approx(exact)
    # With L = 2, every pair of neighbours is there twice, in the sum over spins as in the field's.
    field = lattice.ising(2, beta)
    line = torch.linspace(-9, 9, 46, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * 4).view(-1, 1, 2, 2)
    integral = torch.logsumexp(torch.cat([-field(g) for g in grid.split(10**6)]), 0)
    assert field.log_z == pytest.approx((integral + 4 * (line[1] - line[0]).log()).item(), abs=1e-4)
    for edge, bound in read_json(ROOT / "data/published.json")["lattice"]["ising_bound"].items():
        if edge in ("4", "8"):
            assert -lattice.ising(int(edge)).log_z == pytest.approx(bound, abs=1e-3)


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
    before = list(flow.parameters())
    fixed = {name: 0 * p.detach() for name, p in flow.named_parameters()}
    log_q = lattice.log_density(flow, phi, fixed)
    close(log_q, torch.distributions.Normal(0, 1).log_prob(phi).sum((1, 2, 3)), 1e-9)
    assert all(p is q for p, q in zip(before, flow.parameters(), strict=True)), "they are put back"
    levels = {id(level) for level in flow.levels}
    assert len(levels) == {"flow": 2, "plain": 1, "tied": 1}[model]


def test_the_symmetrised_density_integrates_to_one():
    flow = small(4, strength=1.0)
    phi = 2 * normal(60_000, 1, 4, 4)
    proposal = torch.distributions.Normal(0, 2).log_prob(phi).sum((1, 2, 3))
    with torch.no_grad():
        w = torch.exp(lattice.log_density(flow, phi) - proposal)
    assert w.mean().item() == pytest.approx(1, abs=5 * w.std().item() / math.sqrt(len(w)))
    assert w.std().item() < 50, "the check has power"


def test_scores_are_their_definitions():
    log_w = normal(40, seed=3)
    w = log_w.exp()
    ess, accepted, log_z, bound = lattice.scores(log_w[:, None] + 100)
    assert ess.item() == pytest.approx((w.sum() ** 2 / (40 * w.square().sum())).item())
    pairs = torch.minimum(torch.ones(()), w / w[:, None])
    assert accepted.item() == pytest.approx(((w @ pairs.mean(1)) / w.sum()).item())
    assert log_z.item() == pytest.approx(100 + w.mean().log().item())
    assert bound.item() == pytest.approx(100 + log_w.mean().item())
    # Weights that are log-normal have effective samples exp(-s^2).
    many = lattice.jackknife(lattice.scores, 0.5 * normal(50, 400, 1))
    for (value, error), known in zip(many[::2], (math.exp(-0.25), 0.125), strict=True):
        assert value == pytest.approx(known, abs=4 * error)
        assert 0 < error < 0.02


def test_the_jackknife_of_a_mean_is_the_standard_error():
    groups = normal(30, 1, 1)
    ((value, error),) = lattice.jackknife(lambda x: x.mean(0), groups)
    assert value == pytest.approx(groups.mean().item())
    assert error == pytest.approx(groups.std().item() / math.sqrt(30))


def test_correlation_time_of_a_known_process():
    noise, x = normal(4000, 20), [normal(20, seed=1)]
    for kick in noise:
        x.append(0.8 * x[-1] + 0.6 * kick)
    assert lattice.correlation_time(torch.stack(x)) == pytest.approx(4.5, rel=0.05)  # 1.8 / 0.4


def test_the_chain_gives_the_free_field():
    found = lattice.chain(lattice.scalar(4, 1.0), chains=64, steps=800, seed=1)
    covariance = matrix(lattice.scalar(4, 1.0)).inverse() / 2
    known = [0.25, 0.5, 1 / 6, *covariance[0, :3].tolist()]
    for (value, error), exact in zip(found["observables"], known, strict=True):
        assert abs(value - exact) < 4 * error < 0.1 * exact
    assert 0.9 < found["accepted"] < 1
    assert all(0.5 < time < 5 for time in found["times"])


def test_training_from_the_action_alone_finds_the_free_field():
    action = lattice.scalar(4, 1.0)
    torch.manual_seed(0)
    flow = lattice.network(4, "flow", 2, 8)
    before = lattice.evaluate(flow.double(), action, 8, seed=1)["scores"]
    lattice.train(flow.float(), action, steps=150, batch=64)
    after = lattice.evaluate(flow.double(), action, 8, seed=1)
    assert after["scores"][0][0] > max(0.4, 4 * before[0][0])
    value, error = after["scores"][2]
    assert abs(value - action.log_z) < 4 * error < 0.2
    assert after["scores"][3][0] < action.log_z, "the bound is one"
    value, error = after["observables"][1]
    assert abs(value - 0.5) < 4 * error < 0.4
    bad = lattice.scalar(4, math.nan)
    assert "diverged" in said_by(lattice.train, flow.float(), bad, steps=1, batch=2)


def test_levels_of_an_identity_hold_what_their_sites_do():
    torch.manual_seed(0)
    flow = lattice.network(8, "flow", 1, 6).double()  # the identity, as every fresh flow
    held = lattice.content(flow, seed=0)
    share, gradient = np.array(held["share"]).T
    assert share == pytest.approx([0.75, 0.25], abs=0.05), "48 and 16 of the 64 sites"
    assert gradient.sum() > 1, "pairs across levels count for both"
    assert held["radius"] == pytest.approx([0, 0])
    even = lattice.evaluate(flow, lattice.Action(torch.full((8, 8), 0.5), torch.zeros_like), 4, 0)
    assert even["scores"][0] == pytest.approx([1, 0], abs=1e-9), "it is that field's own flow"
    for (variance, error), (correlation, other) in zip(*[iter(even["latents"])] * 2, strict=True):
        assert abs(variance - 1) < 4 * error < 0.1
        assert abs(correlation) < 4 * other < 0.1


def test_differences_are_derivatives_of_the_field():
    flow, z = small(8, strength=1.0), normal(2, 1, 8, 8)
    positions = torch.tensor([[0, 0, 0], [0, 3, 5]])
    change = list(fields.differences(lambda z: flow.inverse(z)[0], z, positions))
    for k, (_, i, j) in enumerate(positions.tolist()):
        step = torch.zeros_like(z)
        step[:, 0, i, j] = 1e-5
        numeric = (flow.inverse(z + step)[0] - flow.inverse(z - step)[0]) / 2e-5
        close(change[k], numeric, 1e-5)


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


def test_make_leaves_a_record_and_the_command_lists_what_has_none(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks", "rgflow_core", "data"):
        (tmp_path / folder).mkdir()
    run = '{"edge": 4, "mass2": 1.0, "chains": 4, "steps": 50, "seed": 3}'
    (tmp_path / lattice.PLAN).write_text(
        f'{{"g": {{"common": {run}, "runs": {{"a": {{}}, "b": {{}}}}}}}}'
    )
    monkeypatch.chdir(tmp_path)
    path = lattice.make("a", results.root())
    record = read_json(path)
    assert record["settings"]["chains"] == 4
    assert record["seed"] == 3
    assert record["commit"]
    before = path.stat().st_mtime_ns
    assert lattice.make("a", results.root()).stat().st_mtime_ns == before
    monkeypatch.setattr("sys.argv", ["lattice"])
    lattice.main()
    assert capsys.readouterr().out.split() == ["b"]
    says = "c is not a run of data/lattice.json; those are: a, b"
    assert says in said_by(lattice.make, "c", results.root())
