# SPDX-License-Identifier: Apache-2.0
"""The formulas of the evaluation protocols; :mod:`progressive_cascade.metrics` is their public face.

Every protocol scores its own region under its plain names, and others under a prefix, so that a table can always say
what a number was taken over: `native` is over valid voxels, the papers' protocols are over the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from progressive_cascade.attenuation import HU_MAX, HU_MIN, hu_to_unit
from progressive_cascade.losses.ssim import gaussian_taps, ssim_map
from progressive_cascade.tissues import tissue_errors

Regions = Mapping[str, Tensor | None]
"""Masks (1, x, y, z) by the prefix of their scores; None is the whole volume."""

_AXES = (1, 2, 3)
_SLAB = 32  # planes per SSIM map: bounds the memory of the terms in float64 at 256³ to a few hundred MB
_PAPER_SPAN = 2500.0  # X2CT: CT_MIN_MAX = [0, 2500] ...
_PAPER_PEAK = 4095.0  # ... but the peak of 12 bits in its PSNR
_PAPER_CAP_DB = 100.0  # and this where the error is zero


@dataclass(frozen=True)
class Volumes:
    """What a protocol may look at.

    Args:
        prediction: reconstruction (1, x, y, z), float64 [HU].
        target: truth, likewise.
        valid: mask of the scanned voxels (1, x, y, z), bool, or None for all.
        body: mask of the patient's scanned voxels, likewise.
        hu_offset: what the papers' archives add to HU before clipping to [0, 2500].
    """

    prediction: Tensor
    target: Tensor
    valid: Tensor | None
    body: Tensor
    hu_offset: float

    @property
    def paper_regions(self) -> Regions:
        """The papers score whole volumes; beside that the scanned voxels, and the patient's."""
        return {"": None, "valid_": self.valid, "body_": self.body}


def native(volumes: Volumes) -> dict[str, float]:
    """Our own: [-1024, 1024] HU, data_range 1, 3-D, over valid voxels, and inside the body."""
    prediction, target = (hu_to_unit(hu) for hu in (volumes.prediction, volumes.target))
    regions: Regions = {"": volumes.valid, "body_": volumes.body}
    error = (prediction - target) * (HU_MAX - HU_MIN)
    similarity = _regional_ssim(prediction, target, regions, taps=gaussian_taps(11, 1.5))
    scores = {}
    for prefix, mask in regions.items():
        inside = error if mask is None else error[mask]
        scores[f"{prefix}psnr_3d_db"] = psnr(inside.square().mean().item(), peak=HU_MAX - HU_MIN)
        scores[f"{prefix}ssim_3d"] = similarity[prefix]
        scores[f"{prefix}mae_hu"] = inside.abs().mean().item()
        scores[f"{prefix}bias_hu"] = inside.mean().item()
        tissues = tissue_errors(error, volumes.target, mask)
        scores.update({f"{prefix}{name}": value for name, value in tissues.items()})
    return scores


def x2ct(volumes: Volumes) -> dict[str, float]:
    """X2CT-GAN's `test.py` and `metrics_np.py`: peak 4095 on integers that span 2500, slice-wise SSIM."""
    prediction, target = _paper_units(volumes)
    error, stored = prediction.double() - target.double(), _stored_error(prediction, target)
    regions = volumes.paper_regions
    similarity = _slicewise_ssim(prediction.double(), target.double(), regions)
    scores = {}
    for prefix, mask in regions.items():
        first, second, unit, whole = (
            values.flatten() if mask is None else values[mask]
            for values in (prediction.double(), target.double(), error, stored)
        )
        mse = whole.square().mean().item()
        norms = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
        scores[f"{prefix}mae_unit"] = unit.abs().mean().item()
        scores[f"{prefix}mse_unit"] = unit.square().mean().item()
        scores[f"{prefix}cosine_unit"] = ((first * second).sum() / norms).item()
        scores[f"{prefix}mae_stored"] = whole.abs().mean().item()
        scores[f"{prefix}mse_stored"] = mse
        scores[f"{prefix}psnr_3d_db"] = psnr(mse, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB)
        scores[f"{prefix}psnr_slicewise_db"] = _slicewise_psnr(stored, mask)
        scores[f"{prefix}ssim_slicewise"] = similarity[prefix]
    return scores


def perx2ct(volumes: Volumes) -> dict[str, float]:
    """PerX2CT's `main_test.py`: the same PSNR slice by slice, SSIM with a data_range of 2."""
    prediction, target = _paper_units(volumes)
    stored, regions = _stored_error(prediction, target), volumes.paper_regions
    # data_range: scikit-image's default for floats was the span of [-1, 1]. `channel_axis=False` counted as axis 0,
    # which held the batch, so that the window became three-dimensional and the three permutations give one number.
    similarity = _regional_ssim(
        *(prediction.double(), target.double(), regions), taps=_uniform_taps(), data_range=2.0, sample_covariance=True
    )
    scores = {}
    for prefix, mask in regions.items():
        scores[f"{prefix}psnr_slicewise_db"] = _slicewise_psnr(stored, mask)
        scores[f"{prefix}ssim_3d_range2"] = similarity[prefix]
    return scores


def xmed(volumes: Volumes) -> dict[str, float]:
    """DIF-Gaussian's `evaluate.py`: [-1000, 1024] HU, data_range 1, scikit-image's defaults."""
    prediction, target = ((hu.clip(-1000, 1024) + 1000) / 2024 for hu in (volumes.prediction, volumes.target))
    squared, regions = (prediction - target).square(), volumes.paper_regions
    similarity = _regional_ssim(prediction, target, regions, taps=_uniform_taps(), sample_covariance=True)
    scores = {}
    for prefix, mask in regions.items():
        scores[f"{prefix}psnr_3d_db"] = psnr((squared if mask is None else squared[mask]).mean().item())
        scores[f"{prefix}ssim_3d"] = similarity[prefix]
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


def _paper_units(volumes: Volumes) -> list[Tensor]:
    """Prediction and truth as X2CT keeps them: in [0, 1], in float32, on which it depends what int32 cuts off."""
    return [
        ((hu + volumes.hu_offset).clip(0, _PAPER_SPAN) / _PAPER_SPAN).float()
        for hu in (volumes.prediction, volumes.target)
    ]


def _stored_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Difference of the two, each multiplied by 2500 and cut to an integer, float64."""
    return ((prediction * _PAPER_SPAN).int() - (target * _PAPER_SPAN).int()).double()


def _slicewise_psnr(error: Tensor, mask: Tensor | None) -> float:
    """PSNR of each slice, mean over the slices of a plane, then over the three planes [dB]."""
    planes = []
    for axis in _AXES:
        values = [
            psnr(mse, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB) for mse in _slice_means(error.square(), mask, axis).tolist()
        ]
        planes.append(sum(values) / len(values))
    return sum(planes) / len(planes)


def _slicewise_ssim(prediction: Tensor, target: Tensor, regions: Regions) -> dict[str, float]:
    """2-D SSIM in a 7×7 window, mean over slices, then over the three planes."""
    planes = []
    for axis in _AXES:
        axes = [other for other in _AXES if other != axis]
        planes.append(
            _regional_ssim(prediction, target, regions, taps=_uniform_taps(), axes=axes, sample_covariance=True)
        )
    return {prefix: sum(plane[prefix] for plane in planes) / len(planes) for prefix in regions}


def _slice_means(values: Tensor, mask: Tensor | None, axis: int) -> Tensor:
    """Mean of every slice across `axis` over its masked voxels, without the slices that have none."""
    others = [other for other in _AXES if other != axis]
    if mask is None:
        return values.mean(others).flatten()
    counts = mask.sum(others).flatten()
    return ((values * mask).sum(others).flatten() / counts)[counts > 0]


def _uniform_taps() -> Tensor:
    """scikit-image's default window along one axis."""
    return torch.full((7,), 1 / 7, dtype=torch.float64)


def _regional_ssim(
    prediction: Tensor,
    target: Tensor,
    regions: Regions,
    *,
    taps: Tensor,
    data_range: float = 1.0,
    axes: Sequence[int] = _AXES,
    sample_covariance: bool = False,
) -> dict[str, float]:
    """Mean of local SSIM over windows inside the volume whose centre is in the region, nan where there is none.

    Two `axes` give slice-wise SSIM: mean over each slice, then over the slices.
    """
    for axis in axes:
        if prediction.shape[axis] < len(taps):
            raise ValueError(
                f"prediction_hu must measure at least {len(taps)} voxels a side, got {tuple(prediction.shape[1:])}"
            )
    margins = [len(taps) - 1 if axis in axes else 0 for axis in _AXES]
    sizes = [size - margin for size, margin in zip(prediction.shape[1:], margins, strict=True)]
    slabs = []
    for start in range(0, sizes[0], _SLAB):
        stop = min(start + _SLAB, sizes[0])
        parts = [volume[:, start : stop + margins[0]] for volume in (prediction, target)]
        options = {"data_range": data_range, "axes": axes, "sample_covariance": sample_covariance}
        slabs.append(ssim_map(*parts, taps=taps.to(prediction), **options))
    similarity = torch.cat(slabs, dim=1)
    across = [axis for axis in _AXES if axis not in axes]
    scores = {}
    for prefix, mask in regions.items():
        for axis, margin, size in zip(_AXES, margins, sizes, strict=True):
            mask = None if mask is None else mask.narrow(axis, margin // 2, size)
        if across:
            values = _slice_means(similarity, mask, across[0])
        else:
            values = similarity if mask is None else similarity[mask]
        scores[prefix] = values.mean().item()
    return scores
