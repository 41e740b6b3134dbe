"""Train an RG-Flow: ``python -m rgflow_core.train``.

Every random choice that touches a picture (order, flip, dequantisation noise) is a function of
the seed, the pass through the data and the picture's index, so that a run that was stopped and
resumed equals one that never stopped, bit for bit on a CPU.
"""

import argparse
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import checkpoints, cli, counter, datasets, evaluate, sample
from rgflow_core.errors import UserError
from rgflow_core.files import make_folder, provenance, replacing, write_json
from rgflow_core.flow import LEAN, RGFlow, RGFlowConfig
from rgflow_core.images import bits_per_dim, dequantise, to_logit
from rgflow_core.model import PictureModel
from rgflow_core.priors import CONVENTIONS, NAMES, Prior

ORDER_STREAM, FLIP_STREAM = 3, 4
TEST_MODE_IMAGES = {"train": 128, "val": 64}

log = logging.getLogger("rgflow")


@dataclass(frozen=True)
class Settings:
    """Every knob of a run. Defaults are IGF23's; :data:`LEAN_RECIPE` is ours for a CPU.

    Attributes:
        images_per_epoch: pictures between two validations; default one pass through the data.
        val_images: validate on the first so many pictures; default all.
        train_images: train on the first so many pictures; default all.
        warmup: steps over which the learning rate rises from 0.
        schedule: "constant", or "cosine" down to 0 at the last step.
        checkpointing: recompute activations in the backward pass, to save memory.
        save_minutes: write a checkpoint within an epoch this often.
    """

    dataset: str = "msds1"
    data_root: str = "data"
    model: str = "published"
    prior: str = "laplace"
    convention: str = "unit_variance"
    epochs: int = 60
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    seed: int = 0
    images_per_epoch: int | None = None
    train_images: int | None = None
    val_images: int | None = None
    checkpointing: bool = False
    device: str = "auto"
    workers: int = 8
    img_samples: int = 16
    keep: int = 2
    save_minutes: float = 10.0


LEAN_RECIPE = {
    "model": "lean",
    "batch_size": 64,
    "lr": 3e-3,
    "betas": (0.9, 0.99),
    "warmup": 200,
    "schedule": "cosine",
}
# What may differ when a run goes on: none of it changes what is computed.
_MAY_CHANGE = {"data_root", "device", "workers", "img_samples", "keep", "save_minutes", "epochs"}


# What a training checkpoint holds.
_STATE = {"epoch", "model", "optim", "step", "seconds", "history", "running", "config", "prior"}
_STATE |= {"settings", "train_fingerprint"}


def flow_config(settings: Settings) -> RGFlowConfig:
    """The model a run trains: published or lean, for the channels of its data set."""
    channels = datasets.SOURCES[settings.dataset].channels
    return RGFlowConfig(channels=channels, **(LEAN if settings.model == "lean" else {}))


def check(settings: Settings) -> None:
    """Raise :class:`UserError`, naming the value, for settings that cannot be run."""
    choices = {
        "dataset": tuple(datasets.SOURCES),
        "model": ("published", "lean"),
        "prior": NAMES,
        "schedule": ("constant", "cosine"),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise UserError(f"{name} must be one of {allowed}, not {getattr(settings, name)!r}")
    Prior(settings.prior, settings.convention)
    counts = ("epochs", "batch_size", "workers", "keep", "img_samples")
    optional = ("images_per_epoch", "train_images", "val_images")
    for name in counts + optional:
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number >= 1, not {value!r}")
    for name in ("lr", "clip"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be a finite number > 0, not {value!r}")
    for name in ("warmup", "weight_decay"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be a finite number >= 0, not {value!r}")


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Learning rate of step 0 ... steps-1: linear warm-up, then constant or cosine."""
    rate = settings.lr * min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate


class Order:
    """The endless data order: one seeded permutation after another."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._permutations: dict[int, Tensor] = {}

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Image indices (B,) of a step, and in which pass through the data each is seen."""
        position = torch.arange(step * batch_size, (step + 1) * batch_size)
        passes = position // self.size
        needed = set(passes.tolist())
        self._permutations = {
            p: self._permutations[p]
            if p in self._permutations
            else counter.permutation(self.size, ORDER_STREAM, self.seed, p)
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


def _start_log(folder: Path) -> list[logging.Handler]:
    logs = make_folder(folder / "logs")
    file = logging.FileHandler(logs / f"rgflow_{datetime.now():%Y%m%d_%H%M%S}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handlers = [file, _BarHandler()]
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = list(handlers)
    return handlers


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint a run goes on from: the one within an epoch if any, else the last epoch's."""
    within = folder / "ckpt" / "rgflow_last.pth"
    epochs = _epoch_files(folder)
    return within if within.exists() else epochs[-1] if epochs else None


def _epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, in order; epoch 1000 comes after 999."""
    return sorted((folder / "ckpt").glob("rgflow_ep*.pth"), key=lambda p: (len(p.name), p.name))


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, for a loop that stops when its state is whole."""
    received: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for s in before:
        signal.signal(s, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _prune(folder: Path, keep: int, best_epoch: int) -> None:
    """Keep the last ``keep`` epochs' checkpoints and the best by validation."""
    for path in _epoch_files(folder)[:-keep]:
        if path.name != f"rgflow_ep{best_epoch:03d}.pth":
            path.unlink()


def _restore(path: Path, settings: Settings, config: RGFlowConfig) -> dict:
    """A training checkpoint that fits the settings; :class:`UserError` if it does not."""
    state = checkpoints.read_pickle(path)
    if missing := _STATE - state.keys():
        raise UserError(f"{path}: cannot be resumed: it lacks {', '.join(sorted(missing))}")
    old, new = state["settings"], json.loads(json.dumps(asdict(settings)))
    differ = [k for k in new if old.get(k) != new[k] and k not in _MAY_CHANGE]
    if settings.schedule == "cosine" and old["epochs"] != new["epochs"]:
        differ.append("epochs")
    if differ:
        changes = ", ".join(f"{k} {old.get(k)!r} -> {new[k]!r}" for k in differ)
        raise UserError(f"{path}: made with other settings ({changes}); use another run folder")
    if state["config"] != config.to_dict():
        raise UserError(f"{path}: holds another model configuration; use another run folder")
    return state


def train(settings: Settings, folder: str | Path, progress: bool = True) -> Path:
    """Train a model, or go on where the run in ``folder`` stopped.

    Args:
        settings: every knob.
        folder: run folder; gets ``ckpt/``, ``logs/``, ``samples/``, ``metrics.jsonl`` and, at
            the end, ``model.safetensors`` (the best epoch by validation) and ``record.json``.
        progress: show a bar with rate and time left.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: for settings, data or checkpoints that cannot be used.
        FloatingPointError: if the loss is not finite; the last good checkpoint is kept.
    """
    check(settings)
    device = cli.pick_device(settings.device)
    folder = Path(folder)
    final = folder / "model.safetensors"
    config = flow_config(settings)
    resume_from = latest_checkpoint(folder)
    state = _restore(resume_from, settings, config) if resume_from else None
    if final.exists() and state and state["epoch"] >= settings.epochs:
        return final

    # Before the folder is made: what is missing should leave nothing behind.
    data, val = (
        datasets.load(
            settings.dataset, split, settings.data_root, limit, settings.workers, progress
        )
        for split, limit in (("train", settings.train_images), ("val", settings.val_images))
    )
    if state and state["train_fingerprint"] != data.fingerprint:
        raise UserError(f"{folder}: its training data have changed since; use another run folder")
    make_folder(folder)
    handlers = _start_log(folder)
    try:
        with _deferred_signals() as signals:
            return _train(settings, folder, config, device, state, data, val, signals, progress)
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _train(
    settings: Settings,
    folder: Path,
    config: RGFlowConfig,
    device: torch.device,
    state: dict | None,
    data: datasets.DataSet,
    val: datasets.DataSet,
    signals: list[int],
    progress: bool,
) -> Path:
    images = data.images.to(device)
    flips = datasets.SOURCES[settings.dataset].flip
    batch_size = min(settings.batch_size, len(images))
    if batch_size < settings.batch_size:
        log.info(f"Batch size {batch_size}: there are only so many training images")
    epoch_steps = max(1, (settings.images_per_epoch or len(images)) // batch_size)
    steps = settings.epochs * epoch_steps
    order = Order(len(images), settings.seed)

    torch.manual_seed(settings.seed)
    flow = RGFlow(config).to(device).use_checkpointing(settings.checkpointing)
    model = PictureModel(flow, Prior(settings.prior, settings.convention))
    optimizer = torch.optim.AdamW(
        flow.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    step, seconds, history = 0, 0.0, []
    if state:
        flow.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optim"])
        step, seconds, history = state["step"], state["seconds"], state["history"]
        log.info(f"Resuming at step {step} of {steps}")
    metrics = folder / "metrics.jsonl"
    running = state["running"] if state else []
    _truncate(metrics, step)
    n_parameters = sum(p.numel() for p in flow.parameters())
    log.info(
        f"{settings.model} model, {n_parameters / 1e6:.2f} M parameters, {settings.prior} prior, "
        f"{len(images)} training and {len(val.images)} validation images, on {device}"
    )

    def save(name: str) -> None:
        content = {
            "epoch": len(history),
            "model": flow.state_dict(),
            "optim": optimizer.state_dict(),
            "step": step,
            "seconds": seconds + time.perf_counter() - started,
            "history": history,
            "running": running,
            "config": config.to_dict(),
            "prior": vars(model.prior),
            "settings": json.loads(json.dumps(asdict(settings))),
            "train_fingerprint": data.fingerprint,
        }
        with replacing(folder / "ckpt" / name) as temporary:
            torch.save(content, temporary)

    def record(**values: float) -> None:
        with open(metrics, "a") as file:
            file.write(json.dumps({"step": step, "images": step * batch_size} | values) + "\n")

    started = saved = time.perf_counter()
    epoch_started, first_step = started, step
    bar = tqdm(
        total=steps * batch_size,
        initial=step * batch_size,
        desc="training",
        unit="image",
        unit_scale=True,
        disable=not progress,
    )
    try:
        while step < steps:
            # One training step.
            index, passes = order.batch(step, batch_size)
            index, passes = index.to(device), passes.to(device)
            batch = images[index]
            if flips:
                keys = counter.key(FLIP_STREAM, settings.seed, passes, index=index)
                mirror = counter.uniform(keys, 1)[:, 0] < 0.5
                batch = torch.where(mirror[:, None, None, None], batch.flip(-1), batch)
            x = dequantise(batch, model.noise(index, settings.seed, passes))
            log_prob = sum(model.terms(*to_logit(x))) / config.dim
            loss = -log_prob.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            gradients = [p.grad for p in flow.parameters()]
            norm = torch.nn.utils.get_total_norm(gradients)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                _stop(flow, step, loss)
            torch.nn.utils.clip_grads_with_norm_(flow.parameters(), settings.clip, norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, steps)
            optimizer.step()
            step += 1

            # What it says.
            running.append(bits_per_dim(log_prob.detach()).mean().item())
            bar.update(batch_size)
            in_epoch = (step - 1) % epoch_steps + 1
            epoch = (step - 1) // epoch_steps + 1
            if in_epoch % 50 == 0 or in_epoch == epoch_steps:
                bpd = sum(running) / len(running)
                rate = (step - first_step) * batch_size / (time.perf_counter() - started)
                left = (steps - step) * batch_size / rate / 60
                log.info(
                    f"{settings.dataset} {settings.prior} epoch {epoch}/{settings.epochs} batch "
                    f"{in_epoch}/{epoch_steps} loss {loss.item():.4f} bpd {bpd:.4f}, "
                    f"{rate:.0f} images/s, {left:.1f} min left"
                )
                record(train_bpd=bpd, gradient_norm=norm.item())
                running = []
            if in_epoch == epoch_steps:
                val_bpd = evaluate.summary(evaluate.bits_per_dim(model, val.images, progress=False))
                took = time.perf_counter() - epoch_started
                log.info(f"Epoch {epoch} took {took:.1f} s, {folder}")
                log.info(f"Validation BPD: {val_bpd['bpd']:.4f}")
                record(val_bpd=val_bpd["bpd"], val_stderr=val_bpd["stderr"], seconds=took)
                history.append(val_bpd | {"step": step, "images": step * batch_size})
                sample.write_grid(
                    model.sample(settings.img_samples, seed=settings.seed),
                    folder / "samples" / f"epoch{epoch:03d}.png",
                )
                save(f"rgflow_ep{epoch:03d}.pth")
                (folder / "ckpt" / "rgflow_last.pth").unlink(missing_ok=True)
                _prune(folder, settings.keep, _best(history))
                epoch_started = saved = time.perf_counter()
            elif time.perf_counter() - saved > 60 * settings.save_minutes:
                save("rgflow_last.pth")
                saved = time.perf_counter()
            if signals and step < steps:
                if in_epoch != epoch_steps:
                    save("rgflow_last.pth")
                log.info(f"Stopped at step {step}; the same command with --resume {folder} goes on")
                raise KeyboardInterrupt if signals[0] == signal.SIGINT else SystemExit(143)
    finally:
        bar.close()

    best = _best(history)
    flow.load_state_dict(
        checkpoints.read_pickle(folder / "ckpt" / f"rgflow_ep{best:03d}.pth")["model"]
    )
    facts = {
        "settings": json.loads(json.dumps(asdict(settings))),
        "config": config.to_dict(),
        "parameters": n_parameters,
        "images_seen": step * batch_size,
        "seconds": seconds + time.perf_counter() - started,
        "best_epoch": best,
        "validation": history,
        "train_fingerprint": data.fingerprint,
        **provenance(seed=settings.seed),
    }
    checkpoints.save(flow, model.prior, folder / "model.safetensors", facts)
    write_json(folder / "record.json", facts)
    log.info(f"Done: {folder / 'model.safetensors'}, best epoch {best}, records beside it")
    return folder / "model.safetensors"


def _best(history: list[dict]) -> int:
    """Number of the epoch with the lowest validation bpd, from 1."""
    return min(range(len(history)), key=lambda e: history[e]["bpd"]) + 1


def _truncate(metrics: Path, step: int) -> None:
    """Drop lines written after the checkpoint that a run resumes from."""
    if metrics.exists():
        # A line without an end was being written when the run was killed.
        lines = metrics.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with replacing(metrics) as temporary:
            temporary.write_text("".join(kept))


def _stop(flow: RGFlow, step: int, loss: Tensor) -> None:
    """Raise for a step whose loss or gradient is not finite; the weights are still good."""
    parameters = list(flow.named_parameters())
    bad = [n for n, p in parameters if p.grad is not None and not p.grad.isfinite().all()]
    where = f"gradient of {bad[0]} and {len(bad) - 1} more" if bad else "no gradient"
    raise FloatingPointError(
        f"loss {loss.item()} at step {step}, not finite: {where}; nothing was updated with it and "
        "the last checkpoint is good: resume from it with a lower --lr"
    )


def parser() -> argparse.ArgumentParser:
    """The command line; flags of IGF23's ``train.py`` keep their names and defaults."""
    out = cli.Parser(
        "Train an RG-Flow. A run leaves runs/<dataset>_<date>_<time>/ with ckpt/, logs/, samples/, "
        "metrics.jsonl and model.safetensors. The defaults are the published training and want a "
        "GPU; on a CPU try: --model lean --batch-size 64 --lr 3e-3 --warmup 200 --schedule cosine."
    )
    default = Settings()
    add = out.add_argument
    add(
        "--dataset", choices=datasets.SOURCES, default=default.dataset, metavar="NAME",
        help=f"one of {', '.join(datasets.SOURCES)}",
    )  # fmt: skip
    add("--data-root", default=default.data_root, help="data folder (folder: the pictures' own)")
    add("--epochs", type=cli.count, default=default.epochs, help="passes through the data")
    add("--batch-size", type=cli.count, default=default.batch_size, help="pictures in a step")
    add("--lr", type=cli.positive, default=default.lr, help="learning rate")
    add("--prior", choices=NAMES, default=default.prior, help="prior of the latents")
    add(
        "--convention", choices=CONVENTIONS, default=default.convention,
        help="prior's scale: unit_variance (authors), or unit_scale (IGF23: Laplace scale 1)",
    )  # fmt: skip
    add("--out", default="runs", help="folder in which the run's folder is made")
    add("--device", default=default.device, help="auto, cpu, cuda, cuda:1, ...")
    add("--workers", type=cli.count, default=default.workers, help="threads that make data")
    add("--img-samples", type=cli.count, default=default.img_samples, help="samples each epoch")
    add("--test-mode", action="store_true", help="128 training and 64 validation images")
    add("--resume", metavar="RUN", help="go on with the run in this folder, with its settings")
    add("--seed", type=cli.seed, default=default.seed, help="of weights, order, noise")
    add("--model", choices=("published", "lean"), default=default.model, help="80.5 M or 1.64 M")
    add("--keep", type=cli.count, default=default.keep, help="checkpoints kept beside the best")
    add("--warmup", type=cli.whole, default=default.warmup, help="steps of learning-rate warm-up")
    add("--schedule", choices=("constant", "cosine"), default=default.schedule, help="decay")
    add("--checkpointing", action="store_true", help="recompute activations: less memory")
    return out


def main() -> None:
    args = vars(parser().parse_args())
    out, resume, test_mode = args.pop("out"), args.pop("resume"), args.pop("test_mode")
    if test_mode:
        args |= {f"{split}_images": n for split, n in TEST_MODE_IMAGES.items()}
    if resume:
        folder = Path(resume)
        path = latest_checkpoint(folder)
        if path is None:
            raise UserError(f"{folder}: no checkpoint in its ckpt folder; nothing to resume")
        stored = checkpoints.read_pickle(path).get("settings")
        if stored is None:
            raise UserError(f"{path}: not a training checkpoint of rgflow_core")
        # Flags given now win; train() refuses those that would change the run.
        given = {k: v for k, v in args.items() if v != parser().get_default(k)}
        known = {f.name for f in fields(Settings)}
        settings = Settings(**({k: v for k, v in stored.items() if k in known} | given))
    else:
        settings = Settings(**args)
        check(settings)
        cli.pick_device(settings.device)
        folder = Path(out) / f"{settings.dataset}_{datetime.now():%Y%m%d_%H%M%S}"
        if folder.exists():
            raise UserError(f"{folder} exists; runs are never overwritten, start it again")
    print(train(settings, folder))


if __name__ == "__main__":
    cli.run(main)
