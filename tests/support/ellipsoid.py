# SPDX-License-Identifier: Apache-2.0
"""An ellipsoid as voxels, and the exact lengths of its chords, for the projector's tests."""

from __future__ import annotations

import numpy as np
import torch

from progressive_cascade import ConeBeam


def voxelize_ellipsoid(
    shape: tuple[int, int, int], spacing: float, radii: np.ndarray, center: np.ndarray
) -> torch.Tensor:
    """Ellipsoid of mu = 0.02 / mm with 4³ supersampling."""
    axes = [(np.arange(4 * size) + 0.5) / 4 * spacing - size * spacing / 2 for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 + (
        (z - center[2]) / radii[2]
    ) ** 2 <= 1
    blocks = inside.reshape(shape[0], 4, shape[1], 4, shape[2], 4).mean(axis=(1, 3, 5))
    return torch.from_numpy(0.02 * blocks)[None, None]


def chords_of_ellipsoid(beam: ConeBeam, radii: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Exact chord lengths of the ellipsoid times 0.02 / mm, at pixel centres."""
    views = []
    for view in range(len(beam.views)):
        rows, cols = beam.detector_shape
        col, row = np.meshgrid(np.arange(cols), np.arange(rows))
        pixel = np.stack([col, row, np.zeros_like(col), np.ones_like(col)], -1) @ beam.detector_affine(view).T
        matrix = beam.projection_matrices()[view]
        source = -np.linalg.solve(matrix[:, :3], matrix[:, 3])
        start, direction = (source - center) / radii, (pixel[..., :3] - source)
        length = np.linalg.norm(direction, axis=-1)
        scaled = direction / radii
        a, b, c = (scaled**2).sum(-1), 2 * (scaled * start).sum(-1), (start**2).sum() - 1
        views.append(0.02 * np.sqrt(np.maximum(b**2 - 4 * a * c, 0)) / a * length)
    return np.stack(views)
