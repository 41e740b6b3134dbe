"""Bits per dimension of a model on a data split: ``python -m rgflow_core.evaluate FILE``."""

import json
import math
import sys
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import cli, datasets, msds, pictures
from rgflow_core.errors import UserError, check_counts
from rgflow_core.files import provenance, write_json
from rgflow_core.model import PictureModel
from rgflow_core.pixels import check_images


@torch.no_grad()
def evaluate(
    model: PictureModel,
    images: Tensor,
    seed: int = 0,
    batch: int = 200,
    progress: bool = True,
    index: Tensor | None = None,
) -> Tensor:
    """Bits per dimension (N,) float64 of pictures, uint8 (N, C, L, L).

    The dequantisation noise is a function of ``seed`` and of ``index`` (N,), the pictures' numbers
    in their set, by default 0 ... N-1; ``batch`` changes nothing but memory and speed.
    """
    check_images(images, model.flow.config.shape)
    (batch,) = check_counts(batch=batch)
    model = model.fold()
    index = torch.arange(len(images)) if index is None else index
    parts = list(zip(images.split(batch), index.split(batch), strict=True))
    values = [
        model.bits_per_dim(part, model.noise(which, seed)).cpu()
        for part, which in tqdm(parts, "evaluating", leave=False, disable=not progress)
    ]
    return torch.cat(values)


def mean_and_error(values: Tensor) -> dict:
    """Mean and standard error over pictures of per-picture bits per dimension (N,)."""
    n = len(values)
    stderr = (values.std() / math.sqrt(n)).item() if n > 1 else None
    return {"bpd": values.mean().item(), "stderr": stderr, "images": n}


@dataclass(frozen=True, config=cli.STRICT)
class Settings(cli.ModelFile):
    """Knobs of the command."""

    dataset: cli.one_of(datasets.SOURCES) | None = cli.knob(None, "data set, if not the file's own")
    data_root: cli.Name | None = cli.knob(None, "data folder, if not the file's own")
    split: cli.one_of(datasets.SPLITS) = cli.knob("test", "data split")
    limit: cli.Count | None = cli.knob(None, "only the first so many pictures")
    batch_size: cli.Count = cli.knob(200, "pictures at a time")
    out: cli.Name | None = cli.knob(
        None, "write the result, with its provenance, to this JSON file"
    )


def _settings(model: PictureModel) -> dict:
    """The settings of a model's training, as far as its file says them."""
    settings = model.metadata.get("settings")
    return settings if isinstance(settings, dict) else {}


def chosen_data(
    file: str | Path, model: PictureModel, dataset: str | None = None, data_root: str | None = None
) -> tuple[str, str]:
    """The data set and data root that a file's model was trained on, unless others are given."""
    said = {name: str(value) for name, value in _settings(model).items()}
    own, root = said.get("dataset"), said.get("data_root", "data")
    name = dataset or own
    if name is None:
        names = ", ".join(datasets.SOURCES)
        raise UserError(f"{file}: does not say its data set; add --dataset with one of {names}")
    foreign = name != own or (name in msds.SETS and not Path(root).is_dir())
    # Nothing is drawn where a file from elsewhere says.
    where = data_root or ("data" if foreign else root)
    if own and (
        name != own or (name == "folder" and Path(where).resolve() != Path(root).resolve())
    ):
        line = f"was trained on {own} ({root}), evaluated on {name} ({where})"
        print(f"note: {file} {line}", file=sys.stderr)
    return name, where


def say_if_changed(file: str, model: PictureModel, root: str) -> None:
    """Say if a folder's training pictures are others now: they could have become test pictures."""
    settings, trained = _settings(model), model.metadata.get("train_fingerprint")
    same = Path(str(settings.get("data_root"))).resolve() == Path(root).resolve()
    own = trained and settings.get("dataset") == "folder" and same
    if not (own and pictures.splits(Path(root))[0]["train"]):
        return
    limit, size = settings.get("train_images"), model.flow.config.image_size
    if datasets.load_split("folder", "train", root, limit, size=size).fingerprint != trained:
        line = "has other training pictures now; some of those that it had may be evaluated here"
        print(f"note: {root} {line} ({file})", file=sys.stderr)


def main() -> None:
    args, _ = cli.parse(
        Settings, "Bits per dimension of a model on a data split, with their standard error."
    )
    if args.out:
        cli.new_file(args.out)
    model = args.load()
    name, root = chosen_data(args.file, model, args.dataset, args.data_root)
    size = model.flow.config.image_size
    images = datasets.load_split(name, args.split, root, args.limit, size=size).images
    if args.split != "train":
        say_if_changed(args.file, model, root)
    bits = evaluate(model, images, args.seed, args.batch_size)
    if not bits.isfinite().all():
        bad = (~bits.isfinite()).nonzero().flatten()
        line = f"{len(bad)} of {len(bits)} pictures have no finite bits per dimension"
        raise UserError(f"{args.file}: {line}, first number {bad[0]}")
    result = mean_and_error(bits)
    result |= {"dataset": name, "split": args.split, "prior": vars(model.prior)}
    print(json.dumps(result))
    if args.out:  # another command may have written it meanwhile
        facts = provenance(seed=args.seed, file=args.file)
        write_json(cli.new_file(args.out), result | {"provenance": facts})


if __name__ == "__main__":
    cli.run(main)
