# SPDX-License-Identifier: Apache-2.0
"""Laws of the native protocol, and of every protocol alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from progressive_cascade.ct.tissues import TISSUES, tissue_classes
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation import sums
from progressive_cascade.evaluation.metrics import (
    HEADLINES,
    PROTOCOLS,
    body_mask,
    evaluate_volume,
    parse_protocols,
    parse_truth,
    reprojection_psnr,
    score_volume,
)
from tests.support.scores import SHAPE, unit_scale


def test_native_matches_scikit_image(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """3-D PSNR, 3-D Gaussian SSIM and MAE on [-1024, 1024] HU."""
    prediction, target = (unit_scale(volume, -1024, 1024) for volume in volumes)
    scores = evaluate_volume(*volumes)
    assert scores["native_psnr_3d_db"] == pytest.approx(
        peak_signal_noise_ratio(target, prediction, data_range=1), abs=1e-6
    )
    ssim = structural_similarity(
        target, prediction, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert scores["native_ssim_3d"] == pytest.approx(ssim, abs=1e-6)
    assert scores["native_mae_hu"] == pytest.approx(2048 * np.abs(prediction - target).mean(), abs=1e-6)


def test_native_counts_valid_voxels_alone(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR, MAE and bias over the mask, SSIM over windows with valid centre, body scores over body and mask."""
    valid, body = masks
    prediction, target = (unit_scale(volume, -1024, 1024) for volume in volumes)
    scores = evaluate_volume(*volumes, valid=valid, body=body)
    options = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    similarity = structural_similarity(target, prediction, **options)[1]
    inner = (slice(5, -5),) * 3
    for prefix, mask in (("", valid), ("body_", valid & body)):
        error = (prediction - target)[mask]
        expected = {
            "psnr_3d_db": -10 * np.log10((error**2).mean()),
            "ssim_3d": similarity[inner][mask[inner]].mean(),
            "mae_hu": 2048 * np.abs(error).mean(),
            "bias_hu": 2048 * error.mean(),
        }
        for name, value in expected.items():
            assert scores[f"native_{prefix}{name}"] == pytest.approx(value, abs=1e-6)


def test_native_tissues_are_told_by_the_truth(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """MAE and bias of the voxels between a class's borders; weighted by their voxels they are those of the region."""
    valid, body = masks
    error = 2048 * (unit_scale(volumes[0], -1024, 1024) - unit_scale(volumes[1], -1024, 1024))
    scores = evaluate_volume(*volumes, valid=valid, body=body)
    for prefix, mask in (("", valid), ("body_", valid & body)):
        total = {"mae": 0.0, "bias": 0.0}
        for tissue, (low, high) in TISSUES.items():
            inside = error[mask & (volumes[1] >= low) & (volumes[1] < high)]
            for name, value in (("mae", np.abs(inside).mean()), ("bias", inside.mean())):
                assert scores[f"native_{prefix}{tissue}_{name}_hu"] == pytest.approx(value, abs=1e-6)
                total[name] += value * inside.size / mask.sum()
        for name, value in total.items():
            assert scores[f"native_{prefix}{name}_hu"] == pytest.approx(value, abs=1e-6)


def test_tissue_borders_belong_to_the_class_above(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Each class is [from, to); one without voxels has no error."""
    target = torch.tensor([-951.0, -950.0, -191.0, -190.0, -30.0, -29.0, 149.0, 150.0])
    assert tissue_classes(target).tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    scores = evaluate_volume(volumes[0], np.minimum(volumes[1], 149.0))
    assert math.isnan(scores["native_bone_mae_hu"]) and math.isnan(scores["native_body_bone_bias_hu"])
    assert math.isfinite(scores["native_soft_mae_hu"])


def test_native_finds_the_body_where_none_is_given(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """The default is the body mask of the truth."""
    given = evaluate_volume(*volumes, body=body_mask(volumes[1]))
    assert evaluate_volume(*volumes) == given


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_mask_of_everything_changes_nothing(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Where every voxel is valid and body, all regions score alike, and as without masks."""
    everything = np.ones(SHAPE, dtype=bool)
    scores = evaluate_volume(*volumes, protocol=protocol, valid=everything, body=everything)
    bare = evaluate_volume(*volumes, protocol=protocol)
    assert list(scores) == list(bare)
    for name, value in scores.items():
        own = name.replace("_valid_", "_").replace("_body_", "_")
        assert value == pytest.approx(scores[own], abs=1e-9)
        assert "_body_" in name or value == pytest.approx(bare[name], abs=1e-9)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_headlines_are_scores(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """What tables ask for, the protocol gives."""
    scores = evaluate_volume(*volumes, protocol=protocol)
    assert {f"{protocol}_{name}" for name in HEADLINES[protocol]} <= set(scores)
    assert set(HEADLINES) == set(PROTOCOLS)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_identical_volumes_score_best(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """PSNR inf, or 100 dB by the papers' rule; SSIM 1; no error. Every key carries the protocol's name."""
    scores = evaluate_volume(volumes[1], volumes[1], protocol=protocol)
    best = 100 if protocol in ("x2ct", "perx2ct") else math.inf
    for name, value in scores.items():
        assert name.startswith(f"{protocol}_")
        wanted = best if "psnr" in name else 0 if any(word in name for word in ("mae", "mse", "bias")) else 1
        assert value == pytest.approx(wanted, abs=1e-12)


def test_scores_do_not_depend_on_the_container(volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Arrays, tensors, and leading axes of length 1 are the same volume."""
    tensors = [torch.from_numpy(volume)[None, None] for volume in volumes]
    for protocol in PROTOCOLS:
        expected = evaluate_volume(*volumes, protocol=protocol)
        assert evaluate_volume(tensors[0], tensors[1], protocol=protocol) == pytest.approx(expected, abs=0)


def test_scores_do_not_depend_on_the_compiler(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled loops and plain torch give the same numbers, with masks and without."""
    valid, body = masks
    options: dict[str, Any]
    for options in ({}, {"valid": valid, "body": body}):
        compiled = score_volume(volumes[0], parse_truth(volumes[1], **options), list(PROTOCOLS))
        with monkeypatch.context() as without_numba:
            without_numba.setattr(sums, "_compiled", lambda: None)
            plain = score_volume(volumes[0], parse_truth(volumes[1], **options), list(PROTOCOLS))
        assert list(plain) == list(compiled) and plain == pytest.approx(compiled, abs=1e-9, nan_ok=True)


def test_a_truth_serves_many_reconstructions(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """What is kept of the truth changes no score, whatever was scored before and by whichever protocols."""
    truth = parse_truth(volumes[1], valid=masks[0], body=masks[1])
    for prediction in (volumes[0], volumes[1] + 10, volumes[0]):
        scores = score_volume(prediction, truth, "xmed x2ct perx2ct native")
        for protocol in PROTOCOLS:
            alone = evaluate_volume(prediction, volumes[1], protocol=protocol, valid=masks[0], body=masks[1])
            assert {name: scores[name] for name in alone} == pytest.approx(alone, abs=1e-12, nan_ok=True)


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


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_case_without_a_body_is_refused(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Air, an empty mask, or a body outside the scanned voxels: there is nothing to score."""
    air = np.full((12, 12, 12), -1000.0)
    with pytest.raises(ValueError, match="target_hu must show a body among the valid voxels, got nothing above -500"):
        evaluate_volume(air, air, protocol=protocol)
    with pytest.raises(ValueError, match="body must show a body among the valid voxels, got an empty mask"):
        evaluate_volume(*volumes, protocol=protocol, body=np.zeros(SHAPE))
    valid = np.zeros(SHAPE)
    with pytest.raises(ValueError, match="valid must mark at least one scanned voxel"):
        evaluate_volume(*volumes, protocol=protocol, valid=valid)
    valid[:3] = 1  # slices of air
    with pytest.raises(ValueError, match="must show a body among the valid voxels"):
        evaluate_volume(*volumes, protocol=protocol, valid=valid)


def test_parse_protocols_takes_lists_and_text() -> None:
    """Each name once, in order; an unknown one is answered with the known ones."""
    assert parse_protocols(["x2ct", "native", "x2ct"]) == ["x2ct", "native"]
    assert parse_protocols("native,x2ct xmed") == ["native", "x2ct", "xmed"]
    for names in ("native sparc", ["native", "sparc"]):
        with pytest.raises(UserError, match="protocol must be one of native, x2ct, perx2ct, xmed, got 'sparc'"):
            parse_protocols(names)
    with pytest.raises(UserError, match="got none"):
        parse_protocols([])


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
