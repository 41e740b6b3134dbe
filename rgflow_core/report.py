"""The report: tables from ``results.json``, and a self-contained HTML page.

``python -m rgflow_core.report html NOTEBOOK OUT``,
``python -m rgflow_core.report results RESULTS README`` and the same with ``speed``, ``faults``.
"""

import html
import math
import re
from pathlib import Path

from rgflow_core import cli, ledger, study
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, refusing_damage, replacing


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
        ours = f"{set_name}, {prior}: {models[row['model']]['kind']} model, {size}, ours"
        theirs = (
            f"{set_name}, {prior}: {published['parameters'] / 1e6:.1f} M, {published['system']}"
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
        label = f"{set_name}: entropy of the generator"
        bars.append(
            {"label": label, "prior": None, "source": "limit", "bpd": limits[set_name]} | nothing
        )
    return bars


def evaluation_sentences(numbers: dict, published: dict) -> list[str]:
    """What notebook 03 found, as Markdown list items, all from its stored numbers."""
    lines = []
    for name, row in numbers["test"].items():
        set_name, prior, *more = name.split("_")
        theirs = published["bpd"][set_name][prior]
        places, bound = numbers["by_place"][name], list(numbers["bounds"][name].items())
        # KL of a uniform density from the nearest one of the prior's shape, in bits.
        uniform = {
            "gaussian": math.log2(math.pi * math.e / 6) / 2,
            "laplace": math.log2(math.e / 2),
        }
        k, best = bound[-1]
        lines.append(
            f"- **{', '.join([set_name, prior, *more])}**: {row['bpd']:.3f} ± {row['stderr']:.3f} "
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
    for name, found in numbers["shipped_difference"].items():
        laplace, gaussian = (numbers["by_place"][f"{name}_{p}"] for p in ("laplace", "gaussian"))
        apart = laplace["background"]["bpd"] - gaussian["background"]["bpd"]
        lines.append(
            f"- **Priors, {name}, shipped models**, one seed: Laplace less Gaussian "
            f"{found['mean']:+.3f} ± {found['stderr']:.4f} over the same test pictures, of which "
            f"the background's noise makes {apart * laplace['background_share']:+.3f}; the error "
            "knows nothing of the spread over seeds."
        )
    for name, found in numbers["priors"].items():
        lines.append(
            f"- **{name}**, {found['n']} paired seeds: {found['mean']:+.3f} bpd, 95 % interval "
            f"{found['low']:+.3f} … {found['high']:+.3f}, p = {found['p']:.2g}: "
            f"{'a difference' if found['p'] < 0.05 else 'no difference shown'}."
        )
    for name, points in numbers["frechet"]["curves"].items():
        best = min(points, key=lambda point: point["value"])
        floor = numbers["frechet"]["floors"][name.split("_")[0]]
        lines.append(
            f"- **Samples, {name.replace('_', ', ')}**: Fréchet distance in our own features lowest "
            f"at temperature {best['temperature']}, {best['value']:.3f}; real pictures {floor:.3f}."
        )
    if numbers["missing"]:
        lines.append(f"- {len(numbers['missing'])} runs of the study have no record yet.")
    return lines


def bpd_table(results: dict) -> str:
    """Markdown table of test bits per dimension, ours beside the published."""
    lines = ["| model | test bits per dimension | test pictures |", "|---|---|---|"]
    for bar in results["03_bpd_evaluation"]["numbers"]["bars"]:
        value = f"{bar['bpd']:.3f}" + ("" if bar["stderr"] is None else f" ± {bar['stderr']:.3f}")
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
    claims = ledger.short(ledger.read(study.root()), collected)
    return f"{bpd_table(collected)}\n\n{claims}\n\n{findings(collected, ('02',))}"


def _speed(stored: dict) -> str:
    return findings({"A1_benchmarks": stored}, ("A1",))


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


def _mathml(page: str) -> str:
    """Replace $$...$$ and $...$ in HTML by MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        tex = html.unescape(match[1] or match[2]).strip()
        return convert(
            re.sub(r"\\[bB]ig(?![a-zA-Z])", "", tex), display="block" if match[1] else "inline"
        )

    return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", replace, page, flags=re.DOTALL)


def write_html(notebook: str | Path, out: str | Path) -> None:
    """Write an executed notebook as one HTML file that loads nothing from elsewhere.

    Raises:
        UserError: if the page would make a network request.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True,
        exclude_output_prompt=True, embed_images=True,
    )  # fmt: skip
    # After the conversion from Markdown, which would tear MathML apart.
    with refusing_damage(notebook, "a notebook"):
        body = _mathml(exporter.from_notebook_node(nbformat.read(notebook, as_version=4))[0])
    style = (
        "body{max-width:52rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif}"
        "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem;"
        "border-bottom:1px solid #ccc;text-align:left}code{background:#f3f3f3}"
        "pre{overflow-x:auto}math{font-family:math,serif}.anchor-link{display:none}"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>RG-Flow: '
        f"reproducibility report</title><style>{style}</style></head><body>{body}</body></html>"
    )
    loads = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)[^"]*"', page)
    if loads or "@import" in page:
        raise UserError(f"{notebook}: the page would load {loads[:3]}")
    with replacing(out) as temporary:
        temporary.write_text(page)


def main() -> None:
    parser = cli.Parser("Make the HTML report, or README's results, speeds or trials.")
    parser.add_argument("what", choices=("html", "results", "speed", "faults"))
    parser.add_argument("source", help="executed notebook, or results as JSON")
    parser.add_argument("target", help="HTML file to write, or README.md to update")
    args = parser.parse_args()
    if args.what == "html":
        write_html(args.source, args.target)
    else:
        update_readme(args.what, args.source, args.target)


if __name__ == "__main__":
    cli.run(main)
