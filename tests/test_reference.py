"""The comparison with committed numbers, and the ledger."""

import re
from pathlib import Path

import pytest
from nbconvert.filters import markdown2html

from rgflow_core import evaluate
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, write_json
from study import ledger, reference

ROOT = Path(__file__).parents[1]


def results(bpd: float) -> dict:
    numbers = {"test": {"a": {"bpd": bpd, "ok": True}}, "seconds": 3.0, "rows": [1, {"x": 2}]}
    return {"profile": "p", "03_bpd_evaluation": {"numbers": numbers, "provenance": {}}}


def test_reference_agrees_deviates_and_misses():
    wanted = reference.numbers(results(1.5))
    assert wanted == {
        "03_bpd_evaluation/test/a/bpd": 1.5,
        "03_bpd_evaluation/rows/0": 1,
        "03_bpd_evaluation/rows/1/x": 2,
    }
    verdicts = {r["number"]: r["verdict"] for r in reference.compare(results(1.51), wanted)}
    assert set(verdicts.values()) == {"agrees"}
    by_name = {r["number"]: r["verdict"] for r in reference.compare(results(1.6), wanted)}
    assert by_name["03_bpd_evaluation/test/a/bpd"] == "DEVIATES"
    assert by_name["03_bpd_evaluation/rows/0"] == "agrees"
    gone = reference.compare(results(1.5), wanted | {"04_sparsity/x": 1.0})
    assert [r["verdict"] for r in gone].count("missing here") == 1
    new = reference.compare(results(1.5), {})
    assert {r["verdict"] for r in new} == {"not in the reference"}


def test_reference_command(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in ("r.json", "ref.json", "t.csv")]
    write_json(paths[0], results(1.5))
    monkeypatch.setattr("sys.argv", ["x", "write", *paths[:2]])
    reference.main()
    monkeypatch.setattr("sys.argv", ["x", "check", *paths])
    reference.main()
    assert (tmp_path / "t.csv").read_text().count("agrees") == 3
    write_json(paths[0], results(2.0))
    with pytest.raises(UserError, match="1 numbers are not those"):
        reference.main()
    assert "DEVIATES" in (tmp_path / "t.csv").read_text()


def test_committed_reference_is_of_the_committed_results():
    rows = reference.compare(
        read_json(ROOT / "figures" / "results.json"), read_json(ROOT / "figures" / "reference.json")
    )
    assert {row["verdict"] for row in rows} == {"agrees"}


def test_ledger_is_whole_and_refers_to_numbers_that_are_there():
    entries = ledger.read(ROOT)
    stored = read_json(ROOT / "figures" / "results.json")
    pending = ("msds2", "/priors/")  # runs that have no record yet
    for entry in entries:
        for path in re.findall(r"\{([^{}:]+)", entry["measured"]):
            if not any(word in path for word in pending):
                assert isinstance(ledger.look_up(stored, path), int | float), path
        lean = "lean" in entry["rests_on"]
        assert not (lean and entry["verdict"] == "reproduced"), entry["claim"]
        assert bool(entry["because"]) == (entry["verdict"] != "reproduced")
    table = ledger.table(entries, stored)
    assert table.count("\n") == len(entries) + 1
    assert "{" not in table
    for text in (table, ledger.short(entries, stored)):
        assert markdown2html(text).count("<tr") == len(entries) + 1


def test_ledger_fills_in_numbers_and_says_what_is_missing():
    text = "{03_bpd_evaluation/test/a/bpd:.1f} {03_bpd_evaluation/rows/1/x} {04_x/y:.2f}"
    assert ledger.measured(text, results(1.5)) == "1.5 2 (not measured here)"
    assert ledger.measured("{03_bpd_evaluation/rows/7}", results(1.5)) == "(not measured here)"


def test_ledger_refuses_other_verdicts(tmp_path):
    claims = read_json(ROOT / "data" / "ledger.json")["claims"]
    write_json(tmp_path / ledger.FILE, {"claims": [claims[0] | {"verdict": "probably"}]})
    with pytest.raises(UserError, match=r"not so: Test bpd of MSDS1"):
        ledger.read(tmp_path)


def test_paired():
    found = evaluate.paired([1.0, 2.0, 4.0], [0.5, 1.0, 3.5])
    assert found["mean"] == pytest.approx(2 / 3)
    assert found["low"] < found["mean"] < found["high"]
    assert found["stderr"] == pytest.approx(1 / 6)
    assert found["n"] == 3
    assert 0.01 < found["p"] < 0.1
