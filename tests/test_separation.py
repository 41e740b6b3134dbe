"""Probes, interventions and the score, where the answer is known."""

import numpy as np
import pytest
import torch
from support import TINY, randomise

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig
from study import factors, separation


def test_known_factors_add_up_to_the_targets():
    labels = np.random.default_rng(0).uniform(0, 200, (6, 4, 4, 6))
    wanted = factors.targets(labels)
    found = separation.known_factors("msds1", labels)
    assert list(found) == ["global colour", "local position", "local angle", "local colour"]
    colour = found["local colour"].reshape(6, 3, 4, 4) + found["global colour"].reshape(6, 3, 1, 1)
    assert torch.allclose(colour, wanted[:, 4:], atol=1e-6)
    angle = separation.known_factors("msds2", labels)
    assert next(iter(angle)) == "global angle"
    assert torch.allclose(angle["local colour"].reshape(6, 3, 4, 4), wanted[:, 4:])


def test_probe_finds_what_is_linear_and_nothing_else():
    torch.manual_seed(0)
    z = torch.randn(400, 20)
    values = {
        "linear": z[:, :3] @ torch.randn(3, 5) + 0.1 * torch.randn(400, 5),
        "nothing": torch.randn(400, 2),
        "square": z[:, :1] ** 2,
    }
    found = separation.probe(z, values)
    assert found["linear"]["value"] > 0.98
    assert found["linear"]["stderr"] < 0.01
    assert abs(found["nothing"]["value"]) < 0.1
    assert found["square"]["value"] < 0.3


def test_probe_with_more_latents_than_pictures():
    torch.manual_seed(0)
    z = torch.randn(200, 500)
    found = separation.probe(z, {"mean": z.mean(1, keepdim=True), "noise": torch.randn(200, 1)})
    assert found["noise"]["value"] < 0.2
    assert found["mean"]["stderr"] > 0


def changes(*rows):
    names = ("global colour", "local position", "local angle")
    return [{n: torch.tensor([v, v]) for n, v in zip(names, row, strict=True)} for row in rows]


def test_score_at_its_ends():
    assert separation.score(changes((0, 1, 2), (3, 0, 0)))["value"] == pytest.approx(1)
    assert separation.score(changes((1, 2, 3), (2, 4, 6)))["value"] == pytest.approx(0)
    assert separation.score(changes((1, 1, 1), (3, 1, 1)))["value"] == pytest.approx(0.25)


def test_interval_of_the_score_is_that_of_the_spread_over_pictures():
    same = separation.score(changes((1, 1, 1), (3, 1, 1)))
    assert same["low"] == same["high"] == same["value"]
    torch.manual_seed(0)
    rows = [{k: torch.rand(50) for k in ("global colour", "local angle")} for _ in range(3)]
    found = separation.score(rows)
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_intervention_on_the_identity_flow_changes_only_what_it_draws_anew():
    torch.manual_seed(0)
    model = PictureModel(RGFlow(RGFlowConfig(**TINY)), Prior("gaussian"))
    net, z = factors.FactorNet().eval(), torch.randn(4, 3, 32, 32)
    rows = separation.effects(separation.intervene(model, net, "msds1", z, 1.0, 0))
    assert len(rows) == 4
    assert all(row["global colour"]["value"] > 0 for row in rows)
    same = separation.intervene(model, net, "msds1", model.latents(4, 1.0, 3), 1.0, 3)
    assert all((v == 0).all() for row in same for v in row.values())


def test_mixtures_go_from_one_source_to_the_other():
    torch.manual_seed(0)
    model = PictureModel(randomise(RGFlow(RGFlowConfig(**TINY))), Prior("gaussian"))
    net, fine, coarse = factors.FactorNet().eval(), *(model.latents(3, 0.5, s) for s in (0, 1))
    rows = separation.resemblance(model, net, "msds2", fine, coarse)
    assert len(rows) == 5
    assert all(v == {"value": 1.0, "stderr": 0.0} for v in rows[0].values())
    assert all(v == {"value": 0.0, "stderr": 0.0} for v in rows[-1].values())
    assert all(v["stderr"] > 0 for v in rows[1].values())
