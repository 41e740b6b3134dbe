"""Strangers' checkpoints: no code is run, no size is believed, and one line says why."""

import io
import json
import math
import os
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import GOLDEN, small_flow

from rgflow_core import Prior, checkpoints, load
from rgflow_core.errors import UserError
from study import factors

AUTHORS, IGF23 = "authors_L16_laplace.state", "igf23_L16_laplace.pth"
FLOW = {"image_size": 8, "subnet": "lean"}
MEMORY = 300 * 2**20  # a refusal takes less, though absurd sizes are stated


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(path, *words):
    before = peak()
    with pytest.raises(UserError) as error:
        (factors.load if path.name.startswith("factors") else load)(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert peak() - before < MEMORY


class Plant:
    """Unpickling this makes a folder."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


PLANTS = {
    "mkdir": lambda trap: Plant(os.mkdir, str(trap)),
    "system": lambda trap: Plant(os.system, f"mkdir {trap}"),
    "exec": lambda trap: Plant(exec, f"import os; os.mkdir({str(trap)!r})"),
    "nested": lambda trap: [{"a": (Plant(os.mkdir, str(trap)),)}],
}
PLACES = {
    "an optimiser": lambda content, plant: content | {"optim": plant},
    "a tensor's place": lambda content, plant: {"flow": {"layers.0.mask_left": plant}},
    "all of it": lambda content, plant: plant,
    "training settings": lambda content, plant: {"config": {}, "settings": plant},
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["x.pth", "x.state"])
def test_code_is_not_run(plant, place, zipped, name, tmp_path, counts):
    trap, path = tmp_path / "executed", tmp_path / name
    content = torch.load(GOLDEN / AUTHORS, weights_only=True)
    torch.save(PLACES[place](content, PLANTS[plant](trap)), path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    refused(path, "code, which is not executed")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a good one
    counts("strangers' checkpoints", "code not run")


CONFIGS = {
    "image_size": 2**20, "hidden": 10**9, "mlp_depth": 10**9, "res_blocks": 10**9,
    "coupling_layers": 10**9, "channels": 10**9, "kernel": 2 * 10**9, "subnet": "published",
    "order": "sideways", "coupling": "affine",
}  # fmt: skip


@pytest.mark.parametrize("field", CONFIGS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_absurd_configs(field, suffix, tmp_path, counts):
    flow, path = small_flow(torch.float32, **FLOW, coupling="nlsq"), tmp_path / f"x{suffix}"
    config = flow.config.to_dict() | {field: CONFIGS[field]}
    if suffix == ".pth":
        facts = {"epoch": 1, "step": 1, "settings": {}, "prior": {"name": "laplace"}}
        torch.save(facts | {"config": config, "model": flow.state_dict()}, path)
    else:
        header = {"format": "rgflow_core", "config": json.dumps(config), "prior": "{}"}
        checkpoints.write_tensors(path, header | {"provenance": "{}"}, flow.state_dict())
    refused(path)
    counts("strangers' checkpoints", "refused by name")


def test_a_large_image_size_with_its_levels(tmp_path, counts):
    flow, path = small_flow(torch.float32, **FLOW), tmp_path / "x.safetensors"
    config = flow.config.to_dict() | {"image_size": 4 * 2**18}
    for name in ("coupling_layers", "res_blocks", "hidden", "mlp_depth"):
        config[name] = [1] * 19
    header = {"format": "rgflow_core", "config": json.dumps(config), "prior": "{}"}
    checkpoints.write_tensors(path, header | {"provenance": "{}"}, flow.state_dict())
    refused(path, "image_size", "4096")
    counts("strangers' checkpoints", "refused by name")


def expanded(state, name):
    """A few bytes that say they are terabytes."""
    state[name] = state[name].flatten()[:1].expand(10**9, 1000)


def mixed(state, name):
    state[name] = state[name].half()


TENSORS = {
    "NaN": lambda s, n: s[n].view(-1)[:1].fill_(math.nan),
    "infinity": lambda s, n: s[n].view(-1)[-1:].fill_(-math.inf),
    "missing": lambda s, n: s.pop(n),
    "extra": lambda s, n: s.update({"more": torch.zeros(2)}),
    "renamed": lambda s, n: s.update({n + "x": s.pop(n)}),
    "transposed": lambda s, n: s.update({n: s[n].mT.contiguous()[:, :1]}),
    "no values": lambda s, n: s.update({n: s[n][:0]}),
    "whole numbers": lambda s, n: s.update({k: v.long() for k, v in s.items()}),
    "mixed types": mixed,
    "complex": lambda s, n: s.update({k: v.to(torch.complex64) for k, v in s.items()}),
    "expanded": expanded,
    "sparse": lambda s, n: s.update({n: s[n].to_sparse()}),
    "not a tensor": lambda s, n: s.update({n: [1.0]}),
}


@pytest.mark.parametrize("damage", TENSORS)
@pytest.mark.parametrize("kind", ["ours", "training", "published", "factors"])
def test_wrong_tensors(damage, kind, tmp_path, counts):
    path = tmp_path / {"ours": "x.safetensors", "factors": "factors.safetensors"}.get(kind, "x.pth")
    if kind == "published":
        content = torch.load(GOLDEN / IGF23, weights_only=True)
        state, name = content["model"], "layers.0.network.s_nets.0.res_blocks.0.1.weight_v"
    else:
        net = factors.FactorNet() if kind == "factors" else small_flow(torch.float32, **FLOW)
        state = {k: v.clone() for k, v in net.state_dict().items()}
        name = next(k for k, v in state.items() if v.ndim >= 2)
    TENSORS[damage](state, name)
    try:
        if kind == "published":
            torch.save(content, path)
        elif kind == "training":
            facts = {"epoch": 1, "step": 1, "settings": {}, "prior": {"name": "laplace"}}
            torch.save(facts | {"config": net.config.to_dict(), "model": state}, path)
        elif kind == "factors":
            checkpoints.write_tensors(path, {}, state)
        else:
            header = {"format": "rgflow_core", "config": json.dumps(net.config.to_dict())}
            header |= {"prior": "{}", "provenance": "{}"}
            checkpoints.write_tensors(path, header, state)
    except (AttributeError, RuntimeError, ValueError):
        pytest.skip("this layout cannot hold it")
    if kind == "factors" and damage in ("whole numbers", "mixed types", "complex"):
        pytest.skip("the factor network is converted to float32")
    refused(path)
    counts("strangers' checkpoints", "refused by name")


LIES = {
    "shape": lambda h: h["a"].update(shape=[2**40, 2**20]),
    "negative shape": lambda h: h["a"].update(shape=[-4]),
    "overflowing shape": lambda h: h["a"].update(shape=[2**63, 2**63]),
    "type": lambda h: h["a"].update(dtype="F64"),
    "unknown type": lambda h: h["a"].update(dtype="Z9"),
    "offsets": lambda h: h["a"].update(data_offsets=[0, 2**62]),
    "backward offsets": lambda h: h["a"].update(data_offsets=[16, 0]),
    "overlap": lambda h: h.update(b=dict(h["a"])),
}


@pytest.mark.parametrize("lie", [*LIES, "header size", "no JSON"])
def test_lying_safetensors(lie, tmp_path, counts):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    if lie == "header size":
        path.write_bytes((2**60).to_bytes(8, "little") + content[8:])
    elif lie == "no JSON":
        path.write_bytes(content[:8] + b"{" * size + rest)
    else:
        LIES[lie](header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    refused(path)
    counts("strangers' checkpoints", "refused by name")


def test_a_bomb(tmp_path, counts):
    """A file of kilobytes that would unpack to a gigabyte."""
    path = tmp_path / "x.pth"
    good = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(4)}}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            big = info.filename.endswith("data/0")
            new.writestr(info.filename, bytes(2**28) if big else old.read(info))
    assert path.stat().st_size < 2**20
    refused(path, "compressed")
    counts("strangers' checkpoints", "refused by name")


def test_mixed_layouts(tmp_path, counts):
    ours, theirs = (torch.load(GOLDEN / n, weights_only=True) for n in (AUTHORS, IGF23))
    cases = {
        "both": {"flow": ours["flow"] | theirs["model"]},
        "swapped": {"model": ours["flow"], "flow": 3},
        "half": {"flow": {k: v for k, v in ours["flow"].items() if k.startswith("layers.0.")}},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
    refused(tmp_path / "both.pth")
    refused(tmp_path / "half.pth")
    counts("strangers' checkpoints", "refused by name")
    # The other key of a wrapper is a layout all the same; what is in it decides.
    with pytest.raises(UserError):
        load(tmp_path / "swapped.pth")
    shutil.copy(GOLDEN / AUTHORS, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors")
    checkpoints.save(small_flow(), Prior(), tmp_path / "y.safetensors", {})
    shutil.copy(tmp_path / "y.safetensors", tmp_path / "y.pth")
    refused(tmp_path / "y.pth")
    counts("strangers' checkpoints", "refused by name")


def test_all_golden_files_still_load():
    assert all(
        load(path, "laplace").flow for path in Path(GOLDEN).iterdir() if path.suffix != ".npz"
    )
