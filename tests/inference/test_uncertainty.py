# SPDX-License-Identifier: Apache-2.0
"""Laws of the uncertainty: its likelihood, its calibration, its weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.inference.uncertainty import (
    BLOCK,
    belongs_to,
    block_errors,
    calibration_factor,
    default_uncertainty,
    describe,
    gaussian_nll,
    interpolate_sigma,
    load_uncertainty,
    predict_sigma,
    remember_cascade,
)
from progressive_cascade.networks.uncertainty import MAX_SIGMA_HU, MIN_SIGMA_HU, NUM_INPUTS, UncertaintyHead
from progressive_cascade.training import uncertainty as train_uncertainty

BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))
GRID = 8


def _head(seed: int = 0) -> UncertaintyHead:
    """A network whose last layer is not zero."""
    torch.manual_seed(seed)
    head = UncertaintyHead()
    torch.nn.init.normal_(head.out.weight, std=0.5)
    return head.eval()


def _result(hu: np.ndarray, *, image: float = 3.0, reprojected: float = 3.0) -> Reconstruction:
    size = hu.shape[0]
    return Reconstruction(
        hu=hu.astype(np.int16),
        affine=volume_affine((size, size, size), 358.4 / size, (10.0, -20.0, 300.0)),
        agreement={},
        reprojected=np.full((2, 64, 64), reprojected, np.float32),
        image=np.full((2, 64, 64), image, np.float32),
        calibrated=True,
    )


def _random_result(seed: int = 0) -> Reconstruction:
    return _result(np.random.default_rng(seed).integers(-1000, 1000, (BLOCK * GRID,) * 3))


def test_sigma_is_positive_and_finite() -> None:
    """Whatever the inputs, sigma keeps its bounds; a fresh network starts in the middle of them."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e4):
        log_sigma = _head()(size * torch.randn(2, NUM_INPUTS, GRID, GRID, GRID, generator=generator))
        assert log_sigma.shape == (2, 1, GRID, GRID, GRID)
        assert log_sigma.isfinite().all()
        assert log_sigma.min() >= math.log(MIN_SIGMA_HU) and log_sigma.max() <= math.log(MAX_SIGMA_HU) + 1e-5
    fresh = UncertaintyHead()(torch.zeros(1, NUM_INPUTS, GRID, GRID, GRID))
    assert fresh.unique().tolist() == pytest.approx([0.5 * math.log(MIN_SIGMA_HU * MAX_SIGMA_HU)])


def test_every_weight_is_trained() -> None:
    """Each parameter gets a gradient, but for what hides behind zero-initialised residuals."""
    head = _head()
    for name, parameter in head.named_parameters():
        if "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    head(torch.randn(1, NUM_INPUTS, GRID, GRID, GRID)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_likelihood_is_least_at_the_true_sigma() -> None:
    """The negative log likelihood has its minimum where sigma is the root mean square error, block by block."""
    mse = torch.tensor([4.0, 900.0, 40000.0], dtype=torch.float64)
    log_sigma = (0.5 * mse.log()).requires_grad_()
    best = gaussian_nll(log_sigma, mse, torch.ones_like(mse))
    best.backward()
    assert log_sigma.grad is not None and log_sigma.grad.abs().max() < 1e-12
    for change in (-0.1, 0.1):
        assert gaussian_nll(log_sigma + change, mse, torch.ones_like(mse)) > best
    assert best.item() == pytest.approx(float(0.5 * mse.log().mean()) + 0.5)


def test_likelihood_counts_scanned_voxels_alone() -> None:
    """A block that was not scanned changes nothing; one scanned by half counts half."""
    log_sigma, mse, weight = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 9.0, 1e6]), torch.tensor([1.0, 0.5, 0.0])
    terms = log_sigma + mse / (2 * (2 * log_sigma).exp())
    expected = (terms[0] + 0.5 * terms[1]) / 1.5
    assert gaussian_nll(log_sigma, mse, weight).item() == pytest.approx(expected.item())


def test_calibration_makes_the_mean_squared_ratio_one() -> None:
    """With the factor applied, the weighted mean of error² / sigma² is 1, and the likelihood is no worse."""
    generator = torch.Generator().manual_seed(1)
    log_sigma = 3 + torch.randn(500, generator=generator)
    mse, weight = 1e4 * torch.rand(500, generator=generator), torch.rand(500, generator=generator)
    factor = calibration_factor(log_sigma, mse, weight)
    calibrated = log_sigma + math.log(factor)
    assert calibration_factor(calibrated, mse, weight) == pytest.approx(1, rel=1e-5)
    assert gaussian_nll(calibrated, mse, weight) <= gaussian_nll(log_sigma, mse, weight)
    with pytest.raises(ValueError, match="must be positive and finite"):
        calibration_factor(log_sigma, torch.zeros(500), weight)


def test_block_errors_are_means_over_scanned_voxels() -> None:
    """One wrong voxel of 64, one beyond the window, and a block that was not scanned, by hand."""
    hu, truth, valid = (np.full((8, 4, 4), value) for value in (100, 100, 1))
    hu[0, 0, 0] = 180
    truth[4, 0, 0], hu[4, 0, 0] = 3000, 1024
    valid[0, 1:, :] = 0
    mse, share = block_errors(hu, truth, valid)
    assert mse.dtype == torch.float32 and mse.shape == share.shape == (1, 1, 2, 1, 1)
    assert share.flatten().tolist() == [52 / 64, 1.0]
    assert mse.flatten().tolist() == pytest.approx([80**2 / 52, 0.0])
    mse, share = block_errors(hu, truth, np.zeros_like(valid))
    assert not share.any() and not mse.any()


def test_description_of_a_constant_reconstruction() -> None:
    """No texture, nothing unexplained, one grey value; the coordinates grow along their own axis; calibrated is 1."""
    inputs = describe(_result(np.zeros((32, 32, 32))), BEAM)
    assert inputs.shape == (1, NUM_INPUTS, GRID, GRID, GRID)
    mean, texture, pa, pa_rest, lateral, lateral_rest, *position, flag = inputs[0]
    assert (mean == 0.5).all() and not texture.any() and not pa_rest.any() and not lateral_rest.any()
    inside = (slice(1, -1),) * 3
    torch.testing.assert_close(pa[inside], torch.full_like(pa[inside], 0.6))
    torch.testing.assert_close(lateral[inside], torch.full_like(pa[inside], 0.6))
    for axis, values in enumerate(position):
        line = values.movedim(axis, 0)
        torch.testing.assert_close(line[:, 0, 0], (torch.arange(GRID) + 0.5) / GRID * 2 - 1)
    assert (flag == 1).all()


def test_description_shows_texture_and_what_is_unexplained() -> None:
    """A checkerboard of ±100 HU has that standard deviation; a radiograph brighter than explained is positive."""
    hu = 100 * (-1) ** np.indices((32, 32, 32)).sum(0)
    inputs = describe(_result(hu, image=3.0, reprojected=2.5), BEAM)
    torch.testing.assert_close(inputs[0, 1], torch.full((GRID,) * 3, 10 * 100 / 2048))
    assert (inputs[0, [3, 5], 1:-1, 1:-1, 1:-1] > 0).all()


def test_description_refuses_what_has_no_blocks() -> None:
    """A volume that is no cube of whole blocks is refused with its shape."""
    with pytest.raises(ValueError, match="multiple of 32 voxels"):
        describe(_result(np.zeros((30, 30, 30))), BEAM)


def test_prediction_is_deterministic_and_positive() -> None:
    """The same reconstruction gives the same sigma, one per voxel, float32."""
    head = _head()
    first, second = (predict_sigma(_random_result(), BEAM, head) for _ in range(2))
    assert first.dtype == np.float32 and first.shape == (32, 32, 32)
    assert (first > 0).all() and np.isfinite(first).all() and first.std() > 0
    np.testing.assert_array_equal(first, second)


def test_factor_scales_every_sigma() -> None:
    """The calibration multiplies sigma and changes nothing else."""
    head = _head()
    plain = predict_sigma(_random_result(), BEAM, head)
    head.scale.fill_(1.5)
    np.testing.assert_allclose(predict_sigma(_random_result(), BEAM, head), 1.5 * plain, rtol=1e-5)


def test_interpolation_keeps_a_constant() -> None:
    """Blocks of one sigma become voxels of that sigma."""
    sigma = interpolate_sigma(torch.full((1, 1, 2, 2, 2), math.log(50.0)))
    torch.testing.assert_close(sigma, torch.full((1, 1, 8, 8, 8), 50.0))


def test_weights_survive_their_file(tmp_path: Path) -> None:
    """Half precision keeps the file below 1.5 MB; factor and checkpoint's hash come back exactly."""
    head = _head()
    head.scale.fill_(1.2345)
    (tmp_path / "model.pt").write_bytes(b"cascade")
    (tmp_path / "other.pt").write_bytes(b"other")
    remember_cascade(head, tmp_path / "model.pt")
    train_uncertainty.save_head(head, tmp_path / "uncertainty.pt")
    assert (tmp_path / "uncertainty.pt").stat().st_size < 1.5e6
    loaded = load_uncertainty(tmp_path / "uncertainty.pt")
    assert loaded.scale == head.scale and not loaded.training
    assert belongs_to(loaded, tmp_path / "model.pt") and not belongs_to(loaded, tmp_path / "other.pt")
    expected = predict_sigma(_random_result(), BEAM, head)
    np.testing.assert_allclose(predict_sigma(_random_result(), BEAM, loaded), expected, rtol=0.05)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    """A file that is not there, or holds another network, is a user's error with its name."""
    with pytest.raises(UserError, match=r"nowhere\.pt must exist"):
        load_uncertainty(tmp_path / "nowhere.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt must hold the weights of an UncertaintyHead"):
        load_uncertainty(tmp_path / "foreign.pt")


def test_shipped_weights_load() -> None:
    """The bundle's weights fit the network and are calibrated."""
    if not default_uncertainty().is_file():
        pytest.skip(f"{default_uncertainty()} is not there: progressive_cascade.training.uncertainty writes it")
    head = load_uncertainty()
    assert 0.3 < float(head.scale) < 3 and head.cascade_sha256.any()
