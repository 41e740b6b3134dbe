"""Factors of pictures, and the score of their separation where it is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rgflow_core import msds
from study import factors, separation


def test_known_factors_add_up_to_the_targets():
    labels = np.random.default_rng(0).uniform(0, 200, (6, 4, 4, 6))
    wanted = factors.targets(labels)
    split = separation.known_factors("msds1", labels)
    assert list(split) == ["global colour", "local position", "local angle", "local colour"]
    colour = split["local colour"].reshape(6, 3, 4, 4) + split["global colour"].reshape(6, 3, 1, 1)
    assert torch.allclose(colour, wanted[:, 4:], atol=1e-6)
    angle = separation.known_factors("msds2", labels)
    assert next(iter(angle)) == "global angle"
    assert torch.allclose(angle["local colour"].reshape(6, 3, 4, 4), wanted[:, 4:])


def changes(*rows):
    names = ("global colour", "local position", "local angle")
    return [{n: torch.tensor([v, v]) for n, v in zip(names, row, strict=True)} for row in rows]


def test_score_at_its_ends():
    assert separation.score(changes((0, 1, 2), (3, 0, 0)))["value"] == pytest.approx(1)
    assert separation.score(changes((1, 2, 3), (2, 4, 6)))["value"] == pytest.approx(0)
    assert separation.score(changes((1, 1, 1), (3, 1, 1)))["value"] == pytest.approx(0.25)


def test_interval_of_the_score_is_that_of_the_spread_over_pictures():
    same = separation.score(changes((1, 1, 1), (3, 1, 1)))
    assert same["low"] == same["high"] == pytest.approx(same["value"])
    rows = [{k: torch.rand(50) for k in ("global colour", "local angle")} for _ in range(3)]
    spread = separation.score(rows)
    assert 0 <= spread["low"] < spread["value"] < spread["high"] <= 1


def test_the_networks_readings_are_split_as_the_labels_are():
    labels = msds.labels("msds2", "test", 0, 2)
    net = SimpleNamespace(outputs=lambda _: factors.targets(labels))
    read = separation.read_factors(net, "msds2", None)
    known = separation.known_factors("msds2", labels)
    assert all(torch.equal(read[name], known[name]) for name in known)
