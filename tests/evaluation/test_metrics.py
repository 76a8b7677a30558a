# SPDX-License-Identifier: Apache-2.0
"""Laws of the evaluation protocols, against scikit-image and formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
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


@pytest.fixture(scope="module")
def masks() -> tuple[np.ndarray, np.ndarray]:
    """Masks `valid` and `body` that overlap in part; some slices at the ends hold no voxel of them."""
    rng = np.random.default_rng(1)
    valid, body = rng.random(_SHAPE) > 0.4, rng.random(_SHAPE) > 0.5
    valid[:, :2] = False
    body[:5] = body[:, :, -4:] = False
    return valid, body


def _unit(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(hu, low, high) - low) / (high - low)


def _own(scores: dict[str, float], protocol: str) -> dict[str, float]:
    """The scores over the protocol's own region, without tissues: those the papers print."""
    marks = [f"{protocol}_{name}" for name in ("valid_", "body_", *TISSUES)]
    return {name: value for name, value in scores.items() if not name.startswith(tuple(marks))}


def _stored(volume: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """A volume as X2CT's archives hold it: float32 in [0, 1], and that times 2500 as int32."""
    unit = (np.clip(volume + offset, 0, 2500) / 2500).astype(np.float32)
    return unit, (unit * 2500 + 0).astype(np.int32)


def _slices(mask: np.ndarray, axis: int) -> list[int]:
    """Indices of the slices across an axis that hold voxels of a mask."""
    return np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))).tolist()


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


def test_native_counts_valid_voxels_alone(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR, MAE and bias over the mask, SSIM over windows with valid centre, body scores over body and mask."""
    valid, body = masks
    prediction, target = (_unit(volume, -1024, 1024) for volume in volumes)
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
    error = 2048 * (_unit(volumes[0], -1024, 1024) - _unit(volumes[1], -1024, 1024))
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


@pytest.mark.parametrize("offset", [1000.0, 1024.0])
def test_x2ct_matches_the_published_formulas(volumes: tuple[np.ndarray, np.ndarray], offset: float) -> None:
    """Peak 4095 on integers that span 2500, 100 dB for empty slices, 2-D SSIM in 7×7 windows."""
    (prediction, first), (target, second) = (_stored(volume, offset) for volume in volumes)
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    scores = evaluate_volume(*volumes, protocol="x2ct", hu_offset=offset)
    squared = (first.astype(np.float64) - second) ** 2
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
    assert max(slices) < 100 and min(psnr) < psnr[0]  # empty slices lie across the first axis alone
    assert _own(scores, "x2ct") == pytest.approx(expected, abs=1e-6)


def test_x2ct_cuts_integers_in_float32() -> None:
    """Whole HU do not all survive the way through [0, 1]: what int32 cuts off is the archive's float32's."""
    truth = np.arange(-1024.0, 1476.0)[:2197].reshape(13, 13, 13)
    scores = evaluate_volume(truth + 1, truth, protocol="x2ct")
    differences = _stored(truth + 1, 1024)[1] - _stored(truth, 1024)[1]
    assert set(np.unique(differences)) >= {0, 1}
    assert scores["x2ct_mae_stored"] == pytest.approx(np.abs(differences).mean(), abs=1e-12)


@pytest.mark.parametrize("protocol", ["x2ct", "perx2ct"])
@pytest.mark.parametrize("region", ["valid", "body"])
def test_slicewise_scores_of_a_region_leave_out_slices_without_it(
    protocol: str, region: str, volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """PSNR of a slice is over its masked pixels, its SSIM over windows with masked centre, slices without are none."""
    valid, body = masks
    mask = valid if region == "valid" else valid & body
    (prediction, first), (target, second) = (_stored(volume, 1024) for volume in volumes)
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    squared, psnr, ssim = (first.astype(np.float64) - second) ** 2, [], []
    for axis in range(3):
        at = [mask.take(index, axis) for index in _slices(mask, axis)]
        mses = [squared.take(index, axis)[where].mean() for index, where in zip(_slices(mask, axis), at, strict=True)]
        psnr.append(np.mean([100.0 if mse == 0 else 20 * np.log10(4095 / np.sqrt(mse)) for mse in mses]))
        full = [
            structural_similarity(target.take(index, axis), prediction.take(index, axis), data_range=1.0, full=True)[1]
            for index in range(_SHAPE[axis])
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
    prediction, target = (_stored(volume, 1024)[0].astype(np.float64) for volume in volumes)
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
    assert set(_own(scores, "perx2ct")) == {"perx2ct_ssim_3d_range2", "perx2ct_psnr_slicewise_db"}


def test_xmed_matches_scikit_image(
    volumes: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    """scikit-image's defaults on [-1000, 1024] HU."""
    prediction, target = (_unit(volume, -1000, 1024) for volume in volumes)
    valid, body = masks
    ssim, similarity = structural_similarity(target, prediction, data_range=1.0, full=True)
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


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_mask_of_everything_changes_nothing(protocol: str, volumes: tuple[np.ndarray, np.ndarray]) -> None:
    """Where every voxel is valid and body, all regions score alike, and as without masks."""
    everything = np.ones(_SHAPE, dtype=bool)
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
        evaluate_volume(*volumes, protocol=protocol, body=np.zeros(_SHAPE))
    valid = np.zeros(_SHAPE)
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
