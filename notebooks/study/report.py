"""The report's tables and sentences, all from ``results.json`` and the ledger.

``python -m study.report results RESULTS README`` puts its tables into README, and
``speed`` and ``faults`` those of the benchmarks and of the trials.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, refusing_damage, replacing
from study import figures, ledger, results
from study.results import title


def bpd_bars(
    rows: list[dict], models: dict[str, dict], published: dict, limits: dict[str, float]
) -> list[dict]:
    """Test bpd of our models, each beside the published value and the limit of its set.

    Args:
        rows: ``model`` (SET_PRIOR...), ``split``, ``bpd``, ``stderr``, ``images``.
        models: by name, ``kind`` and ``parameters``.
        published: the content of ``data/published.json``.
        limits: by set, the generator's entropy in bits per dimension.
    """
    bars = []
    for row in rows:
        if row["split"] != "test":
            continue
        set_name, prior, *_ = row["model"].split("_")
        size = f"{models[row['model']]['parameters'] / 1e6:.1f} M"
        ours = f"{title(row['model'])}: {models[row['model']]['kind']}, {size}, ours"
        theirs = (
            f"{title(f'{set_name}_{prior}')}: {published['parameters'] / 1e6:.1f} M, "
            f"{published['system']}"
        )
        values = {"bpd": row["bpd"], "stderr": row["stderr"], "images": row["images"]}
        bars.append({"label": ours, "prior": prior, "source": "ours"} | values)
        bpd = published["bpd"].get(set_name, {}).get(prior)
        nothing = {"stderr": None, "images": None}
        if bpd is not None and theirs not in [bar["label"] for bar in bars]:
            bars.append(
                {"label": theirs, "prior": prior, "source": "published", "bpd": bpd} | nothing
            )
    for set_name in sorted({row["model"].split("_")[0] for row in rows} & limits.keys()):
        label = f"{set_name.upper()}: entropy of the generator"
        bars.append(
            {"label": label, "prior": None, "source": "limit", "bpd": limits[set_name]} | nothing
        )
    return bars


def bpd_sentences(numbers: dict, published: dict) -> list[str]:
    """Test bpd of each model, beside what is published and what bounds it, as list items."""
    lines = []
    for name, row in numbers["test"].items():
        set_name, prior, *_ = name.split("_")
        theirs = published["bpd"][set_name][prior]
        places, bound = numbers["by_place"][name], list(numbers["bounds"][name].items())
        # KL of a uniform density from the nearest one of the prior's shape, in bits.
        uniform = {
            "gaussian": math.log2(math.pi * math.e / 6) / 2,
            "laplace": math.log2(math.e / 2),
        }
        k, best = bound[-1]
        lines.append(
            f"- **{title(name)}**: {row['bpd']:.3f} ± {row['stderr']:.3f} "
            f"bits per dimension on {row['images']:,} test pictures "
            f"({'below' if row['bpd'] < theirs else 'above'} the published {theirs} of a model "
            f"{published['parameters'] / numbers['models'][name]['parameters']:.0f} times the "
            f"size), test minus train {row['less_train']:+.3f}; limit "
            f"{numbers['limits'][set_name]:.3f}. {k} draws of the noise bring the bound from "
            f"{bound[0][1]['bpd']:.3f} to {best['bpd']:.3f} ({best['images']} pictures). A value "
            f"of the background, {places['background_share']:.0%} of all, takes "
            f"{places['background']['bpd']:.2f} bits (shifting and scaling alone would cost "
            f"{uniform[prior]:.2f}), one of an ellipse {places['ellipse']['bpd']:.2f}."
        )
    return lines


def _group(name: str) -> str:
    return title(name.replace(", ", "_"))


def prior_sentences(numbers: dict) -> list[str]:
    """Whether priors differ in bpd: shipped models, then paired seeds, as list items."""
    lines = []
    for name, found in numbers["shipped_difference"].items():
        laplace, gaussian = (numbers["by_place"][f"{name}_{p}"] for p in ("laplace", "gaussian"))
        apart = laplace["background"]["bpd"] - gaussian["background"]["bpd"]
        lines.append(
            f"- **Priors, {name.upper()}, shipped models**, one seed: Laplace less Gaussian "
            f"{found['mean']:+.3f} ± {found['stderr']:.4f} over the same test pictures, of which "
            f"the background's noise makes {apart * laplace['background_share']:+.3f}; the error "
            "knows nothing of the spread over seeds."
        )
    for name, found in numbers["priors"].items():
        sides = " less ".join(map(_group, name.split(" less ")))
        lines.append(
            f"- **{sides}**, {found['n']} paired seeds: {found['mean']:+.3f} bpd, 95 % interval "
            f"{found['low']:+.3f} … {found['high']:+.3f}, p = {found['p']:.2g}: "
            f"{'a difference' if found['p'] < 0.05 else 'no difference shown'}."
        )
    return lines


def sample_sentences(numbers: dict) -> list[str]:
    """The best of the temperatures tried, and samples that explode, as list items."""
    lines = []
    for name, points in numbers["frechet"]["curves"].items():
        best = min(points, key=lambda point: point["value"])
        tried = [point["temperature"] for point in points]
        edge = {min(tried): ", the lowest tried", max(tried): ", the highest tried"}
        floor = numbers["frechet"]["floors"][name.split("_")[0]]
        lines.append(
            f"- **Samples, {title(name)}**: Fréchet distance in our own features lowest "
            f"at temperature {best['temperature']:g}{edge.get(best['temperature'], '')}, "
            f"{best['value']:.3f} ± {best['spread']:.3f}; real pictures {floor:.3f}."
        )
    for name, rows in numbers["exploded"].items():
        listed = ", ".join(
            (
                f"{of['share']:.1%} ± {of['stderr']:.1%}"
                if 0 < of["share"] < 1
                else f"{of['share']:.0%}"
            )
            + f" of {of['samples']} at temperature {t}"
            for t, of in rows.items()
        )
        lines.append(
            f"- **Samples that explode, {title(name)}**: {listed} do not come back to their "
            "latents in single precision."
        )
    return lines


def ablation_sentences(rows: dict[str, dict]) -> list[str]:
    """Which changes of :func:`study.records.ablations` hurt, by seeds, as list items."""
    sorts = {"Worse": [], "Better": [], "Better in some seeds, worse in others": []}
    changed = {n: row for n, row in rows.items() if n != "unchanged" and row["less_unchanged"]}
    for name, row in changed.items():
        low, high = min(row["less_unchanged"]), max(row["less_unchanged"])
        sort = list(sorts)[0 if low > 0 else 1 if high < 0 else 2]
        span = f"{low:+.3f}" + (f" … {high:+.3f}" if high > low else "")
        sorts[sort].append(f"{name.replace('_', ' ')} ({span})")
    seeds = max((len(row["less_unchanged"]) for row in changed.values()), default=0)
    lines = [
        f"- **{sort}** than the unchanged network, bpd over up to {seeds} seeds: {'; '.join(names)}."
        for sort, names in sorts.items()
        if names
    ]
    failed = [
        f"{name.replace('_', ' ')} ({row['diverged']} of {len(row['bpd']) + row['diverged']} seeds)"
        for name, row in rows.items()
        if row["diverged"]
    ]
    return lines + ([f"- **Training diverges**: {'; '.join(failed)}."] if failed else [])


def _record_sentences(numbers: dict) -> list[str]:
    """Affine couplings alone, and short trainings against the published bpd, as list items."""
    lines = [
        f"- **Affine couplings only, {title(name.removesuffix('_affine'))}** (record): "
        f"{row['bpd']:.3f} ± {row['stderr']:.3f} after {row['seen']:,} training pictures."
        for name, row in numbers["affine"].items()
    ]
    for name, row in numbers["reached"].items():
        low, high = row["minutes"]
        lines.append(
            f"- **Short trainings, {_group(name)}**: {row['reached']} of {row['runs']} runs over "
            f"{row['images']:,} pictures reach the published {row['bpd']}, in {low:.1f} to "
            f"{high:.1f} minutes."
        )
    return lines


def evaluation_sentences(numbers: dict, published: dict) -> list[str]:
    """What notebook 03 found, as Markdown list items, all from its stored numbers."""
    lines = bpd_sentences(numbers, published) + prior_sentences(numbers)
    lines += sample_sentences(numbers) + ablation_sentences(numbers["ablations"])
    lines += _record_sentences(numbers)
    if numbers["missing"]:
        lines.append(f"- {len(numbers['missing'])} runs of the study have no record yet.")
    return lines


def _likelihoods(bpd: dict, published: dict) -> list[str]:
    lines = []
    for set_name in sorted({name.split("_")[0] for name in bpd["test"]}):
        ours, theirs = [], []
        for name in (name for name in bpd["test"] if name.startswith(set_name)):
            row, prior = bpd["test"][name], name.split("_")[1]
            ours.append(f"{row['bpd']:.3f} ± {row['stderr']:.3f} ({prior.capitalize()})")
            theirs.append(f"{published['bpd'][set_name][prior]} ({prior.capitalize()})")
        lines.append(
            f"- **Likelihood, {set_name.upper()}.** {', '.join(ours)} bits per dimension on "
            f"{row['images']:,} test pictures, by models of "
            f"{bpd['models'][name]['parameters'] / 1e6:.1f} M parameters; published for "
            f"{published['parameters'] / 1e6:.1f} M: {', '.join(theirs)}. The generator's entropy, "
            f"the limit of all models, is at most {bpd['limits'][set_name]:.3f}."
        )
    return lines


def _differences(bpd: dict) -> list[str]:
    seeds = {name: of for name, of in bpd["priors"].items() if "scale" not in name}
    lines = []
    for what, compared in (
        ("paired seeds", seeds),
        ("one model each, over pictures", bpd["shipped_difference"]),
    ):
        found = [
            f"{name.split(', ')[0].upper()} {of['mean']:+.3f} (95 % interval {of['low']:+.3f} … "
            f"{of['high']:+.3f}, n = {of['n']:,})"
            for name, of in compared.items()
        ]
        if found:
            lines.append(f"- **Laplace less Gaussian** in bpd, {what}: {'; '.join(found)}.")
    return lines


def _sparse(sparse: dict) -> list[str]:
    higher, cost = [], []
    for set_name, levels in sparse["sparser"].items():
        up = ", ".join(str(h) for h, found in enumerate(levels) if found["low"] > 0)
        falls = [row["rotation"]["value"] for row in sparse["measures"][f"{set_name}_laplace"]]
        higher.append(f"{set_name.upper()} at {f'h = {up}' if up else 'no level'}")
        cost.append(f"{min(falls):.3f} to {max(falls):.3f} nats per latent ({set_name.upper()})")
    if not higher:
        return []
    return [
        "- **Sparse latents.** Hoyer's sparsity is higher with a Laplace prior (95 % intervals over "
        f"pictures): {'; '.join(higher)}. Rotating a level's latents costs {', '.join(cost)}; "
        f"independent Laplace latents {sparse['references']['rotation']['laplace']:.3f}, latents "
        "without axes nothing."
    ]


def _size(bpd: dict, published: dict) -> str:
    """How large the analysed models are, and what follows for the published training."""
    size = max(model["parameters"] for model in bpd["models"].values())
    of_size = (
        f"{size / 1e6:.1f} M parameters, the published one {published['parameters'] / 1e6:.1f} M"
    )
    return f"The analysed models have up to {of_size}" + (
        "; a result of theirs is no verdict on the published training."
        if size < published["parameters"]
        else "."
    )


def summary(results: dict, published: dict, entries: list[dict]) -> str:
    """The report on one page, as Markdown: what was found, and the verdicts.

    Args:
        results: the content of ``results.json``.
        published: the content of ``data/published.json``.
        entries: of the ledger.

    Raises:
        UserError: if a notebook has not left its results.
    """
    needed = ("03_bpd_evaluation", "04_sparsity", "05_receptive_fields", "06_latent_space")
    if missing := [name for name in needed if name not in results]:
        raise UserError(f"no results of {', '.join(missing)}; run them (or make reproduce)")
    bpd, sparse, fields, space = (results[name]["numbers"] for name in needed)
    grown = ", ".join(
        f"{of['factor']:.2f} ({of['low']:.2f} … {of['high']:.2f}; {title(name)})"
        for name, of in fields["growth"].items()
    )
    scores = ", ".join(
        f"{of['trained']:.2f} ({of['interval'][0]:.2f} … {of['interval'][1]:.2f}; "
        f"{title(name)}; untrained {of['untrained']:.2f})"
        for name, of in space["scores"].items()
    )
    # The first factor is the global one.
    acting = {
        name: max(range(len(rows)), key=lambda h: next(iter(rows[h].values()))["value"])
        for name, rows in space["effects"].items()
    }
    coarsest = sum(h == len(space["effects"][name]) - 1 for name, h in acting.items())
    size, touched = fields["touched"]["sizes"][-1], fields["touched"]["pixel"][-1]
    lines = [
        *_likelihoods(bpd, published),
        *_differences(bpd),
        *_sparse(sparse),
        f"- **Receptive fields.** Their edge grows per level by {grown}, 95 % intervals; claimed: "
        f"about 2. One pixel touches {touched:.0f} of {size**2:,} positions at L = {size}.",
        f"- **Scale separation**, from 0 to an ideal 1: {scores}. Drawing a level's latents anew "
        f"changes the global factor most at the coarsest level in {coarsest} of {len(acting)} "
        "models.",
        f"- **What this rests on.** {_size(bpd, published)}",
        "",
        f"Verdicts on {len(entries)} published claims:",
        "",
        "| verdict | claims | |",
        "|---|---|---|",
    ]
    for verdict in ledger.VERDICTS:
        names = [e["claim"] for e in entries if e["verdict"] == verdict]
        lines.append(f"| **{verdict}** | {len(names)} | {'; '.join(names)} |")
    return "\n".join(lines)


def not_reproduced(entries: list[dict], results: dict) -> str:
    """The ledger's claims that do not hold, and those that hold in part, as Markdown."""
    lines = []
    for entry in (e for e in entries if e["verdict"] == "not reproduced"):
        code = f" Its code: {entry['code']}." if entry["code"] else ""
        lines.append(
            f"- **{entry['claim']}** ({entry['source']}): {entry['text']}.{code} Here: "
            f"{ledger.measured(entry['measured'], results)}. Verdict: not reproduced, because "
            f"{entry['because']}."
        )
    lines += ["", "In part:", ""]
    for entry in (e for e in entries if e["verdict"] == "partly"):
        lines.append(f"- **{entry['claim']}**: {entry['because']}.")
    return "\n".join(lines)


def limits(results: dict, published: dict, entries: list[dict]) -> list[str]:
    """What the numbers rest on, as Markdown list items."""
    numbers = {name: of["numbers"] for name, of in results.items() if name != "profile"}
    bpd, space = numbers["03_bpd_evaluation"], results["06_latent_space"]["provenance"]
    untested = [e["claim"] for e in entries if e["rests_on"] == "nothing that was run"]
    lines = [
        f"- **Size.** {_size(bpd, published)}",
        "- **Seeds.** Each analysed model is one training run. Runs with several seeds: "
        f"{'; '.join(map(_group, bpd['seeds'])) or 'none'}. Planned runs without a record: "
        f"{len(bpd['missing'])}.",
        f"- **Pictures.** Bits per dimension are of {bpd['bars'][0]['images']:,} test pictures, "
        f"sparsity of {numbers['04_sparsity']['images']:,}, probes of "
        f"{space['parameters']['probed']:,}, interventions of {space['parameters']['changed']:,}; "
        f"receptive fields of {numbers['05_receptive_fields']['latents']} latents a level with "
        f"{numbers['05_receptive_fields']['samples']} samples each. The pictures are drawn by one "
        "program and simple; nothing here was tried on photographs.",
        f"- **Not run at all**: {'; '.join(untested)}." if untested else "",
    ]
    return [line for line in lines if line]


def origins(results: dict) -> str:
    """Markdown table of where the numbers of each notebook come from."""
    lines = ["| notebook | commit | date | seconds | machine |", "|---" * 5 + "|"]
    for name, content in sorted((k, v) for k, v in results.items() if k != "profile"):
        source, machine = content["provenance"], content["provenance"]["hardware"]
        changed = " and changes" if source["uncommitted_changes"] else ""
        lines.append(
            f"| {name} | {source['commit'][:10]}{changed} | {source['date'][:10]} | "
            f"{source['seconds']:.0f} | "
            f"{machine['gpu'] or machine['processor']}, threads: {machine['threads']} |"
        )
    return "\n".join(lines)


def show(folder: str | Path, name: str, figure: Figure, rows: list[dict], caption: str) -> None:
    """Store a figure and its data (:func:`study.figures.save`), and show it with a caption.

    Args:
        folder: the profile's folder of figures.
        name: ``figNN_...``, which gives its number.
        figure: to store; it is closed.
        rows: its data.
        caption: Markdown; its first sentence is what those get who cannot see the picture.
    """
    from IPython.display import Image, Markdown, display

    figures.save(figure, folder, name, rows)
    figures.plt.close(figure)
    width = figure.get_figwidth()
    # On a screen a fifth larger than in print, where 96 pixels are an inch.
    picture = Image(
        filename=f"{folder}/{name}.png", width=int(115 * width), alt=caption.split(".")[0].strip("*"),
        unconfined=bool(width > figures.COLUMN),
    )  # fmt: skip
    number = int(name[3:5])
    display(picture, Markdown(f"**Figure {number}.** {caption} *Data: `{name}.csv`.*"))


def bpd_table(results: dict) -> str:
    """Markdown table of test bits per dimension, ours beside the published."""
    lines = ["| model | test bits per dimension | test pictures |", "|---|---|---|"]
    for bar in results["03_bpd_evaluation"]["numbers"]["bars"]:
        # Published values with all digits that were published.
        value = str(bar["bpd"]) if bar["source"] == "published" else f"{bar['bpd']:.3f}"
        value += "" if bar["stderr"] is None else f" ± {bar['stderr']:.3f}"
        pictures = f"{bar['images']:,}" if bar["images"] else "not stated"
        pictures = "none: a limit" if bar["source"] == "limit" else pictures
        lines.append(f"| {bar['label']} | {value} | {pictures} |")
    return "\n".join(lines)


def findings(results: dict, notebooks: tuple[str, ...] = ("",)) -> str:
    """What the notebooks with these beginnings found, and where their numbers come from."""
    chosen = [v for k, v in sorted(results.items()) if k != "profile" and k.startswith(notebooks)]
    source = chosen[-1]["provenance"]
    hardware = source["hardware"]
    origin = (
        f"- `{source['command']}`, commit {source['commit'][:10]}, torch "
        f"{source['versions']['torch']}, {hardware['gpu'] or hardware['processor']}, "
        f"{hardware['threads']} threads, {source['date']}."
    )
    return "\n".join([*(content["found"] for content in chosen), origin])


def _results(collected: dict) -> str:
    claims = ledger.short(ledger.read(results.root()), collected)
    return f"{bpd_table(collected)}\n\n{claims}\n\n{findings(collected, ('02',))}"


def _speed(stored: dict) -> str:
    published = read_json(results.root() / "data" / "published.json")["speed"]
    theirs, rates = published["of_peak"], stored["numbers"]["rates"]

    def listed(shares: dict[str, float]) -> str:
        return ", ".join(f"{task} {share:.2f}" for task, share in shares.items())

    ours, comparator = (
        listed({task: rates[f"{task}/{who}"]["of_peak"] / theirs[task] for task in theirs})
        for who in ("ours", "theirs")
    )
    line = (
        "- **Fraction of the matrix-product peak over that of the published codes** "
        f"({listed(theirs)}; {published['source']}): {ours}; the comparator below {comparator}."
    )
    return f"{line}\n{findings({'A1_benchmarks': stored}, ('A1',))}"


def _faults(stored: dict) -> str:
    kinds: dict[str, dict[str, int]] = {}
    for kind, outcomes in stored["counts"].items():
        row = kinds.setdefault(kind.split(":")[0], {})
        for outcome, number in outcomes.items():
            row[outcome] = row.get(outcome, 0) + number
    lines = ["| trial | how often | what came of it |", "|---|---|---|"]
    for kind, row in kinds.items():
        came = ", ".join(f"{outcome} {number:,}" for outcome, number in row.items())
        lines.append(f"| {kind} | {sum(row.values()):,} | {came} |")
    lines.append("")
    for name, n in stored["numbers"].items():
        if "samples" in n:
            lines.append(
                f"- **{name}** in single precision: {n['test_pictures']:,} test pictures come back "
                f"from their latents to {n['picture_error_in_bytes']:.2g} of a byte; of "
                f"{n['samples']:,} samples at temperature 1, {n['samples_beyond_limit']} have "
                f"latents more than {n['limit']} from those drawn (worst: number {n['worst']}), the "
                f"others at most {n['error_of_the_others']:.1g}; bits per dimension of "
                f"{n['bpd_pictures']} pictures differ from double precision by at most "
                f"{n['bpd_difference']:.1g}."
            )
    long = stored["numbers"]["long run"]
    lines.append(
        f"- Memory over {long['steps']:,} training steps grew by {long['growth_in_mib']:.1f} MiB."
    )
    return findings({"faults": stored | {"found": "\n".join(lines)}}, ("faults",))


def update_readme(what: str, source: str | Path, readme: str | Path) -> None:
    """Put the content of a JSON file between README's markers of the same name.

    Raises:
        UserError: if a file cannot be read or the markers are missing.
    """
    with refusing_damage(readme, "a text"):
        text = Path(readme).read_text()
    begin, end = (f"<!-- {what}: {word} -->" for word in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{readme}: needs the lines {begin} and {end} once each")
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    with refusing_damage(source, "results of the study"):
        middle = {"results": _results, "speed": _speed, "faults": _faults}[what](read_json(source))
    with replacing(readme) as temporary:
        temporary.write_text(f"{head}{begin}\n{middle}\n{end}{tail}")


def main() -> None:
    parser = cli.Parser("Put results, speeds or trials into README.")
    parser.add_argument("what", choices=("results", "speed", "faults"))
    parser.add_argument("source", help="results as JSON")
    parser.add_argument("target", help="README.md to update")
    args = parser.parse_args()
    update_readme(args.what, args.source, args.target)


if __name__ == "__main__":
    cli.run(main)
