# SPDX-License-Identifier: Apache-2.0
"""What a clinician measures on a chest CT, by thresholds alone, in truth and reconstruction alike.

Body: the largest piece above -500 HU, filled slice by slice (:func:`.metrics.body_mask`). Lungs: what in it lies
between -950 and -500 HU, in pieces of at least 50 ml; the plane between right and left is the sagittal one with the
least lung in the middle of the body. Bone, and contrast medium with it: above 150 HU in the body. No organ is
recognised: the heart's shadow is what stands between the lungs, as on a radiograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.evaluation.metrics import body_mask

LUNG_HU = (-950.0, -500.0)
"""Lung that holds air, vessels of a voxel and more left out [HU]."""
MEASURES: dict[str, str] = {
    "lung_right_ml": "right lung [ml]",
    "lung_left_ml": "left lung [ml]",
    "thorax_width_mm": "width of the thorax, inside [mm]",
    "thorax_depth_mm": "depth of the thorax, inside [mm]",
    "heart_width_mm": "width of the heart's shadow [mm]",
    "cardiothoracic_ratio": "cardiothoracic ratio",
    "between_lungs_ml": "heart and mediastinum above the diaphragm [ml]",
}
"""Measures of one chest, with what they are called; NaN in a volume without two lungs."""
MASKS = ("body", "lungs", "bone")
"""Attributes of :class:`Chest` that :func:`compare_chests` compares."""
_LEAST_PIECE_ML = 50.0
# From back to front: behind stands the spine, in front the chest wall comes between the lungs.
_HEART_DEPTHS = (0.3, 0.8)
_SURFACE_POINTS = 200_000


@dataclass(frozen=True)
class Chest:
    """Masks of one volume (x, y, z), +x the patient's right, +y anterior, +z superior.

    Args:
        body: the patient, lungs and bowel included.
        lung_right: the right lung.
        lung_left: the left one.
        bone: bone and contrast medium.
        spacing: voxel size [mm].
    """

    body: np.ndarray
    lung_right: np.ndarray
    lung_left: np.ndarray
    bone: np.ndarray
    spacing: float

    @property
    def lungs(self) -> np.ndarray:
        """Both lungs."""
        return self.lung_right | self.lung_left


def segment_chest(hu: np.ndarray, spacing: float, *, valid: np.ndarray | None = None) -> Chest:
    """Finds body, lungs and bone.

    Args:
        hu: CT (x, y, z) [HU], +x the patient's right, +z superior.
        spacing: voxel size [mm].
        valid: what counts, above 0; default: everything.

    Returns:
        The masks.
    """
    body = np.asarray(body_mask(hu))
    if valid is not None:
        body = body & (np.asarray(valid) > 0)
    low, high = LUNG_HU
    lungs = _large_pieces(body & (hu > low) & (hu < high), _LEAST_PIECE_ML * 1000.0 / spacing**3)
    middle = _middle(lungs, body)
    right, left = lungs.copy(), lungs.copy()
    right[:middle] = False
    left[middle:] = False
    return Chest(body, right, left, body & (hu >= TISSUES["bone"][0]), spacing)


def measure_chest(chest: Chest) -> dict[str, float]:
    """Volumes and widths of one chest.

    The thorax is as wide and deep as its lungs where they reach farthest. The heart is as wide as what stands between
    the lungs in the middle half of their depth, in the widest slice from the dome of the diaphragm up to two thirds of
    the lungs' height; its ratio to the width of the thorax is the cardiothoracic ratio, as on a PA radiograph (Danzer
    1919). Against the labels of 16 phantoms at 2.8 mm (seeds 2000000 to 2000007 of both populations) the heart comes
    out 1 mm narrower on average, 9 mm apart in the median, 36 at most.

    Args:
        chest: of :func:`segment_chest`.

    Returns:
        :data:`MEASURES`; all NaN without a right or a left lung.
    """
    if not (chest.lung_right.any() and chest.lung_left.any()):
        return dict.fromkeys(MEASURES, math.nan)
    voxel_ml = chest.spacing**3 / 1000.0
    lungs = chest.lungs
    width = _reach(np.any(lungs, axis=1)).max() * chest.spacing
    heart = _heart_width(chest)
    return {
        "lung_right_ml": float(chest.lung_right.sum() * voxel_ml),
        "lung_left_ml": float(chest.lung_left.sum() * voxel_ml),
        "thorax_width_mm": float(width),
        "thorax_depth_mm": float(_reach(np.any(lungs, axis=0)).max() * chest.spacing),
        "heart_width_mm": heart,
        "cardiothoracic_ratio": heart / float(width),
        "between_lungs_ml": float(_between(chest).sum() * voxel_ml),
    }


def compare_chests(found: Chest, truth: Chest) -> dict[str, float]:
    """How well masks agree.

    Args:
        found: of the reconstruction.
        truth: of the CT, on the same grid.

    Returns:
        For ``body``, ``lungs`` and ``bone``: ``_dice``; ``_surface_mm`` the mean and ``_surface95_mm`` the 95th
        percentile of the distances from each surface to the other. NaN where a mask is empty.

    Raises:
        ValueError: if the grids differ.
    """
    if found.body.shape != truth.body.shape or found.spacing != truth.spacing:
        raise ValueError(f"found must lie on truth's grid {truth.body.shape}, got {found.body.shape}")
    scores: dict[str, float] = {}
    for name in MASKS:
        one, other = getattr(found, name), getattr(truth, name)
        both = int(one.sum()) + int(other.sum())
        scores[f"{name}_dice"] = 2.0 * float((one & other).sum()) / both if both else math.nan
        distances = surface_distances(one, other) * truth.spacing
        scores[f"{name}_surface_mm"] = float(distances.mean()) if distances.size else math.nan
        scores[f"{name}_surface95_mm"] = float(np.percentile(distances, 95)) if distances.size else math.nan
    return scores


def surface_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances from the surface voxels of either mask to the nearest of the other's.

    Args:
        one: mask (x, y, z).
        other: mask of the same shape.

    Returns:
        Distances [voxels], none where a mask is empty; of large surfaces every n-th voxel is taken.
    """
    first, second = _surface(one), _surface(other)
    if not (len(first) and len(second)):
        return np.empty(0)
    parts = []
    for points, target in ((first, second), (second, first)):
        step = 1 + len(points) // _SURFACE_POINTS
        parts.append(np.asarray(KDTree(target).query(points[::step])[0]))
    return np.concatenate(parts)


def score_chests(found: Chest, truth: Chest) -> dict[str, float]:
    """Everything about one reconstruction, by the names that stand in tables.

    Args:
        found: of the reconstruction.
        truth: of the CT.

    Returns:
        ``clinical_NAME`` of :func:`compare_chests`, and of :data:`MEASURES` the reconstruction's and, as
        ``clinical_true_NAME``, the CT's.
    """
    scores = compare_chests(found, truth)
    scores.update(measure_chest(found))
    scores.update({f"true_{name}": value for name, value in measure_chest(truth).items()})
    return {f"clinical_{name}": value for name, value in scores.items()}


def _large_pieces(mask: np.ndarray, least: float) -> np.ndarray:
    pieces = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=pieces)
    large = np.bincount(pieces.ravel()) >= least
    large[0] = False
    return large[pieces]


def _middle(lungs: np.ndarray, body: np.ndarray) -> int:
    """The sagittal plane with the least lung, in the middle third of the body."""
    across = np.flatnonzero(body.any(axis=(1, 2)))
    if not len(across):
        return body.shape[0] // 2
    start, width = int(across[0]), int(across[-1] - across[0]) + 1
    area = ndimage.gaussian_filter1d(lungs.sum(axis=(1, 2)).astype(float), 1.0)
    planes = np.arange(start + width // 3, start + width - width // 3 + 1)
    centre = start + (width - 1) / 2
    # Of planes with as little lung the one nearest to the centre.
    return int(min(planes, key=lambda x: (area[x], abs(x - centre))))


def _reach(mask: Any) -> np.ndarray:
    """From the first to the last voxel along the first axis, for every place on the second."""
    filled = mask.any(axis=0)
    first = np.argmax(mask, axis=0)
    last = mask.shape[0] - 1 - np.argmax(mask[::-1], axis=0)
    return np.where(filled, last - first + 1, 0)


def _heart_width(chest: Chest) -> float:
    """Of what stands between the lungs in the middle of their depth, above the higher dome [mm]; NaN without."""
    rows = np.flatnonzero(chest.lung_right.any(axis=(0, 1)) & chest.lung_left.any(axis=(0, 1)))
    if not len(rows):
        return math.nan
    bottom = _domes(chest)
    top = max(bottom + 1, int(rows[0]) + 2 * len(rows) // 3)
    right_begins, left_ends, both = _borders(chest)
    widths = []
    for z in range(bottom, top):
        depths = np.flatnonzero(both[:, z])
        if not len(depths):
            continue
        low, high = (int(depths[0] + part * (depths[-1] - depths[0])) for part in _HEART_DEPTHS)
        lines = [y for y in range(low, high + 1) if both[y, z]]
        if not lines:  # lungs of which only parts were seen
            continue
        widths.append(max(right_begins[lines, z]) - min(left_ends[lines, z]))
    return float(max(widths) * chest.spacing) if widths else math.nan


def _domes(chest: Chest) -> int:
    """The row that the higher half of the diaphragm reaches."""
    return max(_dome(chest.lung_right), _dome(chest.lung_left[::-1]))


def _dome(lung: np.ndarray) -> int:
    """The row to which the diaphragm rises under the outer half of a lung whose side is that of rising x."""
    footprint = lung.any(axis=2)
    outer = footprint.copy()
    outer[: int(np.average(np.arange(len(lung)), weights=footprint.sum(axis=1)))] = False
    return math.ceil(float(np.percentile(np.argmax(lung, axis=2)[outer], 90)))


def _borders(chest: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """On lines across the body (y, z): where the right lung begins, where the left has ended, whether both are."""
    right_begins = np.argmax(chest.lung_right, axis=0)
    left_ends = chest.lung_left.shape[0] - np.argmax(chest.lung_left[::-1], axis=0)
    both = np.asarray(np.any(chest.lung_right, axis=0) & np.any(chest.lung_left, axis=0))
    return right_begins, left_ends, both


def _between(chest: Chest) -> np.ndarray:
    """What lies between right and left lung on lines across the body, above the higher dome, bone left out."""
    right_begins, left_ends, both = _borders(chest)
    x = np.arange(chest.body.shape[0])[:, None, None]
    between = both & (x >= left_ends) & (x < right_begins) & ~chest.bone & chest.body
    between[:, :, : _domes(chest)] = False
    return between


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices (n, 3) of the voxels of a mask with a neighbour outside; the grid's border is no surface."""
    inner = np.asarray(ndimage.binary_erosion(mask, border_value=1), dtype=bool)
    return np.argwhere(mask & np.logical_not(inner))
