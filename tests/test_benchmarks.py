"""The benchmarks' comparator computes the same function, and the counts are the facts'."""

import pytest
import torch
from support import lattice_normal, small_flow

from rgflow_core import LEAN, RGFlow, RGFlowConfig
from study import benchmarks


@pytest.mark.parametrize("first_parity", ["even", "odd"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_comparator_computes_the_same_function(first_parity, channels):
    flow = small_flow(
        image_size=16, channels=channels, subnet="published", first_parity=first_parity, mlp_depth=2
    )
    theirs = benchmarks.PublishedWay(flow).double()
    theirs = theirs.train()
    y = lattice_normal(flow, 3)
    (z, log_det), (z_theirs, log_det_theirs) = flow(y), theirs(y)
    torch.testing.assert_close(z_theirs, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_theirs, log_det, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(theirs.inverse(z), y, rtol=1e-8, atol=1e-8)
    # And the same gradient.
    (z.square().sum() - log_det.sum()).backward()
    (z_theirs.square().sum() - log_det_theirs.sum()).backward()
    ours = flow.levels[0].decimator.couplings[0].subnet.linears[0][0].bias.grad
    plain = theirs.layers[0].s[0].res_blocks[0][1].bias.grad
    torch.testing.assert_close(plain, ours[0], rtol=1e-8, atol=1e-10)


def test_operations_of_the_published_model():
    with torch.device("meta"):
        flow = RGFlow(RGFlowConfig())
    assert benchmarks.flops_per_image(flow) / 1e9 == pytest.approx(6.774, abs=2e-3)


def test_a_race_reports_the_ratio_of_its_pairs(monkeypatch):
    def ours():
        return "ours"

    taken = {"ours": 1.0, "theirs": 2.0}
    monkeypatch.setattr(benchmarks, "seconds", lambda run, _: taken.get(run(), 1e-3))
    result = benchmarks.race(ours, lambda: "theirs", pairs=3)
    assert {key: result[key] for key in taken} == taken
    assert result["peak"] == 2 * 8192 * 512 * 512 / 1e-3
    assert result["speedup"] == pytest.approx({"value": 2, "low": 2, "high": 2, "n": 3})


def test_tasks_leave_the_weights_alone():
    flow = RGFlow(RGFlowConfig(image_size=8, coupling_layers=1, **LEAN))
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    for run in benchmarks.tasks(flow, torch.randn(2, 3, 8, 8)).values():
        run()
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-9)
