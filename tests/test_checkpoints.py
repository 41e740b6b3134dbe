"""Weights on disk: published layouts and back, our own, and every kind of damage."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from support import GOLDEN, LAYOUTS, files_below, golden, lattice_normal, small_flow

from rgflow_core import Prior, RGFlowConfig, checkpoints, load, load_published, save_published
from rgflow_core.errors import UserError

AUTHORS, IGF23 = "authors_L16_laplace.state", "igf23_L16_laplace.pth"
WRAP = {"authors": "flow", "igf23": "model"}


def content_of(name):
    return torch.load(GOLDEN / name, weights_only=True)


def state_of(name):
    return content_of(name)[WRAP[LAYOUTS[name]]]


def same_tensors(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


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
    same_tensors(again, original)


@pytest.mark.parametrize("layout", ["authors", "igf23"])
def test_sizes_may_differ_from_level_to_level(layout, tmp_path):
    flow = small_flow(
        torch.float32,
        image_size=12,
        kernel=6,
        channels=2,
        coupling_layers=(1, (2, 3)),
        res_blocks=(1, 3),
        hidden=(5, 7),
        mlp_depth=(3, 1),
        first_parity={"authors": "even", "igf23": "odd"}[layout],
    )
    save_published(flow, tmp_path / "flow.pth", layout)
    back = load_published(tmp_path / "flow.pth")
    assert back.config == flow.config
    same_tensors(back.state_dict(), flow.state_dict())


@pytest.mark.parametrize("name", [AUTHORS, IGF23])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.net."])
def test_bare_and_prefixed_state_dicts(name, wrapped, prefix, tmp_path):
    state = {prefix + key: value for key, value in state_of(name).items()}
    wrap = WRAP[LAYOUTS[name]]
    torch.save({wrap: state, "optimizer": {}} if wrapped else state, tmp_path / "x")
    same_function(load_published(tmp_path / "x"), load_published(GOLDEN / name))


def test_meaningless_buffers_are_ignored(tmp_path):
    state = state_of(AUTHORS)
    first = "layers.0.s_layers.0.scale"
    state |= {f"{first}.saved_mean": torch.ones(48), f"{first}.saved_var": torch.ones(48)}
    torch.save(state, tmp_path / "x")
    same_function(load_published(tmp_path / "x"), load_published(GOLDEN / AUTHORS))


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


def test_safetensors_round_trip(tmp_path):
    flow = small_flow(torch.float32, subnet="lean", order="paper", coupling_layers=((2, 1), 1))
    prior, provenance = Prior("gaussian", "unit_scale"), {"seed": 3, "note": "é"}
    checkpoints.save(flow, prior, tmp_path / "a.safetensors", provenance)
    back = load(tmp_path / "a.safetensors")
    assert (back.flow.config, back.prior, back.metadata) == (flow.config, prior, provenance)
    same_tensors(back.flow.state_dict(), flow.state_dict())
    same_function(back.flow, flow)


def test_load_knows_training_and_published_checkpoints(tmp_path):
    flow = small_flow(subnet="lean")
    content = {
        "epoch": 3,
        "step": 70,
        "model": flow.state_dict(),
        "config": flow.config.to_dict(),
        "prior": {"name": "gaussian", "convention": "unit_variance"},
        "settings": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "rgflow_ep003.pth")
    loaded = load(tmp_path / "rgflow_ep003.pth")
    assert loaded.prior == Prior("gaussian")
    assert loaded.metadata == {"epoch": 3, "step": 70, "settings": {"lr": 0.1}}
    same_function(loaded.flow, flow)

    loaded = load(GOLDEN / IGF23, "gaussian")
    assert loaded.prior == Prior("gaussian", "unit_scale")
    assert torch.allclose(loaded.flow(golden(IGF23)["y"])[0], golden(IGF23)["z"])


@pytest.mark.parametrize("subnet", ["published", "lean"])
def test_a_folded_flow_is_saved_whole_or_not_at_all(subnet, tmp_path):
    flow = small_flow(subnet=subnet)
    path = tmp_path / "folded.safetensors"
    try:
        checkpoints.save(flow.fold(), Prior(), path, {})
    except UserError:
        assert files_below(tmp_path) == []
    else:
        y = lattice_normal(flow, 1)
        assert torch.allclose(load(path).flow(y)[0], flow(y)[0])


@pytest.mark.parametrize("layout", ["authors", "igf23"])
def test_a_folded_flow_is_not_published(layout, tmp_path):
    parity = {"authors": "even", "igf23": "odd"}[layout]
    flow = small_flow(first_parity=parity, subnet="published").fold()
    with pytest.raises(UserError, match="folded"):
        save_published(flow, tmp_path / "x.pth", layout)
    assert files_below(tmp_path) == []


# Damage


def refused(path, *words):
    """Every reader refuses the file in one line that names it."""
    for reader in (load_published, load):
        if reader is load_published and path.suffix == ".safetensors":
            continue
        with pytest.raises(UserError) as error:
            reader(path)
        message = str(error.value)
        assert str(path) in message
        assert "\n" not in message
        assert all(word in message for word in words), message


def test_missing_file(tmp_path):
    refused(tmp_path / "no.pth", "no such file")
    refused(tmp_path / "no.safetensors", "no such file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "garbage"])
def test_unreadable_files(suffix, damage, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        whole = (GOLDEN / IGF23).read_bytes()
    else:
        checkpoints.save(small_flow(), Prior(), path, {})
        whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"not weights\n" * 100,
        "truncated": whole[: len(whole) // 2],
        "garbage": bytes(range(256)) * 16,
    }
    path.write_bytes(damaged[damage])
    refused(path)


class Plant:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_executed(zipped, tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "x.pth"
    content = content_of(AUTHORS) | {"optimizer": Plant(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a good one


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"flow": 7},
        {"model": {"fc.weight": torch.zeros(2, 2)}},
        {"flow": {1: 2}},
    ],
    ids=repr,
)
def test_foreign_content(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth")


def drop(state, key):
    del state[key]


def replace(state, key, value):
    assert key in state
    state[key] = value


A, B = "layers.2.s_layers.1.res_blocks.1.3", "layers.5.t_layers.0.scale.scale"
DAMAGES = {
    "missing weight": lambda s: drop(s, f"{A}.weight_v"),
    "missing first weight": lambda s: drop(s, "layers.0.s_layers.0.res_blocks.0.1.weight_v"),
    "missing gain": lambda s: drop(s, B),
    "missing activation": lambda s: drop(s, "layers.0.t_layers.0.res_blocks.0.0.scale"),
    "missing mask": lambda s: drop(s, "layers.0.mask_left"),
    "missing layer": lambda s: [s.pop(k) for k in list(s) if k.startswith("layers.5.")],
    "missing middle": lambda s: [s.pop(k) for k in list(s) if k.startswith("layers.2.")],
    "wrong shape": lambda s: replace(s, f"{A}.weight_v", torch.zeros(24, 23)),
    "wrong gain": lambda s: replace(s, B, torch.zeros(47)),
    "wrong mask": lambda s: replace(s, "layers.0.mask_left", torch.zeros(48)),
    "not a tensor": lambda s: replace(s, f"{A}.bias", [0.0] * 24),
    "first not a tensor": lambda s: replace(s, "layers.0.s_layers.0.scale.scale", 1.0),
    "whole numbers": lambda s: s.update({k: v.long() for k, v in s.items()}),
    "NaN": lambda s: s[f"{A}.weight_v"].fill_(float("nan")),
    "infinity": lambda s: s[B].fill_(float("inf")),
    "an extra layer": lambda s: s.update({"layers.6.s_layers.0.scale.scale": torch.zeros(48)}),
    "an unknown entry": lambda s: s.update({"encoder.weight": torch.zeros(2)}),
    "both layouts": lambda s: s.update(state_of(IGF23)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_published_checkpoints(damage, tmp_path):
    state = state_of(AUTHORS)
    DAMAGES[damage](state)
    torch.save({"flow": state}, tmp_path / "x.state")
    refused(tmp_path / "x.state")


def test_structure_errors_name_what_is_missing(tmp_path):
    state = state_of(AUTHORS)
    del state[f"{A}.weight_g"]
    torch.save(state, tmp_path / "x")
    refused(tmp_path / "x", f"{A}.weight_g")


HEADERS = {
    "another program's": lambda h: h.update(format="pt"),
    "none": lambda h: h.clear(),
    "no config": lambda h: h.pop("config"),
    "no prior": lambda h: h.pop("prior"),
    "broken config": lambda h: h.update(config="{"),
    "impossible config": lambda h: h.update(
        config=h["config"].replace('"channels": 1', '"channels": 0')
    ),
    "another config": lambda h: h.update(
        config=h["config"].replace('"channels": 1', '"channels": 2')
    ),
    "unknown field": lambda h: h.update(config=h["config"].replace("channels", "chanels")),
    "config of another type": lambda h: h.update(config="[1]"),
    "unknown prior": lambda h: h.update(prior=json.dumps({"name": "cauchy"})),
    "foreign prior": lambda h: h.update(prior=json.dumps({"family": "laplace"})),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_damaged_headers(damage, tmp_path):
    path = tmp_path / "x.safetensors"
    flow = small_flow()
    checkpoints.save(flow, Prior(), path, {})
    header = {
        "format": "rgflow_core",
        "config": json.dumps(flow.config.to_dict()),
        "prior": json.dumps({"name": "laplace"}),
        "provenance": "{}",
    }
    tensors = load_file(path)
    checkpoints.write_tensors(path, header, tensors)
    load(path)  # so far it is a good one
    before = dict(header)
    HEADERS[damage](header)
    assert header != before
    checkpoints.write_tensors(path, header, tensors)
    refused(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_our_weights_must_be_finite(value, tmp_path):
    flow = small_flow()
    name = "levels.1.decimator.couplings.0.subnet.gain"
    flow.get_parameter(name).data[1, 3] = value
    checkpoints.save(flow, Prior(), tmp_path / "x.safetensors", {})
    refused(tmp_path / "x.safetensors", name)


TRAINING = {
    "no model": lambda c: c.pop("model"),
    "no prior": lambda c: c.pop("prior"),
    "no epoch": lambda c: c.pop("epoch"),
    "model of another type": lambda c: c.update(model=[1]),
    "config of another type": lambda c: c.update(config=3),
    "another config": lambda c: c["config"].update(hidden=7),
    "foreign prior": lambda c: c.update(prior={"family": "laplace"}),
}


@pytest.mark.parametrize("damage", TRAINING)
def test_damaged_training_checkpoints(damage, tmp_path):
    flow, path = small_flow(), tmp_path / "rgflow_ep001.pth"
    content = {"epoch": 1, "step": 1, "settings": {}, "model": flow.state_dict()}
    content |= {"config": flow.config.to_dict(), "prior": {"name": "laplace"}}
    torch.save(content, path)
    load(path)
    TRAINING[damage](content)
    torch.save(content, path)
    with pytest.raises(UserError, match=str(path)):
        load(path)


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
        checkpoints.save(flow, Prior(), ours, {})
        save_published(flow, theirs, "authors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(torch, "save", half_write)
    monkeypatch.setattr("safetensors.torch.save_file", half_write)
    with pytest.raises(OSError, match="space"):
        save_published(flow, theirs, "authors")
    with pytest.raises(OSError, match="space"):
        checkpoints.save(flow, Prior(), ours, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="folder"):
        checkpoints.save(small_flow(), Prior(), tmp_path / "file" / "x.safetensors", {})
    assert (tmp_path / "file").read_text() == "precious"
