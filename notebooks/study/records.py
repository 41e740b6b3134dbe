"""The study's training runs, each a committed record: ``python -m study.records NAME``.

``data/runs.json`` says what each run trains, as differences from the lean recipe; a finished run
leaves ``data/records/NAME.json``. Runs under "shipped" leave ``weights/NAME.safetensors`` too.
"""

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

import study.ablations  # noqa: F401 - its models are in the plan
from rgflow_core import checkpoints, cli, datasets, evaluate, load, train
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, read_json, replacing, write_json
from study import benchmarks, results

PLAN = "data/runs.json"
FOLDER = "data/records"
DRAWS = (1, 8, 64)  # of the importance-weighted bound, on the first SUBSET test pictures
SUBSET = 500


def plan(root: Path, group: str | None = None) -> dict[str, dict]:
    """Name -> settings that differ from the lean recipe, of a group's runs or of all."""
    groups = read_json(root / PLAN)
    if group is not None and group not in groups:
        raise UserError(f"planned must be a group of {PLAN}, {', '.join(groups)}, not {group!r}")
    chosen = groups.values() if group is None else [groups[group]]
    return {name: g["common"] | own for g in chosen for name, own in g["runs"].items()}


def read(root: Path, names: Iterable[str]) -> dict[str, dict]:
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
    try:
        weights = train.train(settings, folder)
    except FloatingPointError as problem:
        if not any(name in plan(root, group) for group in ("ablations", "changes")):
            raise
        # What an ablation does to the training is its result, also if nothing is left of it.
        facts = {"name": name, "settings": asdict(settings), "diverged": str(problem)}
        write_json(record, facts | provenance(seed=settings.seed))
        return record
    peak = benchmarks.matrix_peak()
    model = load(weights)
    test = datasets.load_split(settings.dataset, "test", settings.data_root)
    bits = evaluate.evaluate(model, test.images)
    shipped = name in plan(root, "shipped")
    if shipped:
        with replacing(root / "weights" / f"{name}.safetensors") as temporary:
            shutil.copyfile(weights, temporary)
    checkpoints.write_pickle(folder / "test_bits.pt", bits.float())
    facts = read_json(folder / "record.json") | {
        "name": name,
        "test": evaluate.mean_and_error(bits),
    }
    facts["matrix_peak"] = peak  # FLOP/s of the same hour, for what "minutes" mean
    few = test.images[:SUBSET]
    if shipped:
        draws = [bits[:SUBSET]]
        draws += [evaluate.evaluate(model, few, seed) for seed in range(1, max(DRAWS))]
        facts["importance_weighted"] = evaluate.bounds(
            torch.stack(draws), DRAWS, model.flow.config.dim
        )
    if settings.without_noise:
        with torch.no_grad():
            values = [model.bits_per_dim(p, torch.full(p.shape, 0.5)) for p in few.split(100)]
        facts["test_without_noise"] = evaluate.mean_and_error(torch.cat(values))
    write_json(record, facts)
    if shipped:
        write_cards(root)
    return record


def run_table(root: Path, group: str) -> str:
    """Markdown table of a group's runs, as far as they have records."""
    made = read(root, plan(root, group))
    if not made:
        return "*None of these runs has a record yet: `make reproduce PROFILE=study` makes them.*"
    lines = [
        "| run | model | optimiser | batch | pictures | minutes | GFLOP/s | test bpd |",
        "|---" * 8 + "|",
    ]
    for name, r in made.items():
        s = r["settings"]
        peak = f"{r['matrix_peak'] / 1e9:.0f}" if "matrix_peak" in r else "–"
        lines.append(
            f"| {name} | {s['model']} | {s['optimizer']} | {s['batch_size']} | "
            f"{r['images_seen']:,} | {r['seconds'] / 60:.1f} | {peak} | "
            f"{r['test']['bpd']:.3f} ± {r['test']['stderr']:.3f} |"
        )
    return "\n".join(lines)


def write_cards(root: Path) -> None:
    """Write ``weights/README.md``: the cards of the shipped models, from their records."""
    text = (
        "# Model cards\n\nMade from `data/records` by `study.records`; the same facts are in "
        "the header of each file. `factors.safetensors` reads the factors of MSDS pictures and "
        "is made by `python -m study.factors`.\n"
    )
    for name, r in read(root, plan(root, "shipped")).items():
        best = min(r["validation"], key=lambda entry: entry["bpd"])
        curve = ", ".join(f"{v['images'] // 1000}k: {v['bpd']:.3f}" for v in r["validation"])
        bounds = ", ".join(
            f"K = {k}: {b['bpd']:.3f} ± {b['stderr']:.3f}"
            for k, b in r["importance_weighted"].items()
        )
        rows = {
            "test bits per dimension": f"{r['test']['bpd']:.4f} ± {r['test']['stderr']:.4f} "
            f"({r['test']['images']:,} pictures)",
            f"importance-weighted bound, {SUBSET} pictures": bounds,
            "validation, by training pictures seen": curve,
            "chosen": f"after {best['images']:,} pictures, by validation",
            "training pictures seen": f"{r['images_seen']:,}",
            "training time": f"{r['seconds'] / 60:.0f} minutes",
            "prior": f"{r['settings']['prior']}, {r['settings']['convention']}",
            "parameters": f"{r['parameters']:,}",
            "config": f"`{r['config']}`",
            "settings": f"`{r['settings']}`",
            "fingerprint of the training pictures": f"`{r['train_fingerprint']}`",
            "command": f"`{r['command']}`, run `{name}` of `data/runs.json`",
            "seed": r["settings"]["seed"],
            "commit": f"`{r['commit']}`" + (" and changes" if r["uncommitted_changes"] else ""),
            "versions": ", ".join(f"{k} {v}" for k, v in r["versions"].items()),
            "hardware": f"{r['hardware']['gpu'] or r['hardware']['processor']}, "
            f"{r['hardware']['threads']} thread(s)",
            "date": r["date"],
        }
        lines = [f"| {key} | {value} |" for key, value in rows.items()]
        text += f"\n## {name}.safetensors\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"
    with replacing(root / "weights" / "README.md") as temporary:
        temporary.write_text(text)


def seeds(root: Path) -> tuple[dict[str, list[float]], dict[str, dict], list[str]]:
    """The test bpd of runs that differ in prior, set, or the Laplace prior's scale, and seed.

    Returns:
        Group -> test bpd of its seeds; comparison -> :func:`evaluate.paired`; and the names of the
        runs that are not there.
    """
    wanted = plan(root, "seeds") | plan(root, "convention")
    made = read(root, wanted)
    groups: dict[str, dict[int, float]] = {}
    for name, record in made.items():
        own = wanted[name]
        parts = [own.get("dataset", "msds1"), own["prior"]]
        parts += ["scale 1"] if "convention" in own else []
        groups.setdefault(", ".join(parts), {})[own["seed"]] = record["test"]["bpd"]
    pairs = [(f"{s}, laplace", f"{s}, gaussian") for s in ("msds1", "msds2")]
    pairs += [("msds1, laplace, scale 1", "msds1, laplace")]
    comparisons = {}
    for first, second in pairs:
        a, b = groups.get(first, {}), groups.get(second, {})
        both = sorted(a.keys() & b.keys())
        if len(both) > 1:
            found = evaluate.paired([a[k] for k in both], [b[k] for k in both])
            comparisons[f"{first} less {second}"] = found
    missing = [name for name in wanted if name not in made]
    return {k: [v[s] for s in sorted(v)] for k, v in groups.items()}, comparisons, missing


def against_published(root: Path, published: dict) -> dict[str, dict]:
    """The seeds' runs of each set and prior against the published test bpd.

    Args:
        root: of the repository.
        published: content of ``data/published.json``.

    Returns:
        "SET, PRIOR" -> ``runs``, how many of them ``reached`` the published ``bpd``, the
        training ``images`` of a run, and the shortest and longest ``minutes``.
    """
    found: dict[str, dict] = {}
    for record in read(root, plan(root, "seeds")).values():
        set_name, prior = record["settings"]["dataset"], record["settings"]["prior"]
        wanted = published["bpd"][set_name][prior]
        row = found.setdefault(
            f"{set_name}, {prior}",
            {"runs": 0, "reached": 0, "bpd": wanted, "images": record["images_seen"]}
            | {"minutes": [math.inf, 0.0]},
        )
        row["runs"] += 1
        row["reached"] += record["test"]["bpd"] <= wanted
        minutes = record["seconds"] / 60
        row["minutes"] = [min(row["minutes"][0], minutes), max(row["minutes"][1], minutes)]
    return found


def ablations(root: Path) -> tuple[dict[str, dict], list[str]]:
    """What each change of the narrow published network does, and the runs that are not there.

    Returns:
        Change -> ``bpd`` of its seeds, ``less_unchanged`` (the differences from the unchanged
        network of the same seed), ``diverged`` (how many seeds have no bpd), ``without_noise``
        (test bpd without noise, if that is how it was trained) and ``curve`` of its last seed.
    """
    wanted = plan(root, "ablations")
    made, rows = read(root, wanted), {}
    for name, record in made.items():
        change, seed = re.fullmatch(r"ablation_(\w+)_seed(\d+)", name).groups()
        row = rows.setdefault(change, {"bpd": [], "less_unchanged": [], "diverged": 0})
        if "diverged" in record:
            row["diverged"] += 1
            continue
        row["bpd"].append(record["test"]["bpd"])
        base = made.get(f"ablation_unchanged_seed{seed}", {})
        if "test" in base:
            row["less_unchanged"].append(record["test"]["bpd"] - base["test"]["bpd"])
        if "test_without_noise" in record:
            row.setdefault("without_noise", []).append(record["test_without_noise"]["bpd"])
        row["curve"] = {k: [v[k] for v in record["validation"]] for k in ("images", "bpd")}
    return rows, [name for name in wanted if name not in made]


def ablation_table(rows: dict[str, dict]) -> str:
    """Markdown table of :func:`ablations`."""
    if not rows:
        return "*No ablation has been run yet: `make reproduce PROFILE=study` runs them.*"
    lines = ["| change | test bpd, each seed | less unchanged, each seed |", "|---|---|---|"]
    for name, row in rows.items():
        listed = [f"{v:.3f}" for v in row["bpd"]] + ["diverged"] * row["diverged"]
        bpd = ", ".join(listed)
        change = ", ".join(f"{v:+.3f}" for v in row["less_unchanged"])
        if "without_noise" in row:
            bpd += " (without noise: " + ", ".join(f"{v:.3f}" for v in row["without_noise"]) + ")"
        lines.append(f"| {name.replace('_', ' ')} | {bpd} | {change or '–'} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser("Make records of the study's training runs; those that exist are kept.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run; by default all")
    args = parser.parse_args()
    root = results.root()
    for name in args.names or plan(root):
        print(make(name, root))


if __name__ == "__main__":
    cli.run(main)
