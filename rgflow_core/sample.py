"""Pictures from a model: ``python -m rgflow_core.sample FILE``."""

import sys
from pathlib import Path

from torch import Tensor

from rgflow_core import checkpoints, cli
from rgflow_core.errors import UserError
from rgflow_core.files import check_writable, replacing
from rgflow_core.priors import NAMES

# Latents have a scale of one; shipped models stay far below (README, "Trials").
INVERSION_LIMIT = 0.01


def main() -> None:
    parser = cli.Parser(
        "Draw pictures from a model into one PNG. FILE is our .safetensors, a training "
        "checkpoint, or either published layout."
    )
    parser.add_argument("file", type=cli.file_name, metavar="FILE", help="checkpoint")
    parser.add_argument("--n", type=cli.count, default=16, help="number of pictures")
    parser.add_argument(
        "--temperature",
        type=cli.positive,
        nargs="+",
        default=[1.0],
        metavar="T",
        help="multiplies the prior's scale: one value, or one per level, finest first",
    )
    parser.add_argument("--prior", choices=NAMES, help="prior, if the file does not say")
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of the latents")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--out", type=cli.file_name, default="samples.png", help="PNG file to write"
    )
    args = parser.parse_args()
    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out} exists; give another name with --out, nothing is overwritten")
    check_writable(out.parent)
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png, not {args.out!r}")
    model = checkpoints.load(args.file, args.prior).to(cli.pick_device(args.device))
    temperature = args.temperature[0] if len(args.temperature) == 1 else args.temperature
    pictures = model.sample(args.n, temperature, args.seed)
    error, worst = model.inversion_error(args.n, temperature, args.seed).max(0)
    if not error < INVERSION_LIMIT:
        print(
            f"warning: picture {worst} has latents up to {error:.2g} from those drawn: at "
            f"temperature {temperature} single precision does not invert the flow well",
            file=sys.stderr,
        )
    write_grid(pictures, out)
    print(out)


def write_grid(pictures: Tensor, path: str | Path) -> None:
    """Write pictures (N, C, L, L) in [0, 1] as one PNG, in a square grid."""
    from torchvision.utils import save_image

    rows = max(1, round(len(pictures) ** 0.5))
    with replacing(path) as temporary:
        save_image(pictures.float().cpu(), temporary, nrow=-(-len(pictures) // rows))


if __name__ == "__main__":
    cli.run(main)
