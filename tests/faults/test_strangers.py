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
from support import GOLDEN, said_by, small_flow

from rgflow_core import checkpoints, load, load_published, save_published
from study import factors

MEMORY = 300 * 2**20  # a refusal takes less, though absurd sizes are stated
KINDS = {"ours": "x.safetensors", "training": "x.pth", "authors": "x.state", "igf23": "y.pth",
         "factors": "factors.safetensors"}  # fmt: skip
WRAP = {"authors": "flow", "igf23": "model"}


def read(path):
    return factors.load(path) if path.name == KINDS["factors"] else load(path, "laplace")


def refused(path, *words, reader=read):
    unit = 1 if sys.platform == "darwin" else 1024  # of the system's measure
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = said_by(reader, path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert all(word in message for word in (str(path), *words)), message
    assert unit * (after - before) < MEMORY


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


class Plant:
    """Unpickling this makes a folder."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


PLACES = {
    "an optimiser": lambda plant: {"flow": {"layers.0.mask_left": torch.ones(1)}, "optim": plant},
    "a tensor's place": lambda plant: {"flow": {"layers.0.mask_left": plant}},
    "all of it": lambda plant: plant,
    "training settings": lambda plant: {"config": {}, "settings": [{"a": (plant,)}]},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(place, zipped, tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "x.pth"
    content = PLACES[place](Plant(os.mkdir, str(trap)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, "mkdir: code, which is not executed")
    refused(path, "mkdir: code, which is not executed", reader=load_published)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a good one


FOREIGN = [[1, 2], torch.zeros(3), {}, {"flow": 7}, {"model": {"fc.weight": torch.zeros(2, 2)}},
           {"flow": {1: 2}}]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=repr)
@pytest.mark.parametrize("reader", [read, load_published])
def test_foreign_content(content, reader, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", reader=reader)


def test_a_bomb(tmp_path):
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


# Facts and tensors: in which kinds of file; a change of its content, its state dict, by a name

OURS, PICKLES = ("ours", "training"), ("training", "authors", "igf23")
NETWORKS = ("ours", *PICKLES)  # the factor network is converted to float32


def config(**fields):
    return OURS, lambda c, s, n: c["config"].update(fields)


def entry(key, value, kinds=("authors",)):
    return kinds, lambda c, s, n: s.update({key: value})


def one(change, kinds=KINDS):
    return kinds, lambda c, s, n: s.update({n: change(s[n])})


def every(change):
    return NETWORKS, lambda c, s, n: s.update({key: change(value) for key, value in s.items()})


def without(prefix):
    def remove(c, s, n):
        keys = [key for key in s if key.startswith(prefix)]
        assert keys
        for key in keys:
            del s[key]

    return ["authors"], remove


LEVELS = ("coupling_layers", "res_blocks", "hidden", "mlp_depth")
WRONG = {
    "image_size and levels": config(image_size=4 * 2**18, **{k: [1] * 19 for k in LEVELS}),
    "mlp_depth": config(mlp_depth=10**9),
    "channels": config(channels=10**9),
    "impossible": config(channels=0),
    "subnet": config(subnet="lean"),
    "another config": config(hidden=7),
    "unknown field": config(chanels=1),
    "config of another type": (OURS, lambda c, s, n: c.update(config=[1])),
    "no config": (OURS, lambda c, s, n: c.pop("config")),
    "no prior": (OURS, lambda c, s, n: c.pop("prior")),
    "unknown prior": (OURS, lambda c, s, n: c.update(prior={"name": "cauchy"})),
    "another program's": (["ours"], lambda c, s, n: c.update(format="pt")),
    "model of another type": (["training"], lambda c, s, n: c.update(model=[1])),
    "no epoch": (["training"], lambda c, s, n: c.pop("epoch")),
    "NaN": (KINDS, lambda c, s, n: s[n].view(-1)[:1].fill_(math.nan)),
    "missing": (KINDS, lambda c, s, n: s.pop(n)),
    "extra": entry("more", torch.zeros(2), KINDS),
    "transposed": one(lambda v: v.mT.contiguous()[:, :1]),
    "whole numbers": every(torch.Tensor.long),
    "mixed types": one(torch.Tensor.half, NETWORKS),
    # Bytes that say terabytes.
    "expanded": one(lambda v: v.flatten()[:1].expand(10**9, 1000), PICKLES),
    "sparse": one(torch.Tensor.to_sparse, PICKLES),
    "not a tensor": one(torch.Tensor.tolist, PICKLES),
    "first weight": without("layers.0.s_layers.0.res_blocks.0.1.weight_v"),
    "first mask": without("layers.0.mask_left"),
    "middle layer": without("layers.2."),
    "wrong mask": (["authors"], lambda c, s, n: s["layers.0.mask_left"].zero_()),
    "first not a tensor": entry("layers.0.mask_left", 1.0),
    "one more layer": entry("layers.4.s_layers.0.scale.scale", torch.ones(16)),
    "both layouts": (["authors"], lambda c, s, n: s.update(
        torch.load(GOLDEN / "igf23_L16_laplace.pth", weights_only=True)["model"]
    )),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("what", "kind"), [(w, k) for w in WRONG for k in WRONG[w][0]])
def test_wrong_facts_and_tensors(what, kind, tmp_path):
    path, (content, state) = tmp_path / KINDS[kind], good(kind, tmp_path)
    write(kind, path, content, state)
    read(path)  # so far it is a good one
    name = next(k for k, v in state.items() if v.ndim >= 2 and "mask" not in k)
    WRONG[what][1](content, state, name)
    write(kind, path, content, state)
    refused(path, *([name] if what == "missing" and kind == "igf23" else []))
