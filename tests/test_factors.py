import numpy as np
import pytest
import torch

from rgflow_core import checkpoints, msds
from rgflow_core.errors import UserError
from study import factors, frechet


@pytest.fixture(scope="module")
def pictures():
    labels = msds.labels("msds1", "train", 0, 600)
    images = torch.from_numpy(msds.render(labels)).permute(0, 3, 1, 2).contiguous()
    return images, labels


@pytest.fixture(scope="module")
def net(pictures):
    return factors.fit(*pictures, epochs=6, batch=20, progress=False)


def test_targets_are_where_the_ellipse_is():
    labels = msds.labels("msds2", "test", 0, 1)
    wanted = factors.targets(labels)
    x, y, angle, red, _, _ = labels[0, 2, 1]  # third column, second row
    row, column = 1, 2
    assert wanted[0, :, row, column].tolist() == pytest.approx(
        [
            x - 16,
            y - 8,
            np.sin(np.radians(2 * angle)),
            np.cos(np.radians(2 * angle)),
            *(labels[0, 2, 1, 3:] / 127.5 - 1),
        ],
        abs=1e-5,
    )
    assert red == labels[0, 2, 1, 3]


def test_it_learns(net, pictures):
    found = factors.accuracy(net, *pictures)
    assert found.keys() == set(factors.FACTORS)
    assert all(value["r2"] > 0.5 for value in found.values())
    assert found["angle"]["median_error"] < 15  # 45 for a guess


def test_a_wrong_label_shows(net, pictures):
    images, labels = pictures
    wrong = factors.accuracy(net, images, labels[::-1].copy())
    assert max(value["r2"] for value in wrong.values()) < 0.2


def test_angles_wrap():
    assert factors.error(torch.tensor(179.0), torch.tensor(1.0), "angle") == 2
    assert factors.error(torch.tensor(179.0), torch.tensor(1.0), "x") == 178


def test_distance_is_scipys(net, pictures):
    from scipy.linalg import sqrtm

    real, fake = pictures[0][:300], pictures[0][300:].flip(1)
    a, b = net.features(real).double().numpy(), net.features(fake).double().numpy()
    cov = [np.cov(f, rowvar=False) for f in (a, b)]
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        cov[0] + cov[1] - 2 * sqrtm(cov[0] @ cov[1]).real
    )
    assert frechet.distance(net, real, fake) == pytest.approx(wanted, rel=1e-3)
    assert frechet.distance(net, real, real) < 1e-4 < frechet.distance(net, real, fake)


def test_fid_without_weights_says_so(tmp_path, pictures):
    with pytest.raises(UserError, match="is missing, so there is no FID; download it"):
        frechet.fid(pictures[0], pictures[0], tmp_path)


def test_files(net, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match=r"is missing; python -m study\.factors"):
        factors.load(path)
    checkpoints.write_tensors(path, {"seed": "0"}, net.state_dict())
    assert factors.card(path) == {"seed": "0"}
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(factors.load(path)(image), net(image))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        factors.load(path)
    checkpoints.write_tensors(path, {}, {"x": torch.zeros(1)})
    with pytest.raises(UserError, match="not a factor network"):
        factors.load(path)
