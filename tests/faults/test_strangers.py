"""Strangers' checkpoints: no code is run, no size is believed, and one line says why."""

import io
import json
import math
import os
import resource
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support import GOLDEN, small_flow

from rgflow_core import checkpoints, load, load_published, save_published
from rgflow_core.errors import UserError
from study import factors

MEMORY = 300 * 2**20  # a refusal takes less, though absurd sizes are stated
KINDS = {"ours": "x.safetensors", "training": "x.pth", "authors": "x.state", "igf23": "y.pth",
         "factors": "factors.safetensors"}  # fmt: skip
WRAP = {"authors": "flow", "igf23": "model"}


def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def refused(path, *words, reader=load):
    before = peak()
    with pytest.raises(UserError) as error:
        (factors.load if path.name.startswith("factors") else reader)(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert peak() - before < MEMORY


def good(kind, folder):
    """What is in a good file of a kind, and its state dict, to be changed in place."""
    if kind == "factors":
        state = {k: v.clone() for k, v in factors.FactorNet().state_dict().items()}
        return {}, state
    parity = "odd" if kind == "igf23" else "even"
    flow = small_flow(torch.float32, first_parity=parity, coupling_layers=1)
    if kind in WRAP:
        save_published(flow, folder / "good", kind)
        content = torch.load(folder / "good", weights_only=True)
        return content, content[WRAP[kind]]
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    content = {"config": flow.config.to_dict(), "prior": {"name": "laplace"}}
    more = {"epoch": 1, "step": 1, "settings": {}, "model": state}
    return content | (more if kind == "training" else {"provenance": {}}), state


def write(kind, path, content, state):
    if path.suffix != ".safetensors":
        torch.save(content, path)
    else:
        header = {"format": "rgflow_core"} | {k: json.dumps(v) for k, v in content.items()}
        checkpoints.write_tensors(path, header, state)


# Pickles


class Plant:
    """Unpickling this makes a folder."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


PLANTS = {
    "mkdir": lambda trap: Plant(os.mkdir, str(trap)),
    "system": lambda trap: Plant(os.system, f"mkdir {trap}"),
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
def test_code_is_not_run(plant, place, zipped, tmp_path, counts):
    trap, path = tmp_path / "executed", tmp_path / "x.pth"
    content = {"flow": {"layers.0.mask_left": torch.zeros(1, 4, 4)}}
    torch.save(PLACES[place](content, PLANTS[plant](trap)), path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    refused(path, "code, which is not executed")
    refused(path, "code, which is not executed", reader=load_published)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a good one
    counts("strangers' checkpoints", "code not run")


FOREIGN = [[1, 2], torch.zeros(3), {}, {"flow": 7}, {"model": {"fc.weight": torch.zeros(2, 2)}},
           {"flow": {1: 2}}]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=repr)
@pytest.mark.parametrize("reader", [load, load_published])
def test_foreign_content(content, reader, tmp_path, counts):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", reader=reader)
    counts("strangers' checkpoints", "refused by name")


def test_a_bomb(tmp_path, counts):
    """A file of kilobytes that would unpack to a gigabyte."""
    path = tmp_path / "x.pth"
    whole = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(4)}}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            big = info.filename.endswith("data/0")
            new.writestr(info.filename, bytes(2**26) if big else old.read(info))
    assert path.stat().st_size < 2**20
    refused(path, "compressed")
    counts("strangers' checkpoints", "refused by name")


# Bytes


@pytest.mark.parametrize("kind", ["ours", "training", "authors"])
@pytest.mark.parametrize("what", [b"", b"not weights\n" * 100, bytes(range(256)) * 16, "another"])
def test_not_what_its_name_says(kind, what, tmp_path, counts):
    if what == "another":
        other = "training" if kind == "ours" else "ours"
        path = tmp_path / KINDS[other]
        write(other, path, *good(other, tmp_path))
        what = path.read_bytes()
    (tmp_path / KINDS[kind]).write_bytes(what)
    refused(tmp_path / KINDS[kind])
    counts("strangers' checkpoints", "refused by name")


LIES = {
    "shape": lambda h: h["a"].update(shape=[2**40, 2**20]),
    "negative shape": lambda h: h["a"].update(shape=[-4]),
    "type": lambda h: h["a"].update(dtype="F64"),
    "offsets": lambda h: h["a"].update(data_offsets=[0, 2**62]),
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


# Facts beside the tensors


def config(**fields):
    return lambda c: c["config"].update(fields)


LEVELS = ("coupling_layers", "res_blocks", "hidden", "mlp_depth")
FACTS = {
    "image_size and levels": config(image_size=4 * 2**18, **{k: [1] * 19 for k in LEVELS}),
    "hidden": config(hidden=10**9),
    "mlp_depth": config(mlp_depth=10**9),
    "coupling_layers": config(coupling_layers=10**9),
    "channels": config(channels=10**9),
    "impossible": config(channels=0),
    "subnet": config(subnet="lean"),
    "another config": config(hidden=7),
    "unknown field": config(chanels=1),
    "config of another type": lambda c: c.update(config=[1]),
    "no prior": lambda c: c.pop("prior"),
    "unknown prior": lambda c: c.update(prior={"name": "cauchy"}),
    "no provenance": lambda c: c.pop("provenance"),
    "no config": lambda c: c.pop("config"),
    "another program's": lambda c: c.update(format="pt"),
    "no model": lambda c: c.pop("model"),
    "model of another type": lambda c: c.update(model=[1]),
    "no epoch": lambda c: c.pop("epoch"),
}
ONLY = {"no provenance": "ours", "another program's": "ours", "no model": "training",
        "model of another type": "training", "no epoch": "training"}  # fmt: skip


@pytest.mark.parametrize(
    ("fact", "kind"),
    [(f, k) for f in FACTS for k in ("ours", "training") if ONLY.get(f, k) == k],
)
def test_wrong_facts(fact, kind, tmp_path, counts):
    path, (content, state) = tmp_path / KINDS[kind], good(kind, tmp_path)
    write(kind, path, content, state)
    load(path)  # so far it is a good one
    FACTS[fact](content)
    write(kind, path, content, state)
    refused(path)
    counts("strangers' checkpoints", "refused by name")


# Tensors


def every(change):
    return lambda state, name: state.update({k: change(v) for k, v in state.items()})


def one(change):
    return lambda state, name: state.update({name: change(state[name])})


def without(prefix):
    def remove(state, name):
        keys = [key for key in state if key.startswith(prefix)]
        assert keys
        for key in keys:
            del state[key]

    return remove


TENSORS = {
    "NaN": lambda s, n: s[n].view(-1)[:1].fill_(math.nan),
    "missing": lambda s, n: s.pop(n),
    "extra": lambda s, n: s.update({"more": torch.zeros(2)}),
    "transposed": one(lambda v: v.mT.contiguous()[:, :1]),
    "no values": one(lambda v: v[:0]),
    "whole numbers": every(torch.Tensor.long),
    "mixed types": one(torch.Tensor.half),
    "expanded": one(lambda v: v.flatten()[:1].expand(10**9, 1000)),  # bytes that say terabytes
    "sparse": one(torch.Tensor.to_sparse),
    "not a tensor": one(torch.Tensor.tolist),
}
AUTHORS = {
    "first weight": without("layers.0.s_layers.0.res_blocks.0.1.weight_v"),
    "activation": without("layers.0.t_layers.0.res_blocks.0.0.scale"),
    "first mask": without("layers.0.mask_left"),
    "last layer": without("layers.3."),
    "middle layer": without("layers.2."),
    "wrong mask": lambda s, n: s["layers.0.mask_left"].zero_(),
    "gain of another size": lambda s, n: s.update(
        {"layers.0.s_layers.0.scale.scale": torch.ones(3)}
    ),
    "first not a tensor": lambda s, n: s.update({"layers.0.mask_left": 1.0}),
    "one more layer": lambda s, n: s.update({"layers.4.s_layers.0.scale.scale": torch.ones(16)}),
    "both layouts": lambda s, n: s.update(
        torch.load(GOLDEN / "igf23_L16_laplace.pth", weights_only=True)["model"]
    ),
}
UNFIT = [("ours", "sparse"), ("ours", "not a tensor"), ("factors", "sparse"),
         ("factors", "not a tensor"), ("ours", "expanded"), ("factors", "expanded"),
         # The factor network is converted to float32.
         ("factors", "whole numbers"), ("factors", "mixed types")]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "damage"),
    [(k, d) for k in KINDS for d in TENSORS if (k, d) not in UNFIT]
    + [("authors", damage) for damage in AUTHORS],
)
def test_wrong_tensors(kind, damage, tmp_path, counts):
    path, (content, state) = tmp_path / KINDS[kind], good(kind, tmp_path)
    name = next(k for k, v in state.items() if v.ndim >= 2 and "mask" not in k)
    (TENSORS | AUTHORS)[damage](state, name)
    write(kind, path, content, state)
    refused(path, *([name] if damage == "missing" and kind == "igf23" else []))
    counts("strangers' checkpoints", "refused by name")
