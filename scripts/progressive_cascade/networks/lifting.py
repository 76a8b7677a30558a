# SPDX-License-Identifier: Apache-2.0
"""Geometric lifting: every voxel gathers what the radiographs show at its own projection.

The geometry is known, so that it is not left to be learned where a voxel projects to, nor which ray a pixel lies on.
"""

from typing import List

import torch
from torch import Tensor
from torch.nn import functional as F


def voxel_axes(start: List[int], size: List[int], voxel_size: float, extent: float, like: Tensor) -> List[Tensor]:
    """Coordinates of a window of voxels in the cube around the isocenter, per axis.

    Args:
        start: first voxel (x, y, z) of the window.
        size: voxels (x, y, z) of the window.
        voxel_size: [mm].
        extent: width of the whole cube [mm].
        like: tensor whose device the result lies on.

    Returns:
        Three float32 vectors, RAS mm of the voxel centres relative to the isocenter.
    """
    axes: List[Tensor] = []
    for axis in range(3):
        index = torch.arange(size[axis], device=like.device, dtype=torch.float32) + float(start[axis])
        axes.append((index + 0.5) * voxel_size - extent / 2.0)
    return axes


def lift(features: Tensor, matrices: Tensor, axes: List[Tensor], detector_size: int) -> Tensor:
    """Sample every view's feature map at the projection of every voxel.

    Args:
        features: (b, view, c, h, w), covering the whole detector at any resolution.
        matrices: (b, view, 3, 4), RAS mm to pixels of the full detector.
        axes: voxel centres along x, y and z [mm] (:func:`voxel_axes`).
        detector_size: pixels per side of the full detector, the scale of ``matrices``.

    Returns:
        (b, view * c, x, y, z), float32, bilinear; 0 where a voxel projects beside the detector.
    """
    b, views, channels = features.shape[0], features.shape[1], features.shape[2]
    # Sums of products written out: a matrix product would run in half precision under autocast and miss by pixels.
    m = matrices.float().flatten(0, 1).unsqueeze(-1)
    x = (m[:, :, 0] * axes[0]).unsqueeze(3).unsqueeze(4)
    y = (m[:, :, 1] * axes[1]).unsqueeze(2).unsqueeze(4)
    z = (m[:, :, 2] * axes[2] + m[:, :, 3]).unsqueeze(2).unsqueeze(3)
    homogeneous = x + y + z
    pixels = homogeneous[:, :2] / homogeneous[:, 2:]
    grid = ((pixels + 0.5) * (2.0 / detector_size) - 1.0).permute(0, 2, 3, 4, 1)
    sampled = F.grid_sample(
        features.flatten(0, 1).float(),
        grid.flatten(2, 3),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return sampled.reshape(b, views * channels, grid.shape[1], grid.shape[2], grid.shape[3])


def pixel_rays(matrices: Tensor, side: int, detector_size: int, length: float) -> Tensor:
    """The rays through the centres of square patches of the detector, as Plücker coordinates.

    A pixel (u, v) is seen along the line in which two planes meet, that of its column, ``r0 - u r2``, and that of its
    row, ``r1 - v r2``, where r are the matrix's rows. A point x lies on it if ``x × direction = moment``.

    Args:
        matrices: (b, view, 3, 4), RAS mm about the isocenter to pixels of the full detector.
        side: patches per side.
        detector_size: pixels per side of the full detector.
        length: what moments are told in [mm].

    Returns:
        (b, view, side², 6), float32, patches row by row: unit vectors away from the source, and moments.
    """
    m = matrices.float().unsqueeze(3)
    centre = (torch.arange(side, device=m.device, dtype=torch.float32) + 0.5) * (detector_size / side) - 0.5
    columns, rows = centre.repeat(side).unsqueeze(1), centre.repeat_interleave(side).unsqueeze(1)
    across, down = m[:, :, 0] - columns * m[:, :, 2], m[:, :, 1] - rows * m[:, :, 2]
    direction = torch.linalg.cross(across[..., :3], down[..., :3])
    moment = across[..., 3:] * down[..., :3] - down[..., 3:] * across[..., :3]
    along = (direction * m[:, :, 2, :, :3]).sum(dim=3, keepdim=True)
    scale = torch.sign(along) / (direction * direction).sum(dim=3, keepdim=True).sqrt()
    return torch.cat((direction * scale, moment * (scale / length)), dim=3)
