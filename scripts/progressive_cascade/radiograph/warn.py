# SPDX-License-Identifier: Apache-2.0
"""Warnings before a reconstruction: saturated pixels, a body that leaves the field, two views that do not fit."""

from __future__ import annotations

import numpy as np

from progressive_cascade.radiograph.record import Radiograph

# Share of a display picture's pixels at its densest value; a window at the 99.5th percentile leaves 0.5 %.
_SATURATED = 0.03
# An edge column shows the body where it exceeds this share of the densest twentieth, in so many of its rows.
_BODY, _EDGE_ROWS = 0.2, 0.5
SLICE_LIMIT = {True: 0.1, False: 0.6}
"""Difference of the two views above which a calibrated (True) or another (False) pair is warned of.

See :func:`slice_difference`. Of 31 right pairs of training CTs and phantoms the calibrated ones reached 0.03, grey
levels 0.52; of two patients or a size wrong by 20 % they began at 0.20 and 0.29 (``benchmarks/radiographs.py``).
"""


def view_warnings(radiograph: Radiograph) -> list[str]:
    """What the file says itself, and saturated pixels, by the pixels as they are stored."""
    if radiograph.meaning == "line_integral":
        return list(radiograph.remarks)
    values = radiograph.pixels[radiograph.mask]
    end = values.min() if radiograph.meaning == "detector_signal" else values.max()
    share = float(np.mean(values == end))
    saturated = [f"{radiograph.path}: {share:.0%} of its pixels are saturated"] if share > _SATURATED else []
    return [*radiograph.remarks, *saturated]


def pair_warnings(image: np.ndarray, seen: np.ndarray, *, calibrated: bool) -> list[str]:
    """A body that leaves the field sideways, and two views that do not show the same slices.

    Args:
        image: line integrals or display values on their scale (2, rows, cols).
        seen: 1 where a pixel counts, same shape.
        calibrated: whether the two share a scale.
    """
    warnings = []
    for name, view, mask in zip(("frontal", "lateral"), image, seen > 0, strict=True):
        limit = _BODY * float(np.percentile(view[mask], 95))
        cols = np.flatnonzero(mask.mean(axis=0) > 0.5)
        for side, col in (("left", cols[0]), ("right", cols[-1])) if cols.size else ():
            if float(np.mean(view[mask[:, col], col] > limit)) > _EDGE_ROWS:
                warnings.append(f"the body leaves the {name} on the image's {side}")
    difference = slice_difference(image, seen, calibrated=calibrated)
    limit = SLICE_LIMIT[calibrated]
    if difference > limit:
        warnings.append(
            f"the two views do not fit: what their rows hold differs by {difference:.0%} (more than {limit:.0%}); "
            "they may be of two patients, or one is scaled wrongly"
        )
    return warnings


def slice_difference(image: np.ndarray, seen: np.ndarray, *, calibrated: bool) -> float:
    """How much the two views disagree on what each slice of the patient holds.

    The sum over a row of line integrals is the mass of the slice it crosses, from whatever side it is seen; of parallel
    rays exactly. Only rows seen in both count.

    Args:
        image: (2, rows, cols).
        seen: weights, same shape.
        calibrated: compare the masses themselves; else only their course, 1 - correlation.
    """
    rows = (seen.mean(axis=2) > 0.5).all(axis=0)
    if rows.sum() < 8:
        return 0.0
    first, second = (np.where(mask > 0, view, 0).sum(axis=1)[rows] for view, mask in zip(image, seen, strict=True))
    if calibrated:
        return float(np.abs(first - second).sum() / max(0.5 * float((first + second).sum()), 1e-9))
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 1.0
    return float(1 - np.corrcoef(first, second)[0, 1])
