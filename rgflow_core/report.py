"""The report: tables from ``results.json``, and a self-contained HTML page.

``python -m rgflow_core.report html NOTEBOOK OUT`` and
``python -m rgflow_core.report readme RESULTS README``.
"""

import html
import re
from pathlib import Path

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, replacing

MARKERS = ("<!-- results: begin -->", "<!-- results: end -->")


def bpd_table(results: dict) -> str:
    """Markdown table of test bits per dimension, ours beside the published."""
    numbers = results["03_bpd_evaluation"]["numbers"]
    lines = ["| model | test bits per dimension | test pictures |", "|---|---|---|"]
    counts = {r["model"]: r["images"] for r in numbers["rows"] if r["split"] == "test"}
    for bar in numbers["bars"]:
        name = "_".join(bar["label"].split(":")[0].split(", "))
        value = f"{bar['bpd']:.3f}" + ("" if bar["stderr"] is None else f" ± {bar['stderr']:.3f}")
        pictures = "not stated" if bar["published"] else f"{counts[name]:,}"
        lines.append(f"| {bar['label']} | {value} | {pictures} |")
    return "\n".join(lines)


def findings(results: dict) -> str:
    """What a profile's results say, in sentences whose every number is read from them."""
    lines = []
    for key, content in results.items():
        if key.startswith("02_training"):
            numbers = content["numbers"]
            lines.append(
                f"- {key.removeprefix('02_training_').replace('_', ', ')}: "
                f"{numbers['parameters'] / 1e6:.2f} M parameters saw {numbers['images_seen']:,} "
                f"training pictures in {numbers['seconds'] / 60:.1f} minutes."
            )
    provenance = results["03_bpd_evaluation"]["provenance"]
    hardware, versions = provenance["hardware"], provenance["versions"]
    lines.append(
        f"- Profile {results['profile']}, commit {provenance['commit'][:10]}, torch "
        f"{versions['torch']}, {hardware['processor']}, {hardware['threads']} threads, "
        f"{provenance['date']}."
    )
    return "\n".join(lines)


def update_readme(results: str | Path, readme: str | Path) -> None:
    """Put the table of ``results.json`` between README's markers.

    Raises:
        UserError: if a file cannot be read or the markers are missing.
    """
    text = Path(readme).read_text()
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{readme}: needs the lines {begin} and {end} once each")
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    collected = read_json(results)
    table = f"{bpd_table(collected)}\n\n{findings(collected)}"
    with replacing(readme) as temporary:
        temporary.write_text(f"{head}{begin}\n{table}\n{end}{tail}")


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
    parser = cli.Parser("Make the HTML report, or README's table of results.")
    parser.add_argument("what", choices=("html", "readme"))
    parser.add_argument("source", help="executed notebook, or results.json")
    parser.add_argument("target", help="HTML file to write, or README.md to update")
    args = parser.parse_args()
    {"html": write_html, "readme": update_readme}[args.what](args.source, args.target)


if __name__ == "__main__":
    cli.run(main)
