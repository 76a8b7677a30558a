# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction's squared error consists of, and what it would score without each part."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from progressive_cascade.attenuation import HU_MAX, HU_MIN

SHARES = ("outline", "lung_border", "bone", "soft", "lung", "air")
"""Parts of the squared error, in the order in which a voxel is given to the first that claims it."""

TISSUE_HU = -400.0  # halfway between lung and flesh, and above any air that voxels of 11 mm mix with skin
_BONE_HU = 200.0


def body_of(hu: np.ndarray) -> np.ndarray:
    """The body, lungs and bowel included: what air around it does not reach.

    Args:
        hu: (x, y, z) [HU].

    Returns:
        Boolean array; air is followed from the four sides of the volume, not from its ends, where airways are cut.
    """
    labels = np.empty(hu.shape, dtype=np.int32)
    ndimage.label(hu < TISSUE_HU, output=labels)
    sides = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
    outside = np.unique(np.concatenate([side.ravel() for side in sides]))
    return ~np.isin(labels, outside[outside > 0])


def error_parts(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Mean squared error over the valid voxels, and the shares of it.

    Args:
        prediction: (x, y, z) [HU].
        truth: the same.
        valid: where the scanner measured, the same.

    Returns:
        `psnr_db` (3-D, data_range 1 on [-1024, 1024] HU), and for each of :data:`SHARES` its share in [0, 1]:
        body taken for air or air for body, lung for tissue or tissue for lung, bone above 200 HU, the rest of the
        body's tissue, of its lungs, and of the air around it. They add up to 1.
    """
    prediction, truth = (np.clip(v.astype(np.float64), HU_MIN, HU_MAX) for v in (prediction, truth))
    square = np.where(valid, ((prediction - truth) / (HU_MAX - HU_MIN)) ** 2, 0.0)
    bodies = body_of(prediction), body_of(truth)
    lungs = prediction < TISSUE_HU, truth < TISSUE_HU
    claims = {
        "outline": bodies[0] != bodies[1],
        "lung_border": bodies[1] & (lungs[0] != lungs[1]),
        "bone": bodies[1] & (truth >= _BONE_HU),
        "soft": bodies[1] & ~lungs[1],
        "lung": bodies[1] & lungs[1],
        "air": ~bodies[1],
    }
    free, total = np.ones(truth.shape, dtype=bool), max(float(square.sum()), 1e-12)
    parts = {"psnr_db": float(-10 * np.log10(max(square.sum() / valid.sum(), 1e-12)))}
    for name in SHARES:
        parts[name] = float(square[free & claims[name]].sum() / total)
        free &= ~claims[name]
    return parts
