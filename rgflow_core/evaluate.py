"""Bits per dimension of a model on a data split: ``python -m rgflow_core.evaluate FILE``."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgflow_core import checkpoints, cli, datasets
from rgflow_core.errors import UserError, check_counts
from rgflow_core.files import check_writable, provenance, write_json
from rgflow_core.model import PictureModel
from rgflow_core.pixels import check_images
from rgflow_core.priors import NAMES


@torch.no_grad()
def evaluate(
    model: PictureModel,
    images: Tensor,
    seed: int = 0,
    batch: int = 200,
    progress: bool = True,
    index: Tensor | None = None,
) -> Tensor:
    """Bits per dimension of each picture.

    Args:
        model: flow and prior.
        images: uint8 (N, C, L, L).
        seed: of the dequantisation noise, a function of seed and image index.
        batch: pictures at a time; changes nothing but memory and speed.
        progress: show a progress bar.
        index: (N,) numbers of the images in their set; by default 0 ... N-1.

    Returns:
        (N,) float64.
    """
    check_images(images, model.flow.config.shape)
    check_counts(batch=batch)
    model = PictureModel(model.flow.fold(), model.prior)
    bar = tqdm(
        total=len(images), desc="evaluating", unit="image", leave=False, disable=not progress
    )
    values, index = [], torch.arange(len(images)) if index is None else index
    with bar:
        for start in range(0, len(images), batch):
            part, which = images[start : start + batch], index[start : start + batch]
            values.append(model.bits_per_dim(part, model.noise(which, seed)).cpu())
            bar.update(len(part))
    return torch.cat(values)


def importance_weighted(draws: Tensor, dim: int) -> Tensor:
    """The tighter bound from K draws of the noise: -log2 of their mean density, per dimension.

    For K = 1 it is the usual bound; it falls with K towards the bits of the bytes themselves
    (Burda et al. 2015; for dequantisation, Ho et al. 2019, section 3.1).

    Args:
        draws: (K, N) bits per dimension, of K draws for each picture.
        dim: number of dimensions.

    Returns:
        (N,) bits per dimension.
    """
    nats = -draws.double() * dim * math.log(2)
    return (math.log(len(draws)) - nats.logsumexp(0)) / (dim * math.log(2))


def bounds(draws: Tensor, numbers: tuple[int, ...], dim: int) -> dict[str, dict]:
    """:func:`importance_weighted` for several K, from draws (K_max, N).

    Disjoint groups of K draws are so many estimates of the same bound; their mean is taken.

    Returns:
        "K" -> :func:`mean_and_error`, for the numbers K that do not exceed K_max.
    """
    return {
        str(k): mean_and_error(
            torch.stack([importance_weighted(g, dim) for g in draws.split(k)]).mean(0)
        )
        for k in numbers
        if k <= len(draws)
    }


def paired(first: list[float], second: list[float]) -> dict:
    """Paired comparison of as many values, by Student's t: difference first - second.

    Returns:
        ``mean`` and ``stderr`` of the difference, the 95 % interval ``low`` ... ``high``, the
        two-sided ``p``, and the number of pairs ``n``.
    """
    from scipy import stats

    test = stats.ttest_rel(first, second)
    interval = test.confidence_interval()
    difference = torch.tensor(first, dtype=torch.float64) - torch.tensor(
        second, dtype=torch.float64
    )
    return {
        "mean": difference.mean().item(),
        "stderr": (difference.std() / math.sqrt(len(first))).item(),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
        "n": len(first),
    }


def mean_and_error(values: Tensor) -> dict:
    """Mean and standard error over pictures of per-picture bits per dimension (N,)."""
    n = len(values)
    stderr = (values.std() / math.sqrt(n)).item() if n > 1 else None
    return {"bpd": values.mean().item(), "stderr": stderr, "images": n}


def main() -> None:
    parser = cli.Parser(
        "Bits per dimension of a model on a data split, with the standard error over pictures. "
        "FILE is our .safetensors, a training checkpoint, or either published layout."
    )
    parser.add_argument("file", type=cli.file_name, metavar="FILE", help="checkpoint")
    parser.add_argument("--dataset", choices=datasets.SOURCES, default="msds1", help="data set")
    parser.add_argument("--data-root", type=cli.file_name, default="data", help="data folder")
    parser.add_argument("--split", choices=datasets.SPLITS, default="test", help="data split")
    parser.add_argument("--limit", type=cli.count, help="only the first so many pictures")
    parser.add_argument("--prior", choices=NAMES, help="prior, if the file does not say")
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of the noise")
    parser.add_argument("--batch-size", type=cli.count, default=200, help="pictures at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--out", type=cli.file_name, help="write the result, with its provenance, to this JSON file"
    )
    args = parser.parse_args()
    if args.out and Path(args.out).exists():
        raise UserError(f"{args.out} exists; give another name, results are not overwritten")
    check_writable(Path(args.out or ".").parent)
    model = checkpoints.load(args.file, args.prior).to(cli.pick_device(args.device))
    images = datasets.load_split(args.dataset, args.split, args.data_root, args.limit).images
    bits = evaluate(model, images, args.seed, args.batch_size)
    bad = (~bits.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"{args.file}: {len(bad)} of {len(bits)} pictures have no finite bits per dimension, "
            f"first number {bad[0]}"
        )
    result = mean_and_error(bits)
    result |= {"dataset": args.dataset, "split": args.split, "prior": vars(model.prior)}
    if args.out:
        write_json(args.out, result | {"provenance": provenance(seed=args.seed, file=args.file)})
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
