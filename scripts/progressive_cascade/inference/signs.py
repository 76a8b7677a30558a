# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction shows of its own error: numbers that need no truth.

Agreement after data consistency says nothing. What says something: what the first stage left unexplained before any
consistency, how far the answer moved from there, whether another stage 1 sees the same chest, or the same one with its
cube laid elsewhere, how dense soft tissue came out (a wrong distance or factor makes all of it denser or thinner),
sigma, and what kind of body it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import unit_to_hu
from progressive_cascade.consistency import estimate_noise
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference.acceptance import trained_range
from progressive_cascade.inference.first_look import Explained, explain_pairs
from progressive_cascade.inference.opposite import detour, mirror_matrices, mirror_pictures
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.inference.refine import RefinementReport
from progressive_cascade.networks import ProgressiveCascade

SIGNS: dict[str, str] = {
    "residual_before": "log of what refining found unexplained at first",
    "residual_after": "log of what it left unexplained",
    "held_out_before": "log of the former, in the patches held back",
    "held_out_after": "log of the latter, in the patches held back",
    "spread": "log of how far stage 1's volumes deviate with the place of its cube, in the body [HU]",
    "first_residual": "log of what stage 1 alone leaves unexplained, before consistency",
    "first_worst": "log of the same in the worse view",
    "first_shape": "log of the same after the gain and offset that fit each view best",
    "first_scale": "log of the factor that brings stage 1's line integrals to the radiographs', mean of the views",
    "first_scale_gap": "how far these logs lie apart",
    "change": "log of the RMS change from stage 1 alone to the CT, in the body [HU]",
    "second": "log of the RMS difference of two stages 1, in the body [HU]",
    "second_change": "log of the RMS difference of the CT and the second stage 1, in the body [HU]",
    "second_residual": "log of what the second stage 1 leaves unexplained",
    "sigma": "log of the mean sigma in the body [HU]",
    "noise": "log of the radiographs' noise, the worse view",
    "soft_hu": "median of what lies between -150 and 150 HU [HU]",
    "dense_hu": "the HU that three quarters of the body stay below [HU]",
    "lung_hu": "median of what lies between -950 and -500 HU in the body's block [HU]",
    "body": "log of the body's volume [l]",
    "lung_share": "share of the body's volume between -950 and -500 HU",
    "bone_share": "share of the body's volume above 150 HU",
    "gain": "log of the gain that was found, the larger of the views in size",
    "scaled": "1 where gain and offset were unknown",
    "display": "1 where the tone curve was unknown",
    "wide": "1 of weights for any geometry",
    "beyond": "how far the geometry lies beyond the trained range, as a share",
}
"""Names of the signs; logs are natural ones."""
_SOFT_HU, _LUNG_HU, _BONE_HU, _BODY_HU = (-150.0, 150.0), (-950.0, -500.0), 150.0, -500.0
_TINY = 1e-6


def measure_signs(
    result: Reconstruction,
    beam: ConeBeam,
    network: ProgressiveCascade,
    *,
    second: ProgressiveCascade | None = None,
    sigma: np.ndarray | None = None,
) -> dict[str, float]:
    """The signs of a refined reconstruction.

    Args:
        result: the reconstruction.
        beam: the geometry it believes in.
        network: the cascade that made it.
        second: another cascade that takes this geometry; None: there is none.
        sigma: standard deviation of the error before recalibration, of the CT's shape [HU]; None: not known.

    Returns:
        A number for each of :data:`SIGNS`; NaN where there is none to be had.

    Raises:
        ValueError: if nothing was refined.
    """
    if result.refinement is None:
        raise ValueError("result must have been refined, got none")
    image = mirror_pictures(result.image, beam)
    weights = np.ones_like(image) if result.weights is None else mirror_pictures(result.weights, beam)
    own = _first(network, image, beam, weights, calibrated=result.calibrated)
    hu = torch.from_numpy(result.hu.astype(np.float32))[None, None]
    coarse = F.adaptive_avg_pool3d(hu, tuple(own.unit.shape[2:]))  # pyright: ignore[reportArgumentType]
    body = coarse > _BODY_HU
    signs = dict.fromkeys(SIGNS, math.nan) | _refinement_signs(result.refinement) | _first_signs(own)
    first = unit_to_hu(own.unit).cpu()
    signs["change"] = _difference(coarse, first, body)
    if second is not None:
        other = _first(second, image, beam, weights, calibrated=result.calibrated)
        seen = unit_to_hu(other.unit).cpu()
        signs["second"], signs["second_change"] = _difference(first, seen, body), _difference(coarse, seen, body)
        signs["second_residual"] = _first_signs(other)["first_residual"]
    if sigma is not None and (result.hu > _BODY_HU).any():
        signs["sigma"] = _log(float(sigma[result.hu > _BODY_HU].mean(dtype=np.float64)))
    signs["noise"] = _log(float(estimate_noise(torch.from_numpy(image)[None].float()).max()))
    signs |= _tissue_signs(result.hu, result.affine) | _knowledge_signs(result.refinement.calibration)
    signs["wide"] = float(network.geometry_range is not None)
    signs["beyond"] = _beyond(network, beam)
    return signs


def _first(
    network: ProgressiveCascade, image: np.ndarray, beam: ConeBeam, weights: np.ndarray, *, calibrated: bool
) -> Explained:
    seen_as = detour(network, beam) or beam
    return explain_pairs(network, image[None], seen_as, calibrated=calibrated, weights=weights[None])


def _refinement_signs(report: RefinementReport) -> dict[str, float]:
    """What refining left unexplained, and how far its volumes deviate."""
    names = ("residual_before", "residual_after", "held_out_before", "held_out_after")
    return {**{name: _log(getattr(report, name)) for name in names}, "spread": _log(report.spread_hu)}


def _first_signs(found: Explained) -> dict[str, float]:
    """What stage 1 leaves unexplained, and by what factor."""
    views = zip(found.explained[0], found.measured[0], found.covered[0], strict=True)
    pairs = [(e[mask].astype(np.float64), m[mask].astype(np.float64)) for e, m, mask in views if mask.any()]
    if not pairs:
        return {}
    squares = [float(np.mean((m - e) ** 2)) for e, m in pairs]
    scales = [_log(float(e @ m) / max(float(e @ e), _TINY)) for e, m in pairs]
    return {
        "first_residual": _log(math.sqrt(float(np.mean(squares)))),
        "first_worst": _log(math.sqrt(max(squares))),
        "first_shape": _log(math.sqrt(float(np.mean([_unfitted(e, m) for e, m in pairs])))),
        "first_scale": float(np.mean(scales)),
        "first_scale_gap": max(scales) - min(scales),
    }


def _unfitted(explained: np.ndarray, measured: np.ndarray) -> float:
    """Mean square of what gain and offset leave."""
    line = np.polyfit(explained, measured, 1) if explained.std() > 0 else (0.0, measured.mean())
    return float(np.mean((measured - np.polyval(line, explained)) ** 2))


def _difference(one: Tensor, other: Tensor, body: Tensor) -> float:
    """Log of the RMS difference in the body; NaN without one."""
    return _log(float((one - other)[body].square().mean().sqrt())) if body.any() else math.nan


def _tissue_signs(hu: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """What kind of body it is, and how dense its tissues came out."""
    litres = abs(float(np.linalg.det(affine[:3, :3]))) / 1e6
    # Air around the patient is not to count as lung: the block that his body fills holds little of it.
    dense = hu > _BODY_HU
    if not dense.any():
        return {}
    block = hu[tuple(_span(dense, axis) for axis in range(3))]
    soft = block[(block > _SOFT_HU[0]) & (block < _SOFT_HU[1])]
    lung = block[(block > _LUNG_HU[0]) & (block < _LUNG_HU[1])]
    number = int(dense.sum())
    return {
        "dense_hu": float(np.percentile(block[block > _BODY_HU], 75)),
        "soft_hu": float(np.median(soft)) if soft.size else math.nan,
        "lung_hu": float(np.median(lung)) if lung.size else math.nan,
        "body": _log(number * litres),
        "lung_share": lung.size / (number + lung.size),
        "bone_share": float((block > _BONE_HU).sum()) / number,
    }


def _span(mask: np.ndarray, axis: int) -> slice:
    filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(int(filled[0]), int(filled[-1]) + 1)


def _knowledge_signs(calibration: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What was known of the intensities, and what was found of them."""
    levels = {str(view.get("known")) for view in calibration}
    gains = [_log(float(view["gain"])) for view in calibration if isinstance(view.get("gain"), float)]
    return {
        "scaled": float("scaled" in levels),
        "display": float("display" in levels),
        "gain": max(gains, key=abs) if gains else 0.0,
    }


def _beyond(network: ProgressiveCascade, beam: ConeBeam) -> float:
    seen_as = (detour(network, beam) or beam).at((0.0, 0.0, 0.0))
    given = mirror_matrices(torch.from_numpy(seen_as.projection_matrices())[None], seen_as)[0].numpy()
    middle = network.projection_matrices.cpu().double().numpy()
    misfits = trained_range(network).misfits(given, middle, network.image_size)
    return max((misfit.beyond for misfit in misfits), default=0.0)


def _log(value: float) -> float:
    return math.log(max(value, _TINY)) if math.isfinite(value) else math.nan


def looked_for_pose(calibration: Sequence[Mapping[str, object]]) -> bool:
    """Whether a pose was fitted, so that the geometry is not the one the signs are of."""
    return any("pose" in view for view in calibration)
