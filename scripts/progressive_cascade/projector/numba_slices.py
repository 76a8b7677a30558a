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

# Lines of voxels that share the places of their pixels: four of float32 are one vector of SSE and NEON. The loops over
# them are written out, which LLVM needs to see the vector.
_LINES = 4


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
def sum_slices(volume, slow, fast, distance_driven, span, out, low, high):
    """Per slice: interpolate along the fast axis into lines of pixels, then along the slow axis into the image.

    ``slow`` and ``fast`` are scale and offset per slice, of the detector's axis that meets the volume's second axis and
    of the one that meets its last. Of slow pixel i, nobody reads fast pixels outside ``span[i, 0]`` to ``span[i, 1]``.
    """
    slices, rows, size = volume.shape
    count = out.shape[1]
    slow_index = np.zeros(high - low, np.uint32)
    slow_fraction = np.zeros(high - low, volume.dtype)
    fast_index = np.zeros(count, np.uint32)
    fast_fraction = np.zeros(count, volume.dtype)
    needed = np.zeros(((rows + _LINES - 1) // _LINES, 2), np.int64)
    stretched = np.zeros((rows + 2, count), volume.dtype)
    line = np.zeros((size + 3, _LINES), volume.dtype)
    pixels = np.zeros((count, _LINES), volume.dtype)
    for k in range(slices):
        _place(slow[0][k], slow[1][k], low, rows, distance_driven, slow_index, slow_fraction)
        _place(fast[0][k], fast[1][k], 0, size, distance_driven, fast_index, fast_fraction)
        left, right = _lit(fast_index, size)
        _need(slow_index, span[low:high], rows, needed)
        for group in range(len(needed)):
            first = max(left, needed[group, 0])
            last = min(right, needed[group, 1])
            if first >= last:
                continue
            j = _LINES * group
            _weave(volume[k], j, line[1:], size)
            _interpolate(line, fast_index[first:last], fast_fraction[first:last], pixels)
            for q in range(min(_LINES, rows - j)):
                row = stretched[1 + j + q, first:last]
                for p in range(last - first):
                    row[p] = pixels[p, q]
        for i in range(high - low):
            j = slow_index[i]
            if j > rows:
                continue
            first = max(left, span[low + i, 0])
            last = min(right, span[low + i, 1])
            upper = slow_fraction[i]
            lower = volume.dtype.type(1) - upper
            below = stretched[j, first:last]
            above = stretched[j + 1, first:last]
            row = out[low + i, first:last]
            for p in range(last - first):
                row[p] += lower * below[p] + upper * above[p]


@jit_kernel
def spread_slices(volume, slow, fast, distance_driven, span, values, low, high):
    """The transpose of :func:`sum_slices`: smear the image over lines of pixels, then gather these into voxels.

    What ``values`` holds outside of ``span`` is left out.
    """
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
    pixels = np.zeros((count + most, _LINES), volume.dtype)
    line = np.zeros((size, _LINES), volume.dtype)
    for k in range(slices):
        _place(slow[0][k], slow[1][k], 0, rows, distance_driven, slow_index, slow_fraction)
        _place(fast[0][k], fast[1][k], 0, size, distance_driven, fast_index, fast_fraction)
        left, right = _lit(fast_index, size)
        smeared[:] = 0
        for i in range(len(values)):
            first = max(left, span[i, 0])
            last = min(right, span[i, 1])
            if first < last:
                _smear(values[i, first:last], slow_index[i], slow_fraction[i], rows, low, smeared[:, first:last])
        taps = _fill_taps(fast_index, fast_fraction, start, weight)
        for j in range(low, high, _LINES):
            _weave(smeared, j - low, pixels, count)
            _gather(pixels, start, weight, taps, line)
            for q in range(min(_LINES, high - j)):
                voxels = volume[k, j + q]
                for z in range(size):
                    voxels[z] += line[z, q]


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
def _need(index, span, rows, needed):
    """Of every group of lines of voxels, the pixels that some slow pixel takes from it: a hull of spans."""
    needed[:, 0] = np.iinfo(np.int64).max
    needed[:, 1] = 0
    for i in range(len(index)):
        at = np.int64(index[i])
        for j in range(max(at - 1, 0), min(at + 1, rows)):
            group = j // _LINES
            needed[group, 0] = min(needed[group, 0], span[i, 0])
            needed[group, 1] = max(needed[group, 1], span[i, 1])


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
def _weave(rows, first, line, size):
    """Four rows, the last one repeated where they end, side by side."""
    last = len(rows) - 1
    one, two = rows[min(first, last)], rows[min(first + 1, last)]
    three, four = rows[min(first + 2, last)], rows[min(first + 3, last)]
    for z in range(size):
        line[z, 0] = one[z]
        line[z, 1] = two[z]
        line[z, 2] = three[z]
        line[z, 3] = four[z]


@jit_kernel
def _interpolate(line, index, fraction, pixels):
    """Pixels from the voxels of a group of lines."""
    for p in range(len(index)):
        below = line[index[p]]
        above = line[index[p] + np.uint32(1)]
        part = fraction[p]
        pixels[p, 0] = below[0] + part * (above[0] - below[0])
        pixels[p, 1] = below[1] + part * (above[1] - below[1])
        pixels[p, 2] = below[2] + part * (above[2] - below[2])
        pixels[p, 3] = below[3] + part * (above[3] - below[3])


@jit_kernel
def _smear(given, index, upper, rows, low, smeared):
    """Add a row of the image to the two lines of voxels, ``low`` and further ones, that it lies between."""
    lower = smeared.dtype.type(1) - upper
    below = np.int64(index) - 1
    for line in range(max(below, low, 0), min(below + 2, low + len(smeared), rows)):
        row = smeared[line - low]
        weight = lower if line == below else upper
        for p in range(len(given)):
            row[p] += weight * given[p]


@jit_kernel
def _gather(pixels, start, weight, taps, line):
    """Every voxel's weighted sum of its pixels."""
    for z in range(len(line)):
        one = two = three = four = line.dtype.type(0)
        for t in range(taps):
            share = weight[t, z]
            read = pixels[np.int64(start[z]) + t]
            one += share * read[0]
            two += share * read[1]
            three += share * read[2]
            four += share * read[3]
        line[z, 0] = one
        line[z, 1] = two
        line[z, 2] = three
        line[z, 3] = four
