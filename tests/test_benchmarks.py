"""The benchmarks' comparator computes the same function, and the counts are the facts'."""

import pytest
import torch
from support import close, lattice_normal, small_flow

from rgflow_core import RGFlow, RGFlowConfig
from study import benchmarks


@pytest.mark.parametrize(("parity", "channels"), [("even", 1), ("odd", 3)])
def test_the_comparator_computes_the_same_function_and_gradient(parity, channels):
    fields = {"image_size": 16, "channels": channels, "subnet": "published", "mlp_depth": 2}
    flow = small_flow(**fields, first_parity=parity)
    theirs = benchmarks.PublishedWay(flow).double()
    y, results = lattice_normal(flow, 3), []
    first = flow.levels[0].decimator.couplings[0].subnet.linears[0][0].bias
    same_one = theirs.layers[0].s[0].res_blocks[0][1].bias
    for way, bias in ((flow, first), (theirs, same_one)):
        z, log_det = way(y)
        (z.square().sum() - log_det.sum()).backward()
        results.append((z, log_det, bias.grad.reshape(-1, bias.shape[-1])[0]))
    for one, other in zip(*results, strict=True):
        close(one, other, 1e-9)
    close(theirs.inverse(results[0][0]), y, 1e-8)


def test_operations_of_the_published_model():
    with torch.device("meta"):
        flow = RGFlow(RGFlowConfig())
    assert benchmarks.flops_per_image(flow) / 1e9 == pytest.approx(6.774, abs=2e-3)


def test_a_race_reports_the_ratio_of_its_pairs(monkeypatch):
    taken = {"ours": 1.0, "theirs": 2.0}
    monkeypatch.setattr(benchmarks, "seconds", lambda run, _: taken.get(run(), 1e-3))
    result = benchmarks.race(lambda: "ours", lambda: "theirs", pairs=3)
    assert {key: result[key] for key in taken} == taken
    assert result["peak"] == 2 * 8192 * 512 * 512 / 1e-3
    assert result["speedup"] == pytest.approx({"value": 2, "low": 2, "high": 2, "n": 3})
