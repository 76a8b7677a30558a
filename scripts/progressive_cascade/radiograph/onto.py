# SPDX-License-Identifier: Apache-2.0
"""A radiograph onto the model's detector: turned, averaged by area without stretching, padded, masked."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage, sparse

from progressive_cascade.geometry import ConeBeam

# Lead letters: narrower than this [mm], and brighter than what is around them by this share of the picture's range.
_MARKER_MM = 26.0
_MARKER_CONTRAST = 0.45
# A collimator's border: so little varies along it, and so much changes at its edge, in shares of the range.
_BORDER_FLAT = 0.01
_BORDER_STEP = 0.1
# Percentiles of a large picture are taken of about so many rows and columns.
_ENOUGH = 1024
# Open field: at least this share of the detector within 2 % of one signal.
_OPEN_FIELD = 0.01


def turn(
    array: np.ndarray, directions: tuple[str, str], target: tuple[str, str]
) -> tuple[np.ndarray, bool, tuple[int, int]]:
    """Turns and flips an image until its columns and rows point where they should.

    Args:
        array: (rows, cols).
        directions: letters along increasing columns, then rows.
        target: the same, wanted.

    Returns:
        The image, whether rows and columns changed places, and the signs of (row, column) afterwards.

    Raises:
        ValueError: if the two name different planes.
    """
    opposite = dict(zip("RLAPHF", "LRPAFH", strict=True))
    transposed = directions[0] in (target[1], opposite[target[1]])
    col, row = directions[::-1] if transposed else directions
    if col not in (target[0], opposite[target[0]]) or row not in (target[1], opposite[target[1]]):
        raise ValueError(f"directions {directions} must lie in the plane of {target}")
    array = array.T if transposed else array
    signs = (1 if row == target[1] else -1, 1 if col == target[0] else -1)
    return array[:: signs[0], :: signs[1]], transposed, signs


def resample(
    pixels: np.ndarray,
    mask: np.ndarray,
    *,
    spacing: tuple[float, float],
    offset: tuple[float, float],
    target_spacing: tuple[float, float],
    target_offset: tuple[float, float],
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Averages an image over the pixels of another detector in the same plane.

    Args:
        pixels: (rows, cols).
        mask: True for those that count.
        spacing: of the pixels (row, column) [mm].
        offset: where the image's centre lies from the foot of the central ray (row, column) [mm].
        target_spacing: likewise of the other detector.
        target_offset: likewise.
        shape: of the other detector (rows, cols).

    Returns:
        The image, float32, and its weights: 1 where at least half a pixel is covered, else 0, and there the image holds
        its nearest covered pixel.

    Raises:
        ValueError: if nothing is covered.
    """
    row_weights, col_weights = (
        _overlaps(
            pixels.shape[axis], spacing[axis], offset[axis], target_spacing[axis], target_offset[axis], shape[axis]
        )
        for axis in range(2)
    )

    def average(image: np.ndarray) -> np.ndarray:
        return np.asarray((col_weights @ (row_weights @ image).T).T)

    if mask.all():
        covered = np.outer(row_weights.sum(axis=1), col_weights.sum(axis=1))
        total = average(pixels.astype(np.float64))
    else:
        covered, total = average(mask.astype(np.float64)), average(np.where(mask, pixels, 0.0).astype(np.float64))
    seen = covered >= 0.5
    if not seen.any():
        raise ValueError("radiograph must lie on the detector, got no pixel of it there")
    image = np.divide(total, covered, out=np.zeros_like(total), where=covered > 1e-9)
    return fill(image, seen).astype(np.float32), seen.astype(np.float32)


def resample_views(image: np.ndarray, beam: ConeBeam, target: ConeBeam) -> tuple[np.ndarray, np.ndarray | None]:
    """The views of a geometry on another detector in the same planes: averaged, or interpolated.

    Args:
        image: line integrals (view, rows, cols).
        beam: their geometry.
        target: as :func:`.fit.fit_detector` gives it.

    Returns:
        The image (view, rows, cols), float32, and 1 where a pixel was covered, same shape; None: everywhere.
    """
    if beam == target:
        return image, None
    views = [
        resample(
            view,
            np.ones(view.shape, dtype=bool),
            spacing=beam.pixel_spacing,
            offset=beam.detector_offset,
            target_spacing=target.pixel_spacing,
            target_offset=target.detector_offset,
            shape=target.detector_shape,
        )
        for view in image
    ]
    seen = np.stack([mask for _, mask in views])
    return np.stack([pixels for pixels, _ in views]), None if seen.all() else seen


def _overlaps(
    size: int, pitch: float, offset: float, new_pitch: float, new_offset: float, new_size: int
) -> sparse.csr_matrix:
    """Share of each new pixel that each old one covers (new, old); linear where the old ones are coarser."""
    new_centers = (np.arange(new_size) - (new_size - 1) / 2) * new_pitch + new_offset
    position = (new_centers - offset) / pitch + (size - 1) / 2
    # Where old pixels are coarser, half an old pixel to each side is what linear interpolation reaches.
    if new_pitch < 0.999 * pitch:
        first = np.floor(position).astype(int)
        share = position - first
        pairs = [(first, 1 - share), (first + 1, share)]
        inside = (position > -0.5) & (position < size - 0.5)
        rows = np.concatenate([np.arange(new_size)[inside]] * 2)
        cols = np.concatenate([np.clip(index, 0, size - 1)[inside] for index, _ in pairs])
        values = np.concatenate([value[inside] for _, value in pairs])
        return sparse.csr_matrix((values, (rows, cols)), shape=(new_size, size))
    ratio = new_pitch / pitch
    low, high = position - ratio / 2, position + ratio / 2
    reach = int(np.ceil(ratio)) + 2
    index = np.floor(low + 0.5).astype(int)[:, None] + np.arange(reach)[None]
    share = np.minimum(index + 0.5, high[:, None]) - np.maximum(index - 0.5, low[:, None])
    # Rounding leaves overlaps of 1e-13, which would blur a picture that already lies on the detector.
    keep = (share > 1e-9) & (index >= 0) & (index < size)
    rows = np.broadcast_to(np.arange(new_size)[:, None], index.shape)
    return sparse.csr_matrix((share[keep] / ratio, (rows[keep], index[keep])), shape=(new_size, size))


def fill(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The image with the nearest pixel that is seen in place of one that is not."""
    if seen.all():
        return image
    nearest: Any = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
    return image[nearest[0], nearest[1]]


def find_border(image: np.ndarray) -> np.ndarray:
    """Pixels inside a flat border that ends in a step, as collimators leave it: True inside.

    Args:
        image: (rows, cols), any scale.
    """
    step = max(1, max(image.shape) // _ENOUGH)
    low, high = np.percentile(image[::step, ::step], [1, 99])
    scale = max(float(high - low), 1e-9)
    mask = np.ones(image.shape, dtype=bool)
    for axis in (0, 1):
        lines = image if axis == 0 else image.T
        for direction in (1, -1):
            ordered = lines[::direction]
            num = _flat_lines(ordered, scale)
            if 0 < num < len(ordered) // 3 and _steps(ordered[num - 1], ordered[num + 1], scale):
                part = slice(0, num) if direction == 1 else slice(len(ordered) - num, None)
                mask[(part, slice(None)) if axis == 0 else (slice(None), part)] = False
    return mask


def _flat_lines(ordered: np.ndarray, scale: float) -> int:
    """How many lines, from the first, are flat and of one level; at most a third of them are looked at."""
    level, most = np.median(ordered[0]), len(ordered) // 3
    for num in range(most):
        if (np.abs(ordered[num] - level) <= _BORDER_FLAT * scale).mean() <= 0.98:
            return num
    return most


def _steps(outside: np.ndarray, inside: np.ndarray, scale: float) -> bool:
    return float(np.median(np.abs(inside - outside))) > _BORDER_STEP * scale


def find_markers(image: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Lead letters and the like: narrow, and much denser than what is around them. True on them.

    Where three pixels are wider than a letter, none can be told from the patient, and none is found.

    Args:
        image: (rows, cols), dense high.
        spacing: (row, column) [mm].
    """
    if max(spacing) > _MARKER_MM / 3:
        return np.zeros(image.shape, dtype=bool)
    low, high = np.percentile(image, [1, 99])
    size = tuple(int(_MARKER_MM / pitch) | 1 for pitch in spacing)
    # Erosion and dilation by running minima and maxima: a grey opening.
    opened = ndimage.maximum_filter(ndimage.minimum_filter(image, size), size)
    found = image - opened > _MARKER_CONTRAST * (high - low)
    return ndimage.binary_dilation(found, iterations=2) if found.any() else found


def open_field(signal: np.ndarray, seen: np.ndarray) -> float | None:
    """The detector's signal without a patient, read off the picture; None where it shows no open field.

    Args:
        signal: proportional to the X-rays that arrived (rows, cols).
        seen: True where a pixel counts.
    """
    values = signal[seen]
    top = float(np.percentile(values, 99.5))
    if top <= 0:
        return None
    counts, edges = np.histogram(values, bins=80, range=(0.8 * top, 1.2 * top))
    mode = float(edges[counts.argmax()] + edges[1] / 2 - edges[0] / 2)
    near = values[np.abs(values - mode) < 0.01 * mode]
    return float(np.median(near)) if near.size >= _OPEN_FIELD * values.size else None
