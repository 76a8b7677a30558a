# SPDX-License-Identifier: Apache-2.0
"""Laws of the L1, gradient and reprojection losses and of their weighted sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.attenuation import hu_to_mu, unit_to_hu
from progressive_cascade.losses import (
    CascadeLoss,
    GradientLoss,
    MaskedL1Loss,
    MaskedMSELoss,
    Reprojection,
    ReprojectionLoss,
)
from progressive_cascade.losses.perceptual import VGG16Trunk

_SIZE = 16
_BEAM = ConeBeam(detector_shape=(24, 20), pixel_spacing=(18.0, 21.5))
_AFFINE = volume_affine((_SIZE, _SIZE, _SIZE), 358.4 / _SIZE)


def _volumes(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Prediction and truth in [0.1, 0.9], where no clipping stops a gradient."""
    generator = torch.Generator().manual_seed(0)
    first, second = 0.1 + 0.8 * torch.rand(2, batch, 1, _SIZE, _SIZE, _SIZE, generator=generator)
    return first, second


def _radiographs(volume: Tensor) -> Tensor:
    return line_integrals(hu_to_mu(unit_to_hu(volume)), _BEAM, affine=_AFFINE)


def _reprojection(image: Tensor, calibrated: bool | Tensor = True) -> Reprojection:
    batch = len(image)
    matrices = torch.from_numpy(_BEAM.projection_matrices()).expand(batch, -1, -1, -1)
    return Reprojection(image, matrices, torch.from_numpy(_AFFINE).expand(batch, -1, -1), calibrated)


def _reprojection_loss(volume: Tensor, image: Tensor, calibrated: bool | Tensor = True) -> Tensor:
    known = _reprojection(image, calibrated)
    return ReprojectionLoss()(volume, image, matrices=known.matrices, affine=known.affine, calibrated=calibrated)


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the perceptual trunk."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.save(VGG16Trunk().state_dict(), path)
    return path


@pytest.mark.parametrize("loss", [MaskedL1Loss(), MaskedMSELoss(), GradientLoss()])
def test_loss_of_equal_volumes_is_zero(loss: torch.nn.Module) -> None:
    """Nothing is lost on the truth itself."""
    _, target = _volumes()
    assert loss(target, target).item() == 0


def test_l1_and_mse_are_means_over_valid_voxels() -> None:
    """Two errors of 1 and 3, of which only the first is valid among two valid voxels: 1 / 2, squared or not."""
    target = torch.zeros(1, 1, 2, 2, 2)
    prediction, valid = target.clone(), target.clone()
    prediction[0, 0, 0, 0, 0], prediction[0, 0, 1, 1, 1] = 1, -3
    valid[0, 0, 0] = torch.tensor([[1, 1], [0, 0]])
    assert MaskedL1Loss()(prediction, target).item() == pytest.approx(4 / 8)
    assert MaskedL1Loss()(prediction, target, valid=valid).item() == pytest.approx(1 / 2)
    assert MaskedMSELoss()(prediction, target).item() == pytest.approx(10 / 8)
    assert MaskedMSELoss()(prediction, target, valid=valid).item() == pytest.approx(1 / 2)


def test_gradient_loss_of_a_ramp_is_its_slope() -> None:
    """A ramp of 0.02 a voxel along y against a flat truth: 0.02 on one axis of three; an offset costs nothing."""
    target = torch.zeros(1, 1, 5, 6, 7)
    ramp = 0.02 * torch.arange(6.0).view(1, 1, 1, 6, 1).expand_as(target)
    assert GradientLoss()(ramp, target).item() == pytest.approx(0.02 / 3)
    assert GradientLoss()(ramp, ramp + 0.5).item() == pytest.approx(0, abs=1e-7)


def test_gradient_loss_ignores_differences_with_invalid_voxels() -> None:
    """A wrong invalid voxel spoils none of the differences it takes part in."""
    _, target = _volumes(1)
    prediction, valid = target.clone(), torch.ones_like(target)
    prediction[0, 0, 4, 5, 6] += 0.5
    valid[0, 0, 4, 5, 6] = 0
    assert GradientLoss()(prediction, target).item() > 0
    assert GradientLoss()(prediction, target, valid=valid).item() == 0


def test_reprojection_of_the_truth_is_zero() -> None:
    """A volume explains the radiographs made of it, and no others."""
    prediction, target = _volumes()
    image = _radiographs(target)
    assert _reprojection_loss(target, image).item() == pytest.approx(0, abs=1e-5)
    assert _reprojection_loss(prediction, image).item() > 0.01


def test_reprojection_of_an_offset_is_the_offset() -> None:
    """The loss is in units of line integrals."""
    _, target = _volumes()
    assert _reprojection_loss(target, _radiographs(target) + 0.25).item() == pytest.approx(0.25, rel=1e-4)


def test_uncalibrated_reprojection_ignores_scale_and_offset() -> None:
    """A radiograph known up to scale and offset is fitted, per view; one flag per sample decides."""
    _, target = _volumes()
    image = _radiographs(target)
    scale = torch.tensor([[0.1, 3.0], [0.5, 2.0]]).view(2, 2, 1, 1)
    unknown = scale * image - 1.5
    assert _reprojection_loss(target, unknown, calibrated=False).item() == pytest.approx(0, abs=1e-4)
    mixed = torch.stack((image[0], unknown[1]))
    assert _reprojection_loss(target, mixed, calibrated=torch.tensor([True, False])).item() == pytest.approx(
        0, abs=1e-4
    )
    assert _reprojection_loss(target, mixed, calibrated=torch.tensor([False, True])).item() > 0.1


def test_uncalibrated_reprojection_does_not_accept_negatives() -> None:
    """An inverted radiograph explains nothing: it is fitted by a constant."""
    _, target = _volumes(1)
    image = _radiographs(target)
    spread = (image - image.mean((-2, -1), keepdim=True)).abs().mean().item()
    assert _reprojection_loss(target, -image, calibrated=False).item() == pytest.approx(spread, rel=1e-3)


def test_reprojection_of_a_crop_uses_its_affine() -> None:
    """A crop with its own affine explains the radiographs of that crop."""
    _, target = _volumes(1)
    crop = target[:, :, 4:12, 3:13, 2:10]
    affine = _AFFINE.copy()
    affine[:3, 3] = (_AFFINE @ np.array([4, 3, 2, 1]))[:3]
    image = line_integrals(hu_to_mu(unit_to_hu(crop)), _BEAM, affine=affine)
    matrices = torch.from_numpy(_BEAM.projection_matrices())[None]
    loss = ReprojectionLoss()
    assert loss(crop, image, matrices=matrices, affine=torch.from_numpy(affine)[None]).item() == pytest.approx(
        0, abs=1e-5
    )
    assert loss(crop, image, matrices=matrices, affine=torch.from_numpy(_AFFINE)[None]).item() > 0.01


def test_reprojection_descends_to_the_truth() -> None:
    """A few steps against the gradient explain the radiographs better, calibrated or not."""
    prediction, target = _volumes(1)
    image = _radiographs(target)
    for calibrated in (True, False):
        volume = prediction.clone().requires_grad_()
        optimizer = torch.optim.Adam([volume], lr=0.01)
        values = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = _reprojection_loss(volume, image, calibrated)
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        assert values[-1] < 0.6 * values[0]


def test_cascade_reports_terms_and_their_weighted_sum(trunk_file: Path) -> None:
    """Every active term by name, unweighted; "loss" is the sum with the weights; gradients are finite."""
    weights = {"l1": 1.0, "mse": 3.0, "ssim": 0.5, "perceptual": 0.1, "gradient": 2.0, "reprojection": 0.25}
    prediction, target = _volumes()
    prediction.requires_grad_()
    loss = CascadeLoss(weights, perceptual_weights=trunk_file, perceptual_slices=1)
    terms = loss(prediction, target, valid=torch.ones_like(target), reprojection=_reprojection(_radiographs(target)))
    assert list(terms) == [*weights, "loss"]
    expected = sum(weight * terms[name].item() for name, weight in weights.items())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-6)
    terms["loss"].backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all() and prediction.grad.abs().sum() > 0
    assert loss.perceptual_weights_name == "random.pt"
    assert loss.state_dict() == {}


def test_cascade_terms_vanish_at_equality(trunk_file: Path) -> None:
    """Every term is zero on the truth, and its gradient there is finite."""
    _, target = _volumes(1)
    prediction = target.clone().requires_grad_()
    names = ("l1", "mse", "ssim", "perceptual", "gradient", "reprojection")
    loss = CascadeLoss(dict.fromkeys(names, 1.0), perceptual_weights=trunk_file, perceptual_slices=1)
    terms = loss(prediction, target, reprojection=_reprojection(_radiographs(target)))
    assert {name: round(value.item(), 4) for name, value in terms.items()} == dict.fromkeys((*names, "loss"), 0.0)
    terms["loss"].backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


def test_cascade_does_not_build_terms_without_weight() -> None:
    """A perceptual weight of 0 asks for no weights file."""
    loss = CascadeLoss({"l1": 1.0, "perceptual": 0.0}, perceptual_weights="absent.pt")
    assert list(loss.terms) == ["l1"]
    assert loss.perceptual_weights_name is None


def test_cascade_takes_half_precision_and_metadata_tensors_under_autocast() -> None:
    """What a trainer hands over: MetaTensors, a bfloat16 prediction, autocast on; out come plain float32 scalars."""
    prediction, target = _volumes()
    weights = {"l1": 1.0, "ssim": 1.0, "gradient": 1.0, "reprojection": 1.0}
    known = _reprojection(MetaTensor(_radiographs(target)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        valid = MetaTensor(torch.ones_like(target, dtype=torch.uint8))
        terms = CascadeLoss(weights)(prediction.bfloat16(), MetaTensor(target), valid=valid, reprojection=known)
    assert all(type(value) is Tensor and value.dtype == torch.float32 for value in terms.values())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"l1": 1.0, "lpips": 1.0}, "l1, mse, ssim, perceptual, gradient, reprojection, got 'lpips'"),
        ({"l1": -1.0}, "must not be negative, got l1=-1"),
        ({"l1": float("nan")}, "must not be negative, got l1=nan"),
        ({"l1": 0.0}, "must have a positive entry"),
        ({}, "must have a positive entry"),
    ],
)
def test_cascade_refuses_impossible_weights(weights: dict[str, float], message: str) -> None:
    """Unknown names are answered with the known ones."""
    with pytest.raises(ValueError, match=message):
        CascadeLoss(weights)


def test_losses_refuse_shapes_that_do_not_match() -> None:
    """Errors name the argument and both shapes."""
    volume, image = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match="valid must have prediction's shape"):
        MaskedL1Loss()(volume, volume, valid=volume[..., :3])
    with pytest.raises(ValueError, match="prediction must have shape"):
        GradientLoss()(volume[0], volume[0])
    with pytest.raises(ValueError, match="at least 2 voxels"):
        GradientLoss()(volume[..., :1], volume[..., :1])
    with pytest.raises(ValueError, match="reprojection must be given"):
        CascadeLoss({"reprojection": 1.0})(volume, volume)
    with pytest.raises(ValueError, match="matrices and affine must have shapes"):
        ReprojectionLoss()(volume, image, matrices=torch.zeros(1, 3, 3, 4), affine=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="image must have shape"):
        ReprojectionLoss()(volume, image[0], matrices=torch.zeros(1, 2, 3, 4), affine=torch.zeros(1, 4, 4))
