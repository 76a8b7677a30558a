# SPDX-License-Identifier: Apache-2.0
"""From a virtual detector to the real one and back, compiled for the CPU by numba; see :mod:`.numba_slices`."""

from __future__ import annotations

import numpy as np

from progressive_cascade.projector.numba_slices import jit_kernel


@jit_kernel
def _meets(inverse, source, shape, row, col):
    """Whether a ray comes within a voxel of the volume: interpolation alone would blur the edge of its shadow."""
    near = 0.0
    far = np.inf
    for axis in range(3):
        along = inverse[axis, 0] * col + inverse[axis, 1] * row + inverse[axis, 2]
        low = -1.0 - source[axis]
        high = shape[axis] - source[axis]
        if along == 0.0:
            if low >= 0.0 or high <= 0.0:
                return False
        else:
            near = max(near, min(low / along, high / along))
            far = min(far, max(low / along, high / along))
    return near < far


@jit_kernel
def _length(metric, normal, row, col):
    square = (
        metric[0, 0] * col * col
        + metric[1, 1] * row * row
        + metric[2, 2]
        + 2 * (metric[0, 1] * col * row + metric[0, 2] * col + metric[1, 2] * row)
    )
    return np.sqrt(square) / abs(normal[0] * col + normal[1] * row + normal[2])


@jit_kernel
def weigh(source, metric, normal, out, low, high):
    """An image times the length of a ray per slice."""
    for row in range(low, high):
        for col in range(out.shape[1]):
            out[row, col] = source[row, col] * _length(metric, normal, row, col)


@jit_kernel
def _cubic(at):
    """Keys' interpolation weights (a = -1/2) of the four pixels around ``floor(at)``."""
    a = at * at
    b = a * at
    return (
        -0.5 * b + a - 0.5 * at,
        1.5 * b - 2.5 * a + 1.0,
        -1.5 * b + 2.0 * a + 0.5 * at,
        0.5 * b - 0.5 * a,
    )


@jit_kernel
def resample(source, homography, metric, normal, box, out, low, high):
    """Bicubic interpolation of a virtual detector, times the length of a ray per slice."""
    rows, cols = source.shape
    inverse, start, shape = box
    for row in range(low, high):
        for col in range(out.shape[1]):
            if not _meets(inverse, start, shape, row, col):
                out[row, col] = 0.0
                continue
            w = homography[2, 0] * col + homography[2, 1] * row + homography[2, 2]
            at_col = (homography[0, 0] * col + homography[0, 1] * row + homography[0, 2]) / w
            at_row = (homography[1, 0] * col + homography[1, 1] * row + homography[1, 2]) / w
            first_row = int(np.floor(at_row)) - 1
            first_col = int(np.floor(at_col)) - 1
            total = 0.0
            row_weights = _cubic(at_row - first_row - 1)
            col_weights = _cubic(at_col - first_col - 1)
            if 0 <= first_row < rows - 3 and 0 <= first_col < cols - 3:
                for i in range(4):
                    part = 0.0
                    for j in range(4):
                        part += col_weights[j] * source[first_row + i, first_col + j]
                    total += row_weights[i] * part
            elif first_row > -4 and first_col > -4 and first_row < rows and first_col < cols:
                for i in range(4):
                    if 0 <= first_row + i < rows:
                        part = 0.0
                        for j in range(4):
                            if 0 <= first_col + j < cols:
                                part += col_weights[j] * source[first_row + i, first_col + j]
                        total += row_weights[i] * part
            out[row, col] = total * _length(metric, normal, row, col)


@jit_kernel
def resample_transpose(values, homography, metric, normal, box, out, low, high):
    """The transpose of :func:`resample`, for the virtual rows from low to high."""
    cols = out.shape[1]
    inverse, start, shape = box
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            w = homography[2, 0] * col + homography[2, 1] * row + homography[2, 2]
            at_row = (homography[1, 0] * col + homography[1, 1] * row + homography[1, 2]) / w
            first_row = int(np.floor(at_row)) - 1
            if first_row + 3 < low or first_row >= high:
                continue
            at_col = (homography[0, 0] * col + homography[0, 1] * row + homography[0, 2]) / w
            first_col = int(np.floor(at_col)) - 1
            if first_col < -3 or first_col >= cols or not _meets(inverse, start, shape, row, col):
                continue
            row_weights = _cubic(at_row - first_row - 1)
            col_weights = _cubic(at_col - first_col - 1)
            value = values[row, col] * _length(metric, normal, row, col)
            for i in range(4):
                if low <= first_row + i < high:
                    for j in range(4):
                        if 0 <= first_col + j < cols:
                            out[first_row + i, first_col + j] += row_weights[i] * col_weights[j] * value
