"""The study's runs and their records."""

import shutil
from dataclasses import replace

import pytest
import torch
from support import TINY

from rgflow_core import evaluate, train
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, write_json
from study import records, results

ROOT = results.root()


def test_the_plan_is_of_settings():
    for name, fields in records.plan(ROOT).items():
        settings = train.Settings(**train.LEAN_RECIPE | fields)
        if not name.startswith(("ablation", "change")):
            assert settings.dataset in name
            assert settings.prior in name
    shipped = records.plan(ROOT, "shipped")
    assert {f"{f['dataset']}_{f['prior']}" for f in shipped.values()} == set(shipped)


def test_records_are_of_the_plan():
    names = {path.stem for path in (ROOT / records.FOLDER).glob("*.json")}
    for name, record in records.read(ROOT, list(names)).items():
        wanted = train.Settings(**train.LEAN_RECIPE | records.plan(ROOT)[name])
        # Before it was a knob, every run had the lean recipe's.
        made = train.Settings(**{"outlier_bpd": 16.0} | record["settings"])
        here = {"data_root": "x", "workers": 1, "checkpointing": None}  # a machine's own
        assert replace(made, **here) == replace(wanted, **here)
        if "diverged" in record:
            continue
        assert record["test"]["images"] == 10_000
        assert record["images_seen"] == record["validation"][-1]["images"]


def test_cards_are_those_of_the_records(tmp_path):
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=lambda *_: {"msds1", "msds2"})
    (tmp_path / "weights").mkdir()
    records.write_cards(tmp_path)
    assert (tmp_path / "weights" / "README.md").read_text() == (
        ROOT / "weights" / "README.md"
    ).read_text()


def test_make(tmp_path, monkeypatch):
    monkeypatch.setitem(train.MODELS, "lean", TINY)
    for folder in ("notebooks", "rgflow_core", "weights", "data"):
        (tmp_path / folder).mkdir()
    fields = {
        "dataset": "msds1",
        "prior": "gaussian",
        "epochs": 1,
        "train_images": 64,
        "val_images": 32,
        "data_root": str(ROOT / "data"),
    }
    write_json(
        tmp_path / records.PLAN,
        {
            "shipped": {"common": fields, "runs": {"a": {}}},
            "other": {"common": {}, "runs": {"b": fields | {"without_noise": True}}},
            "ablations": {"common": fields, "runs": {"bad": {"lr": 1e30}}},
        },
    )
    small = evaluate.datasets.load_split
    monkeypatch.setattr(
        evaluate.datasets,
        "load_split",
        lambda name, split, root, limit=None, *rest: small(name, split, root, limit or 50, *rest),
    )
    path = records.make("a", tmp_path)
    record = read_json(path)
    assert record["images_seen"] == 64
    assert record["test"]["images"] == 50
    assert record["matrix_peak"] > 0
    assert (tmp_path / "weights" / "a.safetensors").exists()
    card = (tmp_path / "weights" / "README.md").read_text()
    assert f"{record['test']['bpd']:.4f}" in card
    assert record["commit"] in card
    bits = torch.load(tmp_path / "runs" / "study" / "a" / "test_bits.pt", weights_only=True)
    assert bits.double().mean().item() == pytest.approx(record["test"]["bpd"], abs=1e-5)

    shutil.rmtree(tmp_path / "runs")
    before = path.stat().st_mtime_ns
    assert records.make("a", tmp_path) == path
    assert path.stat().st_mtime_ns == before, "a record is not made again"
    records.make("b", tmp_path)
    assert not (tmp_path / "weights" / "b.safetensors").exists()
    assert "diverged" in read_json(records.make("bad", tmp_path))["diverged"]
    with pytest.raises(UserError, match="c is not a run of the study; those are: a, b, bad"):
        records.make("c", tmp_path)


def record(bpd: float, **more: object) -> dict:
    curve = [{"images": 10, "bpd": bpd, "stderr": 0.1}]
    return {"test": {"bpd": bpd}, "validation": curve} | more


def test_seeds_are_paired_and_what_is_missing_is_named(tmp_path):
    shutil.copytree(
        ROOT / "data", tmp_path / "data", ignore=lambda *_: {"records", "msds1", "msds2"}
    )
    for seed, (gaussian, laplace) in enumerate([(1.0, 1.1), (1.2, 1.4)], 1):
        for name, bpd in (("gaussian", gaussian), ("laplace", laplace)):
            path = tmp_path / records.FOLDER / f"msds1_{name}_seed{seed}.json"
            write_json(path, record(bpd))
    groups, comparisons, missing = records.seeds(tmp_path)
    assert groups == {"msds1, gaussian": [1.0, 1.2], "msds1, laplace": [1.1, 1.4]}
    assert comparisons.keys() == {"msds1, laplace less msds1, gaussian"}
    assert comparisons["msds1, laplace less msds1, gaussian"]["mean"] == pytest.approx(0.15)
    assert len(missing) == 11
    assert "msds1_gaussian_seed3" in missing


def test_ablations_are_compared_by_seed(tmp_path):
    shutil.copytree(
        ROOT / "data", tmp_path / "data", ignore=lambda *_: {"records", "msds1", "msds2"}
    )
    assert "No ablation" in records.ablation_table(records.ablations(tmp_path)[0])
    runs = {"unchanged_seed1": 2.0, "without_tanh_seed1": 2.25, "without_tanh_seed2": 2.5}
    for name, bpd in runs.items():
        write_json(tmp_path / records.FOLDER / f"ablation_{name}.json", record(bpd))
    noise = record(9.0, test_without_noise={"bpd": 1.0})
    write_json(tmp_path / records.FOLDER / "ablation_without_noise_seed1.json", noise)
    write_json(tmp_path / records.FOLDER / "ablation_flips_seed1.json", {"diverged": "at step 3"})
    rows, missing = records.ablations(tmp_path)
    assert rows["without_tanh"]["bpd"] == [2.25, 2.5]
    assert rows["without_tanh"]["less_unchanged"] == [0.25], "seed 2 has nothing to compare with"
    assert rows["flips"] == {"bpd": [], "less_unchanged": [], "diverged": 1}
    assert len(missing) == 15
    assert "| flips | diverged | – |" in records.ablation_table(rows)
    assert "(without noise: 1.000)" in records.ablation_table(rows)


def test_seeds_against_the_published_value(tmp_path):
    (tmp_path / records.FOLDER).mkdir(parents=True)
    (tmp_path / records.PLAN).write_text((ROOT / records.PLAN).read_text())
    published = {"bpd": {"msds1": {"laplace": 1.5, "gaussian": 1.5}}}
    assert records.against_published(tmp_path, published) == {}
    assert "None of these" in records.run_table(tmp_path, "seeds")
    for seed, bpd, seconds in ((1, 1.4, 60.0), (2, 1.6, 120.0)):
        settings = {"dataset": "msds1", "prior": "laplace", "model": "lean"}
        settings |= {"optimizer": "muon", "batch_size": 16}
        write_json(
            tmp_path / records.FOLDER / f"msds1_laplace_seed{seed}.json",
            {"settings": settings, "images_seen": 48, "seconds": seconds}
            | {"test": {"bpd": bpd, "stderr": 0.1}, "matrix_peak": 2e9},
        )
    wanted = {"runs": 2, "reached": 1, "bpd": 1.5, "images": 48, "minutes": [1.0, 2.0]}
    assert records.against_published(tmp_path, published) == {"msds1, laplace": wanted}
    assert "| 2.0 | 2 | 1.600 ± 0.100 |" in records.run_table(tmp_path, "seeds")
