# SPDX-License-Identifier: Apache-2.0
"""How one view is projected, decided on the host in float64: by slices, by a virtual detector, or ray by ray.

In voxel indices a view is the 3x4 matrix Q = P · affine. With Q = [R | t], the source is s = -R⁻¹ t and pixel
p = (column, row, 1) looks along d = R⁻¹ p; the ray is s + w d, w the depth from the source in mm. It meets slice k of
axis a at the index s_b + (k - s_a) d_b / d_a of any other axis b.

Where the detector is parallel to the slices, d_a is the same for all pixels and d_b depends on the row or on the column
alone: per slice a scale and a shift. Any other detector is replaced by a virtual one in a plane a = const with the same
source; the two are related by a homography, and the ray through two related points is the same, so that a line integral
carries over as it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A detector whose separable positions err by less than this counts as parallel to the slices [voxel].
_ALIGNED_VOXELS = 1e-3
# A virtual detector samples this much finer than the real one: bicubic interpolation then errs by 1e-3 of the image,
# a tenth of what voxels cost; a better kernel or 1.5 samples gain a fifth of that.
_OVERSAMPLING = 1.3
# Where that leaves virtual pixels wider than a voxel on some slice, up to this much.
_FINEST_OVERSAMPLING = 1.5
_JUST_A_VOXEL = 1.0 - 1e-9
# Beyond this slope of a corner ray against the slices' normal, or this many virtual pixels per pixel, rays are cheaper.
_STEEPEST = 2.5
_MOST_VIRTUAL_PIXELS = 8.0
# Pixels around the volume's shadow on a virtual detector: what bicubic interpolation reads.
_MARGIN = 3


@dataclass(frozen=True)
class PixelLine:
    """Where one axis of a detector meets the slices: pixel i lies at ``scale[k] * i + offset[k]`` of slice k.

    Args:
        scale: (k,) float64, voxels per pixel.
        offset: (k,) float64 [voxel].
        count: pixels.
        size: voxels of the slice along this axis.
    """

    scale: np.ndarray
    offset: np.ndarray
    count: int
    size: int


@dataclass(frozen=True)
class SlicePlan:
    """A view by slices: ``p = length · H(Σ_k W_row(k) S_k W_col(k)ᵀ)``, H the resampling from a virtual detector.

    Args:
        axes: volume axes along the beam, the detector's rows and its columns.
        row: the rows' line.
        col: the columns' line.
        homography: (3, 3), pixel (column, row, 1) to virtual pixel times w; None where the detector is parallel.
        metric: (3, 3), the squared length of d(p) is pᵀ metric p [mm²].
        inverse: (3, 3), d(p) = inverse · p.
        source: (3,), voxel index.
        shape: voxels (x, y, z).
        read_spans: (row count, 2) and (col count, 2) int64; of every row the columns from the first to before the
            last that H reads, and of every column the rows.
    """

    axes: tuple[int, int, int]
    row: PixelLine
    col: PixelLine
    homography: np.ndarray | None
    metric: np.ndarray
    inverse: np.ndarray
    source: np.ndarray
    shape: np.ndarray
    read_spans: tuple[np.ndarray, np.ndarray]


def plan_view(
    matrix: np.ndarray,
    affine: np.ndarray,
    *,
    shape: Sequence[int],
    detector_shape: tuple[int, int],
    source_to_detector: float | None = None,
    method: str = "auto",
) -> SlicePlan | None:
    """Decide how to project one view of one volume.

    Args:
        matrix: (3, 4), RAS mm to pixels times depth.
        affine: (4, 4), voxel index to RAS mm.
        shape: voxels (x, y, z).
        detector_shape: (rows, cols).
        source_to_detector: where rays end [mm]; None: the detector lies behind the volume.
        method: ``auto``, ``separable`` or ``ray``.

    Returns:
        The plan, or None for ray by ray.

    Raises:
        ValueError: if the affine or the matrix is singular, the source lies inside the volume, no ray meets the
            volume, or ``method`` is ``separable`` and the pose does not allow it.
    """
    q = check_pose(matrix, affine, shape, detector_shape)
    if method == "ray":
        return None
    plan = None if is_cut(q, shape, source_to_detector) else _plan_slices(q, affine, shape, detector_shape)
    if plan is None and method == "separable":
        raise ValueError("method must be 'ray' or 'auto' for a source beside the volume or such steep rays")
    return plan


@functools.lru_cache(maxsize=256)
def recall_plan(
    matrix: bytes,
    affine: bytes,
    shape: tuple[int, int, int],
    detector_shape: tuple[int, int],
    source_to_detector: float | None,
    method: str,
) -> SlicePlan | None:
    """:func:`plan_view` of a geometry that may have been met before, as in every step of a solver.

    Args:
        matrix: (3, 4) float64, as bytes.
        affine: (4, 4) float64, as bytes.
        shape: voxels (x, y, z).
        detector_shape: (rows, cols).
        source_to_detector: as for :func:`plan_view`.
        method: as for :func:`plan_view`.

    Returns:
        The plan, which nobody may change, or None for ray by ray.

    Raises:
        ValueError: see :func:`plan_view`.
    """
    return plan_view(
        np.frombuffer(matrix).reshape(3, 4),
        np.frombuffer(affine).reshape(4, 4),
        shape=shape,
        detector_shape=detector_shape,
        source_to_detector=source_to_detector,
        method=method,
    )


def check_pose(
    matrix: np.ndarray, affine: np.ndarray, shape: Sequence[int], detector_shape: tuple[int, int]
) -> np.ndarray:
    """Q of a view, or an error that names what is impossible.

    Args:
        matrix: (3, 4).
        affine: (4, 4).
        shape: voxels (x, y, z).
        detector_shape: (rows, cols).

    Returns:
        float64 array (3, 4), voxel index to pixel times depth.

    Raises:
        ValueError: see :func:`plan_view`.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"affine must be finite and invertible, got {affine.tolist()}")
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        raise ValueError(f"matrices must be finite and invertible, got {matrix.tolist()}")
    q = matrix @ affine
    source = -np.linalg.solve(q[:, :3], q[:, 3])
    if all(-0.5 <= at <= size - 0.5 for at, size in zip(source, shape, strict=True)):
        raise ValueError(f"source must lie outside the volume, got voxel {np.round(source, 1).tolist()}")
    corners = _corners([(-1.0, float(size)) for size in shape]) @ q.T
    if (corners[:, 2] <= 0).all():
        raise ValueError("geometry must look at the volume, got a volume behind the source")
    if (corners[:, 2] > 0).all():
        pixels = corners[:, :2] / corners[:, 2:]
        rows, cols = detector_shape
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        if high[0] < -0.5 or high[1] < -0.5 or low[0] > cols - 0.5 or low[1] > rows - 0.5:
            raise ValueError(
                "geometry must look at the volume, got rays that miss it: its shadow covers columns "
                f"{low[0]:.0f} to {high[0]:.0f} and rows {low[1]:.0f} to {high[1]:.0f} of {cols} and {rows}"
            )
    return q


def _corners(ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """Homogeneous corners (2ⁿ, n + 1) of a box."""
    return np.array([(*corner, 1.0) for corner in itertools.product(*ranges)])


def is_cut(q: np.ndarray, shape: Sequence[int], source_to_detector: float | None) -> bool:
    """Whether the detector stands in the volume, which ends rays inside it."""
    if source_to_detector is None:
        return False
    depth = _corners([(-1.0, float(size)) for size in shape]) @ q[2]
    return bool(depth.max() >= source_to_detector)


def _plan_slices(
    q: np.ndarray, affine: np.ndarray, shape: Sequence[int], detector_shape: tuple[int, int]
) -> SlicePlan | None:
    """The plan by slices; None where the guard trips."""
    rows, cols = detector_shape
    inverse = np.linalg.inv(q[:, :3])
    source = -inverse @ q[:, 3]
    beam = int(np.abs(inverse @ (0.5 * (cols - 1), 0.5 * (rows - 1), 1.0)).argmax())
    first, second = (beam + 1) % 3, (beam + 2) % 3
    ahead = source[beam] < 0
    rays = _corners([(0.0, cols - 1.0), (0.0, rows - 1.0)]) @ inverse.T
    if -0.01 <= source[beam] <= shape[beam] - 0.99 or not ((rays[:, beam] > 0) == ahead).all():
        return None
    slopes = np.abs(rays / rays[:, beam : beam + 1])
    if slopes.max() > _STEEPEST:
        return None
    # Of the two axes in the slices, the one that changes with the pixel row is the row's.
    row, col = (first, second) if abs(inverse[first, 1]) > abs(inverse[second, 1]) else (second, first)
    distance = np.arange(shape[beam]) - source[beam]
    scaled = affine[:3, :3] @ inverse
    common = {"axes": (beam, row, col), "metric": scaled.T @ scaled, "inverse": inverse, "source": source}
    common["shape"] = np.array(shape, dtype=np.float64)
    if _is_parallel(inverse, rays, distance, (beam, row, col), detector_shape):
        ratio = distance / inverse[beam, 2]
        lines = [
            PixelLine(ratio * inverse[axis, at], source[axis] + ratio * inverse[axis, 2], count, shape[axis])
            for axis, at, count in ((row, 1, rows), (col, 0, cols))
        ]
        everything = np.tile([0, cols], (rows, 1)), np.tile([0, rows], (cols, 1))
        return SlicePlan(row=lines[0], col=lines[1], homography=None, read_spans=everything, **common)
    return _plan_virtual(inverse, source, shape, detector_shape, common)


def _is_parallel(
    inverse: np.ndarray,
    rays: np.ndarray,
    distance: np.ndarray,
    axes: tuple[int, int, int],
    detector_shape: tuple[int, int],
) -> bool:
    """Whether scale and shift alone place the corner rays on the outermost slices."""
    beam, row, col = axes
    pixels = _corners([(0.0, detector_shape[1] - 1.0), (0.0, detector_shape[0] - 1.0)])
    exact = rays[:, [row, col]] / rays[:, beam : beam + 1]
    separable = np.stack(
        [inverse[row, 1] * pixels[:, 1] + inverse[row, 2], inverse[col, 0] * pixels[:, 0] + inverse[col, 2]], axis=1
    )
    if inverse[beam, 2] == 0.0:
        return False
    separable = separable / inverse[beam, 2]
    return bool(np.abs(exact - separable).max() * np.abs(distance).max() < _ALIGNED_VOXELS)


def _plan_virtual(
    inverse: np.ndarray, source: np.ndarray, shape: Sequence[int], detector_shape: tuple[int, int], common: dict
) -> SlicePlan | None:
    """A virtual detector in the volume's middle plane, over the part of the detector's image that the volume shades."""
    beam, row, col = common["axes"]
    rows, cols = detector_shape
    middle = 0.5 * (shape[beam] - 1) - source[beam]
    distance = np.arange(shape[beam]) - source[beam]
    # (column, row, 1) -> indices (col, row) on the plane, times w.
    plane = np.stack([middle * inverse[axis] + source[axis] * inverse[beam] for axis in (col, row)] + [inverse[beam]])
    center = np.array([0.5 * (cols - 1), 0.5 * (rows - 1), 1.0])
    at = plane @ center
    # d(index) / d(pixel) at the detector's centre: rows are the index axes (col, row), columns the pixel axes.
    jacobian = (plane[:2, :2] - np.outer(at[:2] / at[2], plane[2, :2])) / at[2]
    corners = _corners([(0.0, cols - 1.0), (0.0, rows - 1.0)]) @ plane.T
    corners = corners[:, :2] / corners[:, 2:]
    ends = middle / distance[[0, -1]]
    lines, placement, pixels = [], np.eye(3), 1.0
    ratio = distance / middle
    for index, axis in enumerate((col, row)):
        pixel = float(np.abs(jacobian[index]).max())
        pitch = max(min(pixel / _OVERSAMPLING, _JUST_A_VOXEL / np.abs(ratio).max()), pixel / _FINEST_OVERSAMPLING)
        shadow = source[axis] + np.outer(ends, np.array([-1.0, shape[axis]]) - source[axis])
        low = max(corners[:, index].min(), shadow.min()) - _MARGIN * pitch
        high = min(corners[:, index].max(), shadow.max()) + _MARGIN * pitch
        count = max(int(np.ceil((high - low) / pitch)) + 1, 1)
        lines.append(PixelLine(ratio * pitch, source[axis] + ratio * (low - source[axis]), count, shape[axis]))
        placement[index] = np.eye(3)[index] / pitch
        placement[index, 2] = -low / pitch
        pixels *= count
    if pixels > _MOST_VIRTUAL_PIXELS * rows * cols:
        return None
    homography = placement @ plane
    spans = _read_spans(homography, detector_shape, (lines[1].count, lines[0].count))
    return SlicePlan(row=lines[1], col=lines[0], homography=homography, read_spans=spans, **common)


def _read_spans(
    homography: np.ndarray, detector_shape: tuple[int, int], virtual_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What bicubic interpolation reads of every row and column of a virtual detector.

    The real detector is a quadrilateral on it. A pixel at y reads the rows floor(y) - 1 to floor(y) + 2: row r is read
    from pixels between r - 2 and r + 2, and where the quadrilateral is widest in this strip an edge enters or ends.
    """
    rows, cols = detector_shape
    corners = np.array([(0, 0, 1), (cols - 1, 0, 1), (cols - 1, rows - 1, 1), (0, rows - 1, 1)]) @ homography.T
    corners = corners[:, :2] / corners[:, 2:]
    spans = []
    for across in (1, 0):  # of every row the columns, of every column the rows
        along = 1 - across
        lines, size = np.arange(virtual_shape[along]), virtual_shape[across]
        first, last = np.full(len(lines), float(size)), np.full(len(lines), -3.0)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            (low, at_low), (high, at_high) = sorted([(start[across], start[along]), (end[across], end[along])])
            at = np.interp(np.clip([lines - 2.0, lines + 2.0], low, high), [low, high], [at_low, at_high])
            meets = (lines - 2.0 <= high) & (lines + 2.0 >= low)
            first = np.where(meets, np.minimum(first, at.min(axis=0)), first)
            last = np.where(meets, np.maximum(last, at.max(axis=0)), last)
        spans.append(np.clip(np.floor([first - 1, last + 3]), 0, size).astype(np.int64).T.copy())
    return spans[0], spans[1]
