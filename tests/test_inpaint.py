"""Restoring patches: only what may move moves, and the loss pays off."""

import torch
from support import TINY, randomise

from rgflow_core import PictureModel, Prior, RGFlow, RGFlowConfig, cones, inpaint


def test_patch():
    assert inpaint.patch(8, 2).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_known_pixels_stay_and_the_patch_moves():
    torch.manual_seed(0)
    model = PictureModel(randomise(RGFlow(RGFlowConfig(**TINY))), Prior("gaussian"))
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    missing = inpaint.patch(32, 4)
    for local in (True, False):
        restored, facts = inpaint.restore(model, pictures, missing, local, steps=5)
        assert torch.equal(restored[..., ~missing], (pictures / 255)[..., ~missing])
        assert not torch.allclose(restored[..., missing], torch.tensor(128 / 255), atol=1e-3)
        assert facts["psnr"] > 0
    cone = cones.inference_cone(model.flow.config, missing)
    assert (
        inpaint.restore(model, pictures, missing, True, steps=0)[1]["variables"] == 3 * cone.sum()
    )
    assert facts["variables"] == 3 * 32 * 32


def test_more_steps_explain_the_known_pixels_better():
    torch.manual_seed(0)
    model = PictureModel(RGFlow(RGFlowConfig(**TINY)), Prior("gaussian"))
    flat = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    missing = inpaint.patch(32, 4)
    # The identity flow knows nothing of neighbours: the patch goes to the prior's mode, grey.
    restored, _ = inpaint.restore(model, flat, missing, True, steps=200)
    assert torch.allclose(restored[..., missing], torch.tensor(0.5), atol=0.02)
