"""The report as a page: ``python -m study.page NOTEBOOK report.html``, one HTML file that loads nothing."""

import html
import re
from pathlib import Path

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import refusing_damage, replacing
from study.report import TEMPLATES


def _mathml(page: str) -> str:
    """Replace $$...$$ and $...$ in HTML by MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        tex = html.unescape(match[1] or match[2]).strip()
        # MathML sets no space between a function and its argument.
        tex = re.sub(r"\\(log|det)\s+(?=\w)", r"\\\1\\,", tex)
        return convert(tex, display="block" if match[1] else "inline")

    return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", replace, page, flags=re.DOTALL)


def write_html(notebook: str | Path, out: str | Path) -> None:
    """Write an executed notebook as one HTML file that loads nothing from elsewhere.

    Raises:
        UserError: if it is no notebook, or the page would make a network request.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="page", extra_template_basedirs=[str(TEMPLATES)], exclude_input=True,
        exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True,
        filters={"mathml": _mathml},
    )  # fmt: skip
    with refusing_damage(notebook, "a notebook"):
        page = exporter.from_filename(str(notebook))[0]
    loads = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)[^"]*"', page)
    if loads or "@import" in page:
        raise UserError(f"{notebook}: the page would load {loads[:3]}")
    with replacing(out) as temporary:
        temporary.write_text(page, "utf-8")


def main() -> None:
    parser = cli.Parser("Write an executed notebook as one HTML file.")
    parser.add_argument("notebook", help="executed notebook")
    parser.add_argument("target", help="HTML file to write")
    args = parser.parse_args()
    write_html(args.notebook, args.target)


if __name__ == "__main__":
    cli.run(main)
