"""Flows to compare with: their laws, their size, their training by our loop, and what is asked of them."""

import math
from dataclasses import replace

import pytest
import torch
from support import ROOT, RUN, calls, close, interrupt, same

from rgflow_core import PictureModel, Prior, RGFlow, checkpoints, datasets, evaluate, load, train
from rgflow_core.errors import UserError
from rgflow_core.files import read_json
from rgflow_core.flow import CONFIGS, config_of
from rgflow_core.muon import Muon
from study import answers, fields, peers, records, separation

PLAN = records.plan(ROOT, path=records.PEERS)
RECORDS = records.read(ROOT, PLAN)
SMALL = {"image_size": 8, "channels": 3, "coupling_layers": 2, "hidden": 7, "res_blocks": 1}
KINDS = {name: SMALL | {"flow": name, "scales": 2} for name in ("glow", "realnvp")}
KINDS["glow_net_actnorm"] = KINDS["glow"] | {"net_actnorm": True}
KINDS["realnvp_doubling"] = KINDS["realnvp"] | {"doubling": True, "hidden": 12}  # as many channels
KINDS |= {name: peers.MODELS[name] | SMALL for name in ("flat", "flat8")}
for kind in KINDS:
    train.MODELS[f"small_{kind}"] = {
        k: v for k, v in KINDS[kind].items() if k not in ("image_size", "channels")
    }


def small(kind: str, **changes: int) -> peers.Peer:
    """A flow of a kind that is far from where it started, float64."""
    torch.manual_seed(0)
    flow = config_of(KINDS[kind] | changes).build().double()
    far = 0.03 if kind == "flat8" else 0.1  # it has 18 layers whatever it is asked for
    with torch.no_grad():
        flow(torch.randn(8, 3, 8, 8).double())  # ActNorm takes its start from data
        for parameter in flow.parameters():
            parameter.add_(far * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_and_jacobian(kind):
    flow, y = small(kind), torch.randn(8, 3, 8, 8, dtype=torch.float64)
    z, log_det = flow(y)
    back, inverse_log_det = flow.inverse(z)
    close(back, y, 1e-9)
    close(inverse_log_det, -log_det, 1e-9)
    jacobian = torch.func.jacrev(lambda x: flow(x[None])[0][0])(y[1])
    close(log_det[1], jacobian.view(192, 192).slogdet()[1], 1e-9)
    assert log_det.std() > 0.01, "the check has power"
    latents = flow.split(z)
    assert sum(part[0].numel() for part in latents) == 192
    assert len(latents) == flow.config.scales
    assert same(flow.join(latents), z)


@pytest.mark.parametrize(("kind", "layers"), [("glow", 2), ("realnvp", 2), ("realnvp", 3)])
def test_what_the_last_coupling_moved_leaves(kind, layers):
    flow, before = small(kind, coupling_layers=layers), torch.randn(2, 12, 4, 4).double()
    last = flow.scales[0][-2]  # then there are scales and shifts
    after, _ = (last.flows[0] if kind == "glow" else last).inverse(before)
    (kept, left), (kept_after, left_after) = map(flow.halves, (before, after))
    assert same(kept, kept_after)
    assert (left != left_after).all()
    assert same(flow.whole(kept, left), before)


@pytest.mark.parametrize("kind", ["flat", "flat8"])
def test_a_flow_on_one_grid_starts_from_data_as_ours(kind):
    flow, y = config_of(KINDS[kind]).build(), 3 + 2 * torch.randn(64, 3, 8, 8)
    flow.standardise(y)
    z, _ = flow(y)  # what follows the first layer is the identity
    close(z.mean(0), torch.zeros(3, 8, 8), 1e-4)
    close(z.std(0), torch.ones(3, 8, 8), 1e-4)


def test_a_latent_of_a_coarser_scale_reaches_farther():
    model = PictureModel(small("glow"), Prior("gaussian"))
    positions = fields.choose(model.flow, 4)
    indices = positions[..., 0] * 64 + positions[..., 1] * 8 + positions[..., 2]
    assert (indices[0] < 96).all()
    assert (indices[1] >= 96).all(), "half of the 192 leave after the first scale"
    maps = fields.receptive_fields(model, positions, samples=2).mean(0)
    fine, coarse = (fields.area(level).double().mean() for level in maps)
    assert coarse > fine


def test_as_many_parameters_as_ours_within_a_tenth():
    def count(model: str, channels: int) -> int:
        flow = config_of({"image_size": 32, "channels": channels} | train.MODELS[model]).build()
        return sum(p.numel() for p in flow.parameters())

    for name in peers.MODELS:
        channels = 1 if name.endswith("grey") else 3
        ours = count("lean8" if name.endswith("8") else "lean", channels)
        assert count(name, channels) == pytest.approx(ours, rel=0.1), name
    assert count("flat8", 3) == count("lean8", 3)


@pytest.mark.parametrize("kind", ["glow", "realnvp", "flat", "flat8"])
def test_our_loop_trains_and_goes_on_and_our_files_hold_it(kind, tmp_path):
    fields = {"model": f"small_{kind}", "optimizer": "muon", "epochs": 2, "image_size": 32}
    settings = replace(RUN, **fields, standardise=True)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole = train.train(settings, whole, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        calls(patch, train, "rate_factor", 6, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, stopped, progress=False)
    again = train.train(settings, stopped, progress=False)
    assert same(checkpoints.read_tensors(whole)[1], checkpoints.read_tensors(again)[1])
    model, record = load(again), read_json(stopped / "record.json")
    assert isinstance(model.flow, peers.Peer)
    val = datasets.load_split("msds1", "val", ROOT / "data", settings.val_images).images
    best = min(point["bpd"] for point in record["validation"])
    assert evaluate.evaluate(model, val).mean().item() == pytest.approx(best, abs=1e-5)
    untrained = PictureModel(train.flow_config(settings).build(), model.prior)
    assert best < evaluate.evaluate(untrained, val).mean() - 0.3


def test_a_flow_whose_samples_explode_is_trained_all_the_same(tmp_path, monkeypatch, capsys):
    def explode(self: PictureModel, *_: object, **__: object) -> None:
        raise UserError("not finite")

    monkeypatch.setattr(PictureModel, "sample", explode)
    settings = replace(RUN, model="small_glow", image_size=32, epochs=1)
    assert train.train(settings, tmp_path / "run", progress=False).exists()
    assert "No samples of epoch 1: not finite" in capsys.readouterr().out
    assert not [*(tmp_path / "run" / "samples").glob("*")]


def test_muon_takes_the_hidden_matrices_or_all_and_no_triangle():
    taken = {
        "glow": {(1, 7, 7)},
        "realnvp": {(9, 7, 7)},
        "realnvp_doubling": {(9, 12, 12), (9, 24, 24)},
    }
    taken = {f"small_{kind}": ("muon", wanted) for kind, wanted in taken.items()}
    ends = {(2, 64, 64), (2, 48, 64), (2, 64, 48)}
    taken |= {"narrow": ("muon_all", ends), "lean": ("muon_all", {(88, 24), (88, 88), (120, 88)})}
    for model, (optimizer, wanted) in taken.items():
        settings = replace(RUN, model=model, optimizer=optimizer, image_size=32)
        run = train.Run(settings, ROOT, train.Ranks("cpu"), 64, "")
        (muon,) = (o for o in run.optimizers if isinstance(o, Muon))
        assert {tuple(p.shape) for p in muon.param_groups[0]["params"]} == wanted


def test_a_flow_that_nothing_added_is_named(monkeypatch):
    monkeypatch.delitem(CONFIGS, "glow")
    with pytest.raises(UserError, match="'glow' is none of "):
        config_of(KINDS["glow"])


def planned_settings(fields: dict) -> train.Settings:
    return train.Settings(**train.LEAN_RECIPE | fields)


@pytest.mark.parametrize(("step", "recipe"), [("nlsq", "lean"), ("start", "lean8")])
def test_two_of_the_steps_are_recipes(step, recipe):
    own = train.RECIPES[recipe] | read_json(ROOT / records.PEERS)["steps"]["common"]
    assert planned_settings(PLAN[f"step_{step}_seed1"]) == train.Settings(**own, seed=1)


TUNED = ("glow", "realnvp", "flat")


def comparisons(peer: str) -> list[str]:
    stems = [f"{of}_{peer}" for of in ("peer", "minutes", "fashion_mnist")]
    stems += ["peer_glow8", "long_fashion_glow"] * (peer == "glow")  # others have lean8's recipe
    stems += ["fashion_mnist_laplace", "peer_lean_affine"] * (peer == "lean")
    return [name for name in PLAN if name.partition("_seed")[0] in stems]


@pytest.mark.parametrize("peer", [*TUNED, "lean"])  # lean's rates are those of its recipe
def test_the_peers_are_tuned(peer):
    """Its comparisons are planned with the best of its trials, all of which have a record."""
    tried = {n: planned_settings(PLAN[n]) for n in PLAN if n.startswith(f"tuning_{peer}_")}
    bits = {n: RECORDS[n]["validation"][-1]["bpd"] for n in tried if "test" in RECORDS[n]}
    adamw = {n: tried[n].lr for n in tried if n.startswith(f"tuning_{peer}_lr_")}
    muon = {
        n: own.matrix_lr for n, own in tried.items() if "_muon_0" in n or n == "tuning_lean_batch_8"
    }
    for rates in (adamw, muon) if peer in TUNED else (muon,):
        rate = rates[min(rates.keys() & bits.keys(), key=bits.get)]
        assert min(rates.values()) < rate < max(rates.values()), "the best rate is at an end"
    best = tried[min(bits, key=bits.get)]
    knobs = ["lr", "batch_size", "optimizer"] + ["matrix_lr"] * (best.optimizer == "muon")
    kinds = ["doubling", "net_actnorm"] + ["coupling_layers"] * (peer == "glow")
    for name in comparisons(peer):
        used = planned_settings(PLAN[name])
        if name.startswith((f"peer_{peer}_seed", f"minutes_{peer}_")):  # others are other models
            assert used.model == best.model, name
        assert [getattr(used, k) for k in knobs] == [getattr(best, k) for k in knobs], name
        models = (train.MODELS[settings.model] for settings in (used, best))
        assert len({tuple(model.get(k) for k in kinds) for model in models}) == 1, name


@pytest.mark.parametrize("set_name", ["msds1", "fashion_mnist"])
def test_what_is_asked_of_a_flow_with_levels(set_name, monkeypatch):
    whole = datasets.load_split

    def classes(name, split, root, limit):
        data = whole("msds1", split, root, limit)
        return data if name == "msds1" else replace(data, labels=data.labels[:, 0, 0, 3] // 22)

    monkeypatch.setattr(answers.datasets, "load_split", classes)
    model = PictureModel(RGFlow(config_of({"hidden": 4, "subnet": "lean"})), Prior("gaussian"))
    rows = answers.answers(model, set_name, ROOT, pictures=250)
    asked = {(quantity, level) for quantity, level, *_ in rows}
    each = {"probe", "probe_untrained", "radius"} | (
        {"intervention"} if set_name == "msds1" else set()
    )
    wanted = {(quantity, h) for quantity in each for h in range(4)} | {("growth", None)}
    once = {("separation", None), ("separation_two_parts", None), ("separation_means", None)}
    once.add(("finite", None))
    assert asked == wanted | (once if set_name == "msds1" else set())
    values = {(quantity, level, factor): value for quantity, level, factor, value in rows}
    if set_name == "msds1":  # an untrained flow of ours is the identity
        assert values["separation", None, "trained"] == values["separation", None, "untrained"]
        assert values["probe", 0, "global colour"] > 0.8, "its finest latents are pixels"
    else:
        assert values["probe", 0, "class"] > values["probe", 3, "class"]
    inverse = RGFlow.inverse
    monkeypatch.setattr(RGFlow, "inverse", lambda flow, z: (inverse(flow, z)[0] * torch.nan, None))
    rows = answers.answers(model, set_name, ROOT, pictures=250)
    assert all((v is None) == (quantity in ("radius", "growth")) for quantity, *_, v in rows)
    assert {v for quantity, *_, v in rows if quantity == "finite"} == (
        {0.0} if set_name == "msds1" else set()
    )
    assert not [row for row in rows if row[0].startswith(("intervention", "separation"))]


def test_what_explodes_is_left_out_and_counted(monkeypatch):
    change = {"global colour": [0.1, 0.1, math.nan], "local colour": [0.6, 0.8, 1.0]}

    def intervene(*_, cut):
        levels = [torch.zeros(1, 1, 2**h, 2**h) for h in (3, 2, 1, 0)]
        return [{k: torch.tensor(v) for k, v in change.items()} for _ in cut(levels, levels)]

    monkeypatch.setattr(answers.separation, "intervene", intervene)
    model = PictureModel(RGFlow(config_of({"hidden": 4, "subnet": "lean"})), Prior("gaussian"))
    rows = answers.answers(model, "msds1", ROOT, pictures=250)
    values = {tuple(of): value for *of, value in rows}
    assert values["finite", None, "trained"] == pytest.approx(2 / 3)
    assert values["intervention", 1, "local colour"] == pytest.approx(0.7)
    assert values["separation", None, "trained"] == 0


def test_cuts_of_the_latents_in_two():
    shapes = ((3, 6, 8, 8), (3, 6, 4, 4), (3, 8, 2, 2))
    levels, fresh = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    for cut, new in zip(answers._two_parts(levels, fresh), ([0], [1, 2]), strict=True):
        for h, z in enumerate(cut):
            assert z is (fresh if h in new else levels)[h], "up to three quarters, the rest"
    assert not answers._two_parts(levels[:1], fresh[:1]), "of a single level"
    means, rest = answers._means(levels, fresh)
    sides = ((means, fresh, levels), (rest, levels, fresh))
    for (*finer, last), of_means, of_rest in sides:
        assert all(z is own for z, own in zip(finer, of_rest, strict=False))
        torch.testing.assert_close(last.mean((2, 3)), of_means[-1].mean((2, 3)))
        spread = (z - z.mean((2, 3), True) for z in (last, of_rest[-1]))
        torch.testing.assert_close(*spread)


def test_a_probe_finds_what_is_linear_and_nothing_else():
    z = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    scores = separation.probe(z, {"there": z[:, :2] * 2 + 1, "not": torch.randn(400, 1)})
    assert scores["there"]["value"] > 0.99
    assert scores["not"]["value"] < 0.1
