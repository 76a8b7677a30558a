# SPDX-License-Identifier: Apache-2.0
"""Laws of the SSIM loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses.ssim_loss import SSIMLoss

from progressive_cascade.losses import SSIMLoss3D
from progressive_cascade.losses.ssim import gaussian_taps, local_mean


def _pair(*shape: int, dtype: torch.dtype = torch.float32, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """A blocky volume in [0, 1] and a noisy copy."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(shape[0], 1, 4, 4, 4, generator=generator)
    target = torch.nn.functional.interpolate(coarse, shape[2:])
    prediction = (target + noise * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    return prediction.to(dtype), target.to(dtype)


def test_ssim_of_equal_volumes_is_zero() -> None:
    """Nothing is lost on the truth itself."""
    _, target = _pair(1, 1, 16, 16, 16)
    assert SSIMLoss3D()(target, target).item() == pytest.approx(0, abs=1e-6)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    """Without contrast only (2ab + c1) / (a² + b² + c1) is left."""
    a, b, c1 = 0.25, 0.75, 1e-4
    loss = SSIMLoss3D()(torch.full((1, 1, 12, 12, 12), a), torch.full((1, 1, 12, 12, 12), b))
    assert loss.item() == pytest.approx(1 - (2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 24, 17, 50), (1, 1, 11, 44, 12)])
def test_ssim_equals_monai(shape: tuple[int, ...]) -> None:
    """Value and gradient are those of MONAI's dense kernel, on any shape and batch."""
    prediction, target = _pair(*shape)
    ours, theirs = prediction.clone().requires_grad_(), prediction.clone().requires_grad_()
    loss = SSIMLoss3D()(ours, target)
    reference = SSIMLoss(spatial_dims=3, data_range=1.0, win_size=11, kernel_type="gaussian")(theirs, target)
    loss.backward()
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    assert ours.grad is not None and theirs.grad is not None
    assert (ours.grad - theirs.grad).abs().max() < 1e-4 * theirs.grad.abs().max()


def test_ssim_scales_with_data_range() -> None:
    """HU with their data_range score as the unit scale does."""
    prediction, target = _pair(1, 1, 14, 14, 14)
    unit = SSIMLoss3D(data_range=1.0)(prediction, target)
    assert SSIMLoss3D(data_range=2048.0)(2048 * prediction, 2048 * target).item() == pytest.approx(
        unit.item(), abs=1e-5
    )


def test_ssim_gradient_is_the_derivative() -> None:
    """Finite differences agree with backward, and again with backward of backward."""
    prediction, target = _pair(1, 1, 4, 3, 5, dtype=torch.float64)
    loss = SSIMLoss3D(win_size=3)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), prediction)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), prediction, atol=1e-4)


def test_local_mean_transpose_is_the_adjoint() -> None:
    """<G x, y> = <x, Gᵀ y>, across the borders of the blocks."""
    generator = torch.Generator().manual_seed(1)
    taps = gaussian_taps(11, 1.5)
    x = torch.randn(1, 75, 13, 44, dtype=torch.float64, generator=generator, requires_grad=True)
    means = local_mean(x, taps)
    y = torch.randn(means.shape, dtype=torch.float64, generator=generator)
    (transposed,) = torch.autograd.grad(means, x, y)
    assert (means * y).sum().item() == pytest.approx((x * transposed).sum().item(), rel=1e-10)


def test_ssim_ignores_windows_with_invalid_centre() -> None:
    """An error that only windows with invalid centres see costs nothing."""
    _, target = _pair(1, 1, 40, 12, 12)
    prediction = target.clone()
    prediction[:, :, :10] = 0
    valid = torch.zeros_like(target)
    valid[:, :, 15:] = 1  # the window reaches 5 voxels: centres from 15 on see nothing below 10
    loss = SSIMLoss3D()
    assert loss(prediction, target).item() > 0.01
    assert loss(prediction, target, valid=valid).item() == pytest.approx(0, abs=1e-6)


def test_ssim_all_valid_equals_no_mask() -> None:
    """A mask of ones changes nothing, a mask of zeros leaves nothing."""
    prediction, target = _pair(2, 1, 15, 13, 12)
    loss = SSIMLoss3D()
    masked = loss(prediction, target, valid=torch.ones_like(target))
    assert masked.item() == pytest.approx(loss(prediction, target).item(), abs=1e-6)
    assert loss(prediction, target, valid=torch.zeros_like(target)).item() == 0


def test_ssim_is_computed_in_full_precision_under_autocast() -> None:
    """Autocast around the loss does not change it."""
    prediction, target = _pair(1, 1, 16, 16, 16)
    loss = SSIMLoss3D()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(prediction, target)
    assert inside.dtype == torch.float32
    assert inside.item() == loss(prediction, target).item()


def test_ssim_refuses_small_volumes_and_bad_windows() -> None:
    """Errors name the argument."""
    small = torch.zeros(1, 1, 10, 16, 16)
    with pytest.raises(ValueError, match="prediction must measure at least 11"):
        SSIMLoss3D()(small, small)
    with pytest.raises(ValueError, match="target must have prediction's shape"):
        SSIMLoss3D()(torch.zeros(1, 1, 12, 12, 12), torch.zeros(1, 1, 12, 12, 13))
    with pytest.raises(ValueError, match="win_size must be odd"):
        SSIMLoss3D(win_size=10)
    with pytest.raises(ValueError, match="data_range must be positive"):
        SSIMLoss3D(data_range=0)
