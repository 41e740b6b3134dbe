"""What tables of results take from the records of other flows, real pictures and recipes."""

from itertools import product

import pytest
from support import ROOT, write_record

from rgflow_core.files import write_json
from study import comparisons, records, results

PLAN = records.plan(ROOT, path=records.PEERS)


def timed(ours: float, ratio: float, *latents: list) -> dict:
    return {"latents": latents, "speed": {"ours": ours, "speedup": {"value": ratio}}}


def table_of(root):
    return results.write(root / "results", "A4", comparisons.rows(root))


def test_flows_are_compared_by_seed_at_equal_pictures_and_minutes(planned):
    for seed, (lean, glow, fewer) in enumerate([(2.0, 3.0, 3.5), (2.2, 3.0, 3.7)], 1):
        write_record(planned, f"peer_lean_seed{seed}", lean, **timed(1.6, 1.0))
        latents = (["separation", None, "trained", seed / 4], ["radius", 0, "", None])
        write_record(planned, f"peer_glow_seed{seed}", glow, **timed(3.2, 3.0, *latents))
        write_record(planned, f"minutes_glow_seed{seed}", fewer)
    table = table_of(planned)
    glow = {"model": "msds1_glow"}
    assert results.number(table, "peer", **glow, factor="pictures", at=2) == 3.0
    assert results.number(table, "peer_mean", **glow, factor="minutes") == pytest.approx(3.6)
    batch = PLAN["peer_glow_seed1"].get("batch_size", 16)
    cost = results.number(table, "peer_cost", **glow)
    assert cost == pytest.approx(3 * 16 / batch)
    pictures, minutes = (
        results.number(table, "peer_run", **glow, factor=of, at="minutes")
        for of in ("pictures", "minutes")
    )
    assert minutes == pytest.approx(pictures * cost * 0.1 / 60), "of lean's best step of 16"
    assert results.number(table, "peer_separation", **glow, factor="trained") == 0.375
    assert not len(results.select(table, "peer_radius")), "nothing that is not finite"
    gaps = results.select(table, "peer_difference", factor="glow less lean").set_index("at")
    assert gaps["value"].to_dict() == pytest.approx({"pictures": 0.9, "minutes": 1.5})
    assert gaps.loc["pictures", "high"] - 0.9 == pytest.approx(38.19 * 0.1, abs=0.01), "of three"
    assert gaps.loc["minutes", "high"] == pytest.approx(1.5), "the less, by seed, is lean's"


def test_the_cost_of_a_prior_is_by_photograph(planned):
    for seed, shift in ((1, 0.0), (2, 0.2)):
        for name, bits in (("lean", [1.0, 2.0, 3.0]), ("laplace", [1.1, 2.2, 3.3 + shift])):
            name = f"photographs_{name}_seed{seed}"
            write_record(planned, name, 2.0, **timed(1.6, 1.0), by_photograph=bits)
    table = table_of(planned)
    pair = {"factor": "laplace less lean"}
    costs = results.select(table, "photograph", **pair).set_index("at")["value"].to_list()
    assert costs == pytest.approx([0.1, 0.2, 0.4])
    (mean,) = results.select(table, "photograph_mean").to_dict("records")
    assert (mean["value"], mean["n"]) == (pytest.approx(0.7 / 3), 3)


def test_flows_that_learn_the_noise_are_compared_without_it_too(planned):
    for name, learned, uniform in (("lean8", 2.0, 2.5), ("flat8", 2.1, 2.4)):
        more = timed(1.6, 1.0) | {"test_uniform_noise": {"bpd": uniform}}
        write_record(planned, f"fashion_mnist_{name}_seed1", learned, **more)
    table, pair = table_of(planned), {"model": "fashion", "factor": "flat8 less lean8"}
    assert results.number(table, "peer_difference", **pair) == pytest.approx(0.1)
    assert results.number(table, "peer_difference_uniform", **pair) == pytest.approx(-0.1)


def test_what_decimation_costs_where_blocks_do_not_meet_tiles(planned):
    bits = {"peer": (1.5, 1.4), "shifted": (1.7, 1.64)}
    for (start, pair), seed in product(bits.items(), (1, 2)):
        for name, value in zip(("lean8", "flat8"), pair, strict=True):
            value += 0.01 * seed * (name == "flat8" and start == "shifted")
            write_record(planned, f"{start}_{name}_seed{seed}", value, **timed(1.6, 1.0))
    rows = results.select(table_of(planned), "peer_shift").set_index("at")
    assert set(rows["factor"]) == {"flat8 less lean8"}
    assert rows["value"].to_dict() == pytest.approx({"shifted": -0.045, "less msds1": 0.055})
    wide = (rows["high"] - rows["value"]).tolist()
    assert wide == pytest.approx([25.45 * 0.005] * 2, rel=1e-3), "of two"
    gaps = results.select(table_of(planned), "peer_difference", factor="flat8 less lean8")
    assert set(gaps["model"]) == {"msds1"}


def test_steps_are_taken_from_the_step_before(planned):
    names = {"step_small_batch": 3.0, "slow_lr_0.03": 2.5, "slow_gain": 2.9}
    for name, bpd in names.items():
        write_record(planned, f"{name}_seed1", bpd)
    write_json(planned / records.FOLDER / "slow_lr_0.1_seed1.json", {"diverged": "at step 3"})
    table = table_of(planned)
    assert results.number(table, "step", factor="rate", at=1) == 12.5, "validation"
    (change,) = results.select(table, "step_change").to_dict("records")
    assert (change["factor"], change["value"]) == ("rate", -0.5)
    slow = results.select(table, "slow").set_index("factor")["value"].to_dict()
    assert slow == pytest.approx({"gain": -0.1, "lr_0.03": -0.5})


def test_the_published_network_is_among_the_models(planned):
    write_record(planned, "published_msds1_gaussian", 1.9)
    table = table_of(planned)
    model = {"model": "msds1_gaussian_published"}
    assert results.number(table, "bpd", **model, at="test") == 1.9
    pictures = results.number(table, "validation", "at", **model)
    plan = PLAN["published_msds1_gaussian"]
    assert pictures == plan["images_per_epoch"] * plan["epochs"]
    assert results.number(table, "validation", **model) == 11.9
    assert results.number(table, "parameters", **model) == 7


def test_the_steps_that_report_and_records_see():
    """The report says so of all changes but two (section 3.5)."""
    changes = [row for row in comparisons.rows(ROOT) if row["quantity"] == "step_change"]
    seen = {row["factor"] for row in changes if row["low"] * row["high"] > 0}
    assert seen == {*comparisons.STEPS} - {"published", "Muon", "order"}


def test_what_the_report_says_of_shifted_pictures():
    rows = [row for row in comparisons.rows(ROOT) if row["quantity"] == "peer_shift"]
    signs = {
        (r["factor"], r["at"]): (r["low"] > 0) - (r["high"] < 0)
        for r in rows
        if r["low"] is not None
    }
    assert signs == {
        ("flat8 less lean8", "shifted"): -1, ("flat8 less lean8", "less msds1"): 0,
        ("glow less lean", "shifted"): 0, ("glow less lean", "less msds1"): -1,
    }  # fmt: skip


def test_every_step_and_pair_is_planned():
    stems = {name.rpartition("_seed")[0] or name for name in PLAN}
    assert {*comparisons.STEPS.values(), "step_muon"} <= stems
    for pair in comparisons.PAIRS:
        of, less = pair.split(" less ")
        assert any(
            {s + of, other + less} <= stems for s, (*_, other) in comparisons.BUDGETS.items()
        )


@pytest.mark.parametrize("pair", ["glow less lean", "realnvp less lean", "flat8 less lean8"])
def test_equal_minutes_are_planned_by_the_costs_that_records_hold(pair):
    costs = {
        row["model"]: row["value"]
        for row in comparisons.rows(ROOT)
        if row["quantity"] == "peer_cost"
    }
    of, less = pair.split(" less ")
    sides = (PLAN[f"minutes_{of}_seed1"], PLAN[f"peer_{less}_seed1"])
    minutes = [
        side["epochs"] * side["images_per_epoch"] * costs[f"msds1_{flow}"]
        for side, flow in zip(sides, (of, less), strict=True)
    ]
    assert minutes[0] == pytest.approx(minutes[1], rel=0.03)
