# SPDX-License-Identifier: Apache-2.0
"""A small finished case for pages about it."""

from __future__ import annotations

import numpy as np

from progressive_cascade import ConeBeam

SIZE = 64
BEAM = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
AFFINE = np.diag([5.6, 5.6, 5.6, 1.0])
RECORD = {"calibrated": True, "agreement": {"pa": {"relative_residual": 0.0123}}, "geometry": BEAM.to_dict()}


def water_volume() -> np.ndarray:
    """An ellipsoid of water with a dense rod, off centre along every axis, in air."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij")
    hu = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 + (z / 0.9) ** 2 < 1, 40, -1000)
    hu[40:44, 20:24, 10:50] = 900
    return (hu + np.random.default_rng(0).integers(-20, 20, hu.shape)).astype(np.int16)
