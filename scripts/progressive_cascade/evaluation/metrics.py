# SPDX-License-Identifier: Apache-2.0
"""Named protocols for scoring a reconstructed CT: every number says by whose rules it was made.

Scores of different papers cannot be compared, because each has its own HU window, peak value, SSIM window and habit of
averaging. The protocols below are those habits, checked against the published evaluation code, oddities included. Two
rules hold for all: identical windows for prediction and truth (never a min-max of each), and `data_range` is explicit.

native
    HU in [-1024, 1024], data_range 1: 3-D PSNR and 3-D Gaussian SSIM (11 taps, sigma 1.5), MAE and bias in HU, also by
    tissue (:data:`progressive_cascade.ct.tissues.TISSUES`). All over valid voxels.
x2ct
    HU + offset in [0, 2500]: PSNR at peak 4095 on values that span 2500 (which adds 4.29 dB), 3-D and slice-wise, with
    100 dB for a slice without error; slice-wise SSIM in a uniform 7×7 window. As X2CT-GAN's `test.py`.
perx2ct
    The same window and slice-wise PSNR; SSIM with data_range 2 on values in [0, 1], which inflates it, in a 7×7×7
    window. As PerX2CT's `main_test.py`; its LPIPS is left out, because that network is not ours to ship.
xmed
    HU in [-1000, 1024], data_range 1: 3-D PSNR and 3-D SSIM with scikit-image's defaults (uniform 7×7×7 window, sample
    covariance). As DIF-Gaussian's `evaluate.py`.

The papers score whole volumes; their scores over valid voxels carry the prefix `valid_`. Scores inside the body carry
`body_` in every protocol. Slice-wise scores of a region leave out slices that have no voxel of it, and SSIM is taken
over windows whose centre lies in the region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.protocols import HEADLINES, PROTOCOLS, Truth, Volumes, psnr

__all__ = [
    "HEADLINES",
    "PROTOCOLS",
    "Truth",
    "body_mask",
    "evaluate_volume",
    "parse_protocols",
    "parse_truth",
    "reprojection_psnr",
    "score_volume",
]

Array = Tensor | np.ndarray

BODY_HU = -500.0
"""Halfway between air and water: what is above it may be body [HU]."""


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
        valid: mask of the voxels the scan covers; default: all.
        body: mask of the patient; default: :func:`body_mask` of the truth.
        hu_offset: what "x2ct" and "perx2ct" add to HU before clipping to [0, 2500]; their archives exist with 1000 and
            with 1024.

    Returns:
        Scores, each named ``<protocol>_<score>``, or ``<protocol>_<region>_<score>`` where the region is not the
        protocol's own. PSNR is in dB: of volumes without error it is inf ("native", "xmed") or 100 ("x2ct",
        "perx2ct"). A score over no voxel, such as of a tissue that is not there, is nan.

    Raises:
        ValueError: if the protocol is unknown, shapes differ, a side is shorter than the SSIM window, or no valid voxel
            shows a body.

    Example:
        >>> truth = np.zeros((16, 16, 16))
        >>> round(evaluate_volume(truth + 20.48, truth)["native_psnr_3d_db"], 2)
        40.0
    """
    (protocol,) = parse_protocols([protocol])
    truth = parse_truth(target_hu, valid=valid, body=body, hu_offset=hu_offset)
    return score_volume(prediction_hu, truth, [protocol])


def parse_truth(
    target_hu: Array, *, valid: Array | None = None, body: Array | None = None, hu_offset: float = 1024.0
) -> Truth:
    """The truth, checked, to compare several reconstructions with.

    Args:
        target_hu: see :func:`evaluate_volume`.
        valid: likewise.
        body: likewise.
        hu_offset: likewise.

    Returns:
        What :func:`score_volume` takes.

    Raises:
        ValueError: see :func:`evaluate_volume`.
    """
    target = _as_volume("target_hu", target_hu, None)
    scanned = None if valid is None else _as_volume("valid", valid, target) > 0
    if scanned is not None and not scanned.any():
        raise ValueError("valid must mark at least one scanned voxel, got none")
    inside = torch.as_tensor(body_mask(target)) if body is None else _as_volume("body", body, target) > 0
    if scanned is not None:
        inside = inside & scanned
    if not inside.any():
        name, found = ("target_hu", f"nothing above {BODY_HU:g} HU") if body is None else ("body", "an empty mask")
        raise ValueError(f"{name} must show a body among the valid voxels, got {found}")
    return Truth(target, valid=scanned, body=inside, hu_offset=hu_offset)


def score_volume(prediction_hu: Array, truth: Truth, protocols: str | Sequence[str]) -> dict[str, float]:
    """Score a reconstruction by several protocols; what they share is computed once.

    Args:
        prediction_hu: see :func:`evaluate_volume`.
        truth: of :func:`parse_truth`.
        protocols: as for :func:`parse_protocols`.

    Returns:
        See :func:`evaluate_volume`.

    Raises:
        ValueError: see :func:`evaluate_volume`.
    """
    volumes = Volumes(_as_volume("prediction_hu", prediction_hu, truth.hu), truth)
    return {
        f"{protocol}_{name}": value
        for protocol in parse_protocols(protocols)
        for name, value in PROTOCOLS[protocol](volumes).items()
    }


def parse_protocols(names: str | Sequence[str]) -> list[str]:
    """Names of protocols, checked, each once.

    Args:
        names: a sequence of names, or one text with commas or spaces between them.

    Returns:
        The names in the order given.

    Raises:
        UserError: for none, or for a name that is no protocol.

    Example:
        >>> parse_protocols("native, x2ct")
        ['native', 'x2ct']
    """
    words = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    unknown = [name for name in words if name not in PROTOCOLS]
    if unknown or not words:
        found = ", ".join(map(repr, unknown)) or "none"
        raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {found}")
    return list(dict.fromkeys(words))


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
    dense = (hu > BODY_HU).cpu().numpy() if isinstance(hu, Tensor) else hu > BODY_HU
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
    return psnr((first - second).square().mean().item(), peak=second.max().item())


def _as_volume(name: str, values: Array, like: Tensor | None) -> Tensor:
    """(x, y, z) in float64, on the truth's device."""
    volume = torch.as_tensor(values).detach().as_subclass(Tensor)
    device = volume.device if like is None else like.device
    # Apple's GPUs have no float64.
    volume = volume.to("cpu" if device.type == "mps" else device).double()
    if volume.ndim < 3 or math.prod(volume.shape[:-3]) != 1:
        raise ValueError(f"{name} must have shape (x, y, z), got {tuple(volume.shape)}")
    if like is not None and volume.shape[-3:] != like.shape[-3:]:
        raise ValueError(f"{name} must have target_hu's shape {tuple(like.shape[-3:])}, got {tuple(volume.shape[-3:])}")
    return volume.reshape(volume.shape[-3:])
