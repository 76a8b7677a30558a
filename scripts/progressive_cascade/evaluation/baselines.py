# SPDX-License-Identifier: Apache-2.0
"""What a learned prior must beat: reconstructions that never saw a patient, and one that saw nothing but patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import HU_MAX, HU_MIN, mu_to_hu
from progressive_cascade.consistency import shrink_radiographs, solve_consistency
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, volume_affine
from progressive_cascade.projector import backproject, project
from progressive_cascade.training.data import training_items
from progressive_cascade.training.transforms import LoadCased

EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
"""Side of the reconstructed cube [mm]."""
# The unlearned solvers run here: twice as fine as a voxel of stage 1, and 16 times cheaper than the full grid.
_GRID = 128
_LEAST_SQUARES_ITERATIONS = 30
_LEAST_SQUARES_REGULARIZATION = 10.0


def normalized_backprojection(image: Tensor, beam: ConeBeam, grid: int = _GRID) -> Tensor:
    """Every ray's mean attenuation smeared back along it: one SIRT step from zero, ``Aᵀ(y / A1) / Aᵀ1``.

    Args:
        image: line integrals (b, view, rows, cols).
        beam: their geometry, isocenter at the origin.
        grid: voxels per axis.

    Returns:
        mu (b, 1, grid, grid, grid) [1/mm].
    """
    shape = (grid, grid, grid)
    affine = volume_affine(shape, EXTENT / grid)
    small, matrices, affines = _at_grid(image, beam, grid)
    lengths = project(
        torch.ones(len(image), 1, *shape, device=image.device), matrices, affines, (small.shape[2], small.shape[3])
    )
    coarse = _coarse_beam(beam, small)
    numerator = backproject(small / lengths.clamp(min=1e-3) * (lengths > 1e-3), coarse, shape=shape, affine=affine)
    denominator = backproject((lengths > 1e-3).to(small), coarse, shape=shape, affine=affine)
    return numerator / denominator.clamp(min=1e-6)


def least_squares(image: Tensor, beam: ConeBeam, grid: int = _GRID) -> Tensor:
    """The smallest volume that explains the radiographs: data consistency from zero, without any prior.

    Args:
        image: line integrals (b, view, rows, cols).
        beam: their geometry, isocenter at the origin.
        grid: voxels per axis.

    Returns:
        mu (b, 1, grid, grid, grid) [1/mm], not below vacuum.
    """
    small, matrices, affines = _at_grid(image, beam, grid)
    start = torch.zeros(len(image), 1, grid, grid, grid, device=image.device)
    regularization = torch.tensor(_LEAST_SQUARES_REGULARIZATION, device=image.device)
    return solve_consistency(start, small, matrices, affines, regularization, _LEAST_SQUARES_ITERATIONS).clamp(min=0)


def unlearned(image: Tensor, beam: ConeBeam, shape: tuple[int, int, int] = VOLUME_SHAPE) -> dict[str, np.ndarray]:
    """The reconstructions of one patient that need no training.

    Args:
        image: line integrals (1, view, rows, cols).
        beam: their geometry, isocenter at the origin.
        shape: voxels of the volumes.

    Returns:
        float32 volumes [HU] in the HU window by the method's name.
    """
    methods = {"back_projection": normalized_backprojection, "least_squares": least_squares}
    grid = min(_GRID, shape[0])
    volumes = {name: mu_to_hu(method(image, beam, grid)).clamp(HU_MIN, HU_MAX) for name, method in methods.items()}
    return {name: resize(volume, shape)[0, 0].cpu().numpy() for name, volume in volumes.items()}


def mean_volume(items: Sequence[Mapping[Any, Any]], grid: int = _GRID) -> np.ndarray | None:
    """Mean of CTs, voxel by voxel: what can be said of a patient without looking at the radiographs.

    Args:
        items: cases of the training section (:func:`progressive_cascade.training.data.training_items`).
        grid: voxels per axis at which they are loaded.

    Returns:
        float32 (256, 256, 256) [HU] in the HU window, or None without items.
    """
    if not items:
        return None
    load = LoadCased(spatial_size=grid)
    total = torch.zeros(1, 1, grid, grid, grid)
    for item in items:
        total += load(item)["label"].float().clamp(HU_MIN, HU_MAX)
    return resize(total / len(items), VOLUME_SHAPE)[0, 0].numpy()


def training_mean(
    dataset_dir: Any = None, *, section: str = "test", num_phantoms: int = 0, grid: int = _GRID
) -> np.ndarray | None:
    """Mean of the training cases that belong to a section: a dataset's CTs, phantoms where phantoms are evaluated.

    Args:
        dataset_dir: prepared CTs, or None (or an empty string).
        section: what is evaluated.
        num_phantoms: training phantoms to average, 0 where none are evaluated.
        grid: voxels per axis at which they are loaded.

    Returns:
        See :func:`mean_volume`; None for the training section itself, whose mean holds the patients to be scored.
    """
    if section == "training":
        return None
    return mean_volume(training_items(dataset_dir, "training", num_phantoms=num_phantoms), grid)


def resize(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A volume (b, 1, x, y, z) of the cube on another grid, trilinear."""
    if tuple(volume.shape[2:]) == shape:
        return volume
    return F.interpolate(volume, shape, mode="trilinear", align_corners=False)


def _at_grid(image: Tensor, beam: ConeBeam, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    matrices = torch.as_tensor(beam.projection_matrices(), dtype=torch.float32, device=image.device)
    small, small_matrices = shrink_radiographs(image, matrices.expand(len(image), -1, -1, -1), 2 * grid)
    affine = torch.as_tensor(volume_affine((grid, grid, grid), EXTENT / grid), dtype=torch.float32, device=image.device)
    return small, small_matrices, affine.expand(len(image), 4, 4)


def _coarse_beam(beam: ConeBeam, small: Tensor) -> ConeBeam:
    factor = beam.detector_shape[1] // small.shape[3]
    fields = {
        **beam.to_dict(),
        "detector_shape": tuple(small.shape[2:]),
        "pixel_spacing": tuple(spacing * factor for spacing in beam.pixel_spacing),
    }
    return ConeBeam.from_dict(fields)
