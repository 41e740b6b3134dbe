"""The ledger: every published claim that can be checked, what was measured, and a verdict."""

import re
from pathlib import Path

from rgflow_core.errors import UserError
from rgflow_core.files import read_json

FILE = "data/ledger.json"
VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be checked here")
_FIELDS = ("claim", "source", "text", "code", "measured", "rests_on", "verdict", "because")


def read(root: Path) -> list[dict]:
    """The entries of ``data/ledger.json``.

    Raises:
        UserError: if an entry lacks a field or has another verdict than those of ``VERDICTS``.
    """
    entries = read_json(root / FILE)["claims"]
    for entry in entries:
        if sorted(entry) != sorted(_FIELDS) or entry["verdict"] not in VERDICTS:
            raise UserError(
                f"{FILE}: an entry needs {', '.join(_FIELDS)}, its verdict one of {VERDICTS}; "
                f"not so: {entry.get('claim', entry)}"
            )
    return entries


def look_up(results: dict, path: str) -> object:
    """A number of ``results.json``, by notebook and keys: ``03_bpd_evaluation/limits/msds1``.

    Raises:
        KeyError: if it is not there.
    """
    notebook, *keys = path.split("/")
    value = results[notebook]["numbers"]
    for key in keys:
        if isinstance(value, list):
            if not key.isdigit() or int(key) >= len(value):
                raise KeyError(path)
            value = value[int(key)]
        else:
            value = value[key]
    return value


def measured(text: str, results: dict) -> str:
    """Fill in ``{path:format}`` from results; what they do not hold is "not measured here"."""

    def number(match: re.Match) -> str:
        try:
            return format(look_up(results, match[1]), match[2] or "")
        except KeyError:
            return "(not measured here)"

    return re.sub(r"\{([^{}:]+)(?::([^{}]*))?\}", number, text)


def _row(cells: tuple[str, ...]) -> str:
    # A bar within a cell would end it.
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def table(entries: list[dict], results: dict) -> str:
    """Markdown table of all entries, numbers filled in."""
    head = ("claim", "published", "what its code does", "measured", "rests on", "verdict")
    lines = [_row(head), "|---" * len(head) + "|"]
    for entry in entries:
        verdict = f"**{entry['verdict']}**"
        verdict += f", because {entry['because']}" if entry["because"] else ""
        cells = (
            entry["claim"],
            f"{entry['text']} ({entry['source']})",
            entry["code"] or "–",
            measured(entry["measured"], results) or "–",
            entry["rests_on"],
            verdict,
        )
        lines.append(_row(cells))
    return "\n".join(lines)


def short(entries: list[dict], results: dict) -> str:
    """Markdown table of claims, what was measured, and verdicts."""
    lines = ["| claim | measured | verdict |", "|---|---|---|"]
    for e in entries:
        found = measured(e["measured"], results) or "–"
        lines.append(_row((e["claim"], found, e["verdict"])))
    return "\n".join(lines)
