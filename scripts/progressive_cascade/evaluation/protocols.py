# SPDX-License-Identifier: Apache-2.0
"""The formulas of the evaluation protocols; :mod:`progressive_cascade.evaluation.metrics` is their public face.

Every protocol scores its own region under its plain names, and others under a prefix, so that a table can always say
what a number was taken over: `native` is over valid voxels, the papers' protocols are over the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from progressive_cascade.attenuation import HU_MAX, HU_MIN
from progressive_cascade.ct.tissues import TISSUES, tissue_classes
from progressive_cascade.evaluation.sums import (
    AXES,
    NUM_REGIONS,
    Profiles,
    centres,
    count_profiles,
    label_sums,
    squared_profiles,
    ssim_profiles,
)
from progressive_cascade.losses.ssim import gaussian_taps

# Bits of a voxel's label; its tissue follows above them.
_WHOLE, _VALID, _BODY = range(NUM_REGIONS)
_NATIVE_REGIONS = {"": _VALID, "body_": _BODY}
"""Regions by the prefix of their scores."""
_PAPER_REGIONS = {"": _WHOLE, "valid_": _VALID, "body_": _BODY}
"""The papers score whole volumes; beside that the scanned voxels, and the patient's."""
_NUM_LABELS = len(TISSUES) << NUM_REGIONS

_PAPER_SPAN = 2500.0  # X2CT: CT_MIN_MAX = [0, 2500] ...
_PAPER_PEAK = 4095.0  # ... but the peak of 12 bits in its PSNR
_PAPER_CAP_DB = 100.0  # and this where the error is zero
_XMED_WINDOW = (-1000.0, 1024.0)


class Truth:
    """What reconstructions of a patient are compared with; what depends on it alone is computed once for all of them.

    Args:
        hu: CT (x, y, z), float64 [HU].
        valid: mask of the scanned voxels (x, y, z), bool, or None for all.
        body: mask of the patient's scanned voxels, likewise.
        hu_offset: what the papers' archives add to HU before clipping to [0, 2500].
    """

    def __init__(self, hu: Tensor, *, valid: Tensor | None, body: Tensor, hu_offset: float) -> None:
        self.hu = hu
        self.hu_offset = hu_offset
        scanned = torch.ones_like(body) if valid is None else valid
        regions = (1 << _WHOLE) + (scanned.byte() << _VALID) + (body.byte() << _BODY)
        self.labels = regions + (tissue_classes(hu) << NUM_REGIONS)
        self._counts: dict[tuple[int, ...], Profiles] = {}

    @property
    def scanned(self) -> Tensor:
        """Mask of the scanned voxels, bool."""
        return (self.labels >> _VALID) & 1 > 0

    @cached_property
    def native(self) -> Tensor:
        """In the unit of `native`, float64."""
        return _unit(self.hu, HU_MIN, HU_MAX)

    @cached_property
    def xmed(self) -> Tensor:
        """In the unit of `xmed`, float64."""
        return _unit(self.hu, *_XMED_WINDOW)

    @cached_property
    def paper(self) -> Tensor:
        """As X2CT keeps it, see :func:`_paper_unit`."""
        return _paper_unit(self.hu, self.hu_offset)

    @cached_property
    def stored(self) -> Tensor:
        """As X2CT scores it, see :func:`_stored`."""
        return _stored(self.paper)

    def counts(self, margins: Sequence[int]) -> Profiles:
        """Windows of so many taps less one along the axes, by the region of their centre, in every plane."""
        key = tuple(margins)
        if key not in self._counts:
            self._counts[key] = count_profiles(centres(self.labels, key))
        return self._counts[key]


@dataclass(frozen=True)
class Volumes:
    """What a protocol may look at.

    Args:
        prediction: reconstruction (x, y, z), float64 [HU].
        truth: of the same shape.
    """

    prediction: Tensor
    truth: Truth

    @cached_property
    def paper(self) -> Tensor:
        """The reconstruction as X2CT keeps it, see :func:`_paper_unit`."""
        return _paper_unit(self.prediction, self.truth.hu_offset)

    @cached_property
    def stored(self) -> Tensor:
        """The reconstruction as X2CT scores it, see :func:`_stored`."""
        return _stored(self.paper)

    @cached_property
    def slicewise_psnr(self) -> list[float]:
        """X2CT's PSNR of each slice, mean over the slices of a plane, then over the three planes, by region [dB]."""
        sums, counts = squared_profiles(self.stored, self.truth.stored, self.truth.labels), self.truth.counts((0, 0, 0))
        scores = []
        for region in range(NUM_REGIONS):
            planes = []
            for axis in AXES:
                errors = _slice_means(sums[axis][region], counts[axis][region]).tolist()
                values = [psnr(mse, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB) for mse in errors]
                planes.append(sum(values) / len(values))
            scores.append(sum(planes) / len(planes))
        return scores


def native(volumes: Volumes) -> dict[str, float]:
    """Our own: [-1024, 1024] HU, data_range 1, 3-D, over valid voxels, and inside the body."""
    truth, span = volumes.truth, HU_MAX - HU_MIN
    prediction = _unit(volumes.prediction, HU_MIN, HU_MAX)
    similarity = _regional_ssim(prediction, truth.native, truth, taps=gaussian_taps(11, 1.5))
    sums = label_sums(prediction, truth.native, truth.labels, _NUM_LABELS)
    scores = {}
    for prefix, region in _NATIVE_REGIONS.items():
        bias, mae, mse = _error_means(_region_sums(sums, region))
        scores[f"{prefix}psnr_3d_db"] = psnr(mse)
        scores[f"{prefix}ssim_3d"] = similarity[region]
        scores[f"{prefix}mae_hu"] = mae * span
        scores[f"{prefix}bias_hu"] = bias * span
        for index, tissue in enumerate(TISSUES):
            bias, mae, _ = _error_means(_region_sums(sums, region, tissue=index))
            scores[f"{prefix}{tissue}_mae_hu"] = mae * span
            scores[f"{prefix}{tissue}_bias_hu"] = bias * span
    return scores


def x2ct(volumes: Volumes) -> dict[str, float]:
    """X2CT-GAN's `test.py` and `metrics_np.py`: peak 4095 on integers that span 2500, slice-wise SSIM."""
    truth = volumes.truth
    similarity = _slicewise_ssim(volumes.paper, truth.paper, truth)
    units, stored = (
        label_sums(first, second, truth.labels, _NUM_LABELS)
        for first, second in ((volumes.paper, truth.paper), (volumes.stored, truth.stored))
    )
    scores = {}
    for prefix, region in _PAPER_REGIONS.items():
        sums = _region_sums(units, region)
        _, scores[f"{prefix}mae_unit"], scores[f"{prefix}mse_unit"] = _error_means(sums)
        _, _, _, error, first, second = sums
        # The inner product is what (p - t)² = p² - 2 p t + t² says.
        scores[f"{prefix}cosine_unit"] = float((first + second - error) / 2 / (first * second).sqrt())
        _, scores[f"{prefix}mae_stored"], mse = _error_means(_region_sums(stored, region))
        scores[f"{prefix}mse_stored"] = mse
        scores[f"{prefix}psnr_3d_db"] = psnr(mse, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB)
        scores[f"{prefix}psnr_slicewise_db"] = volumes.slicewise_psnr[region]
        scores[f"{prefix}ssim_slicewise"] = similarity[region]
    return scores


def perx2ct(volumes: Volumes) -> dict[str, float]:
    """PerX2CT's `main_test.py`: the same PSNR slice by slice, SSIM with a data_range of 2."""
    truth = volumes.truth
    # data_range: scikit-image's default for floats was the span of [-1, 1]. `channel_axis=False` counted as axis 0,
    # which held the batch, so that the window became three-dimensional and the three permutations give one number.
    similarity = _regional_ssim(
        volumes.paper, truth.paper, truth, taps=_uniform_taps(), data_range=2.0, sample_covariance=True
    )
    scores = {}
    for prefix, region in _PAPER_REGIONS.items():
        scores[f"{prefix}psnr_slicewise_db"] = volumes.slicewise_psnr[region]
        scores[f"{prefix}ssim_3d_range2"] = similarity[region]
    return scores


def xmed(volumes: Volumes) -> dict[str, float]:
    """DIF-Gaussian's `evaluate.py`: [-1000, 1024] HU, data_range 1, scikit-image's defaults."""
    truth, prediction = volumes.truth, _unit(volumes.prediction, *_XMED_WINDOW)
    similarity = _regional_ssim(prediction, truth.xmed, truth, taps=_uniform_taps(), sample_covariance=True)
    sums = label_sums(prediction, truth.xmed, truth.labels, _NUM_LABELS)
    scores = {}
    for prefix, region in _PAPER_REGIONS.items():
        scores[f"{prefix}psnr_3d_db"] = psnr(_error_means(_region_sums(sums, region))[2])
        scores[f"{prefix}ssim_3d"] = similarity[region]
    return scores


PROTOCOLS: dict[str, Callable[[Volumes], dict[str, float]]] = {
    "native": native,
    "x2ct": x2ct,
    "perx2ct": perx2ct,
    "xmed": xmed,
}
"""Protocols by name."""

HEADLINES: dict[str, tuple[str, ...]] = {
    "native": ("psnr_3d_db", "ssim_3d", "mae_hu", "body_psnr_3d_db", "body_ssim_3d", "body_mae_hu"),
    "x2ct": ("psnr_3d_db", "psnr_slicewise_db", "ssim_slicewise"),
    "perx2ct": ("psnr_slicewise_db", "ssim_3d_range2"),
    "xmed": ("psnr_3d_db", "ssim_3d"),
}
"""The scores of each protocol that tables show first."""


def psnr(mse: float, *, peak: float = 1.0, cap: float = math.inf) -> float:
    """Peak signal-to-noise ratio [dB], `cap` where there is no error."""
    return 10 * math.log10(peak**2 / mse) if mse != 0 else cap


def _paper_unit(hu: Tensor, offset: float) -> Tensor:
    """A volume as X2CT keeps it: in [0, 1], in float32, on which it depends what int32 cuts off."""
    return (hu + offset).clip_(0, _PAPER_SPAN).div_(_PAPER_SPAN).float()


def _stored(paper: Tensor) -> Tensor:
    """A volume as X2CT scores it: multiplied by 2500 and cut to an integer, int32."""
    return (paper * _PAPER_SPAN).int()


def _unit(hu: Tensor, low: float, high: float) -> Tensor:
    """An HU window as [0, 1]; in place, because fresh memory costs more than the arithmetic."""
    return hu.clip(low, high).sub_(low).div_(high - low)


def _region_sums(sums: Tensor, region: int, *, tissue: int | None = None) -> Tensor:
    """:func:`label_sums` of the labels in a region, or of a tissue there."""
    labels = torch.arange(len(sums))
    chosen = labels >> region & 1 == 1
    if tissue is not None:
        chosen &= labels >> NUM_REGIONS == tissue
    return sums[chosen].sum(dim=0)


def _error_means(sums: Tensor) -> tuple[float, float, float]:
    """Means of error, absolute and squared error, nan over no voxel."""
    bias, mae, mse = (sums[1:4] / sums[0]).tolist()
    return bias, mae, mse


def _slice_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean of every slice over its voxels of a region, without the slices that have none."""
    return (sums / counts)[counts > 0]


def _uniform_taps() -> Tensor:
    """scikit-image's default window along one axis."""
    return torch.full((7,), 1 / 7, dtype=torch.float64)


def _slicewise_ssim(prediction: Tensor, target: Tensor, truth: Truth) -> list[float]:
    """2-D SSIM in a 7×7 window, mean over slices, then over the three planes, by region."""
    planes = []
    for axis in AXES:
        axes = [other for other in AXES if other != axis]
        planes.append(
            _regional_ssim(prediction, target, truth, taps=_uniform_taps(), axes=axes, sample_covariance=True)
        )
    return [sum(values) / len(values) for values in zip(*planes, strict=True)]


def _regional_ssim(
    prediction: Tensor,
    target: Tensor,
    truth: Truth,
    *,
    taps: Tensor,
    data_range: float = 1.0,
    axes: Sequence[int] = AXES,
    sample_covariance: bool = False,
) -> list[float]:
    """Mean of local SSIM over windows inside the volume whose centre is in the region, nan where there is none.

    Two `axes` give slice-wise SSIM: mean over each slice, then over the slices.
    """
    for axis in axes:
        if prediction.shape[axis] < len(taps):
            raise ValueError(
                f"prediction_hu must measure at least {len(taps)} voxels a side, got {tuple(prediction.shape)}"
            )
    options = {"data_range": data_range, "axes": axes, "sample_covariance": sample_covariance}
    profiles = ssim_profiles(prediction, target, truth.labels, taps=taps, **options)
    counts = truth.counts([len(taps) - 1 if axis in axes else 0 for axis in AXES])
    across = [axis for axis in AXES if axis not in axes]
    if across:
        pairs = zip(profiles[across[0]], counts[across[0]], strict=True)
        return [_slice_means(sums, windows).mean().item() for sums, windows in pairs]
    return (profiles[0].sum(dim=1) / counts[0].sum(dim=1)).tolist()
