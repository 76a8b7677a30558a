# SPDX-License-Identifier: Apache-2.0
"""Laws of the published protocols, against scikit-image and formulas written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from progressive_cascade.evaluation.metrics import (
    evaluate_volume,
)
from tests.support.scores import SHAPE, own_scores, similarity_map, slices_with, stored_volumes, unit_scale


@pytest.mark.parametrize("offset", [1000.0, 1024.0])
def test_x2ct_matches_the_published_formulas(volumes: tuple[np.ndarray, np.ndarray], offset: float) -> None:
    """Peak 4095 on integers that span 2500, 100 dB for empty slices, 2-D SSIM in 7×7 windows."""
    (predicted, first), (true, second) = (stored_volumes(volume, offset) for volume in volumes)
    prediction, target = predicted.astype(np.float64), true.astype(np.float64)
    scores = evaluate_volume(*volumes, protocol="x2ct", hu_offset=offset)
    squared = (first.astype(np.float64) - second) ** 2
    psnr, ssim = [], []
    for axis in range(3):
        slices = []
        for index in range(SHAPE[axis]):
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
    assert max(slices) < 100 and min(psnr) < psnr[0]  # empty slices lie across the first axis alone
    assert own_scores(scores, "x2ct") == pytest.approx(expected, abs=1e-6)


def test_x2ct_cuts_integers_in_float32() -> None:
    """Whole HU do not all survive the way through [0, 1]: what int32 cuts off is the archive's float32's."""
    truth = np.arange(-1024.0, 1476.0)[:2197].reshape(13, 13, 13)
    scores = evaluate_volume(truth + 1, truth, protocol="x2ct")
    differences = stored_volumes(truth + 1, 1024)[1] - stored_volumes(truth, 1024)[1]
    assert set(np.unique(differences)) >= {0, 1}
    assert scores["x2ct_mae_stored"] == pytest.approx(np.abs(differences).mean(), abs=1e-12)


@pytest.mark.parametrize("protocol", ["x2ct", "perx2ct"])
@pytest.mark.parametrize("region", ["valid", "body"])
def test_slicewise_scores_of_a_region_leave_out_slices_without_it(
    protocol: str, region: str, volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR of a slice is over its masked pixels, its SSIM over windows with masked centre, slices without are none."""
    valid, body = masks
    mask: Any = valid if region == "valid" else valid & body
    (predicted, first), (true, second) = (stored_volumes(volume, 1024) for volume in volumes)
    prediction: Any = predicted.astype(np.float64)
    target: Any = true.astype(np.float64)
    squared: np.ndarray = (first.astype(np.float64) - second) ** 2
    psnr, ssim = [], []
    for axis in range(3):
        at = [mask.take(index, axis) for index in slices_with(mask, axis)]
        mses = [
            squared.take(index, axis)[where].mean() for index, where in zip(slices_with(mask, axis), at, strict=True)
        ]
        psnr.append(np.mean([100.0 if mse == 0 else 20 * np.log10(4095 / np.sqrt(mse)) for mse in mses]))
        full = [
            similarity_map(target.take(index, axis), prediction.take(index, axis))[1] for index in range(SHAPE[axis])
        ]
        inner = [(part[3:-3, 3:-3], mask.take(index, axis)[3:-3, 3:-3]) for index, part in enumerate(full)]
        ssim.append(np.mean([part[where].mean() for part, where in inner if where.any()]))
    scores = evaluate_volume(*volumes, protocol=protocol, valid=valid, body=body)
    assert scores[f"{protocol}_{region}_psnr_slicewise_db"] == pytest.approx(np.mean(psnr), abs=1e-6)
    if protocol == "x2ct":
        assert scores[f"x2ct_{region}_ssim_slicewise"] == pytest.approx(np.mean(ssim), abs=1e-6)
        assert scores[f"x2ct_{region}_psnr_3d_db"] == pytest.approx(
            20 * np.log10(4095 / np.sqrt(squared[mask].mean())), abs=1e-6
        )
        assert scores[f"x2ct_{region}_mae_unit"] == pytest.approx(np.abs(prediction - target)[mask].mean(), abs=1e-6)


def test_x2ct_peak_adds_4_29_db() -> None:
    """The same error scores 20·log10(4095 / 2500) more than at the peak of its own span."""
    target = np.zeros((8, 8, 8))
    scores = evaluate_volume(target + 25, target, protocol="x2ct")
    assert scores["x2ct_psnr_3d_db"] == pytest.approx(40 + 20 * math.log10(4095 / 2500), abs=0.01)


def test_perx2ct_matches_the_published_formulas(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR per slice as in x2ct; SSIM of floats at data_range 2, in 3-D windows because of the channel axis."""
    prediction, target = (stored_volumes(volume, 1024)[0].astype(np.float64) for volume in volumes)
    valid, body = masks
    scores = evaluate_volume(*volumes, protocol="perx2ct", valid=valid, body=body)
    ssim = structural_similarity(target[None], prediction[None], data_range=2.0, channel_axis=0)
    assert scores["perx2ct_ssim_3d_range2"] == pytest.approx(ssim, abs=1e-6)
    similarity = structural_similarity(target, prediction, data_range=2.0, full=True)[1]
    inner = (slice(3, -3),) * 3
    for region, mask in (("valid", valid), ("body", valid & body)):
        expected = similarity[inner][mask[inner]].mean()
        assert scores[f"perx2ct_{region}_ssim_3d_range2"] == pytest.approx(expected, abs=1e-6)
    x2ct = evaluate_volume(*volumes, protocol="x2ct")
    assert scores["perx2ct_psnr_slicewise_db"] == x2ct["x2ct_psnr_slicewise_db"]
    assert set(own_scores(scores, "perx2ct")) == {"perx2ct_ssim_3d_range2", "perx2ct_psnr_slicewise_db"}


def test_xmed_matches_scikit_image(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """scikit-image's defaults on [-1000, 1024] HU."""
    prediction, target = (unit_scale(volume, -1000, 1024) for volume in volumes)
    valid, body = masks
    ssim, similarity = similarity_map(target, prediction)
    inner = (slice(3, -3),) * 3
    expected = {
        "xmed_psnr_3d_db": peak_signal_noise_ratio(target, prediction, data_range=1.0),
        "xmed_ssim_3d": ssim,
    }
    for region, mask in (("valid", valid), ("body", valid & body)):
        mse = ((prediction - target)[mask] ** 2).mean()
        expected[f"xmed_{region}_psnr_3d_db"] = -10 * np.log10(mse)
        expected[f"xmed_{region}_ssim_3d"] = similarity[inner][mask[inner]].mean()
    assert evaluate_volume(*volumes, protocol="xmed", valid=valid, body=body) == pytest.approx(expected, abs=1e-6)
