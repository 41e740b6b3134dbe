"""The report as a page: one HTML file that loads nothing, printed as PDF where Chromium is.

``python -m study.page NOTEBOOK report.html`` writes both from an executed notebook.
"""

import base64
import html
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import refusing_damage, replacing

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 180
STYLE = """
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: #111; background: #fff; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em; }
h1 { margin-top: 0; }
h2 { border-bottom: 1px solid #999; padding-bottom: .2em; }
a { color: #0058a3; }
code { background: #f3f3f3; font-size: .9em; }
pre { overflow-x: auto; }
math { font-family: math, serif; }
math[display="block"] { overflow-x: auto; overflow-y: hidden; margin: 1em 0; }
.anchor-link { display: none; }
.output_png { overflow-x: auto; margin-top: 1.5rem; }
.output_png img { display: block; margin: 0 auto; max-width: 100%; height: auto; }
/* The caption. */
.output_area:has(.output_png) + .output_area { font-size: .9rem; line-height: 1.4; margin: .5rem 0 1.2rem; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; }
td, th { padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
thead th { border-bottom: 2px solid #666; }
/* The ledger: room for the columns with most text. */
table:has(th:nth-child(6)) td:nth-child(4) { min-width: 9.5rem; }
table:has(th:nth-child(6)) td:nth-child(6) { min-width: 10.5rem; }
ul { padding-left: 1.5rem; }
@media (max-width: 45rem) {
  body { margin: 1rem auto; }
  /* Wide figures and tables are moved sideways rather than made too small to read. */
  .output_png img.unconfined { max-width: none; width: 36rem; }
  table:has(th:nth-child(4)) { min-width: 34rem; }
  table:has(th:nth-child(6)) { min-width: 54rem; }
  table:has(th:nth-child(6)) td:first-child { position: sticky; left: 0; background: #fff; }
}
@page { size: A4; margin: 16mm 15mm 18mm; @bottom-center { content: counter(page); font: 9pt sans-serif; } }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 9.5pt; line-height: 1.35; }
  h1, h2, h3, .output_area:has(.output_png) { break-after: avoid; }
  .output_area:has(.output_png), .output_area:has(.output_png) + .output_area, tr, li {
    break-inside: avoid; }
  .output_png { overflow: visible; margin-top: .5rem; }
  .output_png img { width: 3.5in; }
  .output_png img.unconfined { width: 7in; }
  .output_area:has(.output_png) + .output_area { font-size: 8.5pt; margin: .2rem 0 1rem; }
  li { margin-bottom: .1rem; }
  .table { overflow: visible; }
  table { font-size: 8pt; }
  td, th { padding: 1mm 1.5mm; }
  table:has(th:nth-child(6)) :is(td:nth-child(2), td:nth-child(3)) { min-width: 25mm; }
  table:has(th:nth-child(6)) td:nth-child(4) { min-width: 34mm; }
  table:has(th:nth-child(6)) td:nth-child(6) { min-width: 36mm; }
  thead { display: table-header-group; }
  p { orphans: 3; widows: 3; }
  .new-page { break-before: page; }
}
"""


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


def _smaller(match: re.Match) -> str:
    """An embedded PNG as WebP: the same pixels, in less than half the bytes."""
    stored = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(match[1]))) as picture:
        picture.convert("RGB").save(stored, "webp", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"


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
    body = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _smaller, body)
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>RG-Flow: reproducibility report</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
    loads = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)[^"]*"', page)
    if loads or "@import" in page:
        raise UserError(f"{notebook}: the page would load {loads[:3]}")
    with replacing(out) as temporary:
        temporary.write_text(page)


def print_pdf(page: str | Path) -> str:
    """Print an HTML file as PDF beside it, with Chromium.

    A PDF of an earlier page is removed if there is none of this one.

    Returns:
        One line: what was written, or why nothing was.
    """
    page = Path(page).resolve()
    target = page.with_suffix(".pdf")
    target.unlink(missing_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"{target.name}: not written, no Chromium is installed"
    # What it has started may outlive it for a moment, and write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        printed = Path(folder) / "page.pdf"
        # The page is our own and loads nothing; without a sandbox root can print it too.
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile", "--no-pdf-header-footer",
            f"--print-to-pdf={printed}", page.as_uri(),
        ]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)
            content = printed.read_bytes()
        except (subprocess.SubprocessError, OSError) as error:
            return f"{target.name}: not written, {Path(browser).name} failed: {error}"
    with replacing(target) as temporary:
        temporary.write_bytes(content)
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
