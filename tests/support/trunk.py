# SPDX-License-Identifier: Apache-2.0
"""A CT of a trunk for the tests of preparation: simple enough to know what belongs where."""

from __future__ import annotations

import numpy as np

PIXEL, SLICE = 3.0, 5.0
CENTER = np.array([30.0, -100.0, -500.0])
"""Where the trunk's centre stands [mm]."""


def trunk_affine(shape: tuple[int, int, int] = (120, 100, 40)) -> np.ndarray:
    """The array's middle is at :data:`CENTER`."""
    affine = np.diag([PIXEL, PIXEL, SLICE, 1.0])
    affine[:3, 3] = CENTER - affine.diagonal()[:3] * (np.array(shape) - 1) / 2
    return affine


def trunk_hu(shape: tuple[int, int, int] = (120, 100, 40), *, shift_mm: float = 0.0, noise: float = 8.0) -> np.ndarray:
    """An elliptic trunk with lungs, a spine, an arm to the right, and a table under it; around the array's middle."""
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * PIXEL for n in shape[:2]), indexing="ij")
    x = x - shift_mm
    hu = np.full(shape[:2], -1000.0)
    hu[(x / 120) ** 2 + (y / 80) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x + side * 55) / 40) ** 2 + ((y - 5) / 50) ** 2 < 1] = -850
    hu[np.hypot(x, y + 50) < 15] = 400
    hu[np.hypot(x - 145, y) < 20] = 40
    hu[(np.abs(y + 95) < 4) & (np.abs(x) < 140)] = 100
    volume = np.repeat(hu[:, :, None], shape[2], axis=2)
    return volume + np.random.default_rng(0).normal(scale=noise, size=shape) if noise else volume
