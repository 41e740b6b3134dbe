"""The study's runs and their records."""

import shutil
from dataclasses import replace

import pytest
import torch
from support import TINY

from rgflow_core import evaluate, records, study, train
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, write_json

ROOT = study.root()


def test_the_plan_is_of_settings():
    for name, fields in records.plan(ROOT).items():
        settings = train.Settings(**train.LEAN_RECIPE | fields)
        if not name.startswith("ablation"):
            assert settings.dataset in name
            assert settings.prior in name
    shipped = records.plan(ROOT, "shipped")
    assert {f"{f['dataset']}_{f['prior']}" for f in shipped.values()} == set(shipped)


def test_records_are_of_the_plan():
    names = {path.stem for path in (ROOT / records.FOLDER).glob("*.json")}
    for name, record in records.read(ROOT, list(names)).items():
        wanted = train.Settings(**train.LEAN_RECIPE | records.plan(ROOT)[name])
        made = train.Settings(**record["settings"])
        assert replace(made, data_root="", workers=1) == replace(wanted, data_root="", workers=1)
        assert record["test"]["images"] == 10_000
        assert record["images_seen"] == record["validation"][-1]["images"]


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
    write_json(tmp_path / records.PLAN, {
        "shipped": {"common": fields, "runs": {"a": {}}},
        "other": {"common": {}, "runs": {"b": fields | {"without_noise": True}}},
    })
    small = evaluate.datasets.load
    monkeypatch.setattr(
        evaluate.datasets,
        "load",
        lambda name, split, root, limit=None, *rest: small(name, split, root, limit or 50, *rest),
    )
    path = records.make("a", tmp_path)
    record = read_json(path)
    assert record["images_seen"] == 64
    assert record["test"]["images"] == 50
    assert (tmp_path / "weights" / "a.safetensors").exists()
    bits = torch.load(tmp_path / "runs" / "study" / "a" / "test_bits.pt", weights_only=True)
    assert bits.double().mean().item() == pytest.approx(record["test"]["bpd"], abs=1e-5)

    shutil.rmtree(tmp_path / "runs")
    before = path.stat().st_mtime_ns
    assert records.make("a", tmp_path) == path
    assert path.stat().st_mtime_ns == before, "a record is not made again"
    records.make("b", tmp_path)
    assert not (tmp_path / "weights" / "b.safetensors").exists()
    with pytest.raises(UserError, match="c is not a run of the study; those are: a, b"):
        records.make("c", tmp_path)
