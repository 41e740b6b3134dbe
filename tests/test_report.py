"""Generated text: what templates need is there, and the committed text is the one they give."""

import re
import shutil

import pytest
from nbconvert.filters import markdown2html
from support import ROOT

from rgflow_core.errors import UserError
from study import records, report, results

MISSING = "(not measured here)"


@pytest.fixture(scope="module")
def table():
    return results.read(ROOT / "figures")


@pytest.mark.parametrize("name", report.environment().get_template("report.md").blocks)
def test_sections_say_only_what_was_measured(table, name):
    text = report.section(name, table, ROOT / "figures").data
    assert MISSING not in text
    assert "{" not in re.sub(r"`.*?`", "", text)
    rows = re.findall(r"^\|(?!-)", text, re.MULTILINE)
    assert markdown2html(text).count("<tr") == len(rows), "no cell ends its row"


def test_numbers_are_filled_in_formatted_and_asked_for_once(tmp_path):
    rows = [results.row("a", -0.25, "m", low=-0.5, high=0.0, n=3), results.row("b", 1, "m")]
    text = report.environment(results.write(tmp_path, "x", rows)).from_string
    assert text('{{ number("a", model="m") | fmt("+.1f") }}').render() == "−0.2"
    assert text('{{ interval("a", "+.2f") }}').render() == "−0.25 (−0.50 … +0.00)"
    assert text('{{ interval("b", ".0f") }}').render() == "1"
    assert text('{{ interval("c", ".0f") }}').render() == MISSING
    twice = results.write(tmp_path, "x", [*rows, results.row("a", 1, "other")])
    with pytest.raises(UserError, match="2 rows"):
        report.environment(twice).from_string('{{ number("a") }}').render()


# What was done about a claim, and what can come of it.
VERDICTS = {
    "checked against code": (
        "agrees", "differs", "not in the text", "the systems differ", "a defect",
    ),
    "tested at the published architecture": ("agrees", "differs", "close", "reached"),
    "tested on a small network of the published kind": ("evidence for", "evidence against", "inconclusive"),
    "tested on lean models": ("evidence for", "evidence against", "inconclusive"),
    "counted on the lattice": ("agrees",),
    "not tested": ("",),
}  # fmt: skip
FIELDS = {
    "claim", "source", "text", "code", "measured", "kind", "verdict", "scope", "because", "headline",
}  # fmt: skip


def test_ledger_has_a_verdict_of_its_kind_and_a_reason():
    entries = report.claims(ROOT)
    assert 0 < sum(bool(entry["headline"]) for entry in entries) <= 10, "of README"
    for entry in entries:
        assert entry.keys() == FIELDS
        assert entry["verdict"] in VERDICTS[entry["kind"]], entry["claim"]
        assert entry["verdict"] or not entry["scope"], entry["claim"]
        assert entry["because"] or entry["kind"] != "not tested", entry["claim"]
        assert "published" not in entry["kind"] or "lean" not in entry["measured"]


def test_verdicts_on_details_are_what_their_intervals_say(table):
    entries = [e for e in report.claims(ROOT) if e["claim"].startswith("Detail: ")]
    factors = [re.search(r'factor="(\w+)"', entry["measured"])[1] for entry in entries]
    assert sorted(factors) == sorted(records.DETAILS)
    for entry, factor in zip(entries, factors, strict=True):
        low, high = (
            results.number(table, "change_mean", column, factor=factor)
            for column in ("low", "high")
        )
        verdict = {low > 0: "evidence for", high < 0: "evidence against"}.get(True, "inconclusive")
        assert entry["verdict"] == verdict, factor


@pytest.mark.parametrize("name", ["findings", "claims", "speed"])
def test_readme_is_the_one_of_the_results(tmp_path, name):
    tables = [f"figures/{n}.{k}" for n in ("results", "A1_benchmarks") for k in ("csv", "json")]
    for source in ("README.md", "data/ledger.json", *tables):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    report.update_readme(name, tmp_path)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match=f"{name}: begin"):
        report.update_readme(name, tmp_path)


def test_cards_are_those_of_the_records(tmp_path):
    report.write(tmp_path / "cards.md", "cards", records=records.shipped_records(ROOT))
    assert (tmp_path / "cards.md").read_text() == (ROOT / "weights" / "README.md").read_text()
