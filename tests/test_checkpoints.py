"""Weights on disk: published layouts and back, and our own; tests/faults has what is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from support import GOLDEN, LAYOUTS, contents, files_below, golden, lattice_normal, same, small_flow

from rgflow_core import (
    PictureModel,
    Prior,
    RGFlowConfig,
    checkpoints,
    load,
    load_published,
    save_published,
)
from rgflow_core.errors import UserError

AUTHORS, IGF23 = "authors_L16_laplace.state", "igf23_L16_laplace.pth"
WRAP = {"authors": "flow", "igf23": "model"}


PARITY = {"authors": "even", "igf23": "odd"}


def state_of(name):
    return torch.load(GOLDEN / name, weights_only=True)[WRAP[LAYOUTS[name]]]


def same_function(flow, other):
    y = lattice_normal(flow, 2)
    assert torch.equal(flow(y)[0], other(y)[0])


# Published layouts


def test_structure_is_inferred():
    fields = {"res_blocks": 2, "hidden": 24, "mlp_depth": 2}
    expected = {
        AUTHORS: RGFlowConfig(image_size=16, coupling_layers=2, **fields),
        "authors_L32_gaussian.state": RGFlowConfig(coupling_layers=(3, 2, 2, 1), **fields),
        IGF23: RGFlowConfig(
            image_size=16, coupling_layers=((2, 1), (2, 1), 1), first_parity="odd", **fields
        ),
    }
    for name, config in expected.items():
        flow = load_published(GOLDEN / name)
        assert flow.config == config
        assert {p.dtype for p in flow.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_files_come_back_tensor_for_tensor(name, tmp_path):
    layout = LAYOUTS[name]
    prior = Prior("gaussian" if "gaussian" in name else "laplace")
    save_published(load_published(GOLDEN / name), tmp_path / "again", layout, prior)
    again = torch.load(tmp_path / "again", weights_only=True)[WRAP[layout]]
    original = {k: v for k, v in state_of(name).items() if not k.endswith(("_mean", "_var"))}
    assert same(again, original)


@pytest.mark.parametrize("layout", ["authors", "igf23"])
def test_sizes_may_differ_from_level_to_level(layout, tmp_path):
    fields = {"coupling_layers": (1, (2, 3)), "res_blocks": (1, 3), "hidden": (5, 7)}
    fields |= {"mlp_depth": (3, 1), "image_size": 12, "kernel": 6, "channels": 2}
    flow = small_flow(torch.float32, **fields, first_parity=PARITY[layout])
    save_published(flow, tmp_path / "flow.pth", layout)
    back = load_published(tmp_path / "flow.pth")
    assert back.config == flow.config
    assert same(back.state_dict(), flow.state_dict())


@pytest.mark.parametrize("layout", ["authors", "igf23"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.net.", "module.", "_orig_mod.", "net."])
def test_what_means_nothing_changes_nothing(layout, wrapped, prefix, tmp_path):
    """Wrapping, a prefix, buffers of a normalisation that is not used."""
    flow = small_flow(first_parity=PARITY[layout])
    save_published(flow, tmp_path / "x", layout)
    state = torch.load(tmp_path / "x", weights_only=True)[WRAP[layout]]
    state |= {"layers.0.s_layers.0.scale.saved_mean": torch.ones(48)}
    state = {prefix + key: value for key, value in state.items()}
    torch.save({WRAP[layout]: state, "optimizer": {}} if wrapped else state, tmp_path / "x")
    same_function(load_published(tmp_path / "x"), flow)


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("authors", {"subnet": "lean"}),
        ("authors", {"order": "paper"}),
        ("authors", {"first_parity": "odd"}),
        ("igf23", {"first_parity": "even"}),
        ("numpy", {}),
    ],
)
def test_flows_that_a_layout_cannot_hold(layout, config, tmp_path):
    with pytest.raises(UserError, match="layout"):
        save_published(small_flow(**config), tmp_path / "x.pth", layout)
    assert files_below(tmp_path) == []


# Our own files


def training_checkpoint(flow):
    prior = {"name": "gaussian", "convention": "unit_variance"}
    return {"epoch": 3, "step": 70, "model": flow.state_dict(), "config": flow.config.to_dict(),
            "prior": prior, "settings": {"lr": 0.1}}  # fmt: skip


def test_safetensors_round_trip(tmp_path):
    flow = small_flow(torch.float32, subnet="lean", order="paper", coupling_layers=((2, 1), 1))
    prior, provenance = Prior("gaussian", "unit_scale"), {"seed": 3, "note": "é"}
    checkpoints.save(PictureModel(flow, prior), tmp_path / "a.safetensors", provenance)
    back = load(tmp_path / "a.safetensors")
    assert (back.flow.config, back.prior, back.metadata) == (flow.config, prior, provenance)
    assert same(back.flow.state_dict(), flow.state_dict())


def test_load_knows_training_and_published_checkpoints(tmp_path):
    flow = small_flow(subnet="lean")
    torch.save(training_checkpoint(flow), tmp_path / "rgflow_ep003.pth")
    loaded = load(tmp_path / "rgflow_ep003.pth")
    assert loaded.prior == Prior("gaussian")
    wanted = {"epoch": 3, "step": 70, "settings": {"lr": 0.1}}
    assert loaded.metadata.items() >= wanted.items()
    same_function(loaded.flow, flow)

    loaded = load(GOLDEN / IGF23, "gaussian")
    assert loaded.prior == Prior("gaussian", "unit_scale")
    assert torch.allclose(loaded.flow(golden(IGF23)["y"])[0], golden(IGF23)["z"])


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "levels.0._orig_mod."])
def test_prefixes_of_wrappers_mean_nothing(prefix, tmp_path):
    flow = small_flow(torch.float32)
    content, inner = training_checkpoint(flow), prefix.removesuffix("_orig_mod.")
    for key in list(content["model"]):
        if prefix in PREFIXES:
            content["model"][prefix + key] = content["model"].pop(key)
        elif key.startswith(inner):
            content["model"][prefix + key.removeprefix(inner)] = content["model"].pop(key)
    torch.save(content, tmp_path / "x.pth")
    same_function(load(tmp_path / "x.pth").flow, flow)
    header = {k: json.dumps(content[k]) for k in ("config", "prior")}
    header |= {"format": "rgflow_core", "provenance": "{}"}
    checkpoints.write_tensors(tmp_path / "x.safetensors", header, content["model"])
    same_function(load(tmp_path / "x.safetensors").flow, flow)
    content["model"] |= flow.state_dict()
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="twice"):
        load(tmp_path / "x.pth")


NUMBERS = [np.float64(1.5), np.float32(1), np.int64(3), np.bool_(True), np.str_("é")]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_numpy_numbers_are_read(number, tmp_path):
    content = training_checkpoint(small_flow(torch.float32)) | {"best": {"bpd": number}}
    torch.save(content, tmp_path / "x.pth")
    back = checkpoints.read_pickle(tmp_path / "x.pth")["best"]["bpd"]
    assert (back, type(back)) == (number, type(number))
    load(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Fraction(1, 2), "fractions.Fraction"),
        (np.array([1, None], object), "numpy._core.multiarray._reconstruct"),
        (np.datetime64("2020"), "DateTime64DType"),
    ],
)
def test_what_else_a_pickle_asks_for_is_named(value, name, tmp_path):
    torch.save({"model": {}, "more": value}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"asks for \S*{name}: code, which is not executed"):
        load(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["ours", "training", "authors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_coarse_weights_are_computed_with_in_float32(kind, dtype, tmp_path, capsys):
    flow, path = small_flow(torch.float32), tmp_path / "x.safetensors"
    rounded = {k: v.to(dtype) for k, v in flow.state_dict().items()}
    if kind == "ours":
        checkpoints.save(PictureModel(flow, Prior("gaussian")), path, {})
        checkpoints.write_tensors(path, checkpoints.read_tensors(path)[0], rounded)
    elif kind == "training":
        path = tmp_path / "x.pth"
        torch.save(training_checkpoint(flow) | {"model": rounded}, path)
    else:
        save_published(flow, path := tmp_path / "x.pth", "authors")
        state = torch.load(path, weights_only=True)["flow"]
        torch.save({"flow": {k: v.to(dtype) for k, v in state.items()}}, path)
    model = load(path, "gaussian")
    assert capsys.readouterr().err == (
        f"{path}: its weights are {dtype}, computed with in float32\n"
    )
    for name, value in model.flow.state_dict().items():
        assert torch.equal(value, rounded[name].float())
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    assert model.bits_per_dim(images).isfinite().all()
    for use in (lambda m: m.bits_per_dim(images), lambda m: m.latents(1)):
        with pytest.raises(UserError, match=rf"{dtype}.*float\(\)"):
            use(PictureModel(model.flow.to(dtype), model.prior))


@pytest.mark.parametrize("layout", ["ours", "authors", "igf23"])
def test_a_folded_flow_is_not_saved(layout, tmp_path):
    flow = small_flow(first_parity=PARITY.get(layout, "even")).fold()
    save = {"ours": lambda path: checkpoints.save(PictureModel(flow, Prior()), path, {})}
    with pytest.raises(UserError, match="folded"):
        save.get(layout, lambda path: save_published(flow, path, layout))(tmp_path / "x")
    assert files_below(tmp_path) == []


# Saving that fails


def half_write(content, path, *_, **__):
    with open(path, "wb") as file:
        file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_half_written(exists, tmp_path, monkeypatch):
    flow = small_flow()
    ours, theirs = tmp_path / "x.safetensors", tmp_path / "x.pth"
    if exists:
        checkpoints.save(PictureModel(flow, Prior()), ours, {})
        save_published(flow, theirs, "authors")
    before = contents(tmp_path)
    monkeypatch.setattr(torch, "save", half_write)
    monkeypatch.setattr("safetensors.torch.save_file", half_write)
    with pytest.raises(OSError, match="space"):
        save_published(flow, theirs, "authors")
    with pytest.raises(OSError, match="space"):
        checkpoints.save(PictureModel(flow, Prior()), ours, {})
    assert contents(tmp_path) == before
