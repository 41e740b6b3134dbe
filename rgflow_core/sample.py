"""Pictures from a model: ``python -m rgflow_core.sample FILE``."""

import sys
from pathlib import Path

from pydantic.dataclasses import dataclass
from torch import Tensor

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import replacing
from rgflow_core.pictures import OWN

# Latents have a scale of one. A few per cent of the lean models' samples miss it (notebook 03).
INVERSION_LIMIT = 0.01


def write_grid(pictures: Tensor, path: str | Path) -> None:
    """Write pictures (N, C, L, L) in [0, 1] as one PNG, in a square grid."""
    from PIL import Image, PngImagePlugin
    from torchvision.utils import make_grid

    rows = max(1, round(len(pictures) ** 0.5))
    grid = make_grid(pictures.float().cpu(), nrow=-(-len(pictures) // rows))
    values = grid.mul(255).add(0.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    marks = PngImagePlugin.PngInfo()
    marks.add_text(*OWN)  # so that it is never taken for data
    with replacing(path) as temporary:
        Image.fromarray(values).save(temporary, "PNG", pnginfo=marks)


@dataclass(frozen=True, config=cli.STRICT)
class Settings(cli.ModelFile):
    """Knobs of the command."""

    n: cli.Count = cli.knob(16, "number of pictures")
    temperature: tuple[cli.Positive, ...] = cli.knob(
        (1.0,), "of the prior's scale: one value, or one per level, finest first"
    )
    out: cli.Name = cli.knob("samples.png", "PNG file to write")


def main() -> None:
    args, _ = cli.parse(Settings, "Draw pictures from a model into one PNG.")
    out = cli.new_file(args.out)
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png, not {args.out!r}")
    model = args.load()
    pictures, errors = model.sample_with_error(args.n, args.temperature, args.seed)
    error, worst = errors.max(0)
    if not error < INVERSION_LIMIT:
        print(
            f"warning: picture {worst} has latents up to {error:.2g} from those drawn: at "
            f"temperature {args.temperature} single precision does not invert the flow well",
            file=sys.stderr,
        )
    write_grid(pictures, cli.new_file(args.out))  # another may have drawn there meanwhile
    print(out)


if __name__ == "__main__":
    cli.run(main)
