# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the metrics, compiled for the CPU by numba: as :mod:`.sums` in torch.

One line of voxels at a time passes through all steps, so that nothing but the volumes themselves leaves the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _jit(function: Callable) -> Any:
    """As :func:`progressive_cascade.projector.numba_slices.jit_kernel`, but a sum may be taken in the fastest order."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz", "reassoc"}, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(function, **options)


@_jit
def ssim_profiles(prediction, target, labels, taps, constants, profiles):
    """Adds local SSIM to the profiles of every region, plane by plane of the first axis.

    ``taps`` are the symmetric windows along the three axes; ``constants`` are the origin, c1, c2 and the factor of the
    covariance.
    """
    origin, c1, c2, unbias = constants
    size_y, size_z = prediction.shape[1:]
    num_x, num_y, num_z = profiles[0].shape[1], profiles[1].shape[1], profiles[2].shape[1]
    margin_x, margin_y, margin_z = len(taps[0]) // 2, len(taps[1]) // 2, len(taps[2]) // 2
    plane = np.empty((4, size_y, size_z))
    lines = np.empty((4, size_z))
    means = np.empty((4, num_z))
    similarity = np.empty(num_z)
    for i in range(num_x):
        for j in range(size_y):
            plane[:, j] = 0.0
            for t in range(len(taps[0])):
                _moments(prediction[i + t, j], target[i + t, j], origin, lines)
                for field in range(4):
                    _add(plane[field, j], lines[field], taps[0][t])
        for j in range(num_y):
            lines[:] = 0.0
            means[:] = 0.0
            for field in range(4):
                _add(lines[field], plane[field, j + margin_y], taps[1][margin_y])
                for t in range(margin_y):
                    _add_pair(lines[field], plane[field, j + t], plane[field, j + 2 * margin_y - t], taps[1][t])
                _add(means[field], lines[field, margin_z:], taps[2][margin_z])
                for t in range(margin_z):
                    _add_pair(means[field], lines[field, t:], lines[field, 2 * margin_z - t :], taps[2][t])
            for k in range(num_z):
                x, y = means[0, k], means[1, k]
                covariance = unbias * (means[2, k] - x * y)
                variances = unbias * (means[3, k] - x * x - y * y)
                x += origin
                y += origin
                similarity[k] = (2 * x * y + c1) * (2 * covariance + c2) / ((x * x + y * y + c1) * (variances + c2))
            _add_line(similarity, labels[i + margin_x, j + margin_y, margin_z:], i, j, profiles)


@_jit
def squared_profiles(prediction, target, labels, profiles):
    """Adds the squared differences to the profiles of every region."""
    values = np.empty(prediction.shape[2])
    for i in range(prediction.shape[0]):
        for j in range(prediction.shape[1]):
            one, two = prediction[i, j], target[i, j]
            for k in range(len(values)):
                difference = float(one[k]) - float(two[k])
                values[k] = difference * difference
            _add_line(values, labels[i, j], i, j, profiles)


@_jit
def label_sums(prediction, target, labels, sums):
    """Adds 1, the difference, its size and its square, and the squares of both to the row of the voxel's label."""
    for i in range(len(labels)):
        one, two = float(prediction[i]), float(target[i])
        difference = one - two
        row = sums[labels[i]]
        row[0] += 1.0
        row[1] += difference
        row[2] += abs(difference)
        row[3] += difference * difference
        row[4] += one * one
        row[5] += two * two


@_jit
def _moments(one, two, origin, lines):
    """x, y, x y and x² + y² of a line."""
    for k in range(len(one)):
        lines[0, k] = one[k] - origin
        lines[1, k] = two[k] - origin
    for k in range(len(one)):
        lines[2, k] = lines[0, k] * lines[1, k]
    for k in range(len(one)):
        lines[3, k] = lines[0, k] * lines[0, k] + lines[1, k] * lines[1, k]


@_jit
def _add(out, values, weight):
    for k in range(len(out)):
        out[k] += weight * values[k]


@_jit
def _add_pair(out, one, two, weight):
    """Two taps of a symmetric window at once."""
    for k in range(len(out)):
        out[k] += weight * (one[k] + two[k])


@_jit
def _add_line(values, labels, i, j, profiles):
    """A line along the last axis into the profiles of the regions whose bit is set."""
    inside = np.empty(len(values))
    for region in range(len(profiles[0])):
        bit = 1 << region
        for k in range(len(values)):
            inside[k] = values[k] if labels[k] & bit else 0.0
        _add(profiles[2][region], inside, 1.0)
        total = 0.0
        for k in range(len(values)):
            total += inside[k]
        profiles[0][region, i] += total
        profiles[1][region, j] += total
