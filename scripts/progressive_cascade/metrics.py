# SPDX-License-Identifier: Apache-2.0
"""Named protocols for scoring a reconstructed CT: every number says by whose rules it was made.

Scores of different papers cannot be compared, because each has its own HU window, peak value, SSIM window and habit of
averaging. The protocols below are those habits, checked against the published evaluation code, oddities included. Two
rules hold for all: identical windows for prediction and truth (never a min-max of each), and `data_range` is explicit.

native
    HU in [-1024, 1024], data_range 1: 3-D PSNR and 3-D Gaussian SSIM (11 taps, sigma 1.5), MAE in HU; PSNR and MAE also
    inside the body. All over valid voxels.
x2ct
    HU + offset in [0, 2500]: PSNR at peak 4095 on values that span 2500 (which adds 4.29 dB), 3-D and slice-wise, with
    100 dB for a slice without error; slice-wise SSIM in a uniform 7×7 window. As X2CT-GAN's `test.py`.
perx2ct
    The same window and slice-wise PSNR; SSIM with data_range 2 on values in [0, 1], which inflates it, in a 7×7×7
    window. As PerX2CT's `main_test.py`; its LPIPS is left out, because that network is not ours to ship.
xmed
    HU in [-1000, 1024], data_range 1: 3-D PSNR and 3-D SSIM with scikit-image's defaults (uniform 7×7×7 window, sample
    covariance). As DIF-Gaussian's `evaluate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from progressive_cascade.attenuation import HU_MAX, HU_MIN, hu_to_unit
from progressive_cascade.losses.ssim import gaussian_taps, ssim_map

Array = Tensor | np.ndarray

_AXES = (1, 2, 3)
_SLAB = 32  # planes per SSIM map: bounds the memory of float64 maps at 256³ to a few hundred MB
_PAPER_SPAN = 2500.0  # X2CT: CT_MIN_MAX = [0, 2500] ...
_PAPER_PEAK = 4095.0  # ... but the peak of 12 bits in its PSNR
_PAPER_CAP_DB = 100.0  # and this where the error is zero
_BODY_HU = -500.0  # halfway between air and water


@dataclass(frozen=True)
class _Case:
    """What a protocol may look at: volumes (1, x, y, z) in float64 HU, masks bool or None."""

    prediction: Tensor
    target: Tensor
    valid: Tensor | None
    body: Tensor | None
    hu_offset: float


def evaluate_volume(
    prediction_hu: Array,
    target_hu: Array,
    *,
    protocol: str = "native",
    valid: Array | None = None,
    body: Array | None = None,
    hu_offset: float = 1024.0,
) -> dict[str, float]:
    """Score one reconstructed volume.

    Args:
        prediction_hu: CT [HU], (x, y, z), or the same behind axes of length 1.
        target_hu: truth [HU], same number of voxels a side.
        protocol: a name of `PROTOCOLS`.
        valid: mask of the voxels the scan covers; read by "native" alone, the papers score whole volumes.
        body: mask of the patient; read by "native" alone; default: :func:`body_mask` of the truth.
        hu_offset: what "x2ct" and "perx2ct" add to HU before clipping to [0, 2500]; their archives exist with 1000 and
            with 1024.

    Returns:
        Scores, each named ``<protocol>_<score>``. PSNR is in dB: of volumes without error it is inf ("native", "xmed")
        or 100 ("x2ct", "perx2ct"). A score over no voxel is nan.

    Raises:
        ValueError: if the protocol is unknown, shapes differ, or a side is shorter than the SSIM window.

    Example:
        >>> truth = np.zeros((16, 16, 16))
        >>> round(evaluate_volume(truth + 20.48, truth)["native_psnr_3d_db"], 2)
        40.0
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    target = _as_volume("target_hu", target_hu, None)
    case = _Case(
        prediction=_as_volume("prediction_hu", prediction_hu, target),
        target=target,
        valid=None if valid is None else _as_volume("valid", valid, target) > 0,
        body=None if body is None else _as_volume("body", body, target) > 0,
        hu_offset=hu_offset,
    )
    return {f"{protocol}_{name}": float(value) for name, value in PROTOCOLS[protocol](case).items()}


def body_mask(hu: Array) -> Array:
    """The patient: the largest connected piece above -500 HU, with the holes of every axial slice filled.

    Args:
        hu: CT [HU], (x, y, z), +z superior.

    Returns:
        Mask of the same shape and kind, bool; empty where nothing is above -500 HU.

    Raises:
        ValueError: if `hu` is not three-dimensional.
    """
    if hu.ndim != 3:
        raise ValueError(f"hu must have shape (x, y, z), got {tuple(hu.shape)}")
    dense = (hu > _BODY_HU).cpu().numpy() if isinstance(hu, Tensor) else hu > _BODY_HU
    pieces = np.empty(dense.shape, dtype=np.int32)
    mask = np.zeros(dense.shape, dtype=bool)
    ndimage.label(dense, output=pieces)
    if dense.any():
        mask = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    for z in range(hu.shape[2]):
        mask[:, :, z] = ndimage.binary_fill_holes(mask[:, :, z])
    return torch.from_numpy(mask).to(hu.device) if isinstance(hu, Tensor) else mask


def reprojection_psnr(predicted: Array, measured: Array) -> float:
    """PSNR of radiographs: how well a volume's line integrals explain the measured ones.

    Args:
        predicted: line integrals (..., rows, cols) of the reconstruction.
        measured: line integrals of the radiographs, same shape; their maximum is the data_range.

    Returns:
        PSNR over all pixels [dB], inf where they are equal.

    Raises:
        ValueError: if shapes differ, or `measured` is nowhere positive.
    """
    first, second = (
        torch.as_tensor(values).detach().as_subclass(Tensor).cpu().double() for values in (predicted, measured)
    )
    if first.shape != second.shape:
        raise ValueError(f"predicted must have measured's shape {tuple(second.shape)}, got {tuple(first.shape)}")
    if not second.max() > 0:
        raise ValueError(f"measured must be positive somewhere, got a maximum of {second.max():g}")
    return _psnr((first - second).square().mean().item(), peak=second.max().item())


def _native(case: _Case) -> dict[str, float]:
    prediction, target = (hu_to_unit(volume) for volume in (case.prediction, case.target))
    body = case.body
    if body is None:
        body = torch.as_tensor(body_mask(case.target[0]))[None]
    if case.valid is not None:
        body = body & case.valid
    error = prediction - target
    squared, absolute = error.square(), error.abs() * (HU_MAX - HU_MIN)
    taps = gaussian_taps(11, 1.5)
    return {
        "psnr_3d_db": _psnr(_mean(squared, case.valid)),
        "ssim_3d": _mean_ssim(prediction, target, taps=taps, valid=case.valid),
        "mae_hu": _mean(absolute, case.valid),
        "body_psnr_3d_db": _psnr(_mean(squared, body)),
        "body_mae_hu": _mean(absolute, body),
    }


def _x2ct(case: _Case) -> dict[str, float]:
    prediction, target = _paper_units(case)
    error = prediction - target
    stored = (prediction * _PAPER_SPAN).int() - (target * _PAPER_SPAN).int()
    stored = stored.double()
    norms = torch.linalg.vector_norm(prediction) * torch.linalg.vector_norm(target)
    mse = stored.square().mean().item()
    return {
        "mae_unit": error.abs().mean().item(),
        "mse_unit": error.square().mean().item(),
        "cosine_unit": ((prediction * target).sum() / norms).item(),
        "mae_stored": stored.abs().mean().item(),
        "mse_stored": mse,
        "psnr_3d_db": _psnr(mse, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB),
        "psnr_slicewise_db": _slicewise_psnr(stored),
        "ssim_slicewise": _slicewise_ssim(prediction, target),
    }


def _perx2ct(case: _Case) -> dict[str, float]:
    prediction, target = _paper_units(case)
    stored = (prediction * _PAPER_SPAN).int() - (target * _PAPER_SPAN).int()
    # data_range: scikit-image's default for floats was the span of [-1, 1]. `channel_axis=False` counted as axis 0,
    # which held the batch, so that the window became three-dimensional and the three permutations give one number.
    ssim = _mean_ssim(prediction, target, taps=_uniform_taps(), data_range=2.0, sample_covariance=True)
    return {"psnr_slicewise_db": _slicewise_psnr(stored.double()), "ssim_3d_range2": ssim}


def _xmed(case: _Case) -> dict[str, float]:
    prediction, target = ((hu.clip(-1000, 1024) + 1000) / 2024 for hu in (case.prediction, case.target))
    return {
        "psnr_3d_db": _psnr((prediction - target).square().mean().item()),
        "ssim_3d": _mean_ssim(prediction, target, taps=_uniform_taps(), sample_covariance=True),
    }


PROTOCOLS: dict[str, Callable[[_Case], dict[str, float]]] = {
    "native": _native,
    "x2ct": _x2ct,
    "perx2ct": _perx2ct,
    "xmed": _xmed,
}
"""Protocols by name."""


def _as_volume(name: str, values: Array, like: Tensor | None) -> Tensor:
    """(1, x, y, z) in float64, on the truth's device."""
    volume = torch.as_tensor(values).detach().as_subclass(Tensor)
    device = volume.device if like is None else like.device
    # Apple's GPUs have no float64.
    volume = volume.to("cpu" if device.type == "mps" else device).double()
    if volume.ndim < 3 or math.prod(volume.shape[:-3]) != 1:
        raise ValueError(f"{name} must have shape (x, y, z), got {tuple(volume.shape)}")
    if like is not None and volume.shape[-3:] != like.shape[-3:]:
        raise ValueError(f"{name} must have target_hu's shape {tuple(like.shape[-3:])}, got {tuple(volume.shape[-3:])}")
    return volume.reshape(1, *volume.shape[-3:])


def _paper_units(case: _Case) -> list[Tensor]:
    """Prediction and truth as X2CT stores them, over 2500: in [0, 1]."""
    return [(hu + case.hu_offset).clip(0, _PAPER_SPAN) / _PAPER_SPAN for hu in (case.prediction, case.target)]


def _mean(values: Tensor, mask: Tensor | None) -> float:
    """Mean over the mask, nan where it is empty."""
    return (values if mask is None else values[mask]).mean().item()


def _psnr(mse: float, *, peak: float = 1.0, cap: float = math.inf) -> float:
    """Peak signal-to-noise ratio [dB], `cap` where there is no error."""
    return 10 * math.log10(peak**2 / mse) if mse != 0 else cap


def _slicewise_psnr(error: Tensor) -> float:
    """PSNR of each slice, mean over the slices of a plane, then over the three planes [dB]."""
    planes = []
    for axis in _AXES:
        mse = error.square().mean([other for other in _AXES if other != axis]).flatten()
        values = [_psnr(value, peak=_PAPER_PEAK, cap=_PAPER_CAP_DB) for value in mse.tolist()]
        planes.append(sum(values) / len(values))
    return sum(planes) / len(planes)


def _slicewise_ssim(prediction: Tensor, target: Tensor) -> float:
    """2-D SSIM in a 7×7 window, mean over slices, then over the three planes."""
    planes = []
    for axis in _AXES:
        axes = [other for other in _AXES if other != axis]
        planes.append(_mean_ssim(prediction, target, taps=_uniform_taps(), axes=axes, sample_covariance=True))
    return sum(planes) / len(planes)


def _uniform_taps() -> Tensor:
    """scikit-image's default window along one axis."""
    return torch.full((7,), 1 / 7, dtype=torch.float64)


def _mean_ssim(
    prediction: Tensor,
    target: Tensor,
    *,
    taps: Tensor,
    valid: Tensor | None = None,
    data_range: float = 1.0,
    axes: Sequence[int] = _AXES,
    sample_covariance: bool = False,
) -> float:
    """Mean of local SSIM over windows inside the volume whose centre is valid."""
    for axis in axes:
        if prediction.shape[axis] < len(taps):
            raise ValueError(
                f"prediction_hu must measure at least {len(taps)} voxels a side, got {tuple(prediction.shape[1:])}"
            )
    taps = taps.to(prediction)
    margins = [len(taps) - 1 if axis in axes else 0 for axis in _AXES]
    sizes = [size - margin for size, margin in zip(prediction.shape[1:], margins, strict=True)]
    if valid is None:
        valid = torch.ones_like(prediction, dtype=torch.bool)
    for axis, margin, size in zip(_AXES, margins, sizes, strict=True):
        valid = valid.narrow(axis, margin // 2, size)
    total = 0.0
    for start in range(0, sizes[0], _SLAB):
        stop = min(start + _SLAB, sizes[0])
        slabs = [volume[:, start : stop + margins[0]] for volume in (prediction, target)]
        similarity = ssim_map(*slabs, taps=taps, data_range=data_range, axes=axes, sample_covariance=sample_covariance)
        total += similarity[valid[:, start:stop]].sum().item()
    count = int(valid.sum())
    return total / count if count else math.nan
