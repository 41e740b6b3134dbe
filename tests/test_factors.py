"""The network that reads factors: what it is asked, what it learns, and its file."""

import numpy as np
import pytest
import torch
from support import said_by

from rgflow_core import checkpoints, msds
from study import factors


@pytest.fixture(scope="module")
def pictures():
    labels = msds.labels("msds1", "train", 0, 600)
    images = torch.from_numpy(msds.render(labels)).permute(0, 3, 1, 2).contiguous()
    return images, labels


@pytest.fixture(scope="module")
def net(pictures):
    return factors.fit(*pictures, epochs=6, batch=20)


def test_targets_are_where_the_ellipse_is():
    labels = msds.labels("msds2", "test", 0, 1)
    wanted = factors.targets(labels)
    x, y, angle, *colour = labels[0, 2, 1]  # third column, second row
    row, column = 1, 2
    twice = np.radians(2 * angle)
    expected = [x - 16, y - 8, np.sin(twice), np.cos(twice), *(np.array(colour) / 127.5 - 1)]
    assert wanted[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_it_learns_what_the_labels_say(net, pictures):
    images, labels = pictures
    accuracy = factors.r_squared(net, images, labels)
    assert accuracy.keys() == set(factors.FACTORS)
    assert min(accuracy.values()) > 0.5
    wrong = factors.r_squared(net, images, labels[::-1].copy())
    assert max(wrong.values()) < 0.2


def test_files(net, tmp_path):
    path = tmp_path / "net.safetensors"
    assert "python -m study.factors" in said_by(factors.load, path)
    checkpoints.write_tensors(path, {"seed": "0"}, net.state_dict())
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(factors.load(path)(image), net(image))
