"""What several test files share: golden vectors, small flows and runs, plain helpers."""

import itertools
import json
import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, load_published, train
from rgflow_core.errors import UserError
from rgflow_core.files import write_json
from study import records
from study.ablations import ABLATIONS

TINY = {"subnet": "lean", "coupling_layers": 1, "res_blocks": 1, "hidden": 8, "mlp_depth": 1}
train.MODELS["tiny"] = TINY
RUN = train.Settings(
    model="tiny", train_images=64, val_images=16, batch_size=16, epochs=3, lr=3e-3, beta2=0.99,
    warmup=3, img_samples=2, workers=1, device="cpu", save_minutes=1e6,
)  # fmt: skip
"""A run of twelve steps."""
NETWORKS = {
    "lean affine": {"subnet": "lean"},
    "lean nlsq": {"subnet": "lean", "coupling": "nlsq"},
    "autoregressive affine": {"subnet": "autoregressive"},
    "autoregressive nlsq": {"subnet": "autoregressive", "coupling": "nlsq"},
    **{n: {"subnet": n} for n in ("published", *ABLATIONS, "without_weight_norm", "own_halves")},
}
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
PRIORS = {
    "authors_L16_laplace.state": Prior("laplace"),
    "authors_L32_gaussian.state": Prior("gaussian"),
    "igf23_L16_laplace.pth": Prior("laplace", "unit_scale"),
}
SCIPY = {
    Prior("laplace"): stats.laplace(scale=math.sqrt(0.5)),
    Prior("laplace", "unit_scale"): stats.laplace(),
    Prior("gaussian"): stats.norm(),
    Prior("gaussian", "unit_scale"): stats.norm(),
}
LAYOUTS = {name: name.split("_")[0] for name in PRIORS}


def said_by(call: Callable, *arguments, **named) -> str:
    """The message of the UserError that a call raises: one line."""
    with pytest.raises(UserError) as error:
        call(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


interrupt = partial(signal.raise_signal, signal.SIGINT)


def calls(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, action: Callable
) -> None:
    """Do something after call number ``number`` of a function, counted from 1."""
    original, count = getattr(owner, name), itertools.count(1)

    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        if next(count) == number:
            action()
        return result

    monkeypatch.setattr(owner, name, wrapper)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """As near as ``tolerance``, relative or absolute."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def golden(name: str) -> tuple[PictureModel, dict[str, torch.Tensor]]:
    """The model of a golden checkpoint, and its published outputs."""
    with np.load((GOLDEN / name).with_suffix(".npz")) as file:
        outputs = {key: torch.from_numpy(file[key]) for key in file}
    return PictureModel(load_published(GOLDEN / name), PRIORS[name]), outputs


@torch.no_grad()
def randomise(flow: RGFlow, seed: int = 0, strength: float = 0.3) -> RGFlow:
    """Random weights in place of those that make a fresh flow the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in flow.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("gain"):
            parameter.copy_(strength * noise)
        elif name.endswith("leave.weight"):
            parameter.copy_(strength * noise / parameter.shape[1] ** 0.5)
        elif ".alphas." in name:
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.add_(0.1 * noise)
    return flow


def small_flow(dtype=torch.float64, seed: int = 0, strength: float = 0.3, **config) -> RGFlow:
    """A randomised flow with tiny networks; ``config`` overrides fields of the config."""
    fields = {"image_size": 8, "channels": 1, "kernel": 4, "coupling_layers": 2}
    fields |= {"res_blocks": 1, "hidden": 6, "mlp_depth": 1} | config
    torch.manual_seed(seed)
    return randomise(RGFlow(RGFlowConfig(**fields)), seed, strength).to(dtype)


def lattice_normal(flow: RGFlow, batch: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers of a flow's shape and dtype."""
    like = next(flow.parameters())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *flow.config.shape, generator=generator, dtype=like.dtype)


def jacobians(function: Callable, x: torch.Tensor) -> torch.Tensor:
    """Of each picture (B, C, L, L): (B, D, D), by autograd; ``function`` gives a tuple."""
    one = torch.func.jacrev(lambda x: function(x[None])[0][0])
    return torch.func.vmap(one)(x).reshape(len(x), x[0].numel(), -1)


def files_below(folder: Path) -> list[str]:
    """All files and folders below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Name -> bytes of all files below a folder, and its folders."""
    paths = {name: folder / name for name in files_below(folder)}
    return {n: path.read_bytes() if path.is_file() else None for n, path in paths.items()}


def metrics(folder: Path) -> list[dict]:
    """A run's metrics, without the only numbers that may differ."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(one: object, other: object) -> bool:
    """Whether two results are the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def write_record(root: Path, name: str, bpd: float, **more: object) -> None:
    """A made-up record of a planned run; ``more`` replaces or adds fields."""
    planned = records.plan(root) | records.plan(root, path=records.PEERS)
    settings = {"convention": "unit_variance", "dataset": "msds1"}
    settings |= train.LEAN_RECIPE | planned[name]
    pictures = settings.get("epochs", 1) * settings.get("images_per_epoch", 48)
    record = {
        "settings": settings,
        "test": {"bpd": bpd, "stderr": 0.1, "images": 10},
        "validation": [{"images": pictures, "step": 3, "bpd": bpd + 10, "stderr": 0.1}],
        "images_seen": pictures,
        "parameters": 7,
        "matrix_peak": 1e9,
        "latents": [["separation", None, "trained", bpd / 2]],
        "seconds": 60.0,
    }
    write_json(root / records.FOLDER / f"{name}.json", record | more)
