"""The study's training runs, each a committed record: ``python -m study.records NAME``.

``data/runs.json`` says what each run trains, as differences from the lean recipe; a finished run
leaves ``data/records/NAME.json``. Runs under "shipped" leave ``weights/NAME.safetensors`` too,
those under "shipped8" rounded to 16 bits (and their records are of these). Without NAME, the names of
runs that have no record are listed.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rgflow_core import PictureModel, checkpoints, cli, datasets, evaluate, load, train
from rgflow_core.errors import UserError
from rgflow_core.files import provenance, read_json, write_json
from study import ablations, answers, benchmarks, report, results, sets
from study.results import row
from study.statistics import bounds, interval, mean

PLAN = "data/runs.json"
PEERS = "data/peers.json"  # what notebook A4 shows: a plan of its own, of groups with other names
FOLDER = "data/records"
DRAWS = (1, 8, 64)  # of the importance-weighted bound, on the first SUBSET test pictures
SUBSET = 500
# Beginnings of groups that are asked what notebooks 05 and 06 ask.
ASKED = ("seeds", "peers_", "fashion", "photographs", "published")
# Runs that only compare: they may diverge, and as many test pictures judge them as validate them.
BRIEF = ("changes", "tuning8", "tuning_", "grid", "slow", "steps")  # beginnings of groups
COMPARED = ("peers_", "minutes_", "fashion", "photographs")  # judged whole; they may diverge too
DETAILS = (*ablations.ABLATIONS, "without_noise")  # those of IGF23's list


def plan(root: Path, group: str | None = None, path: str = PLAN) -> dict[str, dict]:
    """Name -> settings that differ from the lean recipe, of a group's runs or of all.

    A group may start from another of :data:`rgflow_core.train.RECIPES`.
    """
    groups = read_json(root / path)
    if group is not None and group not in groups:
        raise UserError(f"planned must be a group of {path}, {', '.join(groups)}, not {group!r}")
    chosen = groups.values() if group is None else [groups[group]]
    return {
        name: train.RECIPES.get(g.get("recipe"), {}) | g["common"] | own
        for g in chosen
        for name, own in g["runs"].items()
    }


def _groups(root: Path) -> dict[str, dict]:
    """The groups of both plans."""
    return read_json(root / PLAN) | read_json(root / PEERS)


def group_of(root: Path, name: str) -> str | None:
    """The group of a planned run."""
    groups = _groups(root).items()
    return next((group for group, planned in groups if name in planned["runs"]), None)


def read(root: Path, names: Iterable[str]) -> dict[str, dict]:
    """Name -> record, of those that are there."""
    paths = {name: root / FOLDER / f"{name}.json" for name in names}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def by_seed(root: Path, names: Collection[str]) -> dict[str, dict[int, dict]]:
    """Name without its seed -> seed -> record, none where none is there; a single run's seed is 0."""
    kept, runs = read(root, names), defaultdict(dict)
    for name in names:
        stem, _, seed = name.rpartition("_seed")
        of = runs[stem or name]
        if name in kept:
            of[int(seed) if stem else 0] = kept[name]
    return dict(runs)


def make(name: str, root: Path) -> Path:
    """Train a run, or go on with it, and evaluate it on the test split, once.

    The split is taken whole, or as many of it as validate a run in the manner of ``--test-mode``
    or of ``BRIEF``.

    Raises:
        UserError: for a name that is not in the plan.
    """
    record = root / FOLDER / f"{name}.json"
    if record.exists():
        return record
    runs, group = plan(root) | (others := plan(root, path=PEERS)), group_of(root, name)
    if group is None:
        raise UserError(f"{name} is not a run of {PLAN} or {PEERS}; without a name they are listed")
    if name in others:
        from study import peers  # noqa: F401  their library is an extra

    folder = root / "runs" / "study" / name
    settings = _settings(root, runs[name])
    if small := _groups(root)[group].get("grown_from"):
        settings, before = _grown(root, name, settings, small, runs[small])
    try:
        weights = train.train(settings, folder)
    except train.Diverged as problem:
        if not group.startswith((*BRIEF, *COMPARED)):
            raise
        # What a change does to the training is its result, also if nothing is left of it.
        facts = {"name": name, "settings": asdict(settings), "diverged": str(problem)}
        write_json(record, facts | provenance(seed=settings.seed))
        return record
    peak = benchmarks.matrix_peak()
    model, shipped = load(weights), group in ("shipped", "shipped8")
    if shipped:
        file = root / "weights" / f"{name}.safetensors"
        checkpoints.save(model.half() if group == "shipped8" else model, file, model.metadata)
        model = load(file)
    limit = settings.val_images if settings.train_images or group.startswith(BRIEF) else None
    test = datasets.load_split(settings.dataset, "test", settings.data_root, limit)
    # The FLOP/s are of the same hour, for what "minutes" mean.
    facts = read_json(folder / "record.json") | {"name": name, "matrix_peak": peak}
    facts |= _judged(model, settings.dataset, test.images, shipped)
    if small:
        facts["grown_from"] = before
    if group.startswith(ASKED):
        facts["latents"] = answers.answers(model, settings.dataset, root)
        if name in others:
            lean = train.Settings(**train.LEAN_RECIPE | {"dataset": settings.dataset})
            sides = (benchmarks.step(own, test.images[:SUBSET]) for own in (lean, settings))
            facts["speed"] = benchmarks.race(*sides, 7)  # a step of the lean recipe and of this one
    write_json(record, facts)
    if shipped:
        report.write(root / "weights" / "README.md", "cards", records=shipped_records(root))
    return record


def _settings(root: Path, planned: dict) -> train.Settings:
    return train.Settings(**train.LEAN_RECIPE | {"data_root": str(root / "data")} | planned)


def _grown(
    root: Path, name: str, settings: train.Settings, small: str, planned: dict
) -> tuple[train.Settings, dict]:
    """Settings of a run that begins as a smaller model, trained before it, and that one's record."""
    runs = root / "runs" / "study"
    path = runs / f"{name}_start.safetensors"  # relative, as a record keeps it
    trained = load(train.train(_settings(root, planned), runs / small))  # at once if it was before
    torch.manual_seed(settings.seed)
    flow = train.flow_config(settings).build()
    ablations.grow_(flow, trained.flow)
    checkpoints.save(PictureModel(flow, trained.prior), path)
    return replace(settings, start_from=str(path)), read_json(runs / small / "record.json")


def _judged(model: PictureModel, dataset: str, images: Tensor, shipped: bool) -> dict:
    """Bits of test pictures."""
    bits = evaluate.evaluate(model, images)
    facts = {"test": evaluate.mean_and_error(bits)}
    if dataset == "photographs":  # patches of one are alike; those of two are not
        facts["by_photograph"] = bits.view(-1, sets.PATCHES).mean(1).tolist()
    if model.dequantiser is not None:
        uniform = evaluate.evaluate(PictureModel(model.flow, model.prior), images)
        facts["test_uniform_noise"] = evaluate.mean_and_error(uniform)
    if shipped:
        seeds = range(1, max(DRAWS))
        draws = [bits[:SUBSET], *(evaluate.evaluate(model, images[:SUBSET], s) for s in seeds)]
        facts["importance_weighted"] = bounds(torch.stack(draws), DRAWS, model.flow.config.dim)
    return facts


def shipped_records(root: Path) -> dict[str, dict]:
    """Name -> record of the models in ``weights/``; of these are their cards."""
    return read(root, plan(root, "shipped") | plan(root, "shipped8"))


def table(root: Path, group: str, split: str, path: str = PLAN) -> pd.DataFrame:
    """A group's runs that have records and did not diverge, judged on "val" or "test"."""
    rows = []
    for name, record in read(root, plan(root, group, path)).items():
        if "diverged" in record:
            continue
        settings, last = record["settings"], record["validation"][-1]
        judged = record["test"] if split == "test" else last
        rows.append({
            "run": name, "model": settings["model"], "optimiser": settings["optimizer"],
            "lr": settings["lr"], "warm-up": settings["warmup"],
            "batch": settings["batch_size"], "steps": last["step"], "pictures": last["images"],
            "minutes": record["seconds"] / 60, "GFLOP/s": record["matrix_peak"] / 1e9,
            f"{split} bpd": judged["bpd"], "s.e.": judged["stderr"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _mean_row(quantity: str, mean: dict, model: str = "", **where: object) -> dict:
    """A row of :func:`evaluate.mean_and_error`."""
    ends = interval(mean["bpd"], mean["stderr"], mean["images"])
    return row(quantity, model=model, **where, **ends)


def difference(
    quantity: str, of: dict[int, float], less: dict[int, float], comparisons: int = 1, **where: str
) -> list[dict]:
    """A row of the mean difference of runs of the same seed; a single one has no interval."""
    gaps = [of[seed] - less[seed] for seed in sorted(of.keys() & less.keys())]
    return [row(quantity, **mean(gaps, comparisons), **where)] if gaps else []


def _seed_rows(root: Path) -> list[dict]:
    """Test bpd of the runs that differ in set, prior and the prior's scale, and differences."""
    rows, bits = [], {}  # set -> prior -> seed -> bpd
    for record in read(root, plan(root, "seeds") | plan(root, "convention")).values():
        settings = record["settings"]
        set_name, seed = settings["dataset"], settings["seed"]
        prior = settings["prior"] + " scale 1" * (settings["convention"] == "unit_scale")
        bits.setdefault(set_name, {}).setdefault(prior, {})[seed] = record["test"]["bpd"]
        rows.append(_mean_row("seed_bpd", record["test"], set_name, factor=prior, at=seed))
    if rows:  # all runs are alike in these
        rows.append(row("seed_run", record["images_seen"], factor="pictures"))
        rows.append(row("seed_run", settings["batch_size"], factor="batch"))
    laplace, unit, gaussian = "laplace", "laplace scale 1", "gaussian"
    for set_name, priors in bits.items():
        for of, less in ((laplace, gaussian), (unit, gaussian), (unit, laplace)):
            where = {"model": set_name, "factor": f"{of} less {less}"}
            sides = (priors.get(prior, {}) for prior in (of, less))
            rows += difference("prior_difference", *sides, **where)
    return rows


def latents(runs: dict[int, dict]) -> dict[tuple, dict[int, float]]:
    """What records of a run's seeds keep of its latents: (quantity, level, factor) -> seed -> value."""
    kept = defaultdict(dict)
    for seed, record in runs.items():
        for *asked, value in record.get("latents", ()):
            if value is not None:  # of pictures that are not finite
                kept[tuple(asked)][seed] = value
    return kept


def latent_rows(quantity: str, model: str, kept: dict[tuple, dict[int, float]]) -> list[dict]:
    """Means over seeds, as rows whose quantities are called as ``quantity``, a format, says."""
    return [
        row(quantity.format(of), model=model, level=level, factor=factor, **mean([*by.values()]))
        for (of, level, factor), by in kept.items()
    ]


def _seed_latent_rows(root: Path) -> list[dict]:
    """Of the runs that differ in set and prior: means over seeds, and Laplace less Gaussian."""
    rows, of_set = [], defaultdict(dict)  # set -> prior -> what is kept
    for model, runs in by_seed(root, plan(root, "seeds")).items():
        set_name, prior = model.split("_")
        kept = {  # of random weights, which all are the same, nothing
            asked: by
            for asked, by in latents(runs).items()
            if "untrained" not in (asked[0].removeprefix("probe_"), asked[2])
        }
        rows += latent_rows("{}_seeds", model, kept)
        of_set[set_name][prior] = kept
    for set_name, priors in of_set.items():
        laplace, gaussian = (priors.get(prior, {}) for prior in ("laplace", "gaussian"))
        for (quantity, level, factor), by in laplace.items():
            sides = by, gaussian.get((quantity, level, factor), {})
            where = {"model": set_name, "level": level, "factor": factor}
            rows += difference(f"{quantity}_difference", *sides, **where)
    return rows


def _one_epoch_rows(root: Path) -> list[dict]:
    """The published model after one epoch of ``--test-mode``: by seed, over pictures; over seeds."""
    runs, rows = read(root, plan(root, "one_epoch")).values(), []
    for split in ("test", "val") if runs else ():
        judged = [r["test"] | (r["validation"][-1] if split == "val" else {}) for r in runs]
        rows.append(row("one_epoch_mean", factor=split, **mean([one["bpd"] for one in judged])))
        for record, one in zip(runs, judged, strict=True):
            one = one | {"images": record["test"]["images"]}  # of either split
            rows.append(_mean_row("one_epoch", one, factor=split, at=record["settings"]["seed"]))
    return rows


def _change_rows(root: Path) -> list[dict]:
    """What each change of a small published network does, against the same seed unchanged.

    ``batch_512`` sees as many pictures as the unchanged network, in fewer steps;
    ``batch_512_equal_steps`` is compared with ``few_steps``, the unchanged batch for as few.
    """
    runs = by_seed(root, plan(root, "changes")).items()
    runs = {name.removeprefix("change_"): by for name, by in runs}
    bits = {
        change: {seed: record["test"]["bpd"] for seed, record in by.items() if "test" in record}
        for change, by in runs.items()
    }
    pairs = {n: (n, "unchanged") for n in runs if n not in ("unchanged", "few_steps")}
    pairs["batch_512_equal_steps"] = ("batch_512", "few_steps")
    rows, worse = [], 0
    for factor, (of, less) in pairs.items():
        both = sorted(bits[of].keys() & bits[less].keys())
        rows += [row("change", bits[of][s] - bits[less][s], factor=factor, at=s) for s in both]
        rows.append(row("change_diverged", len(runs[of]) - len(bits[of]), factor=factor))
        # Bonferroni's correction is for the comparisons planned, not for those with records.
        means = difference("change_mean", bits[of], bits[less], len(pairs), factor=factor)
        worse += sum(factor in DETAILS and (one["low"] or 0) > 0 for one in means)
        rows += means
    rows.append(row("details_worse", worse, n=len(DETAILS)))
    if bits["unchanged"]:
        rows.append(row("unchanged", **mean([*bits["unchanged"].values()]), factor="bpd"))
        one = next(iter(runs["unchanged"].values()))
        facts = {"batch": one["settings"]["batch_size"], "steps": one["validation"][-1]["step"],
                 "pictures": one["images_seen"], "parameters": one["parameters"],
                 "comparisons": len(pairs)}  # fmt: skip
        rows += [row("unchanged", value, factor=factor) for factor, value in facts.items()]
    return rows


def run_rows(name: str, record: dict, tested: bool = True) -> list[dict]:
    """A single run: its validation while training, bounds, parameters, and test bits."""
    count = {"images": record["settings"]["val_images"]}
    before = record.get("grown_from", {}).get("images_seen", 0)
    rows = [
        _mean_row("validation", one | count, name, at=before + one["images"])
        for one in record["validation"]
    ]
    for draws, bound in record.get("importance_weighted", {}).items():
        rows.append(_mean_row("bound", bound, name, at=draws))
    if tested:
        rows.append(_mean_row("bpd", record["test"], name, at="test"))
        rows.append(row("parameters", record["parameters"], name))
    if uniform := record.get("test_uniform_noise"):
        rows.append(_mean_row("bpd", uniform, name, at="test, uniform noise"))
    return rows


def _run_rows(root: Path) -> list[dict]:
    """Validation while training, and what single records say beyond the models in ``weights/``."""
    rows = []
    for group in ("shipped", "shipped8", "lean8", "affine"):
        for name, record in read(root, plan(root, group)).items():
            rows += run_rows(name, record, tested=group != "shipped")  # notebook 03 tests those
    return rows


def _published_rows(root: Path) -> list[dict]:
    published = read_json(root / "data" / "published.json")
    rows = [row("published_parameters", v, k) for k, v in published["parameters"].items()]
    for set_name, bpd in published["bpd"].items():
        rows += [row("published_bpd", v, set_name, factor=prior) for prior, v in bpd.items()]
        rows.append(row("published_difference", bpd["laplace"] - bpd["gaussian"], set_name))
    fashion = published["fashion_mnist"]
    rows += [row("published_fashion", fashion[of], factor=of) for of in ("bpd", "parameters")]
    return [*rows, row("published_one_epoch", published["one_epoch"])]


def rows(root: Path) -> list[dict]:
    """All that the committed records and the published table say, as rows of results."""
    made = _seed_rows(root) + _one_epoch_rows(root) + _change_rows(root) + _run_rows(root)
    groups = {group: plan(root, group) for group in read_json(root / PLAN)}
    groups["flows and pictures of A4"] = plan(root, path=PEERS)
    for group, names in groups.items():
        made.append(row("runs_missing", len(names) - len(read(root, names)), factor=group))
    return made + _published_rows(root) + _seed_latent_rows(root)


def main() -> None:
    parser = cli.Parser("Make records of the study's training runs, or list those without one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run; without any, list them")
    args = parser.parse_args()
    root = results.root()
    if not args.names:
        names = plan(root) | plan(root, path=PEERS)
        kept = read(root, names)
        print(*(name for name in names if name not in kept), sep="\n")
    for name in args.names:
        print(make(name, root))


if __name__ == "__main__":
    cli.run(main)
