"""Weights on disk: our ``.safetensors``, our training checkpoints, and both published layouts.

Nothing here executes code from a file: pickles are read with ``weights_only=True``. Nothing is
computed from a file before its checksums, where it has them, and the sizes of its tensors are
checked: the SHA-256 in the header of our own files, the CRC-32 in those of ``torch.save``.
"""

import hashlib
import json
import math
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable
from itertools import chain, count, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rgflow_core.dequantiser import Dequantiser
from rgflow_core.errors import UserError
from rgflow_core.files import refusing_damage, replacing
from rgflow_core.flow import RGFlow, RGFlowConfig, config_of
from rgflow_core.model import PictureModel
from rgflow_core.networks import PublishedSubnet
from rgflow_core.priors import CONVENTIONS, NAMES, Prior


class _Layout(NamedTuple):
    """Names of a published layout: of the layers i, their networks s and t, and couplings k."""

    network: str
    alpha: str  # inside a network, as the next; all else is numbered alike in both layouts
    gain: str
    masks: tuple[str, str]  # the first is of what conditions the first half-step
    wrap: str  # key of the state dict
    parity: str  # of the first mask
    convention: str  # of the prior's scale that the system trained with


_LAYOUTS = {
    "authors": _Layout(
        "layers.{i}.{net}_layers.{k}", "scale", "scale.scale",
        ("layers.{i}.mask_left", "layers.{i}.mask_right"), "flow", "even", "unit_variance",
    ),
    "igf23": _Layout(
        "layers.{i}.network.{net}_nets.{k}", "alpha", "scale",
        ("layers.{i}.network.mask", "layers.{i}.network.comask"), "model", "odd", "unit_scale",
    ),
}  # fmt: skip


# What a numpy number in a pickle needs, by its names in numpy 1 and 2; none can run code.
_NUMBERS = [
    np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdU"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]  # fmt: skip


def _check_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Raise :class:`UserError` unless all are plain tensors whose values are all in the file."""
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: {name!r} is not a plain tensor")
        # An expanded tensor of some bytes would become one of any size.
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise UserError(f"{path}: {name!r} is smaller than its shape {tuple(value.shape)}")


def _bare(state: dict, path: Path, prefix: str = "") -> dict:
    """A state dict without what ``DataParallel`` and ``torch.compile`` put into its names."""
    names = (re.sub(r"(?<![^.])(module|_orig_mod)\.", "", str(name)) for name in state)
    bare = dict(zip((name.removeprefix(prefix) for name in names), state.values(), strict=True))
    if len(bare) < len(state):
        raise UserError(f"{path}: names tensors twice, with a wrapper's prefix and without")
    return bare


def _type(tensors: Iterable[Tensor], path: Path) -> torch.dtype:
    """The one floating-point type of all tensors; :class:`UserError` if there are others."""
    types = {value.dtype for value in tensors}
    if len(types) != 1 or not next(iter(types)).is_floating_point:
        names = ", ".join(sorted(map(str, types)))
        raise UserError(f"{path}: its tensors must be of one floating-point type, not {names}")
    return types.pop()


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raise :class:`UserError` if a tensor holds NaN or infinity."""
    if bad := [name for name, value in state.items() if not value.double().isfinite().all()]:
        raise UserError(f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]!r}")


_LEARNED = "dequantiser."


def tensors(model: PictureModel) -> dict[str, Tensor]:
    """The weights of a model under their names in a file: its flow's, and its dequantiser's."""
    return {name.removeprefix("flow."): value for name, value in model.state_dict().items()}


def fill(model: PictureModel, state: dict[str, Tensor]) -> None:
    """Undo :func:`tensors`; ``RuntimeError`` if names or shapes are another model's."""
    model.load_state_dict(
        {k if k.startswith(_LEARNED) else f"flow.{k}": value for k, value in state.items()}
    )


def _empty(config: RGFlowConfig, state: dict, prior: Prior, metadata: dict) -> PictureModel:
    learned = any(name.startswith(_LEARNED) for name in state)
    dequantiser = Dequantiser(config.channels) if learned else None
    return PictureModel(config.build(), prior, metadata, dequantiser)


def _check_fit(config: RGFlowConfig, state: dict[str, Tensor], path: Path) -> PictureModel:
    """A model of that config without memory; :class:`UserError` unless the weights fit it."""
    # A config may lie about its size.
    levels = zip(config.couplings, config.res_blocks, config.mlp_depth, strict=True)
    if sum(sum(pair) * blocks * depth for pair, blocks, depth in levels) > len(state):
        raise UserError(f"{path}: its config is of more networks than it has tensors")
    with torch.device("meta"):
        model = _empty(config, state, Prior(), {})
    wanted = {name: value.shape for name, value in tensors(model).items()}
    given = {name: value.shape for name, value in state.items()}
    if wrong := {name for name, _ in wanted.items() ^ given.items()}:
        raise UserError(
            f"{path}: {len(wrong)} tensors do not fit its config, one is {min(wrong)!r}"
        )
    _type(state.values(), path)
    check_finite(state, path)
    return model


def _build(
    config: RGFlowConfig, state: dict[str, Tensor], path: Path, prior: Prior, metadata: dict
) -> PictureModel:
    """The model of a config with the weights of a state dict, which must fit each other."""
    _check_fit(config, state, path)
    dtype = next(iter(state.values())).dtype
    if dtype.itemsize < 4:
        print(f"{path}: its weights are {dtype}, computed with in float32", file=sys.stderr)
        dtype = torch.float32
        state = {name: value.float() for name, value in state.items()}
    model = _empty(config, state, prior, metadata).to(dtype)
    fill(model, state)
    return model.eval()


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give the path of a checkpoint")
    return Path(path)


def read_pickle(path: str | Path) -> dict:
    """Read a ``torch.save`` file without executing code; :class:`UserError` if it is damaged."""
    with refusing_damage(_existing(path)):
        if zipfile.is_zipfile(path):  # torch itself looks at nothing of this
            with zipfile.ZipFile(path) as file:
                if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                    raise ValueError("it is compressed: a few bytes could fill the memory")
                if bad := file.testzip():
                    raise ValueError(f"CRC-32 of {bad} differs")
        try:
            with torch.serialization.safe_globals(_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch would advise to execute it
            name = re.search(r"(?:GLOBAL |<class ')([\w.]+)", str(error))
            asks = f"asks for {name[1]}:" if name else "is damaged or asks for"
            raise ValueError(f"its pickle {asks} code, which is not executed") from None
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    return content


def _published_state(content: dict, path: Path) -> tuple[dict[str, Tensor], str]:
    """The bare state dict of a published checkpoint and the name of its layout."""
    for name, layout in _LAYOUTS.items():
        state = content.get(layout.wrap, content)
        if not isinstance(state, dict):
            continue
        state = _bare(state, path, "net.")
        if layout.network.format(i=0, net="s", k=0) + ".res_blocks.0.1.weight_v" in state:
            return state, name
    raise UserError(
        f"{path}: in neither published layout (authors, igf23); its first entry is "
        f"{next(iter(content), None)!r}"
    )


def _count(state: dict, prefix: str) -> int:
    """How many of ``prefix`` 0, 1, 2, ... begin a key."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return next(n for n in count() if str(n) not in numbers)


def _published_config(state: dict[str, Tensor], layout: _Layout) -> RGFlowConfig:
    """The structure that names and shapes of a published state dict tell."""
    channels, kernel, _ = state[layout.masks[0].format(i=0)].shape
    levels = []
    for i in range(0, _count(state, "layers.") // 2 * 2, 2):
        first = layout.network.format(i=i, net="s", k=0) + ".res_blocks."
        networks = (layout.network.format(i=j, net="s", k="") for j in (i, i + 1))
        couplings = tuple(_count(state, prefix) for prefix in networks)
        depth = _count(state, first + "0.") // 2 - 1
        hidden = state[first + "0.1.weight_v"].shape[0]
        levels.append((couplings, _count(state, first), hidden, depth))
    size = kernel * 2 ** (len(levels) - 1)
    fields = zip(*levels, strict=True)  # in the order of the config's
    return RGFlowConfig(size, channels, kernel, *fields, first_parity=layout.parity)


def _published_names(config: RGFlowConfig, layout: _Layout) -> dict[str, tuple[str, str]]:
    """Our parameter name -> its two published names, of network S and of network T."""
    table = {}
    blocks = product(range(config.levels), enumerate(("decimator", "disentangler")))
    for level, (offset, block) in blocks:
        inside = {"gain": layout.gain}
        depth = config.mlp_depth[level] + 1
        for r, j in product(range(config.res_blocks[level]), range(depth)):
            inside[f"alphas.{r}.{j}"] = f"res_blocks.{r}.{2 * j}.{layout.alpha}"
            for part in ("bias", "weight_g", "weight_v"):
                inside[f"linears.{r}.{j}.{part}"] = f"res_blocks.{r}.{2 * j + 1}.{part}"
        for k, (ours, theirs) in product(range(config.couplings[level][offset]), inside.items()):
            prefixes = (layout.network.format(i=2 * level + offset, net=net, k=k) for net in "st")
            table[f"levels.{level}.{block}.couplings.{k}.subnet.{ours}"] = tuple(
                f"{prefix}.{theirs}" for prefix in prefixes
            )
    return table


def _masks(config: RGFlowConfig, layout: _Layout) -> dict[str, Tensor]:
    """The layout's mask buffers; either code calls "mask" what conditions the first half-step."""
    edge = torch.arange(config.kernel)
    odd = ((edge[:, None] + edge) % 2).repeat(config.channels, 1, 1)
    masks = (odd, 1 - odd) if layout.parity == "odd" else (1 - odd, odd)
    pairs = product(range(2 * config.levels), zip(layout.masks, masks, strict=True))
    return {name.format(i=i): mask for i, (name, mask) in pairs}


def load_published(path: str | Path) -> RGFlow:
    """Read a flow from a checkpoint of either published code; the file tells its structure.

    The prior is the caller's to choose.

    Raises:
        UserError: if the file is missing, damaged, in neither layout, or inconsistent.
    """
    return _from_published(read_pickle(path), Path(path), None).flow


def _from_published(content: dict, path: Path, prior: str | None) -> PictureModel:
    """The flow of a published checkpoint, with a prior of that name and the scale of the file."""
    state, name = _published_state(content, path)
    layout = _LAYOUTS[name]
    with refusing_damage(path):
        _check_tensors(state, path)
        config = _published_config(state, layout)
        for key, mask in _masks(config, layout).items():
            if key in state and not torch.equal(state[key].reshape(mask.shape).to(mask), mask):
                raise UserError(f"{path}: {key} is not the checkerboard of layout {name}")
        pairs = {
            ours: [state.pop(key) for key in theirs]
            for ours, theirs in _published_names(config, layout).items()
        }
        _type(chain(*pairs.values()), path)
        weights = {ours: torch.stack(pair) for ours, pair in pairs.items()}
        convention = layout.convention
        if prior and "prior.scale" in state:
            scale = state["prior.scale"].item()
            scales = {c: Prior(prior, c).scale for c in CONVENTIONS}
            fitting = [c for c, s in scales.items() if math.isclose(s, scale, rel_tol=0.05)]
            if not fitting:
                raise UserError(
                    f"{path}: has a prior of scale {scale:.4g}, which no {prior} prior has"
                )
            convention = fitting[0]
        metadata = {"source": str(path), "layout": name}
        model = _build(config, weights, path, Prior(prior or "laplace", convention), metadata)
    known = re.compile(r".*\.(mask_left|mask_right|mask|comask|saved_mean|saved_var)$|prior\.")
    unknown = [key for key in state if not known.match(key)]
    if unknown:
        raise UserError(f"{path}: {len(unknown)} entries fit no RG-Flow, first {unknown[0]!r}")
    return model


def _refuse_folded(flow: RGFlow) -> None:
    if any(isinstance(m, PublishedSubnet) and m.folded for m in flow.modules()):
        raise UserError("a folded flow cannot be saved: save the flow it was folded from")


def save_published(flow: RGFlow, path: str | Path, layout: str, prior: Prior | None = None) -> None:
    """Write a flow for one of the published codes, "authors" or "igf23".

    The scale of ``prior`` is a buffer of the authors' layout; by default it is the Laplace prior's.

    Raises:
        UserError: if the layout is unknown or cannot hold this flow.
    """
    if layout not in _LAYOUTS:
        raise UserError(f"layout must be one of {tuple(_LAYOUTS)}, not {layout!r}")
    if layout == "igf23" and prior and prior.scale != 1:
        raise UserError("layout igf23 does not hold the prior's scale, which is 1 there")
    names, config = _LAYOUTS[layout], flow.config
    needed = {"subnet": "published", "order": "code", "first_parity": names.parity}
    if wrong := {k: v for k, v in needed.items() if getattr(config, k) != v}:
        raise UserError(f"layout {layout} can only hold a flow with {wrong}")
    _refuse_folded(flow)
    like = next(flow.parameters())
    state = {name: mask.to(like) for name, mask in _masks(config, names).items()}
    parameters = flow.state_dict()
    for ours, theirs in _published_names(config, names).items():
        state |= {key: value.clone() for key, value in zip(theirs, parameters[ours], strict=True)}
    if layout == "authors":
        state["prior.scale"] = like.new_tensor((prior or Prior()).scale)
    optimiser = {"epoch": 0, "optim": {}} if layout == "igf23" else {}
    write_pickle(path, {names.wrap: state} | optimiser)


def write_pickle(path: str | Path, content: object) -> None:
    """``torch.save``, whole; ``OSError`` if the disk is full, where torch has another."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            raise OSError(f"disk full? {str(error).splitlines()[0]}") from None


def _sha256(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """Of everything in a ``.safetensors`` file: its header, and names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_tensors(path: str | Path, header: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Write a ``.safetensors`` file, whole, with a SHA-256 of everything in its header."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = header | {"sha256": _sha256(header, tensors)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, header))


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a ``.safetensors`` file; a missing SHA-256 is warned of.

    Raises:
        UserError: if the file is missing, damaged, or its SHA-256 differs.
    """
    with (
        refusing_damage(_existing(path), "a readable safetensors file"),
        safetensors.safe_open(path, "pt") as file,
    ):
        header = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stated = header.pop("sha256", None)
    if stated is None:
        warnings.warn(f"{path}: has no SHA-256, damage would go unseen", stacklevel=2)
    elif stated != _sha256(header, state):
        raise UserError(f"{path}: damaged (SHA-256 differs)")
    return header, state


def save(model: PictureModel, path: str | Path, provenance: dict | None = None) -> None:
    """Write weights as ``.safetensors``; config, prior and provenance go to its header.

    Raises:
        UserError: for a model that :func:`load` would not give back.
    """
    path, flow = Path(path), getattr(model.flow, "_orig_mod", model.flow)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: must end in .safetensors")
    _refuse_folded(flow)
    like = _check_fit(flow.config, _bare(tensors(model), path), path)
    if (kinds := (type(flow), type(model.prior))) != (type(like.flow), Prior):
        names = " and ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{path}: would be loaded without {names}; its config must build them")
    header = {
        "format": "rgflow_core",
        "config": json.dumps(flow.config.to_dict()),
        "prior": json.dumps(vars(model.prior)),
        "provenance": json.dumps(provenance or {}),
    }
    write_tensors(path, header, tensors(model))


def _from_ours(content: dict, path: Path, metadata: dict) -> PictureModel:
    prior, config = Prior(**content["prior"]), config_of(content["config"])
    state = _bare(content["model"], path)
    _check_tensors(state, path)
    return _build(config, state, path, prior, metadata)


def load(path: str | Path, prior: str | None = None) -> PictureModel:
    """Read a model from our ``.safetensors``, a training checkpoint, or either published layout.

    ``prior`` is the name of the prior of a published checkpoint, which does not say it; its scale
    is the file's, or where that has none (IGF23's) that of the layout.
    """
    path = Path(path)
    if prior not in (None, *NAMES):
        raise UserError(f"prior must be one of {NAMES}, not {prior!r}")
    if path.suffix == ".safetensors":
        header, state = read_tensors(path)
        if header.get("format") != "rgflow_core":
            raise UserError(f"{path}: a safetensors file, but not one written by rgflow_core")
        with refusing_damage(path):
            content = {name: json.loads(header[name]) for name in ("config", "prior", "provenance")}
            model = _from_ours(content | {"model": state}, path, dict(content["provenance"]))
    elif "config" in (content := read_pickle(path)):
        with refusing_damage(path):
            metadata = {name: content[name] for name in ("epoch", "step", "settings")}
            metadata["train_fingerprint"] = content.get("train_fingerprint")
            model = _from_ours(content, path, metadata)
    else:
        model = _from_published(content, path, prior)
        if prior is None:
            raise UserError(
                f"{path}: does not say its prior; add --prior (prior=) with one of {NAMES}"
            )
    if prior not in (None, model.prior.name):
        raise UserError(
            f"{path}: has the {model.prior.name} prior, not {prior}; leave out --prior (prior=)"
        )
    return model
