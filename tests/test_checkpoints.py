"""Weights on disk: published layouts and back, and our own; tests/faults has what is refused."""

import re

import numpy as np
import pytest
import torch
from support import GOLDEN, LAYOUTS, NETWORKS, PRIORS, files_below, said_by, same, small_flow

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, checkpoints, load
from rgflow_core.checkpoints import load_published, save_published
from rgflow_core.dequantiser import Dequantiser

WRAP = {"authors": "flow", "igf23": "model"}
PRIOR = {kind: Prior("gaussian", "unit_scale") for kind in ("ours", "training", "igf23")}
PRIOR |= {"authors": Prior("gaussian")}
FACTS = {"ours": {"seed": 3, "note": "é"}}
FACTS["training"] = {"epoch": 3, "step": 70, "settings": {"lr": 0.1}, "train_fingerprint": "x"}
UNEVEN = {"image_size": 12, "kernel": 6, "channels": 2, "coupling_layers": (1, (2, 3)),
          "res_blocks": (1, 3), "hidden": (5, 7), "mlp_depth": (3, 1)}  # fmt: skip


def flow_of(kind, **fields):
    parity = "odd" if kind == "igf23" else "even"
    return small_flow(torch.float32, first_parity=parity, **fields)


def saved(kind, flow, folder, change=dict, wrapped=True):
    """A file of a kind with a flow, the names or tensors in it changed."""
    path = folder / ("x.safetensors" if kind == "ours" else "x.pth")
    if kind == "ours":
        checkpoints.save(PictureModel(flow, PRIOR[kind]), path, FACTS[kind])
        header, state = checkpoints.read_tensors(path)
        checkpoints.write_tensors(path, header, change(state))
        return path
    content = {"config": flow.config.to_dict(), "prior": vars(PRIOR[kind])} | FACTS.get(kind, {})
    content["model"] = change(flow.state_dict())
    if kind in WRAP:
        save_published(flow, path, kind, PRIOR[kind])
        content = torch.load(path, weights_only=True)
        content[WRAP[kind]] = change(content[WRAP[kind]])
    torch.save(content if wrapped else content[WRAP[kind]], path)
    return path


@pytest.mark.parametrize(
    ("kind", "network"),
    [(k, n) for k in PRIOR for n in NETWORKS if n == "published" or k not in WRAP],
)
def test_what_is_saved_is_loaded(kind, network, tmp_path):
    order = "code" if kind in WRAP else "paper"
    flow = flow_of(kind, **UNEVEN, **NETWORKS[network], order=order)
    path = saved(kind, flow, tmp_path)
    back = load(path, "gaussian" if kind in WRAP else None)
    facts = FACTS.get(kind, {"source": str(path), "layout": kind})
    assert (back.flow.config, back.prior, back.metadata) == (flow.config, PRIOR[kind], facts)
    assert same(back.flow.state_dict(), flow.state_dict())
    assert same(dict(flow.named_parameters()), flow.state_dict())  # constants are not in files


FIELDS = {"res_blocks": 2, "hidden": 24, "mlp_depth": 2}
GOLDEN_CONFIGS = {
    "authors_L16_laplace.state": {"image_size": 16, "coupling_layers": 2},
    "authors_L32_gaussian.state": {"coupling_layers": (3, 2, 2, 1)},
    "igf23_L16_laplace.pth": {
        "image_size": 16, "coupling_layers": ((2, 1), (2, 1), 1), "first_parity": "odd"
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_files_are_understood_and_come_back_tensor_for_tensor(name, tmp_path):
    flow, layout = load_published(GOLDEN / name), LAYOUTS[name]
    assert flow.config == RGFlowConfig(**FIELDS, **GOLDEN_CONFIGS[name])
    save_published(flow, tmp_path / "x", layout, PRIORS[name])
    again, state = (
        torch.load(path, weights_only=True)[WRAP[layout]]
        for path in (tmp_path / "x", GOLDEN / name)
    )
    assert same(again, {k: v for k, v in state.items() if not k.endswith(("_mean", "_var"))})
    assert {p.dtype for p in flow.parameters()} == {torch.float64}


def test_the_scale_of_the_prior_is_that_of_the_authors_file(tmp_path):
    prior = Prior("laplace", "unit_scale")
    save_published(small_flow(), tmp_path / "x", "authors", prior)
    assert load(tmp_path / "x", "laplace").prior == prior
    file = GOLDEN / "authors_L16_laplace.state"
    assert load(file, "laplace").prior == Prior("laplace")
    assert "scale 0.7071" in said_by(load, file, "gaussian")


def _broken(flow):
    with torch.no_grad():
        next(flow.parameters())[0] = torch.nan
    return flow


UNLOADABLE = {
    "another network's tensors": lambda flow: PictureModel(
        flow, Prior(), dequantiser=Dequantiser(3, hidden=5)
    ),
    "a flow of one's own": lambda flow: PictureModel(
        type("Own", (RGFlow,), {})(flow.config), Prior()
    ),
    "a prior of one's own": lambda flow: PictureModel(flow, type("Own", (Prior,), {})()),
    "NaN": lambda flow: PictureModel(_broken(flow), Prior()),
}


@pytest.mark.parametrize("kind", UNLOADABLE)
def test_what_would_not_be_loaded_is_not_saved(kind, tmp_path):
    model = UNLOADABLE[kind](small_flow(torch.float32, channels=3))
    said_by(checkpoints.save, model, tmp_path / "x.safetensors")
    assert files_below(tmp_path) == []


MEANINGLESS = [
    *((kind, prefix) for kind in PRIOR for prefix in ("module.", "_orig_mod.module.")),
    *((kind, "levels.0._orig_mod.") for kind in FACTS),
    *((kind, prefix) for kind in WRAP for prefix in ("net.", "module.net.", "a buffer")),
]


@pytest.mark.parametrize(("kind", "prefix"), MEANINGLESS)
def test_names_that_mean_nothing_change_nothing(kind, prefix, tmp_path):
    """Prefixes of wrappers; buffers of a normalisation that is not used; the wrapping."""
    flow, more = flow_of(kind), {}
    inside = "levels.0." if prefix.startswith("levels") else ""
    if prefix == "a buffer":
        more, prefix = {"layers.0.s_layers.0.scale.saved_mean": torch.ones(48)}, ""

    def renamed(state):
        return {
            prefix + key.removeprefix(inside) if key.startswith(inside) else key: value.clone()
            for key, value in (state | more).items()
        }

    for wrapped in {True, kind not in WRAP}:
        back = load(saved(kind, flow, tmp_path, renamed, wrapped), "gaussian")
        assert same(back.flow.state_dict(), flow.state_dict())
    if prefix:
        both = saved(kind, flow, tmp_path, lambda state: state | renamed(state))
        assert "twice" in said_by(load, both, "gaussian")


@pytest.mark.parametrize("kind", ["ours", "training", "authors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_coarse_weights_are_computed_with_in_float32(kind, dtype, tmp_path, capsys):
    flow = flow_of(kind)
    path = saved(kind, flow, tmp_path, lambda state: {k: v.to(dtype) for k, v in state.items()})
    model = load(path, "gaussian")
    says = f"{path}: its weights are {dtype}, computed with in float32\n"
    assert capsys.readouterr().err == says
    rounded = {k: v.to(dtype).float() for k, v in flow.state_dict().items()}
    assert same(model.flow.state_dict(), rounded)
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    assert model.bits_per_dim(images).isfinite().all()
    coarse = PictureModel(model.flow.to(dtype), model.prior)
    for use in (lambda: coarse.bits_per_dim(images), lambda: coarse.latents(1)):
        assert re.search(rf"{dtype}.*float\(\)", said_by(use))


REFUSED = [
    ("authors", {"subnet": "lean"}), ("authors", {"order": "paper"}),
    ("authors", {"first_parity": "odd"}), ("igf23", {"first_parity": "even"}), ("numpy", {}),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "fields"), REFUSED)
def test_flows_that_a_layout_cannot_hold(layout, fields, tmp_path):
    assert "layout" in said_by(save_published, small_flow(**fields), tmp_path / "x", layout)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("kind", ["ours", *WRAP])
def test_a_folded_flow_is_not_saved(kind, tmp_path):
    assert "folded" in said_by(saved, kind, flow_of(kind).fold(), tmp_path)
    assert files_below(tmp_path) == []


NUMBERS = [np.float64(1.5), np.float32(1), np.int64(3), np.bool_(True), np.str_("é")]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_numpy_numbers_are_read(number, tmp_path):
    torch.save({"best": {"bpd": number}}, tmp_path / "x.pth")
    back = checkpoints.read_pickle(tmp_path / "x.pth")["best"]["bpd"]
    assert (back, type(back)) == (number, type(number))
