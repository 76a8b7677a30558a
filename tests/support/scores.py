# SPDX-License-Identifier: Apache-2.0
"""Volumes as the protocols' papers store them, and the scores that a protocol's paper prints."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from progressive_cascade.ct.tissues import TISSUES

SHAPE = (38, 20, 26)


def unit_scale(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(hu, low, high) - low) / (high - low)


def own_scores(scores: dict[str, float], protocol: str) -> dict[str, float]:
    """The scores over the protocol's own region, without tissues: those the papers print."""
    marks = [f"{protocol}_{name}" for name in ("valid_", "body_", *TISSUES)]
    return {name: value for name, value in scores.items() if not name.startswith(tuple(marks))}


def stored_volumes(volume: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """A volume as X2CT's archives hold it: float32 in [0, 1], and that times 2500 as int32."""
    unit = (np.clip(volume + offset, 0, 2500) / 2500).astype(np.float32)
    return unit, (unit * 2500 + 0).astype(np.int32)


def slices_with(mask: np.ndarray, axis: int) -> list[int]:
    """Indices of the slices across an axis that hold voxels of a mask."""
    return np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))).tolist()


def similarity_map(target: np.ndarray, prediction: np.ndarray) -> tuple[float, np.ndarray]:
    """scikit-image's SSIM by its defaults, for values in [0, 1]: the mean, and the map it is the mean of."""
    found: Any = structural_similarity(target, prediction, data_range=1.0, full=True)
    return found[0], found[1]
