"""Factors of pictures, and the score of their separation where it is known."""

import numpy as np
import pytest
import torch
from support import small_flow

from rgflow_core import PictureModel, Prior, msds
from study import factors, separation


def test_known_factors_add_up_to_the_targets():
    labels = np.random.default_rng(0).uniform(0, 200, (6, 4, 4, 6))
    wanted = factors.targets(labels)
    split = separation.split_factors("msds1", factors.targets(labels))
    assert list(split) == ["global colour", "local position", "local angle", "local colour"]
    colour = split["local colour"].reshape(6, 3, 4, 4) + split["global colour"].reshape(6, 3, 1, 1)
    assert torch.allclose(colour, wanted[:, 4:], atol=1e-6)
    angle = separation.split_factors("msds2", factors.targets(labels))
    assert next(iter(angle)) == "global angle"
    assert torch.allclose(angle["local colour"].reshape(6, 3, 4, 4), wanted[:, 4:])
    local, whole = (angle[f"{scope} angle"].unflatten(1, (2, -1)) for scope in ("local", "global"))
    turned = torch.atan2(*local.unbind(1)) + torch.atan2(*whole.unbind(1))
    assert torch.allclose(turned.sin(), wanted[:, 2].flatten(1), atol=1e-5)
    assert torch.allclose(turned.cos(), wanted[:, 3].flatten(1), atol=1e-5)


def known(set_name, shared, own, position):
    """Factors of pictures whose ellipses have ``own`` added to what a picture shares."""
    labels = np.zeros((len(shared), 4, 4, 6))
    labels[..., :2] = position + msds.TILE * np.stack(np.indices((4, 4)), -1)
    labels[..., 2:] = 100 + 40 * position[..., :1]  # what is not shared goes with the position
    columns = {"msds1": slice(3, 6), "msds2": slice(2, 3)}[set_name]
    labels[..., columns] = shared[:, None, None] + own
    return separation.split_factors(set_name, factors.targets(labels))


@pytest.mark.parametrize("set_name", msds.SETS)
def test_a_perfect_mixture_has_gone_all_the_way_in_the_global_factor_alone(set_name):
    random, width = np.random.default_rng(0), {"msds1": 3, "msds2": 1}[set_name]
    a, b = random.uniform(60, 180, (2, 300, width))
    own = random.uniform(0, 22, (2, 300, 2, 4, width))
    own, other = np.concatenate((own, -own), 2)  # own parts cancel
    place, elsewhere = random.integers(-1, 2, (2, 300, 4, 4, 2))
    start = known(set_name, a, own, place)
    end, mixture = known(set_name, b, other, elsewhere), known(set_name, b, own, place)
    for factor, value in mixture.items():
        way = end[factor] - start[factor]
        gone = ((value - start[factor]) * way).sum() / way.square().sum()
        assert gone.item() == pytest.approx(float(factor.startswith("global")), abs=1e-4)


def changes(*rows):
    names = ("global colour", "local position", "local angle")
    return [{n: torch.tensor([v, v]) for n, v in zip(names, row, strict=True)} for row in rows]


def test_score_at_its_ends():
    assert separation.score(changes((0, 1, 2), (3, 0, 0)))["value"] == pytest.approx(1)
    assert separation.score(changes((1, 2, 3), (2, 4, 6)))["value"] == pytest.approx(0)
    assert separation.score(changes((1, 1, 1), (3, 1, 1)))["value"] == pytest.approx(0.25)


def test_levels_are_drawn_anew_each_alone_unless_another_cut_is_given():
    model = PictureModel(small_flow(image_size=16), Prior("gaussian"))
    images = torch.arange(3 * 16**2).reshape(3, 1, 16, 16).remainder(251).byte()

    def pixels(x):
        return {"global": x.flatten(1)}

    def second_and_all(levels, fresh):
        return [[levels[0], fresh[1], levels[2]], fresh]

    alone, both = separation.intervene(model, images, pixels, cut=second_and_all)
    by_level = separation.intervene(model, images, pixels)
    assert len(by_level) == 3
    assert torch.equal(alone["global"], by_level[1]["global"])
    latents = model.flow.split(model.latents(3))
    whole = model.generate(model.flow.join(latents)).flatten(1)
    before = model.generate(model.infer(images)).flatten(1)
    unit = (before - before.roll(1, 0)).abs().mean()
    assert torch.allclose(both["global"], (whole - before).abs().mean(1) / unit)


def test_interval_of_the_score_is_that_of_the_spread_over_pictures():
    same = separation.score(changes((1, 1, 1), (3, 1, 1)))
    assert same["low"] == same["high"] == pytest.approx(same["value"])
    rows = [{k: torch.rand(50) for k in ("global colour", "local angle")} for _ in range(3)]
    spread = separation.score(rows)
    assert 0 <= spread["low"] < spread["value"] < spread["high"] <= 1
