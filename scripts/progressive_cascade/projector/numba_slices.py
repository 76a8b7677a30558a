# SPDX-License-Identifier: Apache-2.0
"""The projector's inner loops, compiled for the CPU by numba.

Each kernel does the share ``low`` to ``high`` of the work, so that the calling threads never write to the same place.
Loops are written so that LLVM vectorises them: what a gather reads is copied into a small local array first, which LLVM
can prove free of aliases.

A pixel's place on a slice is an ``index`` and a ``fraction``: the index counts from 1 in a line of voxels padded by a
zero on either side, and the pixel takes ``1 - fraction`` of that entry and ``fraction`` of the next one. ``size + 1``
marks a pixel outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def jit_kernel(function: Callable) -> Any:
    """Compile on first use, and keep the result on disk where that is allowed.

    Args:
        function: the loops.

    Returns:
        The compiled function, which releases the interpreter's lock.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(function, **options)


@jit_kernel
def sum_slices(volume, slow, fast, distance_driven, out, low, high):
    """Per slice: interpolate along the fast axis into lines of pixels, then along the slow axis into the image.

    ``slow`` and ``fast`` are scale and offset per slice, of the detector's axis that meets the volume's second axis and
    of the one that meets its last.
    """
    slices, rows, size = volume.shape
    count = out.shape[1]
    slow_index = np.zeros(high - low, np.uint32)
    slow_fraction = np.zeros(high - low, volume.dtype)
    fast_index = np.zeros(count, np.uint32)
    fast_fraction = np.zeros(count, volume.dtype)
    stretched = np.zeros((rows + 3, count), volume.dtype)
    line = np.zeros(size + 3, volume.dtype)
    pixels = np.zeros(count, volume.dtype)
    for k in range(slices):
        _place(slow[0][k], slow[1][k], low, rows, distance_driven, slow_index, slow_fraction)
        _place(fast[0][k], fast[1][k], 0, size, distance_driven, fast_index, fast_fraction)
        left, right = _lit(fast_index, size)
        index = fast_index[left:right]
        fraction = fast_fraction[left:right]
        first = rows + 1
        last = 0
        for i in range(high - low):
            j = slow_index[i]
            if j <= rows:
                first = min(first, j)
                last = max(last, j + 1)
        for j in range(max(first, 1), min(last, rows) + 1):
            voxels = volume[k, j - 1]
            for z in range(size):
                line[z + 1] = voxels[z]
            for p in range(right - left):
                at = index[p]
                below = line[at]
                pixels[p] = below + fraction[p] * (line[at + np.uint32(1)] - below)
            row = stretched[j, left:right]
            for p in range(right - left):
                row[p] = pixels[p]
        for i in range(high - low):
            j = slow_index[i]
            if j > rows:
                continue
            upper = slow_fraction[i]
            lower = volume.dtype.type(1) - upper
            below = stretched[j, left:right]
            above = stretched[j + 1, left:right]
            row = out[low + i, left:right]
            for p in range(right - left):
                row[p] += lower * below[p] + upper * above[p]


@jit_kernel
def spread_slices(volume, slow, fast, distance_driven, values, low, high):
    """The transpose of :func:`sum_slices`: smear the image over lines of pixels, then gather these into voxels."""
    slices, rows, size = volume.shape
    count = values.shape[1]
    # A voxel takes from the pixels less than a voxel away (Joseph's), or as far as footprint and voxel overlap.
    most = min(count, int(2.0 / np.abs(fast[0]).min()) + 3)
    slow_index = np.zeros(len(values), np.uint32)
    slow_fraction = np.zeros(len(values), volume.dtype)
    fast_index = np.zeros(count, np.uint32)
    fast_fraction = np.zeros(count, volume.dtype)
    smeared = np.zeros((high - low, count), volume.dtype)
    start = np.zeros(size, np.uint32)
    weight = np.zeros((most, size), volume.dtype)
    padded = np.zeros(count + most, volume.dtype)
    line = np.zeros(size, volume.dtype)
    reading = np.zeros(size, volume.dtype)
    for k in range(slices):
        _place(slow[0][k], slow[1][k], 0, rows, distance_driven, slow_index, slow_fraction)
        _place(fast[0][k], fast[1][k], 0, size, distance_driven, fast_index, fast_fraction)
        left, right = _lit(fast_index, size)
        smeared[:] = 0
        for i in range(len(values)):
            j = np.int64(slow_index[i]) - 1
            upper = slow_fraction[i]
            given = values[i, left:right]
            if low <= j < high:
                lower = volume.dtype.type(1) - upper
                row = smeared[j - low, left:right]
                for p in range(right - left):
                    row[p] += lower * given[p]
            if low <= j + 1 < high and j < rows:
                row = smeared[j + 1 - low, left:right]
                for p in range(right - left):
                    row[p] += upper * given[p]
        taps = _fill_taps(fast_index, fast_fraction, start, weight)
        for j in range(low, high):
            row = smeared[j - low]
            for p in range(count):
                padded[p] = row[p]
            for z in range(size):
                line[z] = 0
            for t in range(taps):
                for z in range(size):
                    reading[z] = padded[start[z] + np.uint32(t)]
                share = weight[t]
                for z in range(size):
                    line[z] += share[z] * reading[z]
            voxels = volume[k, j]
            for z in range(size):
                voxels[z] += line[z]


@jit_kernel
def _place(scale, offset, first, size, distance_driven, index, fraction):
    """Index and fraction of the pixels from ``first`` on, on a slice; the same whatever ``first`` is."""
    footprint = abs(scale)
    for i in range(len(index)):
        at = scale * (first + i) + offset
        if distance_driven:
            # The footprint, at most one voxel wide, covers the voxel that holds its lower end and perhaps the next.
            low = at - 0.5 * footprint
            below = np.floor(low + 0.5)
            part = min(max((low + footprint - below - 0.5) / footprint, 0.0), 1.0)
        else:
            below = np.floor(at)
            part = at - below
        if -1.0 <= below < size:
            index[i] = np.uint32(below + 1.0)
            fraction[i] = part
        else:
            index[i] = np.uint32(size + 1)
            fraction[i] = 0.0


@jit_kernel
def _lit(index, size):
    """The first pixel that meets the slice and the one behind the last; they are consecutive."""
    left = 0
    right = len(index)
    while left < right and index[left] > size:
        left += 1
    while right > left and index[right - 1] > size:
        right -= 1
    return left, right


@jit_kernel
def _fill_taps(index, fraction, start, weight):
    """For every voxel the first pixel that touches it, and the weights of this and the next ones; how many at most."""
    size = len(start)
    count = np.zeros(size, np.int64)
    start[:] = 0
    weight[:] = 0
    for p in range(len(index)):
        for d in range(2):
            z = np.int64(index[p]) - 1 + d
            # Pixels that touch a voxel are consecutive, whichever way the detector runs.
            if 0 <= z < size and index[p] <= size:
                if count[z] == 0:
                    start[z] = p
                weight[p - np.int64(start[z]), z] = fraction[p] if d else 1 - fraction[p]
                count[z] += 1
    return count.max()


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
            if first_row > -4 and first_col > -4 and first_row < rows and first_col < cols:
                row_weights = _cubic(at_row - first_row - 1)
                col_weights = _cubic(at_col - first_col - 1)
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
