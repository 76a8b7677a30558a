# SPDX-License-Identifier: Apache-2.0
"""Laws of the data-consistency layer, its solver and the agreement score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.consistency import (
    DataConsistency,
    agreement,
    estimate_noise,
    shrink_radiographs,
    shrink_weights,
    solve_consistency,
)
from progressive_cascade.projector import project

BEAM = ConeBeam(detector_shape=(24, 24), pixel_spacing=(18.0, 18.0))
SIZE, SPACING = 12, 358.4 / 12


def _problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.as_tensor(BEAM.projection_matrices(), dtype=dtype)[None]
    affines = torch.as_tensor(volume_affine((SIZE,) * 3, SPACING), dtype=dtype)[None]
    truth = 0.02 * torch.rand(1, 1, SIZE, SIZE, SIZE, generator=generator, dtype=dtype)
    y = project(truth, matrices, affines, BEAM.detector_shape)
    return truth, y, matrices, affines


def test_solver_explains_the_radiographs():
    """With a small λ the residual falls below 1 %, from no volume at all (rays that graze a corner come last)."""
    _, y, matrices, affines = _problem()
    start = torch.zeros(1, 1, SIZE, SIZE, SIZE, dtype=torch.float64)
    x = solve_consistency(start, y, matrices, affines, torch.tensor(1e-3, dtype=torch.float64), 200)
    residual = (project(x, matrices, affines, BEAM.detector_shape) - y).norm() / y.norm()
    assert residual < 1e-2


def test_solver_equals_the_closed_form():
    """x + Aᵀ(AAᵀ + λI)⁻¹(y - Ax), with A written out as a matrix."""
    truth, y, matrices, affines = _problem()
    a, start, lam = _matrix(matrices, affines), 0.5 * truth, 50.0
    rhs = y.flatten() - a @ start.flatten()
    expected = start.flatten() + a.T @ torch.linalg.solve(a @ a.T + lam * torch.eye(len(a), dtype=torch.float64), rhs)
    solved = solve_consistency(start, y, matrices, affines, torch.tensor(lam, dtype=torch.float64), 300)
    torch.testing.assert_close(solved.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_solver_with_weights_equals_the_normal_equations():
    """(I + Aᵀ W A / λ) z = x + Aᵀ W y / λ, with A written out and weights between 0 and 2."""
    truth, y, matrices, affines = _problem()
    a, start, lam = _matrix(matrices, affines), 0.5 * truth, 50.0
    weights = (2.5 * torch.rand(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5).clamp(
        0
    )
    weighted = a.T * weights.flatten()
    left = torch.eye(SIZE**3, dtype=torch.float64) + weighted @ a / lam
    expected = torch.linalg.solve(left, start.flatten() + weighted @ y.flatten() / lam)
    lam_tensor = torch.tensor(lam, dtype=torch.float64)
    solved = solve_consistency(start, y, matrices, affines, lam_tensor, 400, weights=weights)
    torch.testing.assert_close(solved.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_masked_pixels_change_nothing():
    """Whatever a pixel of weight 0 holds, the solution, the residual and the agreement are the same."""
    layer, _, y, matrices = _layer_and_volume()
    volume, weights = torch.full((1, 1, SIZE, SIZE, SIZE), 0.4), torch.ones_like(y)
    weights[:, 0, 5:14, 7:11] = 0
    spoilt = torch.where(weights > 0, y, torch.full_like(y, 9.0))
    for call in (layer.residual, lambda *args: layer(args[0], args[1], args[2], None, args[3])):
        torch.testing.assert_close(call(volume, spoilt, matrices, weights), call(volume, y, matrices, weights))
    assert not torch.allclose(layer(volume, spoilt, matrices), layer(volume, y, matrices))
    zero = np.zeros(y.shape[1:])
    scores = [agreement(zero, image[0].numpy(), ("pa", "left_lateral"), weights[0].numpy()) for image in (spoilt, y)]
    assert scores[0] == scores[1]


def test_shrunk_radiograph_averages_the_pixels_that_count():
    """A block of four pixels, one of weight 0, is the mean of three, and weighs three quarters."""
    image, weights = torch.tensor([[[[1.0, 2.0], [3.0, 50.0]]]]), torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    small, _ = shrink_radiographs(image, torch.zeros(1, 1, 3, 4), 1, weights)
    assert small.item() == pytest.approx(2.0)
    assert shrink_weights(weights, 1).item() == pytest.approx(0.75)


def _matrix(matrices: torch.Tensor, affines: torch.Tensor) -> torch.Tensor:
    """A written out (pixels, voxels)."""
    columns = torch.eye(SIZE**3, dtype=torch.float64).reshape(-1, 1, SIZE, SIZE, SIZE)
    n = len(columns)
    return project(columns, matrices.expand(n, -1, -1, -1), affines.expand(n, 4, 4), (24, 24)).reshape(n, -1).T


def _layer_and_volume():
    truth, y, matrices, _ = _problem(torch.float32)
    return DataConsistency(SIZE, SPACING), truth, y, matrices


def test_solver_moves_towards_the_truth():
    """Every consistent volume closer to the radiographs is no further from the truth: a projection contracts."""
    truth, y, matrices, affines = _problem()
    start = truth + 0.005 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solved = solve_consistency(start, y, matrices, affines, torch.tensor(1.0, dtype=torch.float64), 20)
    assert (solved - truth).norm() < (start - truth).norm()


def test_solver_leaves_a_consistent_volume_alone():
    """Zero residual means zero step, not 0 / 0."""
    truth, y, matrices, affines = _problem()
    solved = solve_consistency(truth, y, matrices, affines, torch.tensor(1.0, dtype=torch.float64), 3)
    torch.testing.assert_close(solved, truth)


def test_solver_is_differentiable_in_everything():
    """gradcheck through two conjugate-gradient steps, in the volume, the radiographs and λ."""
    beam = ConeBeam(detector_shape=(6, 6), pixel_spacing=(70.0, 70.0))
    matrices = torch.as_tensor(beam.projection_matrices())[None]
    affines = torch.as_tensor(volume_affine((3, 3, 3), 100.0))[None]
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1, 1, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = (100 * torch.rand(1, 2, 6, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    lam = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: solve_consistency(args[0], args[1], matrices, affines, args[2], 2), (x, y, lam)
    )


def test_layer_skips_uncalibrated_samples():
    """Sample by sample: what is not calibrated passes through unchanged."""
    layer = DataConsistency(SIZE, SPACING)
    volume = torch.rand(2, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    matrices = torch.as_tensor(BEAM.projection_matrices()).float().expand(2, -1, -1, -1)
    out = layer(volume, torch.full((2, 2, 24, 24), 3.0), matrices, torch.tensor([1.0, 0.0]))
    assert torch.equal(out[1], volume[1])
    assert not torch.allclose(out[0], volume[0], atol=1e-3)


def test_layer_keeps_the_hu_range():
    """Whatever the radiographs say, the result stays within vacuum and 1024 HU."""
    layer = DataConsistency(SIZE, SPACING)
    volume = torch.rand(1, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    matrices = torch.as_tensor(BEAM.projection_matrices()).float()[None]
    out = layer(volume, torch.full((1, 2, 24, 24), 100.0), matrices)
    assert out.min() >= 0 and out.max() <= 1 + 1e-6


def test_shrunk_radiographs_keep_their_geometry():
    """A world point lands in the same place of the detector before and after averaging."""
    matrices = torch.as_tensor(ConeBeam().projection_matrices()).float()[None]
    image, small = shrink_radiographs(torch.rand(1, 2, 512, 512), matrices, 128)
    point = torch.tensor([30.0, -40.0, 50.0, 1.0])
    before, after = matrices[0, 0] @ point, small[0, 0] @ point
    assert image.shape == (1, 2, 128, 128)
    torch.testing.assert_close((before[:2] / before[2] + 0.5) / 4, after[:2] / after[2] + 0.5)


def test_agreement_of_equal_radiographs_is_perfect():
    """No residual, infinite PSNR; and a known residual is what it says."""
    measured = np.full((2, 4, 4), 2.0)
    perfect = agreement(measured, measured, ("pa", "left_lateral"))
    assert perfect["pa"] == {"relative_residual": 0.0, "psnr_db": float("inf")}
    off = agreement(measured * 1.1, measured, ("pa", "left_lateral"))["left_lateral"]
    assert off["relative_residual"] == pytest.approx(0.1)
    assert off["psnr_db"] == pytest.approx(20.0)


def test_noise_is_estimated_from_the_radiographs():
    """White noise on smooth radiographs is found to a few percent; the noisier view counts."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 3, 128)[:, None] * torch.linspace(0, 1, 128)
    image = torch.stack((smooth, smooth))[None].repeat(2, 1, 1, 1)
    noise = torch.randn(image.shape, generator=generator) * torch.tensor([[0.01, 0.02], [0.05, 0.03]])[..., None, None]
    torch.testing.assert_close(estimate_noise(image + noise), torch.tensor([0.02, 0.05]), rtol=0.05, atol=0)
