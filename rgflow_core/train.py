"""Train an RG-Flow: ``python -m rgflow_core.train``.

Every random choice that touches a picture (order, flip, dequantisation noise) is a function of
the seed, the pass through the data and the picture's index, so that a run that was stopped and
resumed equals one that never stopped, bit for bit on a CPU with the same number of threads.

In this order: the knobs; which pictures a step sees; the :class:`Run`, which a checkpoint holds;
:func:`train`, one :func:`step` and the :func:`loop`; the command line. What it runs on is in
``running``.
"""

import json
import math
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from rgflow_core import checkpoints, cli, datasets, evaluate, files, running, sample
from rgflow_core.cli import Count, Name, NotNegative, Positive, Whole, knob, one_of
from rgflow_core.dequantiser import Dequantiser
from rgflow_core.errors import UserError
from rgflow_core.flow import LEAN, LEAN8, LEAN8_AUTOREGRESSIVE, LEAN_AFFINE, RGFlowConfig, config_of
from rgflow_core.model import PictureModel
from rgflow_core.muon import Muon
from rgflow_core.noise import permutation, stream, uniform
from rgflow_core.pixels import bits_per_dim
from rgflow_core.priors import CONVENTIONS, NAMES, Prior
from rgflow_core.running import PRECISIONS, Ranks, compile_couplings, log, precision

MODELS = {
    "published": {},
    "lean": LEAN,
    "lean8": LEAN8,
    "lean_affine": LEAN_AFFINE,
    "lean8_autoregressive": LEAN8_AUTOREGRESSIVE,
}
"""Name -> config fields; a study may add its own."""
ORDER_STREAM, FLIP_STREAM = 3, 4


# Knobs


@dataclass(frozen=True, config=cli.STRICT)
class Settings:
    """Every knob of a run, each also a flag of the command line.

    Defaults are IGF23's; :data:`RECIPES` are ours for a CPU.

    Raises:
        pydantic.ValidationError: names the value and what is allowed.
    """

    dataset: one_of(datasets.SOURCES) = knob("msds1", "data set")
    data_root: Name = knob("data", "data folder; of data set folder: the pictures' own")
    image_size: Count = knob(datasets.SIZE, "edge, 4 * 2^k (lean8: 8 * 2^k); not 32: folder alone")
    model: one_of(MODELS) = knob("published", "80.5, 1.83, 2.41, 1.64, or 2.34 M parameters")
    prior: one_of(NAMES) = knob("laplace", "of the latents")
    convention: one_of(CONVENTIONS) = knob(
        "unit_variance", "prior's scale: the authors', or IGF23's"
    )
    epochs: Count = knob(60, "passes through the data, or through --images-per-epoch")
    batch_size: Count = knob(512, "pictures in a step")
    lr: Positive = knob(1e-3, "learning rate")
    optimizer: one_of(("adamw", "muon", "muon_all")) = knob(
        "adamw", "muon is for the square matrices alone, muon_all for all of the networks"
    )
    matrix_lr: Positive = knob(0.02, "learning rate of Muon")
    weight_decay: NotNegative = knob(5e-5, "weight decay of AdamW")
    beta2: Annotated[float, Field(gt=0, lt=1)] = knob(0.999, "decay of AdamW's second moment")
    clip: Positive = knob(1.0, "largest norm of the gradient")
    outlier_bpd: Positive | None = knob(None, "do not learn from pictures worse than this")
    warmup: Whole = knob(0, "steps over which the learning rate rises")
    schedule: one_of(("constant", "cosine")) = knob("constant", "of the learning rate")
    standardise: bool = knob(
        False, "start from the data's mean and deviation (lean models, random weights)"
    )
    start_from: Name | None = knob(None, "begin with the weights of this .safetensors of ours")
    flip: bool = knob(False, "mirror training pictures at random (natural sets always do)")
    dequantisation: one_of(("uniform", "learned")) = knob(
        "uniform", "noise within a byte; learned with the flow, the bound is tighter"
    )
    without_noise: bool = knob(False, "no dequantisation noise: an ablation, its bpd is no bound")
    seed: Whole = knob(0, "of weights, order, flips and noise")
    images_per_epoch: Count | None = knob(None, "pictures between two validations")
    train_images: Count | None = knob(None, "train on the first so many only")
    val_images: Count | None = knob(None, "validate on the first so many only")
    checkpointing: bool = knob(False, "recompute activations: less memory, more time")
    precision: one_of(PRECISIONS) = knob("float32", "of the networks, and of Muon, in training")
    compile: bool = knob(False, "torch.compile the coupling layers")
    device: Name = knob("auto", "auto, cpu, cuda, cuda:1, ...")
    workers: Whole = knob(8, "threads that make data; 0: no extra one")
    img_samples: Count = knob(16, "samples drawn each epoch")
    keep: Count = knob(2, "checkpoints kept beside the best")
    save_minutes: NotNegative = knob(10.0, "write a checkpoint within an epoch this often")


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
LEAN8_RECIPE = LEAN_RECIPE | {
    "model": "lean8",
    "dequantisation": "learned",
    "standardise": True,
    # At the rates of the lean recipe a long run diverged.
    "lr": 2e-3,
    "matrix_lr": 0.015,
    "outlier_bpd": 8.0,
    "warmup": 100,
}
RECIPES = {"lean": LEAN_RECIPE, "lean8": LEAN8_RECIPE}
# What may differ when a run goes on; a device or checkpointing changes results at rounding level.
_MAY_CHANGE = {"data_root", "device", "workers", "checkpointing", "epochs"}
_MAY_CHANGE |= {"img_samples", "keep", "save_minutes"}


def flow_config(settings: Settings) -> RGFlowConfig:
    """The model a run trains, for the pictures of its data set."""
    channels = datasets.SOURCES[settings.dataset].channels
    fields = dict(MODELS[settings.model])
    if isinstance(layers := fields.get("coupling_layers"), tuple):  # of 32 pixels' levels
        levels = (settings.image_size // fields.get("kernel", 4)).bit_length()
        fields["coupling_layers"] = (layers + layers[-1:] * levels)[:levels]
    return config_of({"image_size": settings.image_size, "channels": channels} | fields)


def rate_factor(settings: Settings, step: int, steps: int) -> float:
    """Of the learning rates, at step 0 ... steps-1: linear warm-up, then constant or cosine."""
    rate = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate


# Data


_order = lru_cache(maxsize=2)(permutation)


def batch_of(step: int, batch_size: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of the endless data order, one seeded permutation of ``size`` pictures after another.

    Returns:
        Image indices (B,) of a step, and in which pass through the data each is seen, from 1.
    """
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    passes = position // size + 1
    index = [
        _order(size, ORDER_STREAM, seed, number)[position[passes == number] % size]
        for number in passes.unique().tolist()
    ]
    return torch.cat(index), passes


def inputs(run: "Run", images: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's pictures of the current step, flipped, and their noise: both (B, C, L, L)."""
    settings = run.settings
    index, passes = (
        run.ranks.mine(part).to(images.device)
        for part in batch_of(run.step, run.batch_size, len(images), settings.seed)
    )
    batch = images[index]
    if settings.flip or datasets.SOURCES[settings.dataset].flip:
        keys = stream(FLIP_STREAM, settings.seed, passes, index=index)
        mirror = uniform(keys, 1)[:, 0] < 0.5
        batch = torch.where(mirror[:, None, None, None], batch.flip(-1), batch)
    noise = run.model.noise(index, settings.seed, passes)
    return batch, noise.fill_(0.5) if settings.without_noise else noise


# What a run holds, and what it leaves


def _epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, in order; epoch 1000 comes after 999."""
    return sorted((folder / "ckpt").glob("rgflow_ep*.pth"), key=lambda p: (len(p.name), p.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint a run goes on from: the one within an epoch if any, else the last epoch's."""
    within = folder / "ckpt" / "rgflow_last.pth"
    return within if within.exists() else next(reversed(_epoch_files(folder)), None)


def _optimizers(settings: Settings, model: PictureModel) -> list[torch.optim.Optimizer]:
    """AdamW, for all parameters or for all but the matrices, square or any, which Muon then has."""
    muon, every = settings.optimizer != "adamw", settings.optimizer == "muon_all"
    matrices, rest = [], []
    for name, p in model.named_parameters():  # or stacks of matrices, but not of vectors
        of_kind = name.endswith(("weight", "weight_v")) if every else p.shape[-2:-1] == p.shape[-1:]
        (matrices if muon and p.ndim in (2, 3) and of_kind else rest).append(p)
    decay, betas = settings.weight_decay, (0.9, settings.beta2)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=betas, weight_decay=decay, fused=True)
    steps = 3 if every else 5  # of the published width's training step five are half
    return [adamw, Muon(matrices, settings.matrix_lr, steps)] if matrices else [adamw]


STATE = ("step", "seconds", "history", "running", "starts")
"""What changes in a :class:`Run` beside weights and optimisers."""


class Run:
    """Model, optimisers and where a run stands: what a checkpoint holds, and what leaves traces."""

    def __init__(
        self, settings: Settings, folder: Path, ranks: Ranks, images: int, fingerprint: str
    ) -> None:
        self.settings, self.folder, self.ranks = settings, folder, ranks
        self.config = flow_config(settings)
        torch.manual_seed(settings.seed)
        flow = self.config.build()
        if settings.checkpointing:
            flow.use_checkpointing()
        learned = settings.dequantisation == "learned"
        dequantiser = Dequantiser(self.config.channels) if learned else None
        prior = Prior(settings.prior, settings.convention)
        self.model = PictureModel(flow, prior, dequantiser=dequantiser).to(ranks.device)
        self.optimizers = _optimizers(settings, self.model)
        self.facts = {
            "config": self.config.to_dict(),
            "prior": vars(self.model.prior),
            "settings": asdict(settings),
            "train_fingerprint": fingerprint,
            "threads": torch.get_num_threads(),
        }
        self.batch_size = min(settings.batch_size, images)
        self.epoch_steps = max(1, (settings.images_per_epoch or images) // self.batch_size)
        self.steps = settings.epochs * self.epoch_steps
        self.step, self.seconds = 0, 0.0
        self.history: list[dict] = []  # validations
        self.running: list[float] = []  # training bpd since the last log line
        self.starts: list[dict] = []  # with which code, from which step
        self.saved = self.validated = self.began = time.perf_counter()

    def save(self, name: str) -> None:
        """Write a checkpoint; the first rank's alone."""
        if self.ranks.rank:
            return
        now = time.perf_counter()
        self.seconds, self.saved = self.seconds + now - self.saved, now
        state = {
            "epoch": len(self.history),
            "model": checkpoints.tensors(self.model),
            "optim": [optimizer.state_dict() for optimizer in self.optimizers],
            **{name: getattr(self, name) for name in STATE},
        }
        checkpoints.write_pickle(self.folder / "ckpt" / name, state | self.facts)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; :class:`UserError` if it is damaged or of another run."""
        state = checkpoints.read_pickle(path)
        with files.refusing_damage(path):
            self._compare(state, path)
            checkpoints.check_finite(state["model"], path)
            checkpoints.fill(self.model, state["model"])
            for optimizer, old in zip(self.optimizers, state["optim"], strict=True):
                optimizer.load_state_dict(old)
            for name in STATE:
                setattr(self, name, state[name])
            if len(self.history) != state["epoch"] or not isinstance(self.step, int):
                raise UserError(f"{path}: damaged: its epochs or steps do not fit its history")

    def _compare(self, state: dict, path: Path) -> None:
        # A knob that the checkpoint does not know was at its default.
        old, new = asdict(Settings()) | state["settings"], self.facts["settings"]
        may_change = _MAY_CHANGE - {"epochs"} if new["schedule"] == "cosine" else _MAY_CHANGE
        if differ := [k for k in new if k not in may_change and old[k] != new[k]]:
            changes = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in differ)
            changes += "; a cosine schedule is of all its epochs" if "epochs" in differ else ""
            raise UserError(f"{path}: made with other settings ({changes}); use another run folder")
        for name, what in {"config": "model", "train_fingerprint": "training data"}.items():
            if state[name] != self.facts[name]:
                raise UserError(f"{path}: its {what} was another then; use another run folder")
        if state["threads"] != self.facts["threads"]:
            log.info(
                f"Begun on {state['threads']} threads, now on {self.facts['threads']}: results "
                "will differ at rounding level"
            )

    def best(self) -> int:
        """Number of the epoch with the lowest validation bpd, from 1."""
        return min(range(len(self.history)), key=lambda e: self.history[e]["bpd"]) + 1

    def prune(self) -> None:
        """Keep the last epochs' checkpoints and the best by validation."""
        for path in _epoch_files(self.folder)[: -self.settings.keep]:
            if path.name != f"rgflow_ep{self.best():03d}.pth":
                path.unlink()

    def record(self, **values: float) -> None:
        """Add a line to the metrics."""
        if not self.ranks.rank:
            line = {"step": self.step, "images": self.step * self.batch_size} | values
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def truncate_metrics(self) -> None:
        """Drop lines written after the checkpoint that the run resumes from."""
        path = self.folder / "metrics.jsonl"
        if self.ranks.rank or not path.exists():
            return
        with files.refusing_damage(path, "the metrics of a run; remove it to go on without"):
            # A line without an end was being written when the run was killed.
            lines = path.read_text("utf-8").splitlines(keepends=True)
            kept = [s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= self.step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(kept), "utf-8")

    def say(self, loss: float, norm: float) -> None:
        """Log and record the mean training bpd since the last time, and how fast it goes."""
        bpd, settings = sum(self.running) / len(self.running), self.settings
        self.running = []
        epoch, batch = divmod(self.step - 1, self.epoch_steps)
        steps, seconds = self.step - self.starts[-1]["step"], time.perf_counter() - self.began
        rate = steps * self.batch_size / seconds
        left = (self.steps - self.step) * self.batch_size / rate
        log.info(
            f"{settings.dataset} {settings.prior} epoch {epoch + 1}/{settings.epochs} batch "
            f"{batch + 1}/{self.epoch_steps} loss {loss:.4f} bpd {bpd:.4f}, {rate:.0f} images/s, "
            f"{left / 60:.1f} min left"
        )
        self.record(train_bpd=bpd, gradient_norm=norm)

    def validate(self, val: Tensor) -> None:
        """The end of an epoch: validation, samples, a checkpoint."""
        which = self.ranks.mine(torch.arange(len(val)))
        values = evaluate.evaluate(self.model, val[which], progress=False, index=which)
        valid = evaluate.mean_and_error(self.ranks.gathered(values, len(val)))
        if not math.isfinite(valid["bpd"]):
            raise Diverged(self.step, f"validation bpd {valid['bpd']}")
        epoch, now = self.step // self.epoch_steps, time.perf_counter()
        took, self.validated = now - self.validated, now
        log.info(f"Epoch {epoch} took {took:.1f} s, {self.folder}")
        log.info(f"Validation BPD: {valid['bpd']:.4f}")
        self.record(val_bpd=valid["bpd"], val_stderr=valid["stderr"], seconds=took)
        self.history.append(valid | {"step": self.step, "images": self.step * self.batch_size})
        if not self.ranks.rank:
            try:
                grid = self.model.sample(self.settings.img_samples, seed=self.settings.seed)
            except UserError as error:  # pictures that are not finite are no reason to stop
                log.info(f"No samples of epoch {epoch}: {error}")
            else:
                sample.write_grid(grid, self.folder / "samples" / f"epoch{epoch:03d}.png")
            self.save(f"rgflow_ep{epoch:03d}.pth")
            (self.folder / "ckpt" / "rgflow_last.pth").unlink(missing_ok=True)
            self.prune()

    def finish(self) -> None:
        """Write the record, then the best epoch's weights: they mark a run as finished."""
        path = self.folder / "ckpt" / f"rgflow_ep{self.best():03d}.pth"
        final = self.folder / "model.safetensors"
        checkpoints.fill(self.model, checkpoints.read_pickle(path)["model"])
        facts = {
            **self.facts,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "images_seen": self.history[-1]["images"],
            "seconds": self.seconds,
            "best_epoch": self.best(),
            "validation": self.history,
            "starts": self.starts,
            **files.provenance(seed=self.settings.seed),
        }
        files.write_json(self.folder / "record.json", facts)
        checkpoints.save(self.model, final, facts)
        log.info(f"Done: {final}, best epoch {self.best()}, records beside it")


class Diverged(UserError):
    """A training that cannot go on."""

    def __init__(self, step: int, what: str, mend: str = "--warmup") -> None:
        super().__init__(
            f"{what} at step {step}, diverged; checkpoints written before are good; start a new "
            f"run with a lower --lr, or with {mend}"
        )


# The run


def train(settings: Settings, folder: str | Path, progress: bool = True) -> Path:
    """Train a model, or go on where the run in ``folder`` stopped.

    The folder gets ``ckpt/``, ``logs/``, ``samples/``, ``metrics.jsonl`` and, at the end,
    ``record.json`` and ``model.safetensors`` (the best epoch by validation), whose path is returned.

    Raises:
        UserError: for data or checkpoints that cannot be used, and if it diverges; the last good
            checkpoint is kept.
    """
    files.check_writable(folder)
    size, ranks = flow_config(settings).image_size, Ranks(settings.device)
    folder = ranks.agreed(Path(folder))
    # Before anything is written: what is missing or damaged should leave nothing behind.
    if settings.precision == "tf32" and ranks.device.type != "cuda":
        raise UserError(f"precision tf32 needs an NVIDIA GPU, not {ranks.device.type}")
    fresh = settings.start_from and not latest_checkpoint(folder)
    start = _start(settings) if fresh else None
    limits = {"train": settings.train_images, "val": settings.val_images}
    where, workers = settings.data_root, settings.workers
    data, val = (  # of several processes one makes them, the others wait
        datasets.load_split(settings.dataset, split, where, limit, workers, progress, size)
        for split, limit in limits.items()
    )
    if len(val.images) < ranks.world:
        raise UserError(f"val_images: {len(val.images)} are too few for {ranks.world} processes")
    if (batch_size := min(settings.batch_size, len(data.images))) % ranks.world:
        raise UserError(
            f"batch_size must be a multiple of the {ranks.world} processes, not {batch_size}"
        )
    final = folder / "model.safetensors"
    with running.deferred_signals() as signals, ExitStack() as stack:
        if not ranks.rank:
            stack.enter_context(files.locked(folder))
        run = Run(settings, folder, ranks, len(data.images), data.fingerprint)
        if latest := latest_checkpoint(folder):
            run.restore(latest)
        stack.callback(ranks.close)
        if final.exists() and len(run.history) >= settings.epochs:
            return final
        if not ranks.rank:
            stack.enter_context(running.logging_to(folder))
        images = data.images.to(ranks.device)
        begin(run, images, start)
        loop(run, images, val.images, signals, progress)
        if not ranks.rank:
            run.finish()
        ranks.wait()
    return final


def _start(settings: Settings) -> PictureModel:
    """The model whose weights a run begins with; its prior may be another than the run's."""
    path = settings.start_from
    if not path.endswith(".safetensors"):
        raise UserError(f"--start-from {path}: wants a .safetensors of ours, as save() writes it")
    model, learned = checkpoints.load(path), settings.dequantisation == "learned"
    if model.flow.config != flow_config(settings) or (model.dequantiser is not None) != learned:
        raise UserError(
            f"--start-from {path}: not of the run's kind; --model, --image-size, --dequantisation "
            "and the colours of --dataset must be its own"
        )
    return model


def begin(run: Run, images: Tensor, start: PictureModel | None = None) -> None:
    """Start from a model or the data, or drop what a killed run wrote after its last checkpoint."""
    settings, ranks, model = run.settings, run.ranks, run.model
    run.starts.append({"step": run.step, "commit": files.provenance()["commit"]})
    run.truncate_metrics()
    log.info(
        f"{settings.model} model, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{settings.prior} prior, {len(images)} training images, batches of {run.batch_size} on "
        f"{ranks.world} x {ranks.device}, from step {run.step} of {run.steps}"
    )
    if settings.warmup >= run.steps:
        log.info(f"All {run.steps} steps are warm-up: --lr is never reached (--warmup, --epochs)")
    if settings.compile:
        with precision(settings.precision, ranks.device):
            compile_couplings(model.flow)
    if start and not run.step:
        checkpoints.fill(model, checkpoints.tensors(start))
        run.starts[-1]["weights"] = files.sha256(settings.start_from)
        log.info(f"Begins with the weights of {settings.start_from}")
    elif settings.standardise and not settings.start_from and not run.step:  # alike everywhere
        count, seed = len(images), settings.seed
        index, passes = (x.to(images.device) for x in batch_of(0, min(256, count), count, seed))
        with torch.no_grad():
            y, *_ = model.transform(images[index], model.noise(index, seed, passes))
        model.flow.standardise(y)


def step(
    run: Run, model: nn.Module, images: Tensor, signals: Sequence[int] = ()
) -> tuple[float, float, bool]:
    """Learn from the run's next batch of the training ``images``, uint8 (N, C, L, L).

    ``model`` is the run's, or what wraps it on several processes; ``signals`` are those that have
    asked this process to stop.

    Returns:
        The loss, the norm of the gradient, and whether any process was asked to stop.

    Raises:
        Diverged: if one is not finite, or no picture is worth learning from.
    """
    settings, ranks = run.settings, run.ranks
    outlier_bpd = math.inf if settings.outlier_bpd is None else settings.outlier_bpd
    with precision(settings.precision, ranks.device):
        log_prob = model(*inputs(run, images)) / run.config.dim
        bpd = bits_per_dim(log_prob.detach())
        outlier = bpd > outlier_bpd
        loss = -torch.where(outlier, log_prob.detach(), log_prob).mean()
        run.model.zero_grad(set_to_none=True)
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip).item()
    asked = torch.full_like(loss, bool(signals))
    values = torch.stack((loss, bpd.mean(), outlier.double().mean(), asked)).detach()
    loss, bpd, outliers, asked = (ranks.sum(values) / ranks.world).tolist()
    if outliers == 1:
        what = f"all pictures are worse than --outlier-bpd {outlier_bpd}"
        raise Diverged(run.step, what, "a larger --outlier-bpd")
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(run.step, f"loss {loss}, norm of the gradient {norm}")
    if outliers:
        log.info(f"Step {run.step}: {outliers * run.batch_size:.0f} outliers not learned from")
    factor = rate_factor(settings, run.step, run.steps)
    with precision(settings.precision, ranks.device):  # Muon's products too
        for optimizer, rate in zip(run.optimizers, (settings.lr, settings.matrix_lr), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
    run.step += 1
    run.running.append(bpd)
    return loss, norm, asked > 0


def loop(run: Run, images: Tensor, val: Tensor, signals: list[int], progress: bool) -> None:
    """Train to the last step: what is done once in a while, then one step."""
    settings, ranks, model = run.settings, run.ranks, run.model
    if ranks.world > 1:  # all buffers are constants
        model = DistributedDataParallel(model, broadcast_buffers=False)
    loss, norm, stop = math.nan, math.nan, False
    with tqdm(
        desc="training", total=run.steps * run.batch_size, initial=run.step * run.batch_size,
        unit="image", unit_scale=True, disable=not progress or ranks.rank > 0,
    ) as bar:  # fmt: skip
        while True:
            if run.running and run.step % run.epoch_steps % 50 == 0:
                run.say(loss, norm)
            if run.step == (len(run.history) + 1) * run.epoch_steps:
                run.validate(val)
            elif stop or (
                0 < run.step < run.steps
                and time.perf_counter() - run.saved > 60 * settings.save_minutes
            ):
                run.save("rgflow_last.pth")
            if run.step >= run.steps:
                return
            if stop:
                log.info(f"Stopped at step {run.step}; --resume {run.folder} goes on")
                raise running.stopped_by(max(signals, default=signal.SIGINT))
            loss, norm, stop = step(run, model, images, signals)
            bar.update(run.batch_size)


# The command line


@dataclass(frozen=True, config=cli.STRICT)
class Command(Settings):
    """Knobs of a run, and which run."""

    recipe: one_of(RECIPES) | None = knob(None, "knobs that were tuned for a CPU, unless given")
    out: Name = knob("runs", "folder in which the run's folder is made")
    test_mode: bool = knob(False, "128 training, 64 validation images")
    resume: Name | None = knob(None, "go on with the run of this folder, or of this file in it")


def resumed(name: str, given: dict) -> tuple[Settings, Path]:
    """Settings and folder of a run that is to go on, with the knobs that were typed.

    ``name`` is that of its folder, its final weights, or its latest checkpoint; :func:`train`
    refuses knobs that would change the run.
    """
    asked = Path(name)
    asked = asked.absolute() if asked.is_file() else asked
    folder = asked.parents[asked.parent.name == "ckpt"] if asked.is_file() else asked
    path = latest_checkpoint(folder)
    if path is None:
        raise UserError(f"{name}: no checkpoint in ckpt of folder {folder}; nothing to resume")
    if asked.parent == path.parent and asked != path:
        raise UserError(f"{name}: not the latest checkpoint; the run goes on from {path}")
    with files.refusing_damage(path):
        settings = Settings(**checkpoints.read_pickle(path)["settings"] | given)
    root, whole = settings.data_root, None in (settings.train_images, settings.val_images)
    if whole and "data_root" not in given and not Path(root).is_dir():
        raise UserError(f"{root}: the run's data folder is not here; say where with --data-root")
    return settings, folder


def main() -> None:
    command, typed = cli.parse(
        Command,
        "Train an RG-Flow. A run leaves runs/<dataset>_<date>_<time>/ with ckpt/, logs/, samples/, "
        "metrics.jsonl, record.json and model.safetensors. The defaults are the published training "
        "and want a GPU; on a CPU try --recipe lean8.",
    )
    given = {name: typed[name] for name in typed.keys() & asdict(Settings()).keys()}
    if command.test_mode:
        given = {"train_images": 128, "val_images": 64} | given
    given = RECIPES.get(command.recipe, {}) | given
    if command.resume and "out" in typed:
        raise UserError("--out: a run that is resumed stays in its folder; leave it out")
    first = not distributed.is_torchelastic_launched() or os.environ["RANK"] == "0"
    with ExitStack() as stack:
        if command.resume:
            settings, folder = resumed(command.resume, given)
        else:
            settings = Settings(**given)
            folder = Path(command.out) / f"{settings.dataset}_{datetime.now():%Y%m%d_%H%M%S}"
            folder = stack.enter_context(files.new_folder(folder)) if first else folder
        paths = {"data_root": settings.data_root, "start_from": settings.start_from}
        paths = {name: os.path.abspath(path) for name, path in paths.items() if path}
        final = train(replace(settings, **paths), folder)
    if first:
        print(final)


if __name__ == "__main__":
    cli.run(main)
