"""The study's training runs, each a committed record: ``python -m rgflow_core.records NAME``.

``data/runs.json`` says what each run trains, as differences from the lean recipe; a finished run
leaves ``data/records/NAME.json``. Runs under "shipped" leave ``weights/NAME.safetensors`` too.
"""

import shutil
from pathlib import Path

import torch

from rgflow_core import PictureModel, cli, datasets, evaluate, load, study, train
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, replacing, write_json

PLAN = "data/runs.json"
FOLDER = "data/records"


def plan(root: Path) -> dict[str, dict]:
    """Name -> settings that differ from the lean recipe, of all runs of the study."""
    return {
        name: fields for group in read_json(root / PLAN).values() for name, fields in group.items()
    }


def read(root: Path, names: list[str]) -> dict[str, dict]:
    """Name -> record, of those that are there."""
    paths = {name: root / FOLDER / f"{name}.json" for name in names}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def make(name: str, root: Path) -> Path:
    """Train a run, or go on with it, and evaluate it on the whole test split, once.

    Raises:
        UserError: for a name that is not in the plan.
    """
    record = root / FOLDER / f"{name}.json"
    if record.exists():
        return record
    runs = plan(root)
    if name not in runs:
        raise UserError(f"{name} is not a run of the study; those are: {', '.join(runs)}")
    folder = root / "runs" / "study" / name
    settings = train.Settings(**train.LEAN_RECIPE | {"data_root": str(root / "data")} | runs[name])
    weights = train.train(settings, folder)
    model = PictureModel(*load(weights)[:2])
    test = datasets.load(settings.dataset, "test", settings.data_root)
    bits = evaluate.bits_per_dim(model, test.images)
    if name in read_json(root / PLAN)["shipped"]:
        with replacing(root / "weights" / f"{name}.safetensors") as temporary:
            shutil.copyfile(weights, temporary)
    torch.save(bits.float(), folder / "test_bits.pt")
    facts = read_json(folder / "record.json")
    write_json(record, facts | {"name": name, "test": evaluate.summary(bits)})
    return record


def main() -> None:
    parser = cli.Parser("Make records of the study's training runs; those that exist are kept.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run; by default all")
    args = parser.parse_args()
    root = study.root()
    for name in args.names or plan(root):
        print(make(name, root))


if __name__ == "__main__":
    cli.run(main)
