# SPDX-License-Identifier: Apache-2.0
"""Views parallel to the volume's faces, with no decision that depends on a tensor's value: for compilers, exporters.

The same sums as :mod:`.operator` for axes that are known when the program is built, so that TorchScript, ONNX and
``torch.export`` can follow. In eager mode :func:`.operator.project` is many times faster.
"""

from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.projector.torch_slices import hat


def aligned_axes(beam: ConeBeam) -> List[int]:
    """Per view of an RAS volume: the axes along the beam, the detector's rows and its columns.

    Args:
        beam: the geometry.

    Returns:
        Three numbers a view, ``[1, 2, 0, 0, 2, 1]`` for PA and left lateral.

    Raises:
        ValueError: if a view is oblique.
    """
    axes: List[int] = []
    for name, matrix in zip(beam.views, beam.projection_matrices(), strict=True):
        inverse = np.linalg.inv(matrix[:, :3])
        rows, cols = beam.detector_shape
        center = inverse @ (0.5 * (cols - 1), 0.5 * (rows - 1), 1.0)
        view = [int(np.abs(column).argmax()) for column in (center, inverse[:, 1], inverse[:, 0])]
        stray = np.abs(np.delete(inverse[:, 1], view[1])).max() + np.abs(np.delete(inverse[:, 0], view[2])).max()
        if sorted(view) != [0, 1, 2] or stray > 1e-9 * np.abs(inverse).max():
            raise ValueError(f"views must be parallel to the volume's faces, got {name!r}")
        axes += view
    return axes


def project_aligned(
    mu: Tensor, matrices: Tensor, affines: Tensor, detector_shape: Tuple[int, int], axes: List[int]
) -> Tensor:
    """A for views of known axes.

    Args:
        mu: (b, 1, x, y, z) [1/mm].
        matrices: (b, view, 3, 4), RAS mm to pixels.
        affines: (b, 4, 4), voxel index to RAS mm, axes in RAS order.
        detector_shape: (rows, cols).
        axes: of :func:`aligned_axes`.

    Returns:
        Line integrals (b, view, rows, cols), float32.
    """
    views: List[Tensor] = []
    for v in range(len(axes) // 3):
        order = axes[3 * v : 3 * v + 3]
        slices = mu.float()[:, 0].permute(0, order[0] + 1, order[1] + 1, order[2] + 1)
        row, col, length = _weights(matrices[:, v], affines, list(slices.shape[1:]), detector_shape, order)
        rows = torch.matmul(row, slices).permute(0, 2, 1, 3).flatten(2)
        views.append(torch.matmul(rows, col.transpose(2, 3).flatten(1, 2)) * length)
    return torch.stack(views, dim=1)


def transpose_aligned(
    projections: Tensor, matrices: Tensor, affines: Tensor, shape: Tuple[int, int, int], axes: List[int]
) -> Tensor:
    """Aᵀ for views of known axes.

    Args:
        projections: (b, view, rows, cols).
        matrices: (b, view, 3, 4).
        affines: (b, 4, 4).
        shape: voxels (x, y, z).
        axes: of :func:`aligned_axes`.

    Returns:
        Volume (b, 1, x, y, z) [mm], float32.
    """
    sizes = [shape[0], shape[1], shape[2]]
    detector_shape = (projections.shape[2], projections.shape[3])
    volume = torch.zeros([projections.shape[0]] + sizes, dtype=torch.float32, device=projections.device)
    for v in range(len(axes) // 3):
        order = axes[3 * v : 3 * v + 3]
        stored = [sizes[order[0]], sizes[order[1]], sizes[order[2]]]
        row, col, length = _weights(matrices[:, v], affines, stored, detector_shape, order)
        smeared = torch.matmul((projections[:, v].float() * length).unsqueeze(1), col)
        slices = torch.matmul(row.transpose(2, 3), smeared)
        volume = volume + slices.permute(0, order.index(0) + 1, order.index(1) + 1, order.index(2) + 1)
    return volume.unsqueeze(1)


def _weights(
    matrices: Tensor, affines: Tensor, shape: List[int], detector_shape: Tuple[int, int], axes: List[int]
) -> Tuple[Tensor, Tensor, Tensor]:
    """Hats of rows (b, k, rows, r) and columns (b, k, cols, c), and length per slice (b, rows, cols) [mm]."""
    q = torch.matmul(matrices.double(), affines.double())
    spacing = torch.linalg.vector_norm(affines[:, :3, :3].double(), dim=1)
    beam, row, col = axes[0], axes[1], axes[2]
    k = torch.arange(shape[0], dtype=torch.float64, device=q.device).reshape(1, -1, 1)
    pixel_row = torch.arange(detector_shape[0], dtype=torch.float64, device=q.device).reshape(1, 1, -1)
    pixel_col = torch.arange(detector_shape[1], dtype=torch.float64, device=q.device).reshape(1, 1, -1)
    q = q.unsqueeze(-1).unsqueeze(-1)
    depth = q[:, 2, beam] * k + q[:, 2, 3]
    at_row = (depth * pixel_row - (q[:, 1, beam] * k + q[:, 1, 3])) / q[:, 1, row]
    at_col = (depth * pixel_col - (q[:, 0, beam] * k + q[:, 0, 3])) / q[:, 0, col]
    spacing = spacing.unsqueeze(-1).unsqueeze(-1)
    step_row = spacing[:, row] * (q[:, 2, beam] * pixel_row - q[:, 1, beam]) / q[:, 1, row]
    step_col = spacing[:, col] * (q[:, 2, beam] * pixel_col - q[:, 0, beam]) / q[:, 0, col]
    length = torch.sqrt(step_row.transpose(1, 2) ** 2 + step_col**2 + spacing[:, beam] ** 2).float()
    return _hats(at_row, shape[1]), _hats(at_col, shape[2]), length


def _hats(at: Tensor, size: int) -> Tensor:
    return hat(at.flatten(0, 1), size, torch.float32).reshape(at.shape[0], at.shape[1], at.shape[2], size)
