# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation by translation: stage 1's cube laid a voxel further, and its volumes averaged in one place.

A network's error depends on where its voxels happen to lie. Those of the cube as it stands and of four a voxel to the
left, right, front and back differ enough that their mean is nearer to the truth, on patients by about 0.1 dB, on
phantoms by 0.2 to 0.5 (bundle/docs/EXPERIMENTS.md); laid higher or lower the cube loses what it then cuts off. By whole
voxels nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Frame = tuple[int, int, int]
"""How many voxels the cube is laid along x, y and z."""
FRAMES: tuple[Frame, ...] = ((0, 0, 0), (1, 0, 0), (0, -1, 0), (-1, 0, 0), (0, 1, 0))


def in_frame(matrices: Tensor, frame: Frame, voxel: float) -> Tensor:
    """Projection matrices about the middle of a cube that is laid elsewhere.

    Args:
        matrices: (..., 3, 4), RAS mm about the isocenter to pixels.
        frame: where the cube is laid.
        voxel: its voxels' size [mm].

    Returns:
        As ``matrices``, from RAS mm about the cube's middle.
    """
    shift = torch.eye(4).to(matrices)
    shift[:3, 3] = torch.tensor(frame).to(matrices) * voxel
    return matrices @ shift


def average_frames(volumes: Sequence[Tensor], frames: Sequence[Frame]) -> Tensor:
    """The mean of the volumes of cubes that lie differently, on the cube as it stands.

    Args:
        volumes: (b, 1, g, g, g), each on its own cube.
        frames: where each was laid.

    Returns:
        (b, 1, g, g, g); every voxel is the mean of those volumes that hold it, 0 where none does.
    """
    total, count = torch.zeros_like(volumes[0]), torch.zeros_like(volumes[0])
    for volume, frame in zip(volumes, frames, strict=True):
        sizes = list(zip(frame, volume.shape[2:], strict=True))
        here = (..., *(slice(max(0, by), size + min(0, by)) for by, size in sizes))
        there = (..., *(slice(max(0, -by), size + min(0, -by)) for by, size in sizes))
        total[here] += volume[there]
        count[here] += 1
    return total / count.clamp(min=1)


def deviate_frames(volumes: Sequence[Tensor], frames: Sequence[Frame], *, above: float) -> float:
    """How far the volumes deviate from their mean: a sign of its error, which they partly share.

    Args:
        volumes: see :func:`average_frames`.
        frames: see there.
        above: a voxel counts where their mean is larger.

    Returns:
        Mean over these voxels of the standard deviation; 0 without such a voxel.
    """
    mean = average_frames(volumes, frames)
    square = average_frames([volume.square() for volume in volumes], frames) - mean.square()
    counted = mean > above
    return float(square.clamp(min=0).sqrt()[counted].mean()) if counted.any() else 0.0
