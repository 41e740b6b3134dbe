"""Generated text: the templates in ``templates/``, into which single numbers are filled.

``report.md`` has the report's sections, ``readme.md`` what stands between README's markers,
``cards.md`` the cards of the shipped models. ``python -m study.report NAME ...`` fills README's
parts of these names.
"""

import math
import re
from pathlib import Path

import jinja2
import pandas as pd
from IPython.display import Markdown

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, replacing
from study import results

TEMPLATES = Path(__file__).parent / "templates"
LEDGER = "data/ledger.json"


def claims(root: Path) -> list[dict]:
    """The ledger's entries, every published claim that can be checked."""
    return read_json(root / LEDGER)["claims"]


def _fmt(value: float, form: str) -> str:
    """A number by a format such as ``.3f``, with a minus as print has it."""
    if math.isnan(value):
        return "(not measured here)"
    return format(value, form).replace("-", "−")


def environment(table: pd.DataFrame | None = None) -> jinja2.Environment:
    """Where templates are rendered: functions that read a table of results, and filters.

    ``number(quantity, **where)`` is one number, not-a-number where nothing was measured;
    ``interval(quantity, form, **where)`` writes it with its 95 % interval; ``rows(...)`` are
    those of a quantity. The filter ``fmt`` formats, ``filled`` renders a text as a template, and
    ``largest`` and ``smallest`` are values of some rows.
    """

    def number(quantity: str, column: str = "value", **where: object) -> float:
        some = len(results.select(table, quantity, **where))
        return results.number(table, quantity, column, **where) if some else math.nan

    def interval(quantity: str, form: str, **where: object) -> str:
        value, low, high = (number(quantity, c, **where) for c in ("value", "low", "high"))
        around = "" if math.isnan(low) else f" ({_fmt(low, form)} … {_fmt(high, form)})"
        return _fmt(value, form) + around

    def rows(quantity: str, **where: object) -> list[dict]:
        return results.select(table, quantity, **where).to_dict("records")

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters |= {
        "fmt": _fmt,
        "title": results.title,
        "cell": lambda text: text.replace("|", "\\|"),  # a bar would end a table's cell
        "largest": lambda some: max((r["value"] for r in some), default=math.nan),
        "smallest": lambda some: min((r["value"] for r in some), default=math.nan),
        "filled": lambda text: templates.from_string(text).render(),
    }
    templates.globals |= {"number": number, "interval": interval, "rows": rows}
    return templates


def block(template: str, name: str, table: pd.DataFrame | None = None, **facts: object) -> str:
    """A block of ``TEMPLATE.md`` as Markdown, of a table of results and what else it speaks of."""
    whole = environment(table).get_template(f"{template}.md")
    return "".join(whole.blocks[name](whole.new_context(facts))).strip()


def section(name: str, table: pd.DataFrame, folder: str | Path) -> Markdown:
    """A section of the report for notebook 07 to show, of a table that was read from ``folder``."""
    facts = {"claims": claims(results.root()), "origins": results.origins(folder)}
    return Markdown(block("report", name, table, **facts))


def write(path: str | Path, template: str, **facts: object) -> None:
    """Write a file from a whole template."""
    with replacing(path) as temporary:
        text = environment().get_template(f"{template}.md").render(facts)
        temporary.write_text(text, "utf-8")


def update_readme(name: str, root: Path) -> None:
    """Fill the part of README between its markers of a name, a block of ``templates/readme.md``.

    Raises:
        UserError: if what it speaks of cannot be read, or the markers are missing.
    """
    readme, figures = root / "README.md", root / "figures"
    if name == "speed":
        table = results.read(figures, "A1_benchmarks")
        facts = read_json(figures / "A1_benchmarks.json", by_hand=False)
    else:
        table, facts = results.read(figures), {"claims": claims(root)}
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    whole = readme.read_text("utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise UserError(f"{readme}: needs the lines {begin} and {end} once each")
    middle = f"{begin}\n{block('readme', name, table, **facts)}\n{end}"
    text = re.sub(f"(?s){begin}.*{end}", lambda _: middle, whole)
    with replacing(readme) as temporary:
        temporary.write_text(text, "utf-8")


def main() -> None:
    parser = cli.Parser("Fill parts of README: findings, claims, the speeds.")
    parser.add_argument("names", nargs="+", choices=("findings", "claims", "speed"))
    for name in parser.parse_args().names:
        update_readme(name, results.root())


if __name__ == "__main__":
    cli.run(main)
