"""The study's runs, their records, and what tables of results take from them."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from support import ROOT, TINY, write_record

from rgflow_core import evaluate, train
from rgflow_core.files import read_json, write_json
from study import peers, records, results, sets  # noqa: F401 - peers adds its models

RUNS = records.plan(ROOT)
PLAN = RUNS | records.plan(ROOT, path=records.PEERS)


def test_the_plan_is_of_settings():
    for name, fields in PLAN.items():
        settings = train.Settings(**train.LEAN_RECIPE | fields)
        train.flow_config(settings)
        if name in RUNS and not name.startswith(("change", "tuning8")):
            assert settings.dataset in name
            assert settings.prior in name
    for name, fields in records.plan(ROOT, "shipped").items():
        assert results.split_name(name) == (fields["dataset"], fields["prior"])


def test_records_are_of_the_plan():
    names = {path.stem for path in (ROOT / records.FOLDER).glob("*.json")}
    for name, record in records.read(ROOT, list(names)).items():
        wanted = train.Settings(**train.LEAN_RECIPE | PLAN[name])
        # A machine's own, and where the smaller model is that one has grown from.
        here = {"data_root": "x", "workers": 1, "checkpointing": False, "start_from": None}
        # Before it was a knob, every run had the lean recipe's.
        trained = train.Settings(**{"outlier_bpd": 16.0} | record["settings"] | here)
        assert trained == replace(wanted, **here)
        if "grown_from" in record:
            small = next(
                g["grown_from"]
                for g in read_json(ROOT / records.PEERS).values()
                if name in g["runs"]
            )
            before = train.Settings(**record["grown_from"]["settings"] | here)
            assert before == replace(train.Settings(**train.LEAN_RECIPE | PLAN[small]), **here)
            assert "weights" in record["starts"][0]
        if "diverged" not in record:
            few = wanted.train_images or records.group_of(ROOT, name).startswith(records.BRIEF)
            whole = {"photographs": 7 * sets.PATCHES}.get(wanted.dataset, 10_000)
            count = wanted.val_images if few else whole
            assert record["test"]["images"] == count
            assert record["images_seen"] == record["validation"][-1]["images"]


def test_make(planned, monkeypatch, capsys):
    monkeypatch.setitem(train.MODELS, "lean", TINY)
    monkeypatch.chdir(planned)
    fields = {"dataset": "msds1", "prior": "gaussian", "epochs": 1, "train_images": 64}
    fields |= {"val_images": 32, "data_root": str(ROOT / "data")}
    plan = {
        "shipped": {"common": fields, "runs": {"a": {}}},
        "shipped8": {"recipe": "lean8", "common": fields, "runs": {"lean8": {"model": "lean"}}},
        "other": {"common": {}, "runs": {"b": fields | {"without_noise": True}}},
        "seeds": {"common": fields, "runs": {"msds1_gaussian_seed1": {"seed": 1}}},
        "changes": {"common": fields, "runs": {"change_bad": {"lr": 1e30}}},
    }
    write_json(planned / records.PLAN, plan)
    write_json(planned / records.PEERS, {"peers_a": {"common": fields, "runs": {"peer_a": {}}}})
    whole = evaluate.datasets.load_split

    def few(name, split, root, limit=None, *rest):
        return whole(name, split, root, limit or 50, *rest)

    monkeypatch.setattr(evaluate.datasets, "load_split", few)
    path = records.make("a", planned)
    record = read_json(path)
    assert record["images_seen"] == 64
    assert record["test"]["images"] == 32, "as many as validate a run on few pictures"
    assert record["matrix_peak"] > 0
    assert (planned / "weights" / "a.safetensors").exists()
    rounded = read_json(records.make("lean8", planned))
    held = safetensors.torch.load_file(planned / "weights" / "lean8.safetensors")
    assert {value.dtype for value in held.values()} == {torch.float16}
    assert rounded["test"]["bpd"] != rounded["test_uniform_noise"]["bpd"]
    assert f"{record['test']['bpd']:.4f}" in (planned / "weights" / "README.md").read_text()

    shutil.rmtree(planned / "runs")
    before = path.stat().st_mtime_ns
    assert records.make("a", planned) == path
    assert path.stat().st_mtime_ns == before, "a record is not made again"

    monkeypatch.setattr(records.answers, "answers", lambda *_: [["radius", 0, "", 1.0]])
    seed = read_json(records.make("msds1_gaussian_seed1", planned))
    assert seed["latents"] == [["radius", 0, "", 1.0]]
    assert "speed" not in seed
    records.make("b", planned)
    assert not (planned / "weights" / "b.safetensors").exists()
    monkeypatch.setattr("sys.argv", ["records"])
    records.main()
    listed = capsys.readouterr().out.splitlines()
    assert listed[-2:] == ["change_bad", "peer_a"], "those without a record are listed"
    assert "diverged" in read_json(records.make("change_bad", planned))["diverged"]
    monkeypatch.setattr(records.benchmarks, "matrix_peak", lambda *_: 1e9)
    peer = read_json(records.make("peer_a", planned))
    assert peer["latents"] == [["radius", 0, "", 1.0]]
    assert peer["speed"]["theirs"] > 0
    records.main()
    assert capsys.readouterr().out.splitlines()[-1] == "", "all have records"


def test_a_network_that_has_grown(planned, monkeypatch):
    sizes = {"coupling_layers": 1, "res_blocks": 1, "mlp_depth": 1}
    for name, hidden in (("small", 2), ("large", 4)):
        monkeypatch.setitem(train.MODELS, name, sizes | {"hidden": hidden})
    fields = {"dataset": "msds1", "prior": "gaussian", "data_root": str(ROOT / "data")}
    fields |= {"epochs": 1, "train_images": 64, "val_images": 32}
    plan = {
        "narrow": {"common": fields, "runs": {"narrow": {"model": "small"}}},
        "wide": {
            "grown_from": "narrow",
            "common": fields | {"lr": 1e-12, "matrix_lr": 1e-12},
            "runs": {"wide": {"model": "large"}},
        },
    }
    write_json(planned / records.PLAN, {})
    write_json(planned / records.PEERS, plan)
    wide = read_json(records.make("wide", planned))
    before = wide["grown_from"]
    assert before == read_json(planned / "runs" / "study" / "narrow" / "record.json")
    assert wide["parameters"] > before["parameters"]
    assert wide["validation"][0]["bpd"] == pytest.approx(before["validation"][0]["bpd"], abs=1e-5)
    at = [row["at"] for row in records.run_rows("wide", wide) if row["quantity"] == "validation"]
    assert at == ["128"], "pictures of both"


def table_of(root):
    return results.write(root / "results", "03", records.rows(root))


def test_priors_are_compared_by_seed(planned):
    for seed, (gaussian, laplace) in enumerate([(1.0, 1.1), (1.2, 1.4)], 1):
        write_record(planned, f"msds1_gaussian_seed{seed}", gaussian)
        write_record(planned, f"msds1_laplace_seed{seed}", laplace)
    write_record(planned, "msds1_laplace_unit_scale_seed1", 1.3)
    table = table_of(planned)
    assert results.number(table, "seed_bpd", model="msds1", factor="laplace scale 1", at=1) == 1.3
    of, *single = results.select(table, "prior_difference").to_dict("records")
    assert [(one["n"], one["low"] == one["low"]) for one in single] == [(1, False)] * 2
    assert of["factor"] == "laplace less gaussian"
    assert of["value"] == pytest.approx(0.15)
    assert of["low"] == pytest.approx(0.15 - 12.706 * 0.05, abs=1e-4), "Student's t, n = 2"
    assert of["n"] == 2
    assert results.number(table, "runs_missing", factor="seeds") == 8
    assert records.table(planned, "seeds", "test")["test bpd"].tolist() == [1.0, 1.1, 1.2, 1.4]
    validation = records.table(planned, "seeds", "val")["val bpd"].tolist()
    assert validation == [11.0, 11.1, 11.2, 11.4], "not the test split"
    assert results.number(table, "seed_run", factor="pictures") == 48_000
    (one,) = results.select(table, "separation_seeds", model="msds1_laplace").to_dict("records")
    assert (one["value"], one["n"]) == (pytest.approx(0.625), 2)
    assert one["low"] == pytest.approx(0.625 - 12.706 * 0.075, abs=1e-3)
    assert results.number(table, "separation_difference", model="msds1") == pytest.approx(0.075)


def test_changes_are_compared_by_seed_and_intervals_corrected(planned):
    bits = {"unchanged_seed1": 2.0, "unchanged_seed2": 2.0, "unchanged_seed3": 2.0}
    bits |= {"without_tanh_seed1": 2.1, "without_tanh_seed2": 2.3, "flips_seed4": 9.0}
    bits |= {"batch_512_seed1": 4.0, "few_steps_seed1": 3.0}
    for name, bpd in bits.items():
        write_record(planned, f"change_{name}", bpd)
    diverged = {"diverged": "at step 3", "settings": {}}
    write_json(planned / records.FOLDER / "change_without_tanh_seed3.json", diverged)
    table = table_of(planned)
    change = results.select(table, "change")
    assert set(change["factor"]) == {"without_tanh", "batch_512", "batch_512_equal_steps"}
    assert results.number(table, "change", factor="batch_512_equal_steps", at=1) == 1
    assert results.number(table, "change_diverged", factor="without_tanh") == 1
    assert results.number(table, "change_diverged", factor="flips") == 0
    mean = results.select(table, "change_mean").set_index("factor")
    assert mean["n"].to_dict() == {"without_tanh": 2, "batch_512": 1, "batch_512_equal_steps": 1}
    assert mean["low"].isna().tolist() == [False, True, True], "one seed has no interval"
    mean = mean.loc["without_tanh"]
    assert mean["value"] == pytest.approx(0.2)
    assert mean["high"] - 0.2 == pytest.approx(0.1 * 127.32, abs=0.01), "ten changes, one degree"
    assert results.number(table, "details_worse") == 0, "its interval holds 0"
    assert results.number(table, "unchanged", factor="comparisons") == 10
    assert results.number(table, "unchanged", factor="steps") == 3
    assert results.number(table, "unchanged", "n", factor="bpd") == 3
    for seed in (1, 2, 3, 4):
        write_record(planned, f"change_unchanged_seed{seed}", 2 + 0.01 * seed)
        write_record(planned, f"change_without_noise_seed{seed}", 3.0)
    assert results.number(table_of(planned), "details_worse") == 1


def test_one_epoch_is_judged_on_both_splits_over_pictures_and_seeds(planned):
    for seed, bpd in enumerate([8.4, 8.5, 8.6], 1):
        write_record(planned, f"msds1_laplace_one_epoch_seed{seed}", bpd)
    table = table_of(planned)
    for split, value in (("test", 8.5), ("val", 18.5)):
        (mean,) = results.select(table, "one_epoch_mean", factor=split).to_dict("records")
        assert mean["value"] == pytest.approx(value)
        assert mean["high"] - value == pytest.approx(4.303 * 0.1 / 3**0.5, abs=1e-4), "Student's t"
        (run,) = results.select(table, "one_epoch", factor=split, at=2).to_dict("records")
        assert (run["value"], run["n"]) == (value, 10), "n counts pictures"
    assert results.number(table, "published_one_epoch") == 8.5235
