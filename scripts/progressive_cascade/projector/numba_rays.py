# SPDX-License-Identifier: Apache-2.0
"""The ray-driven inner loops, compiled for the CPU by numba; see :mod:`.numba_slices` for who writes where."""

from __future__ import annotations

import numpy as np

from progressive_cascade.projector.numba_slices import jit_kernel


@jit_kernel
def _strides(shape, axis):
    """Of a C-ordered volume: strides along the axis and the two others, and the sizes of these."""
    x, y, z = shape[1] * shape[2], shape[2], 1
    if axis == 0:
        return x, y, z, shape[1], shape[2]
    if axis == 1:
        return y, x, z, shape[0], shape[2]
    return z, x, y, shape[0], shape[1]


@jit_kernel
def _clip(start, slope, low, high, first, last):
    """The k in [first, last) for which low < start + k slope < high, one more on either side for rounding."""
    if slope == 0.0:
        return (first, last) if low < start < high else (first, first)
    one = (low - start) / slope
    two = (high - start) / slope
    first = max(first, int(max(np.floor(min(one, two)), -1.0)))
    last = min(last, int(min(np.ceil(max(one, two)), 1e9)) + 1)
    return first, max(first, last)


@jit_kernel
def sum_rays(data, shape, axis, lines, span, out, low, high):
    """Bilinear samples summed along rays; most lie deep inside a slice and need no look at its border."""
    for ray in range(low, high):
        along, first, second, rows, cols = _strides(shape, axis[ray])
        b0, b1, c0, c1 = lines[ray, 0], lines[ray, 1], lines[ray, 2], lines[ray, 3]
        begin, end = span[ray, 0], span[ray, 1]
        # Between these, one slice short on either side for rounding, all four voxels exist.
        inner, outer = _clip(b0, b1, 0.0, rows - 1.0, begin, end)
        inner, outer = _clip(c0, c1, 0.0, cols - 1.0, inner, outer)
        inner, outer = min(inner + 2, end), outer - 2
        total = 0.0
        for k in range(begin, end):
            b = b0 + k * b1
            c = c0 + k * c1
            i = int(np.floor(b))
            j = int(np.floor(c))
            u = b - i
            v = c - j
            at = k * along + i * first + j * second
            if inner <= k < outer:
                near = data[at] + v * (data[at + second] - data[at])
                far = data[at + first] + v * (data[at + first + second] - data[at + first])
                total += near + u * (far - near)
                continue
            if not (-1.0 < b < rows and -1.0 < c < cols):
                continue
            if i >= 0:
                if j >= 0:
                    total += (1 - u) * (1 - v) * data[at]
                if j + 1 < cols:
                    total += (1 - u) * v * data[at + second]
            if i + 1 < rows:
                if j >= 0:
                    total += u * (1 - v) * data[at + first]
                if j + 1 < cols:
                    total += u * v * data[at + first + second]
        out[ray] = total


@jit_kernel
def spread_rays(data, shape, axis, lines, span, values, low, high):
    """The transpose of :func:`sum_rays`, for the voxels low <= x < high: a share of the volume, not of the rays."""
    for ray in range(len(values)):
        value = values[ray]
        if value == 0.0:
            continue
        main = axis[ray]
        along, first, second, rows, cols = _strides(shape, main)
        begin, end = span[ray, 0], span[ray, 1]
        top, bottom = 0, rows
        if main == 0:
            begin, end = max(begin, low), min(end, high)
        else:
            top, bottom = low, high
            begin, end = _clip(lines[ray, 0], lines[ray, 1], low - 1.0, float(high), begin, end)
        for k in range(begin, end):
            b = lines[ray, 0] + k * lines[ray, 1]
            c = lines[ray, 2] + k * lines[ray, 3]
            if not (-1.0 < b < rows and -1.0 < c < cols):
                continue
            i = int(np.floor(b))
            j = int(np.floor(c))
            u = b - i
            v = c - j
            at = k * along + i * first + j * second
            if top <= i < bottom:
                if j >= 0:
                    data[at] += (1 - u) * (1 - v) * value
                if j + 1 < cols:
                    data[at + second] += (1 - u) * v * value
            if top <= i + 1 < bottom:
                if j >= 0:
                    data[at + first] += u * (1 - v) * value
                if j + 1 < cols:
                    data[at + first + second] += u * v * value


@jit_kernel
def differentiate_rays(data, shape, axis, lines, span, out, low, high):
    """Derivatives of :func:`sum_rays` with respect to start and step in either direction."""
    for ray in range(low, high):
        along, first, second, rows, cols = _strides(shape, axis[ray])
        for k in range(span[ray, 0], span[ray, 1]):
            b = lines[ray, 0] + k * lines[ray, 1]
            c = lines[ray, 2] + k * lines[ray, 3]
            if not (-1.0 < b < rows and -1.0 < c < cols):
                continue
            i = int(np.floor(b))
            j = int(np.floor(c))
            u = b - i
            v = c - j
            at = k * along + i * first + j * second
            near = data[at] if i >= 0 and j >= 0 else 0.0
            right = data[at + second] if i >= 0 and j + 1 < cols else 0.0
            down = data[at + first] if i + 1 < rows and j >= 0 else 0.0
            far = data[at + first + second] if i + 1 < rows and j + 1 < cols else 0.0
            slope_b = (1 - v) * (down - near) + v * (far - right)
            slope_c = (1 - u) * (right - near) + u * (far - down)
            out[ray, 0] += slope_b
            out[ray, 1] += k * slope_b
            out[ray, 2] += slope_c
            out[ray, 3] += k * slope_c
