"""What records say of other flows, of real pictures and of the way from recipe to recipe.

The runs are those of ``data/peers.json``; notebook A4 shows their rows of results.
"""

from pathlib import Path

import numpy as np

from study import records
from study.results import row
from study.statistics import mean

Runs = dict[int, dict]  # seed -> record
# How a run's name begins -> its set, its budget, and how those begin that were timed and that are
# the other side of a difference; what follows is the flow, and the seed.
BUDGETS = {
    "peer_": ("msds1", "pictures", "peer_"),
    "minutes_": ("msds1", "minutes", "peer_"),
    "fashion_mnist_": ("fashion", "pictures", "fashion_mnist_"),
    "long_fashion_": ("fashion_long", "long", "long_fashion_"),
    "photographs_": ("photographs", "pictures", "photographs_"),
    "shifted_": ("shifted", "pictures", "shifted_"),
}
# What is compared, where planned: on each set at equal pictures, on MSDS1 at equal minutes too.
PAIRS = ("flat8 less lean8", "flat8_uniform less lean8_uniform", "glow8 less lean8")
PAIRS += ("glow less lean", "realnvp less lean", "flat less lean", "laplace less lean")
PAIRS += ("lean_affine less lean", "glow less lean_affine", "realnvp less lean_affine")
SHIFTED_PAIRS = ("flat8 less lean8", "glow less lean")
GIVE_MINUTES = ("lean", "lean8")  # in whose minutes others were trained
# From the published recipe to ours, each change kept: what it is called, and its runs.
STEPS = {
    "published": "step_published", "small batch": "step_small_batch", "rate": "slow_lr_0.03",
    "Muon": "slow_muon_lr_0.03", "lean networks": "step_lean_networks", "NLSq": "step_nlsq",
    "order": "step_order", "block size": "step_block_size", "learned noise": "step_learned_noise",
    "rates, start": "step_start",
}  # fmt: skip


def read(root: Path) -> dict[str, Runs]:
    """Name without its seed -> its runs that have a record and did not diverge."""
    runs = records.by_seed(root, records.plan(root, path=records.PEERS))
    return {
        stem: {seed: record for seed, record in by.items() if "diverged" not in record}
        for stem, by in runs.items()
    }


def _cost(runs: Runs) -> list[float]:
    """Of each run, what a picture costs in training, in units of the lean model's."""
    return [
        r["speed"]["speedup"]["value"] * 16 / r["settings"]["batch_size"] for r in runs.values()
    ]


def _tested(runs: Runs, judged: str = "test") -> dict[int, float]:
    return {seed: record[judged]["bpd"] for seed, record in runs.items() if judged in record}


def _validated(runs: Runs) -> dict[int, float]:
    return {seed: record["validation"][-1]["bpd"] for seed, record in runs.items()}


def _flow_rows(model: str, budget: str, runs: Runs, timed: Runs, seconds: float) -> list[dict]:
    """Bits and costs of a flow on a set, and what was asked of its latents.

    The costs are of runs that were timed; ``seconds`` are a picture's in training the lean model.
    """
    bits, one, per_picture = _tested(runs), next(iter(runs.values())), mean(_cost(timed))
    rows = [row("peer", value, model, factor=budget, at=seed) for seed, value in bits.items()]
    uniform = _tested(runs, "test_uniform_noise")  # of those that learn it
    for quantity, values in {"peer_mean": bits, "peer_mean_uniform": uniform}.items():
        if values:
            rows.append(row(quantity, model=model, factor=budget, **mean([*values.values()])))
    minutes = one["images_seen"] * per_picture["value"] * seconds / 60
    facts = {"pictures": one["images_seen"], "parameters": one["parameters"], "minutes": minutes}
    rows += [row("peer_run", v, model, factor=of, at=budget) for of, v in facts.items()]
    if runs is not timed:
        return rows
    return [
        *rows,
        row("peer_cost", model=model, **per_picture),
        *records.latent_rows("peer_{}", model, records.latents(runs)),
    ]


def _photograph_rows(pair: str, of: Runs, less: Runs, comparisons: int) -> list[dict]:
    """A difference on each test photograph, means over seeds, and over the photographs."""
    seeds = of.keys() & less.keys()
    gaps = [np.subtract(of[s]["by_photograph"], less[s]["by_photograph"]) for s in seeds]
    if not gaps:
        return []
    gaps = np.mean(gaps, 0).tolist()
    rows = [row("photograph", gap, factor=pair, at=i) for i, gap in enumerate(gaps)]
    return [*rows, row("photograph_mean", factor=pair, **mean(gaps, comparisons))]


def _pair_rows(runs: dict[str, Runs]) -> list[dict]:
    """Differences by seed; intervals of a pair hold for all its sets and budgets together."""
    rows = []
    for pair in PAIRS:
        of, less = pair.split(" less ")
        budgets = ("pictures", "minutes") if less in GIVE_MINUTES else ("pictures",)
        sides = {
            (set_name, budget): (start + of, other + less)
            for start, (set_name, budget, other) in BUDGETS.items()
            if budget in budgets
            and set_name != "shifted"
            and {start + of, other + less} <= runs.keys()
        }
        for (set_name, budget), names in sides.items():
            where = {"model": set_name, "factor": pair, "at": budget}
            # Of flows that learn the noise, also without that.
            noises = {"peer_difference": "test", "peer_difference_uniform": "test_uniform_noise"}
            for quantity, judged in noises.items():
                bits = (_tested(runs[name], judged) for name in names)
                rows += records.difference(quantity, *bits, len(sides), **where)
            if set_name == "photographs":
                rows += _photograph_rows(pair, *(runs[name] for name in names), len(sides))
    return rows


def _shift_rows(runs: dict[str, Runs]) -> list[dict]:
    """Differences on MSDS1 shifted, and those less the ones where blocks meet tiles.

    Questions of their own, asked after the others: the two intervals of a pair hold together.
    """
    rows = []
    for pair in SHIFTED_PAIRS:
        here, there = (
            {seed: bits[seed] - others[seed] for seed in bits.keys() & others.keys()}
            for bits, others in (
                [_tested(runs[f"{start}{flow}"]) for flow in pair.split(" less ")]
                for start in ("shifted_", "peer_")
            )
        )
        for at, other in {"shifted": dict.fromkeys(here, 0.0), "less msds1": there}.items():
            rows += records.difference("peer_shift", here, other, 2, factor=pair, at=at)
    return rows


def _recipe_rows(runs: dict[str, Runs]) -> list[dict]:
    """Validation bits from recipe to recipe, and what each step saves; what makes one slow."""
    rows, before = [], {}
    for step, name in STEPS.items():
        bits = _validated(runs[name])
        rows += [row("step", value, factor=step, at=seed) for seed, value in bits.items()]
        if bits:
            rows.append(row("step_mean", factor=step, **mean([*bits.values()])))
        rows += records.difference("step_change", bits, before, len(STEPS) - 1, factor=step)
        before = bits
    for name in (name for name in runs if name.startswith("slow_")):
        base = "step_muon" if name.startswith("slow_muon") else "step_small_batch"
        sides = (_tested(runs[of]) for of in (name, base))
        rows += records.difference("slow", *sides, factor=name.removeprefix("slow_"))
    for one in [*runs["step_small_batch"].values()][:1]:  # all are alike in these
        facts = {"pictures": one["images_seen"], "batch": one["settings"]["batch_size"]}
        rows += [row("slow_run", value, factor=of) for of, value in facts.items()]
    return rows


def rows(root: Path) -> list[dict]:
    """All that the records of ``data/peers.json`` say but the trials, as rows of results."""
    runs, made = read(root), []
    for start, (set_name, budget, other) in BUDGETS.items():
        timed = {name.removeprefix(other): runs[name] for name in runs if name.startswith(other)}
        steps = [r["speed"]["ours"] for seeds in timed.values() for r in seeds.values()]
        for flow, own in ((flow, runs.get(f"{start}{flow}")) for flow in timed):
            if own and timed[flow]:
                model = f"{set_name}_{flow}"
                made += _flow_rows(model, budget, own, timed[flow], min(steps) / 16)
    for name in ("published", "published_narrow", "published_way"):
        model, single = f"msds1_gaussian_{name}", runs[f"{name}_msds1_gaussian"]
        for record in single.values():
            made += records.run_rows(model, record)
        made += records.latent_rows("peer_{}", model, records.latents(single))
    return made + _pair_rows(runs) + _shift_rows(runs) + _recipe_rows(runs)
