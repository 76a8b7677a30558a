# SPDX-License-Identifier: Apache-2.0
"""Warnings before a reconstruction: saturated pixels, a body that leaves the field, two views that do not fit."""

from __future__ import annotations

import numpy as np

from progressive_cascade.radiograph.record import Radiograph

# Share of a display picture's pixels at its densest value; a window at the 99.5th percentile leaves 0.5 %.
_SATURATED = 0.03
# Stage 1 looks at two pixels for each of its 64 voxels: of fewer even its grid shows more than is in them.
_FEW_PIXELS = 128
# Cassettes begin at 180 x 240 mm; the longer side of a chest's film is 350 mm and more.
_SMALL_FILM = 150.0
# An edge column shows the body where it exceeds this share of the densest twentieth, in so many of its rows.
_BODY, _EDGE_ROWS = 0.2, 0.5
BODY_LEAVES = "the body leaves the "
"""How a warning of a body that leaves the field begins."""
SLICE_LIMIT = {True: 0.1, False: 0.044}
"""Difference of the two views above which a calibrated (True) or another (False) pair is warned of.

See :func:`slice_difference`. Of right pairs of training CTs and phantoms the calibrated ones reached 0.035, grey levels
0.041; of two patients or a size wrong by 20 % they began at 0.20 and 0.044 (``benchmarks/radiographs.py``). Grey levels
are brought to line integrals by what stage 1 makes of them, which brings the two views nearer to each other.
"""
# Rays that diverge mix slices: of right pairs of 8 phantoms the difference grew as one over the distance of the source,
# from at most 0.044 at 1500 mm to 0.107 at 600 (PA, AP and C-arm views with either lateral).
_RIGHT_PAIRS, _AT_MM = 0.048, 1500.0


def view_warnings(radiograph: Radiograph) -> list[str]:
    """What the file says itself, few and saturated pixels, by the pixels as they are stored."""
    if radiograph.meaning == "line_integral":
        return list(radiograph.remarks)
    values = radiograph.pixels[radiograph.mask]
    end = values.min() if radiograph.meaning == "detector_signal" else values.max()
    share = float(np.mean(values == end))
    found = [f"{radiograph.path}: {share:.0%} of its pixels are saturated"] if share > _SATURATED else []
    rows, cols = radiograph.pixels.shape
    if max(rows, cols) < _FEW_PIXELS:
        found.append(f"{radiograph.path} has {rows} x {cols} pixels, as few as a thumbnail: give the film itself")
    return [*radiograph.remarks, *found]


def size_warnings(path: str, shape: tuple[int, ...], spacing: tuple[float, float]) -> list[str]:
    """A film too small for a chest, as of a picture that was made smaller and kept the pitch of the larger one.

    Args:
        path: of the file.
        shape: of its pixels (rows, columns).
        spacing: their pitch (row, column) at the detector [mm].
    """
    height, width = (pixels * pitch for pixels, pitch in zip(shape, spacing, strict=True))
    if max(height, width) >= _SMALL_FILM:
        return []
    return [
        f"{path} is {height:.0f} x {width:.0f} mm at the detector, too small for a chest: is its pixel spacing that of "
        "a larger picture? --field-of-view gives the size"
    ]


def pair_warnings(
    image: np.ndarray, seen: np.ndarray, difference: float | None, *, source_to_isocenter: float = _AT_MM
) -> list[str]:
    """A body that leaves the field sideways; calibrated views that do not show the same slices.

    Args:
        image: line integrals or display values on their scale (2, rows, cols).
        seen: 1 where a pixel counts, same shape.
        difference: of line integrals, see :func:`slice_difference`; None of other values.
        source_to_isocenter: of the geometry [mm].
    """
    distance = {"source_to_isocenter": source_to_isocenter}
    warnings = [] if difference is None else slice_warnings(difference, calibrated=True, **distance)
    for name, view, mask in zip(("frontal", "lateral"), image, seen > 0, strict=True):
        limit = _BODY * float(np.percentile(view[mask], 95))
        cols = np.flatnonzero(mask[mask.any(axis=1)].mean(axis=0) > 0.5)
        for side, col in (("left", cols[0]), ("right", cols[-1])) if cols.size else ():
            if float(np.mean(view[mask[:, col], col] > limit)) > _EDGE_ROWS:
                warnings.append(f"{BODY_LEAVES}{name} on the image's {side}")
    return warnings


def slice_warnings(difference: float, *, calibrated: bool, source_to_isocenter: float = _AT_MM) -> list[str]:
    """Two views that do not show the same slices: one line, or none.

    Args:
        difference: see :func:`slice_difference`.
        calibrated: whether the two share a scale.
        source_to_isocenter: of the geometry [mm]; nearer than the chest stand's 1500 right pairs differ more.
    """
    limit = SLICE_LIMIT[calibrated]
    if source_to_isocenter < _AT_MM:
        limit = max(limit, _RIGHT_PAIRS * _AT_MM / source_to_isocenter)
    if difference <= limit:
        return []
    return [
        f"the two views do not fit: what their rows hold differs by {difference:.0%} (more than {limit:.0%}); "
        "they may be of two patients, or one is scaled wrongly"
    ]


def slice_difference(image: np.ndarray, seen: np.ndarray) -> float:
    """How much the two views disagree on what each slice of the patient holds, as a share of all.

    The sum over a row of line integrals is the mass of the slice it crosses, from whatever side it is seen; of parallel
    rays exactly. Only rows seen in both count.

    Args:
        image: line integrals (2, rows, cols).
        seen: weights, same shape.
    """
    rows = (seen.mean(axis=2) > 0.5).all(axis=0)
    if rows.sum() < 8:
        return 0.0
    first, second = (np.where(mask > 0, view, 0).sum(axis=1)[rows] for view, mask in zip(image, seen, strict=True))
    return float(np.abs(first - second).sum() / max(0.5 * float((first + second).sum()), 1e-9))
