"""The report's sentences follow from numbers."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest

from rgflow_core.files import read_json
from study import figures, ledger, report
from study.results import title

ROOT = Path(__file__).parents[1]
PUBLISHED = read_json(ROOT / "data" / "published.json")


@pytest.fixture
def results():
    """A copy of the committed results."""
    return copy.deepcopy(read_json(ROOT / "figures" / "results.json"))


@pytest.fixture(scope="module")
def claims():
    return ledger.read(ROOT)


def test_summary_says_what_the_numbers_say(results, claims):
    name = next(iter(results["03_bpd_evaluation"]["numbers"]["test"]))
    results["03_bpd_evaluation"]["numbers"]["test"][name]["bpd"] = 1.2345
    results["05_receptive_fields"]["numbers"]["growth"][name]["factor"] = 3.21
    text = report.summary(results, PUBLISHED, claims)
    assert "1.234 ±" in text or "1.235 ±" in text
    assert "3.21 (" in text
    for verdict in ledger.VERDICTS:
        count = sum(entry["verdict"] == verdict for entry in claims)
        assert f"| **{verdict}** | {count} |" in text


def test_summary_compares_seeds_when_there_are_some(results, claims):
    numbers = results["03_bpd_evaluation"]["numbers"]
    found = {"mean": 0.02, "stderr": 0.01, "low": -0.01, "high": 0.05, "p": 0.1, "n": 3}
    numbers["priors"] = {"msds2, laplace less msds2, gaussian": found}
    text = report.summary(results, PUBLISHED, claims)
    assert "paired seeds: MSDS2 +0.020 (95 % interval -0.010 … +0.050, n = 3)" in text
    assert "no difference shown" in report.prior_sentences(numbers)[-1]
    found["p"] = 0.01
    assert "a difference" in report.prior_sentences(numbers)[-1]


def test_not_reproduced_lists_those_claims_and_no_other(results, claims):
    first, _, rest = report.not_reproduced(claims, results).partition("In part:")
    for text, verdict in ((first, "not reproduced"), (rest, "partly")):
        named = re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE)
        assert named == [e["claim"] for e in claims if e["verdict"] == verdict]


def test_ablations_are_sorted_by_the_sign_of_every_seed():
    rows = {
        "unchanged": {"bpd": [2.0], "less_unchanged": [0.0], "diverged": 0},
        "a_b": {"bpd": [2.1, 2.2], "less_unchanged": [0.1, 0.2], "diverged": 0},
        "c": {"bpd": [1.9], "less_unchanged": [-0.1], "diverged": 1},
        "d": {"bpd": [1.9, 2.1], "less_unchanged": [-0.1, 0.1], "diverged": 0},
        "e": {"bpd": [], "less_unchanged": [], "diverged": 2},
    }
    worse, better, mixed, failed = report.ablation_sentences(rows)
    assert worse.startswith("- **Worse**")
    assert worse.endswith("a b (+0.100 … +0.200).")
    assert better.endswith("c (-0.100).")
    assert mixed.endswith("d (-0.100 … +0.100).")
    assert failed.endswith("c (1 of 2 seeds); e (2 of 2 seeds).")
    assert report.ablation_sentences({}) == []


def test_limits_name_what_was_not_run(results, claims):
    results["03_bpd_evaluation"]["numbers"]["seeds"] = {}
    text = "\n".join(report.limits(results, PUBLISHED, claims))
    assert all(e["claim"] in text for e in claims if e["rests_on"] == "nothing that was run")
    assert "Runs with several seeds: none" in text
    results["03_bpd_evaluation"]["numbers"]["seeds"] = {"msds1, laplace, scale 1": [1.0, 2.0]}
    text = "\n".join(report.limits(results, PUBLISHED, claims))
    assert "Runs with several seeds: MSDS1, Laplace, scale 1." in text


def test_origins_have_a_row_for_each_notebook(results):
    lines = report.origins(results).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == sorted(
        results.keys() - {"profile"}
    )


def test_published_values_keep_their_digits(results):
    table = report.bpd_table(results)
    assert f"| {PUBLISHED['bpd']['msds1']['gaussian']} |" in table


def test_figure_is_stored_and_shown_with_its_caption(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *parts: shown.extend(parts))
    figure = figures.generation([np.zeros((1, 4, 4, 3))])
    report.show(tmp_path, "fig07_x", figure, [{"a": 1}], "**What it is.** More.")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fig07_x.csv",
        "fig07_x.pdf",
        "fig07_x.png",
    ]
    picture, caption = shown
    assert picture.alt == "What it is"
    assert caption.data == "**Figure 7.** **What it is.** More. *Data: `fig07_x.csv`.*"
    assert not figures.plt.fignum_exists(figure.number)


def test_titles():
    assert title("msds1_laplace") == "MSDS1, Laplace"
    assert title("msds2_gaussian_shipped") == "MSDS2, Gaussian, shipped"
