"""The report as a page: one HTML file that loads nothing, printed as PDF where Chromium is.

``python -m study.page NOTEBOOK report.html`` writes both from an executed notebook.
"""

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import refusing_damage, replacing
from study.report import TEMPLATES

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _mathml(page: str) -> str:
    """Replace $$...$$ and $...$ in HTML by MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        tex = html.unescape(match[1] or match[2]).strip()
        tex = re.sub(r"\\[bB]ig(?![a-zA-Z])", "", tex)
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


def print_pdf(page: str | Path) -> str:
    """Print an HTML file as PDF beside it, with Chromium; one line says what came of it.

    A PDF of an earlier page is removed if there is none of this one.
    """
    page = Path(page).resolve()
    target = page.with_suffix(".pdf")
    target.unlink(missing_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"{target.name}: not written, no Chromium is installed"
    # What it has started may outlive it for a moment, and write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The page is our own and loads nothing; without a sandbox root can print it too.
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
                   f"--user-data-dir={folder}/profile", f"--print-to-pdf={folder}/page.pdf",
                   page.as_uri()]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, timeout=180, check=True)
            with replacing(target) as temporary:
                shutil.copyfile(f"{folder}/page.pdf", temporary)
        except (subprocess.SubprocessError, OSError) as error:
            return f"{target.name}: not written, {Path(browser).name} failed: {error}"
    return f"{target.name}: printed by {Path(browser).name}"


def main() -> None:
    parser = cli.Parser("Write an executed notebook as one HTML file, and that as PDF.")
    parser.add_argument("notebook", help="executed notebook")
    parser.add_argument("target", help="HTML file to write; the PDF goes beside it")
    args = parser.parse_args()
    write_html(args.notebook, args.target)
    print(print_pdf(args.target))


if __name__ == "__main__":
    cli.run(main)
