"""Flows to compare with: their laws, their size, their training by our loop, and what is asked of them."""

from dataclasses import replace

import pytest
import torch
from support import RUN, close, same

from rgflow_core import PictureModel, Prior, RGFlow, checkpoints, datasets, evaluate, load, train
from rgflow_core.errors import UserError
from rgflow_core.files import read_json
from rgflow_core.flow import CONFIGS, config_of
from rgflow_core.muon import Muon
from study import answers, fields, peers, records, results, separation

ROOT = results.root()
PLAN = records.plan(ROOT, path=records.PEERS)
RECORDS = records.read(ROOT, PLAN)
SMALL = {"image_size": 8, "channels": 3, "coupling_layers": 2, "hidden": 7, "res_blocks": 1}
KINDS = {name: SMALL | {"flow": name, "scales": 2} for name in ("glow", "realnvp")}
KINDS["flat"] = peers.MODELS["flat"] | SMALL
for kind in KINDS:
    train.MODELS[f"small_{kind}"] = {
        k: v for k, v in KINDS[kind].items() if k not in ("image_size", "channels")
    }


def small(kind: str) -> peers.Peer:
    """A flow of a kind that is far from where it started, float64."""
    torch.manual_seed(0)
    flow = config_of(KINDS[kind]).build().double()
    with torch.no_grad():
        flow(torch.randn(8, 3, 8, 8).double())  # ActNorm takes its start from data
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_and_jacobian(kind):
    flow, y = small(kind), torch.randn(2, 3, 8, 8, dtype=torch.float64)
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
        ours = count("lean8" if name == "glow8" else "lean", channels)
        assert count(name, channels) == pytest.approx(ours, rel=0.1), name


@pytest.mark.parametrize("kind", KINDS)
def test_our_loop_trains_and_goes_on_and_our_files_hold_it(kind, tmp_path):
    fields = {"model": f"small_{kind}", "optimizer": "muon", "epochs": 2, "image_size": 32}
    settings = replace(RUN, **fields, standardise=kind != "flat")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole = train.train(settings, whole, progress=False)
    rate = train.rate_factor

    def stop(settings: train.Settings, step: int, steps: int) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return rate(settings, step, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "rate_factor", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(replace(settings, save_minutes=0), stopped, progress=False)
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


def test_muon_takes_the_hidden_matrices_and_no_triangle():
    for kind in ("glow", "realnvp"):
        run = train.Run(
            replace(RUN, model=f"small_{kind}", optimizer="muon"), ROOT, train.Ranks("cpu"), 64, ""
        )
        (muon,) = (o for o in run.optimizers if isinstance(o, Muon))
        shapes = {tuple(p.shape) for p in muon.param_groups[0]["params"]}
        assert shapes == {"glow": {(1, 7, 7)}, "realnvp": {(9, 7, 7)}}[kind]


def test_a_flow_that_nothing_added_is_named(monkeypatch):
    monkeypatch.delitem(CONFIGS, "glow")
    with pytest.raises(UserError, match="'glow' is none of "):
        config_of(KINDS["glow"])


def test_the_plan_is_of_settings_and_the_peers_are_tuned():
    for name, own in PLAN.items():
        settings = train.Settings(**train.LEAN_RECIPE | own)
        train.flow_config(settings)
        if name in RECORDS and "test" in RECORDS[name]:
            assert RECORDS[name]["settings"] | own == RECORDS[name]["settings"], name
    knobs = ("lr", "batch_size", "optimizer", "matrix_lr", "model")
    for peer in ("glow", "realnvp", "flat"):
        tried = records.plan(ROOT, f"tuning_{peer}", records.PEERS)
        if tried.keys() <= RECORDS.keys():
            bits = {n: RECORDS[n]["validation"][-1]["bpd"] for n in tried if "test" in RECORDS[n]}
            best = RECORDS[min(bits, key=bits.get)]["settings"]
            for name in (f"peer_{peer}_seed1", f"minutes_{peer}_seed1"):
                used = train.Settings(**train.LEAN_RECIPE | PLAN[name])
                assert {k: best[k] for k in knobs} == {k: getattr(used, k) for k in knobs}, name


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
    assert asked == wanted | ({("separation", None)} if set_name == "msds1" else set())
    values = {(quantity, level, factor): value for quantity, level, factor, value in rows}
    if set_name == "msds1":  # an untrained flow of ours is the identity
        assert values["separation", None, "trained"] == values["separation", None, "untrained"]
        assert values["probe", 0, "global colour"] > 0.8, "its finest latents are pixels"
    else:
        assert values["probe", 0, "class"] > values["probe", 3, "class"]
    inverse = RGFlow.inverse
    monkeypatch.setattr(RGFlow, "inverse", lambda flow, z: (inverse(flow, z)[0] * torch.nan, None))
    rows = answers.answers(model, set_name, ROOT, pictures=250)
    of_generated = {"intervention", "separation", "radius", "growth"}
    assert all((value is None) == (quantity in of_generated) for quantity, *_, value in rows)


def test_a_probe_finds_what_is_linear_and_nothing_else():
    z = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    scores = separation.probe(z, {"there": z[:, :2] * 2 + 1, "not": torch.randn(400, 1)})
    assert scores["there"]["value"] > 0.99
    assert scores["not"]["value"] < 0.1
