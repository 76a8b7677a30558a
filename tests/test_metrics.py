# SPDX-License-Identifier: Apache-2.0
"""Laws of the evaluation protocols, against scikit-image and formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from progressive_cascade.metrics import PROTOCOLS, body_mask, evaluate_volume, reprojection_psnr

_SHAPE = (38, 20, 26)


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth in HU, beyond every protocol's window at both ends, with empty slices at one end."""
    rng = np.random.default_rng(0)
    target = 900 * gaussian_filter(rng.standard_normal(_SHAPE), 1.5) / 0.05**0.5 - 200
    prediction = target + 150 * gaussian_filter(rng.standard_normal(_SHAPE), 1.0) + rng.normal(0, 40, _SHAPE)
    target[:3] = prediction[:3] = -1024
    assert target.min() < -1024 and target.max() > 1500
    return prediction, target


def _unit(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(hu, low, high) - low) / (high - low)


def test_native_matches_scikit_image(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """3-D PSNR, 3-D Gaussian SSIM and MAE on [-1024, 1024] HU."""
    prediction, target = (_unit(volume, -1024, 1024) for volume in volumes)
    scores = evaluate_volume(*volumes)
    assert scores["native_psnr_3d_db"] == pytest.approx(
        peak_signal_noise_ratio(target, prediction, data_range=1), abs=1e-6
    )
    ssim = structural_similarity(
        target, prediction, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert scores["native_ssim_3d"] == pytest.approx(ssim, abs=1e-6)
    assert scores["native_mae_hu"] == pytest.approx(2048 * np.abs(prediction - target).mean(), abs=1e-6)


def test_native_counts_valid_voxels_alone(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """PSNR and MAE over the mask, SSIM over windows with valid centre, body scores over body and mask."""
    rng = np.random.default_rng(1)
    valid, body = rng.random(_SHAPE) > 0.4, rng.random(_SHAPE) > 0.5
    prediction, target = (_unit(volume, -1024, 1024) for volume in volumes)
    scores = evaluate_volume(*volumes, valid=valid, body=body)
    error = (prediction - target)[valid]
    assert scores["native_psnr_3d_db"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-6)
    assert scores["native_mae_hu"] == pytest.approx(2048 * np.abs(error).mean(), abs=1e-6)
    inside = (prediction - target)[valid & body]
    assert scores["native_body_psnr_3d_db"] == pytest.approx(-10 * np.log10((inside**2).mean()), abs=1e-6)
    assert scores["native_body_mae_hu"] == pytest.approx(2048 * np.abs(inside).mean(), abs=1e-6)
    options = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    similarity = structural_similarity(target, prediction, **options)[1]
    inner = (slice(5, -5),) * 3
    assert scores["native_ssim_3d"] == pytest.approx(similarity[inner][valid[inner]].mean(), abs=1e-6)


def test_native_finds_the_body_where_none_is_given(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """The default is the body mask of the truth."""
    given = evaluate_volume(*volumes, body=body_mask(volumes[1]))
    assert evaluate_volume(*volumes) == given


@pytest.mark.parametrize("offset", [1000.0, 1024.0])
def test_x2ct_matches_the_published_formulas(volumes: tuple[np.ndarray, np.ndarray], offset: float) -> None:
    """Peak 4095 on integers that span 2500, 100 dB for empty slices, 2-D SSIM in 7×7 windows."""
    prediction, target = (_unit(volume + offset, 0, 2500) for volume in volumes)
    scores = evaluate_volume(*volumes, protocol="x2ct", hu_offset=offset)
    squared = ((prediction * 2500).astype(np.int32) - (target * 2500).astype(np.int32)).astype(float) ** 2
    psnr, ssim = [], []
    for axis in range(3):
        slices = []
        for index in range(_SHAPE[axis]):
            mse = np.take(squared, index, axis).mean()
            slices.append(100.0 if mse == 0 else 20 * np.log10(4095 / np.sqrt(mse)))
        psnr.append(np.mean(slices))
        ssim.append(structural_similarity(target, prediction, data_range=1.0, channel_axis=axis))
    expected = {
        "x2ct_mae_unit": np.abs(prediction - target).mean(),
        "x2ct_mse_unit": ((prediction - target) ** 2).mean(),
        "x2ct_cosine_unit": (prediction * target).sum() / np.sqrt((prediction**2).sum() * (target**2).sum()),
        "x2ct_mae_stored": np.sqrt(squared).mean(),
        "x2ct_mse_stored": squared.mean(),
        "x2ct_psnr_3d_db": 20 * np.log10(4095 / np.sqrt(squared.mean())),
        "x2ct_psnr_slicewise_db": np.mean(psnr),
        "x2ct_ssim_slicewise": np.mean(ssim),
    }
    assert scores == pytest.approx(expected, abs=1e-6)


def test_x2ct_peak_adds_4_29_db() -> None:
    """The same error scores 20·log10(4095 / 2500) more than at the peak of its own span."""
    target = np.zeros((8, 8, 8))
    scores = evaluate_volume(target + 25, target, protocol="x2ct")
    assert scores["x2ct_psnr_3d_db"] == pytest.approx(40 + 20 * math.log10(4095 / 2500), abs=0.01)


def test_perx2ct_matches_the_published_formulas(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """PSNR per slice as in x2ct; SSIM of floats at data_range 2, in 3-D windows because of the channel axis."""
    prediction, target = (_unit(volume + 1024, 0, 2500) for volume in volumes)
    scores = evaluate_volume(*volumes, protocol="perx2ct")
    ssim = structural_similarity(target[None], prediction[None], data_range=2.0, channel_axis=0)
    assert scores["perx2ct_ssim_3d_range2"] == pytest.approx(ssim, abs=1e-6)
    x2ct = evaluate_volume(*volumes, protocol="x2ct")
    assert scores["perx2ct_psnr_slicewise_db"] == x2ct["x2ct_psnr_slicewise_db"]
    assert set(scores) == {"perx2ct_ssim_3d_range2", "perx2ct_psnr_slicewise_db"}


def test_xmed_matches_scikit_image(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """scikit-image's defaults on [-1000, 1024] HU."""
    prediction, target = (_unit(volume, -1000, 1024) for volume in volumes)
    expected = {
        "xmed_psnr_3d_db": peak_signal_noise_ratio(target, prediction, data_range=1.0),
        "xmed_ssim_3d": structural_similarity(target, prediction, data_range=1.0),
    }
    assert evaluate_volume(*volumes, protocol="xmed") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_identical_volumes_score_best(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """PSNR inf, or 100 dB by the papers' rule; SSIM 1; no error. Every key carries the protocol's name."""
    scores = evaluate_volume(volumes[1], volumes[1], protocol=protocol)
    best = 100 if protocol in ("x2ct", "perx2ct") else math.inf
    for name, value in scores.items():
        assert name.startswith(f"{protocol}_")
        wanted = best if "psnr" in name else 0 if "mae" in name or "mse" in name else 1
        assert value == pytest.approx(wanted, abs=1e-12)


def test_scores_do_not_depend_on_the_container(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Arrays, tensors, and leading axes of length 1 are the same volume."""
    tensors = [torch.from_numpy(volume)[None, None] for volume in volumes]
    for protocol in PROTOCOLS:
        assert evaluate_volume(tensors[0], tensors[1], protocol=protocol) == evaluate_volume(
            *volumes, protocol=protocol
        )


def test_evaluate_refuses_unknown_protocols_and_shapes(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """An unknown protocol is answered with the known names."""
    with pytest.raises(ValueError, match="native, x2ct, perx2ct, xmed, got 'sparc'"):
        evaluate_volume(*volumes, protocol="sparc")
    with pytest.raises(ValueError, match="prediction_hu must have target_hu's shape"):
        evaluate_volume(volumes[0][1:], volumes[1])
    with pytest.raises(ValueError, match="target_hu must have shape"):
        evaluate_volume(volumes[0][0], volumes[1][0])
    with pytest.raises(ValueError, match="at least 11 voxels"):
        evaluate_volume(volumes[0][:10], volumes[1][:10])


def test_body_mask_is_the_largest_piece_with_its_holes() -> None:
    """Lungs are inside the body, a separate table is not; air around is not."""
    hu = np.full((20, 20, 8), -1000.0)
    hu[4:16, 4:14] = 40
    hu[7:10, 7:10] = -800  # lung, open above and below, closed in each axial slice
    hu[3:17, 17:18] = 100  # table
    expected = np.zeros(hu.shape, dtype=bool)
    expected[4:16, 4:14] = True
    assert np.array_equal(body_mask(hu), expected)
    from_tensor = body_mask(torch.from_numpy(hu))
    assert isinstance(from_tensor, torch.Tensor) and np.array_equal(from_tensor, expected)
    assert not body_mask(np.full((4, 4, 4), -1000.0)).any()
    with pytest.raises(ValueError, match="hu must have shape"):
        body_mask(hu[0])


def test_scores_without_a_body_are_nan() -> None:
    """An empty mask has no mean."""
    air = np.full((12, 12, 12), -1000.0)
    assert math.isnan(evaluate_volume(air, air)["native_body_mae_hu"])


def test_reprojection_psnr_takes_the_measured_maximum_as_data_range() -> None:
    """An error of a tenth of the maximum everywhere is 20 dB; none is inf."""
    measured = np.random.default_rng(0).random((1, 2, 8, 8))
    measured[0, 0, 0, 0] = 5.0
    assert reprojection_psnr(measured + 0.5, measured) == pytest.approx(20, abs=1e-6)
    assert reprojection_psnr(torch.from_numpy(measured), torch.from_numpy(measured)) == math.inf
    with pytest.raises(ValueError, match="predicted must have measured's shape"):
        reprojection_psnr(measured[:, :1], measured)
    with pytest.raises(ValueError, match="measured must be positive"):
        reprojection_psnr(measured, 0 * measured)
