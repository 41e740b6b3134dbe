"""Train an RG-Flow: ``python -m rgflow_core.train``.

Every random choice that touches a picture (order, flip, dequantisation noise) is a function of
the seed, the pass through the data and the picture's index, so that a run that was stopped and
resumed equals one that never stopped, bit for bit on a CPU with the same number of threads.
"""

import argparse
import contextlib
import gc
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from rgflow_core import checkpoints, cli, datasets, evaluate, sample, speed
from rgflow_core.errors import UserError
from rgflow_core.files import (
    check_writable,
    locked,
    make_folder,
    provenance,
    refusing_damage,
    replacing,
    write_json,
)
from rgflow_core.flow import LEAN, LEAN_AFFINE, RGFlow, RGFlowConfig
from rgflow_core.model import PictureModel
from rgflow_core.muon import Muon
from rgflow_core.noise import permutation, stream, uniform
from rgflow_core.pixels import bits_per_dim, dequantise, to_logit
from rgflow_core.priors import CONVENTIONS, NAMES, Prior

MODELS = {"published": {}, "lean": LEAN, "lean_affine": LEAN_AFFINE}
"""Name -> config fields; a study may add its own."""
ORDER_STREAM, FLIP_STREAM = 3, 4
TEST_MODE = {"train_images": 128, "val_images": 64}

log = logging.getLogger("rgflow")


def _knob(default: object, text: str, **rule: object) -> Any:
    """A field of :class:`Settings`: ``rule`` is choices, or least or above for a number."""
    return field(default=default, metadata={"help": text, **rule})


@dataclass(frozen=True)
class Settings:
    """Every knob of a run, each also a flag of the command line.

    Defaults are IGF23's; :data:`LEAN_RECIPE` is ours for a CPU.

    Raises:
        UserError: names the value and what is allowed.
    """

    dataset: str = _knob("msds1", "data set", choices=datasets.SOURCES)
    data_root: str = _knob("data", "data folder; of data set folder: the pictures' own")
    model: str = _knob("published", "80.5, 1.83, or 1.64 M parameters", choices=MODELS)
    prior: str = _knob("laplace", "prior of the latents", choices=NAMES)
    convention: str = _knob(
        "unit_variance",
        "prior's scale: unit_variance (authors) or unit_scale (IGF23: Laplace scale 1)",
        choices=CONVENTIONS,
    )
    epochs: int = _knob(60, "passes through the data, or through --images-per-epoch", least=1)
    batch_size: int = _knob(512, "pictures in a step", least=1)
    lr: float = _knob(1e-3, "learning rate", above=0)
    optimizer: str = _knob(
        "adamw", "adamw, or muon for the square matrices", choices=("adamw", "muon")
    )
    matrix_lr: float = _knob(0.02, "learning rate of Muon", above=0)
    weight_decay: float = _knob(5e-5, "weight decay of AdamW", least=0)
    beta2: float = _knob(0.999, "decay of AdamW's second moment", above=0, below=1)
    clip: float = _knob(1.0, "largest norm of the gradient", above=0)
    outlier_bpd: float | None = _knob(
        None, "pictures worse than this are not learned from; by default all are", above=0
    )
    warmup: int = _knob(0, "steps over which the learning rate rises", least=0)
    schedule: str = _knob("constant", "or cosine down to 0", choices=("constant", "cosine"))
    flip: bool = _knob(False, "mirror training pictures at random (natural sets always do)")
    without_noise: bool = _knob(False, "no dequantisation noise: an ablation, its bpd is no bound")
    seed: int = _knob(0, "of weights, order, flips and noise", least=0, below=2**31)
    images_per_epoch: int | None = _knob(None, "pictures between two validations", least=1)
    train_images: int | None = _knob(None, "train on the first so many only", least=1)
    val_images: int | None = _knob(None, "validate on the first so many only", least=1)
    checkpointing: bool | None = _knob(
        None, "recompute activations: less memory, more time; by default where memory is short"
    )
    precision: str = _knob(
        "float32",
        "of matrix products in training; tf32 wants an NVIDIA GPU; validation is float32",
        choices=speed.PRECISIONS,
    )
    compile: bool = _knob(False, "torch.compile the coupling layers")
    device: str = _knob("auto", "auto, cpu, cuda, cuda:1, ...")
    workers: int = _knob(8, "threads that make data", least=1)
    img_samples: int = _knob(16, "samples drawn each epoch", least=1)
    keep: int = _knob(2, "checkpoints kept beside the best", least=1)
    save_minutes: float = _knob(10.0, "write a checkpoint within an epoch this often", least=0)

    def __post_init__(self) -> None:
        for knob in fields(self):
            value, rule = getattr(self, knob.name), knob.metadata
            if value is None and knob.default is None:
                continue
            plain = {str: "text that is not empty", bool: "true or false"}
            if knob.type in plain and (type(value) is not knob.type or value == ""):
                raise UserError(f"{knob.name} must be {plain[knob.type]}, not {value!r}")
            if "choices" in rule and value not in rule["choices"]:
                raise UserError(
                    f"{knob.name} must be one of {tuple(rule['choices'])}, not {value!r}"
                )
            limits = {"least": ">=", "above": ">", "below": "<"}
            bounds = {sign: rule[name] for name, sign in limits.items() if name in rule}
            if not bounds:
                continue
            whole = knob.type in (int, int | None)
            if whole:
                bounds.setdefault("<", 2**31)
            good = type(value) is int or (type(value) is float and not whole)
            good = good and math.isfinite(value) and value >= rule.get("least", value)
            good = good and value > rule.get("above", -math.inf)
            if not (good and value < bounds.get("<", math.inf)):
                wanted = " and ".join(f"{sign} {bound}" for sign, bound in bounds.items())
                kind = "whole" if whole else "finite"
                raise UserError(f"{knob.name} must be a {kind} number {wanted}, not {value!r}")


LEAN_RECIPE = {
    "model": "lean",
    "batch_size": 16,
    "lr": 3e-3,
    "optimizer": "muon",
    "beta2": 0.99,
    # Worse than an untrained model's 8.5 bits: one such picture, whose gradient is millions of
    # times the others', once in 200,000 spoils the optimisers' moments and with them the model.
    "outlier_bpd": 16.0,
    "warmup": 200,
    "schedule": "cosine",
}
# What may differ when a run goes on; a device or checkpointing changes results at rounding level.
_MAY_CHANGE = {"data_root", "device", "workers", "img_samples", "keep", "save_minutes", "epochs"}
_MAY_CHANGE |= {"checkpointing"}


def flow_config(settings: Settings) -> RGFlowConfig:
    """The model a run trains, for the channels of its data set."""
    channels = datasets.SOURCES[settings.dataset].channels
    return RGFlowConfig(channels=channels, **MODELS[settings.model])


def rate_factor(settings: Settings, step: int, steps: int) -> float:
    """Of the learning rates, at step 0 ... steps-1: linear warm-up, then constant or cosine."""
    rate = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate


class Order:
    """The endless data order: one seeded permutation after another."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._permutations: dict[int, Tensor] = {}

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Image indices (B,) of a step, and in which pass through the data each is seen, from 1."""
        position = torch.arange(step * batch_size, (step + 1) * batch_size)
        passes = position // self.size + 1
        needed = set(passes.tolist())
        self._permutations = {
            p: self._permutations[p]
            if p in self._permutations
            else permutation(self.size, ORDER_STREAM, self.seed, p)
            for p in needed
        }
        index = torch.empty_like(position)
        for p in needed:
            mine = passes == p
            index[mine] = self._permutations[p][position[mine] % self.size]
        return index, passes


class _BarHandler(logging.Handler):
    """Log lines on the console without breaking the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _FileHandler(logging.FileHandler):
    """Log lines in a file; a full disk stops the run, as it would at the next checkpoint."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextlib.contextmanager
def _logging_to(folder: Path) -> Iterator[None]:
    logs = make_folder(folder / "logs")
    file = _FileHandler(logs / f"rgflow_{datetime.now():%Y%m%d_%H%M%S}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [file, _BarHandler()]
    try:
        yield
    finally:
        log.handlers = []
        file.close()


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, for a loop that stops when its state is whole."""
    received: list[int] = []
    before: dict = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:  # asked twice: at once
            signal.signal(number, before[number])
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, in order; epoch 1000 comes after 999."""
    return sorted((folder / "ckpt").glob("rgflow_ep*.pth"), key=lambda p: (len(p.name), p.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint a run goes on from: the one within an epoch if any, else the last epoch's."""
    within = folder / "ckpt" / "rgflow_last.pth"
    epochs = _epoch_files(folder)
    return within if within.exists() else epochs[-1] if epochs else None


def _best(history: list[dict]) -> int:
    """Number of the epoch with the lowest validation bpd, from 1."""
    return min(range(len(history)), key=lambda e: history[e]["bpd"]) + 1


def _prune(folder: Path, keep: int, best_epoch: int) -> None:
    """Keep the last ``keep`` epochs' checkpoints and the best by validation."""
    for path in _epoch_files(folder)[:-keep]:
        if path.name != f"rgflow_ep{best_epoch:03d}.pth":
            path.unlink()


class _Ranks:
    """This process among those that ``torchrun`` started; alone without it."""

    def __init__(self, device: str) -> None:
        launched = distributed.is_torchelastic_launched()
        self.rank = int(os.environ["RANK"]) if launched else 0
        self.world = int(os.environ["WORLD_SIZE"]) if launched else 1
        if launched and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.device = cli.pick_device(device)
        if launched:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(
                backend, device_id=self.device if backend == "nccl" else None
            )

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Rank 0 does this before the others, which then find its files."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def mine(self, x: Tensor) -> Tensor:
        """This rank's part of what is indexed by pictures."""
        return x[self.rank :: self.world]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x / self.world

    def gathered(self, part: Tensor, count: int) -> Tensor:
        """Undo :meth:`mine` for a tensor (count,)."""
        whole = torch.zeros(count, dtype=part.dtype, device=self.device)
        whole[self.rank :: self.world] = part.to(self.device)
        return (self.mean(whole) * self.world).cpu()

    def wait(self) -> None:
        """Until all ranks are here: one that leaves earlier breaks the others' connections."""
        if self.world > 1:
            distributed.barrier()

    def close(self) -> None:
        """Give up the connections; what still refers to them would abort the program's end."""
        if distributed.is_initialized():
            gc.collect()
            distributed.destroy_process_group()


def _optimizers(settings: Settings, flow: RGFlow) -> list[torch.optim.Optimizer]:
    """AdamW, for all parameters or for all but the square matrices, which Muon then has."""
    parameters = list(flow.parameters())
    muon = settings.optimizer == "muon"
    square = [p for p in parameters if muon and p.ndim == 2 and p.shape[0] == p.shape[1]]
    taken = {id(p) for p in square}
    adamw = torch.optim.AdamW(
        [p for p in parameters if id(p) not in taken],
        lr=settings.lr,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    optimizers = [adamw, Muon(square, settings.matrix_lr)] if square else [adamw]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class _Run:
    """What a training checkpoint holds: model, optimiser, and where the run stands."""

    def __init__(self, settings: Settings, device: torch.device, fingerprint: str) -> None:
        self.settings, self.config = settings, flow_config(settings)
        torch.manual_seed(settings.seed)
        flow = RGFlow(self.config).to(device)
        self.model = PictureModel(flow, Prior(settings.prior, settings.convention))
        self.optimizers = _optimizers(settings, flow)
        self.facts = {
            "config": self.config.to_dict(),
            "prior": vars(self.model.prior),
            "settings": asdict(settings),
            "train_fingerprint": fingerprint,
            "threads": torch.get_num_threads(),
        }
        self.step, self.seconds = 0, 0.0
        self.history: list[dict] = []  # validations
        self.running: list[float] = []  # training bpd since the last log line
        self.starts: list[dict] = []  # with which code, from which step

    def save(self, path: Path) -> None:
        state = {
            "epoch": len(self.history),
            "model": self.model.flow.state_dict(),
            "optim": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "running": self.running,
            "starts": self.starts,
        }
        checkpoints.write_pickle(path, state | self.facts)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; :class:`UserError` if it is damaged or of another run."""
        state = checkpoints.read_pickle(path)
        with checkpoints.refusing_damage(path):
            self._compare(state, path)
            checkpoints.check_finite(state["model"], path)
            self.model.flow.load_state_dict(state["model"])
            for optimizer, old in zip(self.optimizers, state["optim"], strict=True):
                optimizer.load_state_dict(old)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.running = [float(bpd) for bpd in state["running"]]
            self.history = [dict(entry) for entry in state["history"]]
            self.starts = [dict(entry) for entry in state["starts"]]
            if len(self.history) != state["epoch"] or not all("bpd" in h for h in self.history):
                raise UserError(f"{path}: damaged: its epochs do not fit its history")

    def _compare(self, state: dict, path: Path) -> None:
        # A knob that the checkpoint does not know was at its default.
        old, new = asdict(Settings()) | state["settings"], self.facts["settings"]
        differ = [k for k in new if old[k] != new[k] and k not in _MAY_CHANGE]
        if self.settings.schedule == "cosine" and old["epochs"] != new["epochs"]:
            differ.append("epochs")
        if differ:
            changes = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in differ)
            raise UserError(f"{path}: made with other settings ({changes}); use another run folder")
        if state["config"] != self.facts["config"]:
            raise UserError(f"{path}: holds another model configuration; use another run folder")
        if state["train_fingerprint"] != self.facts["train_fingerprint"]:
            raise UserError(f"{path}: its training data have changed since; use another run folder")
        if state["threads"] != self.facts["threads"]:
            log.info(
                f"Begun on {state['threads']} threads, now on {self.facts['threads']}: results "
                "will differ at rounding level"
            )


def train(settings: Settings, folder: str | Path, progress: bool = True) -> Path:
    """Train a model, or go on where the run in ``folder`` stopped.

    Args:
        settings: every knob.
        folder: run folder; gets ``ckpt/``, ``logs/``, ``samples/``, ``metrics.jsonl`` and, at
            the end, ``record.json`` and ``model.safetensors`` (the best epoch by validation).
        progress: show a bar with rate and time left.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: for data or checkpoints that cannot be used.
        FloatingPointError: if it diverges; the last good checkpoint is kept.
    """
    folder = Path(folder)
    check_writable(folder)
    ranks = _Ranks(settings.device)
    if settings.batch_size % ranks.world:
        raise UserError(
            f"batch_size must be a multiple of the {ranks.world} processes, not "
            f"{settings.batch_size}"
        )
    speed.check_precision(settings.precision, ranks.device)
    # Before anything is written: what is missing or damaged should leave nothing behind.
    with ranks.first_alone():
        data, val = (
            datasets.load_split(
                settings.dataset, split, settings.data_root, limit, settings.workers, progress
            )
            for split, limit in (("train", settings.train_images), ("val", settings.val_images))
        )
    with _deferred_signals() as signals, contextlib.ExitStack() as stack:
        if not ranks.rank:
            stack.enter_context(locked(folder))
        run = _Run(settings, ranks.device, data.fingerprint)
        if latest := latest_checkpoint(folder):
            run.restore(latest)
        run.starts.append({"step": run.step, "commit": provenance()["commit"]})
        final = folder / "model.safetensors"
        if final.exists() and len(run.history) >= settings.epochs:
            return final
        stack.callback(ranks.close)
        if not ranks.rank:
            stack.enter_context(_logging_to(folder))
        _loop(run, ranks, folder, data.images.to(ranks.device), val.images, signals, progress)
        if not ranks.rank:
            _finish(run, folder)
        ranks.wait()
    return final


def _loop(
    run: _Run,
    ranks: _Ranks,
    folder: Path,
    images: Tensor,
    val: Tensor,
    signals: list[int],
    progress: bool,
) -> None:
    settings, model, flow = run.settings, run.model, run.model.flow
    parallel = DistributedDataParallel(model) if ranks.world > 1 else model
    outlier_bpd = math.inf if settings.outlier_bpd is None else settings.outlier_bpd
    flips = settings.flip or datasets.SOURCES[settings.dataset].flip
    batch_size = min(settings.batch_size, len(images))
    if batch_size < settings.batch_size:
        log.info(f"Batch size {batch_size}: there are only so many training images")
    epoch_steps = max(1, (settings.images_per_epoch or len(images)) // batch_size)
    steps = settings.epochs * epoch_steps
    order = Order(len(images), settings.seed)
    recompute = settings.checkpointing
    if recompute is None:
        recompute = speed.needs_checkpointing(flow, batch_size // ranks.world)
    flow.use_checkpointing(recompute)
    if settings.compile:
        speed.compile_couplings(flow)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    log.info(
        f"{settings.model} model, {sum(p.numel() for p in flow.parameters()) / 1e6:.2f} M parameters, "
        f"{settings.prior} prior, {len(images)} training and {len(val)} validation images, "
        f"on {images.device}" + (f" and {ranks.world} processes" if ranks.world > 1 else "")
    )
    if run.step:
        log.info(f"Resuming at step {run.step} of {steps}")
    metrics = folder / "metrics.jsonl"
    if not ranks.rank:
        _truncate(metrics, run.step)

    def record(**values: float) -> None:
        if ranks.rank:
            return
        line = {"step": run.step, "images": run.step * batch_size} | values
        with open(metrics, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def save(name: str) -> None:
        nonlocal saved
        if ranks.rank:
            return
        run.seconds += time.perf_counter() - saved
        saved = time.perf_counter()
        run.save(folder / "ckpt" / name)

    started = saved = epoch_started = time.perf_counter()
    first_step = run.step
    bar = tqdm(
        total=steps * batch_size,
        initial=run.step * batch_size,
        desc="training",
        unit="image",
        unit_scale=True,
        disable=not progress or ranks.rank > 0,
    )
    with bar:
        while run.step < steps:
            # One training step.
            index, passes = order.batch(run.step, batch_size)
            index, passes = (ranks.mine(i).to(images.device) for i in (index, passes))
            batch = images[index]
            if flips:
                keys = stream(FLIP_STREAM, settings.seed, passes, index=index)
                mirror = uniform(keys, 1)[:, 0] < 0.5
                batch = torch.where(mirror[:, None, None, None], batch.flip(-1), batch)
            noise = model.noise(index, settings.seed, passes)
            x = dequantise(batch, noise.fill_(0.5) if settings.without_noise else noise)
            with speed.precision(settings.precision, images.device):
                log_prob = sum(parallel(*to_logit(x))) / run.config.dim
                bpd = bits_per_dim(log_prob.detach())
                outlier = bpd > outlier_bpd
                loss = -torch.where(outlier, log_prob.detach(), log_prob).mean()
                flow.zero_grad(set_to_none=True)
                loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            stop = torch.full_like(loss, bool(signals))
            step_values = torch.stack((loss, bpd.mean(), outlier.double().mean(), stop))
            loss, bpd, outliers, stop = ranks.mean(step_values.detach()).tolist()
            if not (math.isfinite(loss) and math.isfinite(norm.item()) and outliers < 1):
                _stop(flow, run.step, loss)
            if outliers:
                log.info(f"Step {run.step}: {outliers * batch_size:.0f} outliers not learned from")
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * rate_factor(settings, run.step, steps)
                optimizer.step()
            run.step += 1

            # One process need not wait for the others to hear of a signal.
            stop = stop or (ranks.world == 1 and signals)

            # What it says.
            run.running.append(bpd)
            bar.update(batch_size)
            in_epoch = (run.step - 1) % epoch_steps + 1
            epoch = (run.step - 1) // epoch_steps + 1
            if in_epoch % 50 == 0 or in_epoch == epoch_steps:
                bpd = sum(run.running) / len(run.running)
                rate = (run.step - first_step) * batch_size / (time.perf_counter() - started)
                left = (steps - run.step) * batch_size / rate / 60
                log.info(
                    f"{settings.dataset} {settings.prior} epoch {epoch}/{settings.epochs} batch "
                    f"{in_epoch}/{epoch_steps} loss {loss:.4f} bpd {bpd:.4f}, "
                    f"{rate:.0f} images/s, {left:.1f} min left"
                )
                record(train_bpd=bpd, gradient_norm=norm.item())
                run.running = []
            if in_epoch == epoch_steps:
                which = ranks.mine(torch.arange(len(val)))
                values = evaluate.evaluate(model, val[which], progress=False, index=which)
                valid = evaluate.mean_and_error(ranks.gathered(values, len(val)))
                if not math.isfinite(valid["bpd"]):
                    _stop(flow, run.step, valid["bpd"])
                took = time.perf_counter() - epoch_started
                log.info(f"Epoch {epoch} took {took:.1f} s, {folder}")
                log.info(f"Validation BPD: {valid['bpd']:.4f}")
                record(val_bpd=valid["bpd"], val_stderr=valid["stderr"], seconds=took)
                run.history.append(valid | {"step": run.step, "images": run.step * batch_size})
                if not ranks.rank:
                    grid = model.sample(settings.img_samples, seed=settings.seed)
                    sample.write_grid(grid, folder / "samples" / f"epoch{epoch:03d}.png")
                    save(f"rgflow_ep{epoch:03d}.pth")
                    (folder / "ckpt" / "rgflow_last.pth").unlink(missing_ok=True)
                    _prune(folder, settings.keep, _best(run.history))
                epoch_started = time.perf_counter()
            elif stop or time.perf_counter() - saved > 60 * settings.save_minutes:
                save("rgflow_last.pth")
            if stop and run.step < steps:
                log.info(f"Stopped at step {run.step}; --resume {folder} goes on")
                raise SystemExit(143) if signal.SIGTERM in signals else KeyboardInterrupt


def _finish(run: _Run, folder: Path) -> None:
    """Write the record, then the best epoch's weights: they mark a run as finished."""
    best = _best(run.history)
    state = checkpoints.read_pickle(folder / "ckpt" / f"rgflow_ep{best:03d}.pth")["model"]
    run.model.flow.load_state_dict(state)
    facts = {
        **{k: v for k, v in run.facts.items() if k != "prior"},
        "parameters": sum(p.numel() for p in run.model.flow.parameters()),
        "images_seen": run.history[-1]["images"],
        "seconds": run.seconds,
        "best_epoch": best,
        "validation": run.history,
        "starts": run.starts,
        **provenance(seed=run.settings.seed),
    }
    write_json(folder / "record.json", facts)
    checkpoints.save(run.model.flow, run.model.prior, folder / "model.safetensors", facts)
    log.info(f"Done: {folder / 'model.safetensors'}, best epoch {best}, records beside it")


def _truncate(metrics: Path, step: int) -> None:
    """Drop lines written after the checkpoint that a run resumes from."""
    if metrics.exists():
        # A line without an end was being written when the run was killed.
        with refusing_damage(metrics, "the metrics of a run; remove it to go on without"):
            lines = metrics.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
        with replacing(metrics) as temporary:
            temporary.write_text("".join(kept))


def _stop(flow: RGFlow, step: int, loss: float) -> None:
    """Raise for a loss or gradient that is not finite, or pictures that are all outliers."""
    bad = [
        n for n, p in flow.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    where = f"gradient of {bad[0]} and {len(bad) - 1} more" if bad else "all gradients are finite"
    raise FloatingPointError(
        f"loss {loss} at step {step}, diverged: {where}; checkpoints written before are "
        "good; start a new run with a lower --lr, or with --warmup"
    )


def parser(defaults: bool = True) -> argparse.ArgumentParser:
    """The command line; flags of IGF23's ``train.py`` keep their names and defaults.

    Without ``defaults`` the parser gives only what was typed.
    """
    out = cli.Parser(
        "Train an RG-Flow. A run leaves runs/<dataset>_<date>_<time>/ with ckpt/, logs/, samples/, "
        "metrics.jsonl, record.json and model.safetensors. The defaults are the published training "
        "and want a GPU; on a CPU try: "
        + " ".join(f"--{knob.replace('_', '-')} {value}" for knob, value in LEAN_RECIPE.items())
    )
    for knob in fields(Settings):
        kind = {"action": "store_true"}
        if knob.type == bool | None:
            kind = {"action": argparse.BooleanOptionalAction}
        elif knob.type is not bool:
            kind = {"type": {int | None: int, float | None: float}.get(knob.type, knob.type)}
            kind["choices"] = knob.metadata.get("choices")
            kind["metavar"] = "NAME" if kind["choices"] else knob.name.split("_")[-1].upper()
        text = knob.metadata["help"]
        if kind.get("choices"):
            text += f" ({', '.join(kind['choices'])})"
        out.add_argument(
            "--" + knob.name.replace("_", "-"),
            default=knob.default if defaults else argparse.SUPPRESS,
            help=text,
            **kind,
        )
    out.add_argument(
        "--out", type=cli.file_name, default="runs", help="folder in which the run's folder is made"
    )
    out.add_argument("--test-mode", action="store_true", help="128 training, 64 validation images")
    out.add_argument(
        "--resume", type=cli.file_name, metavar="RUN", help="go on with the run in this folder"
    )
    return out


def main() -> None:
    parser().parse_args()  # for --help
    given = vars(parser(defaults=False).parse_args())
    out, resume, test_mode = (given.pop(name) for name in ("out", "resume", "test_mode"))
    if test_mode:
        given = TEST_MODE | given
    if resume:
        folder = Path(resume)
        path = latest_checkpoint(folder)
        if path is None:
            raise UserError(f"{folder}: no checkpoint in its ckpt folder; nothing to resume")
        state = checkpoints.read_pickle(path)
        with checkpoints.refusing_damage(path):
            # train() refuses flags that would change the run.
            settings = Settings(**state["settings"] | given)
    else:
        settings = Settings(**given)
        folder = Path(out) / f"{settings.dataset}_{datetime.now():%Y%m%d_%H%M%S}"
        if folder.exists():
            raise UserError(f"{folder} exists; runs are never overwritten, start it again")
    print(train(settings, folder))


if __name__ == "__main__":
    cli.run(main)
