# SPDX-License-Identifier: Apache-2.0
"""Data consistency as a layer of a network, on the network's own grid and radiographs averaged down to it."""

import math
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.attenuation import HU_MAX, HU_MIN, water_attenuation
from progressive_cascade.consistency.solver import apply_projector, program_axes, solve_consistency
from progressive_cascade.geometry import ConeBeam, volume_affine

# Root mean square error of a reconstruction, about 100 HU [1/mm].
_MU_ERROR = 0.002
# What voxels of 1 mm cannot show of the patient's edges, in line integrals; it grows with the voxel. On two phantoms at
# 5.6 mm, λ = 2500 mm² gained 0.2 dB after 2 to 8 iterations; 25 mm² gained it after 2 and lost 0.5 after 8.
_VOXEL_NOISE = 0.018


def noise_regularization(noise: float, voxel_size: float) -> float:
    """λ, the variance of the line integrals over the variance of mu.

    Args:
        noise: standard deviation of the radiographs' noise, no unit.
        voxel_size: of the volume [mm].

    Returns:
        λ [mm²].
    """
    return (noise**2 + (_VOXEL_NOISE * voxel_size) ** 2) / _MU_ERROR**2


class DataConsistency(nn.Module):
    """Closes a stage: a few conjugate-gradient steps that pull its [0, 1] volume back to what the radiographs say.

    The step works at the stage's own grid, with radiographs averaged down to two pixels per voxel, and leaves
    uncalibrated samples as they are. λ is learned, starting from :func:`noise_regularization`.

    Args:
        grid: voxels per axis of the volume.
        voxel_size: [mm].
        num_iterations: conjugate-gradient steps.
        noise: standard deviation of the line integrals' noise, for the initial λ.
        axes: volume axes along (beam, rows, columns) of every view (:func:`apply_projector`); default: those of a PA
            and a lateral; empty: unknown, as of oblique views, which run in eager mode alone.
    """

    affine: Tensor
    axes: List[int]

    def __init__(
        self,
        grid: int,
        voxel_size: float,
        num_iterations: int = 4,
        noise: float = 0.0,
        axes: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_iterations = num_iterations
        self.axes = list(program_axes(ConeBeam()) if axes is None else axes)
        # mu = mu_span x + mu_lowest
        self.mu_max = water_attenuation() * (1.0 + HU_MAX / 1000.0)
        self.mu_lowest = water_attenuation() * (1.0 + HU_MIN / 1000.0)
        self.mu_span = self.mu_max - self.mu_lowest
        # Without iterations nothing would reach the parameter, which distributed training does not forgive.
        start = torch.tensor(math.log(noise_regularization(noise, voxel_size)))
        self.log_regularization = nn.Parameter(start, requires_grad=num_iterations > 0)
        affine = volume_affine((grid, grid, grid), voxel_size)
        self.register_buffer("affine", torch.as_tensor(affine, dtype=torch.float32), persistent=False)

    def forward(
        self,
        volume: Tensor,
        image: Tensor,
        matrices: Tensor,
        calibrated: Optional[Tensor] = None,
        weights: Optional[Tensor] = None,
    ) -> Tensor:
        """Correct a volume.

        Args:
            volume: (b, 1, grid, grid, grid) in [0, 1].
            image: line integrals (b, view, rows, cols) at the detector's full resolution.
            matrices: (b, view, 3, 4), RAS mm to full-resolution pixels.
            calibrated: (b,), 1 where the image holds true line integrals, 0 where the step must be skipped.
            weights: of the pixels, see :func:`solve_consistency`.

        Returns:
            (b, 1, grid, grid, grid) in [0, 1], float32.
        """
        volume = volume.float()
        small, small_matrices = shrink_radiographs(image.float(), matrices.float(), 2 * self.grid, weights)
        affines = self.affine.expand(volume.shape[0], 4, 4)
        solved = solve_consistency(
            self.to_mu(volume),
            small,
            small_matrices,
            affines,
            self.log_regularization.exp(),
            self.num_iterations,
            self.axes,
            None if weights is None else shrink_weights(weights, 2 * self.grid),
        )
        consistent = self.from_mu(solved)
        if calibrated is not None:
            consistent = torch.where(calibrated.reshape(-1, 1, 1, 1, 1) > 0, consistent, volume)
        return consistent

    def residual(self, volume: Tensor, image: Tensor, matrices: Tensor, weights: Optional[Tensor] = None) -> Tensor:
        """What the radiographs hold that the volume does not explain.

        Args:
            volume: (b, 1, grid, grid, grid) in [0, 1].
            image: line integrals (b, view, rows, cols).
            matrices: (b, view, 3, 4).
            weights: of the pixels, at least 0 (b, view, rows, cols); default: 1 everywhere.

        Returns:
            y - A x at two pixels per voxel (b, view, 2 grid, 2 grid) or the detector's own size if that is smaller;
            0 where no pixel has weight.
        """
        small, small_matrices = shrink_radiographs(image.float(), matrices.float(), 2 * self.grid, weights)
        affines = self.affine.expand(volume.shape[0], 4, 4)
        detector_shape = (small.shape[2], small.shape[3])
        explained = apply_projector(self.to_mu(volume.float()), small_matrices, affines, detector_shape, self.axes)
        unexplained = small - explained
        return unexplained if weights is None else unexplained * (shrink_weights(weights, 2 * self.grid) > 0)

    def to_mu(self, volume: Tensor) -> Tensor:
        """[0, 1] to mu [1/mm]; below vacuum counts as vacuum."""
        return (volume * self.mu_span + self.mu_lowest).clamp(min=0.0)

    def from_mu(self, mu: Tensor) -> Tensor:
        """mu [1/mm] to [0, 1]; the range of the networks is kept."""
        return mu.clamp(0.0, self.mu_max) * (1.0 / self.mu_span) - self.mu_lowest / self.mu_span


def shrink_radiographs(
    image: Tensor, matrices: Tensor, size: int, weights: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Average radiographs down to about ``size`` pixels, and move their projection matrices along.

    Args:
        image: (b, view, rows, cols).
        matrices: (b, view, 3, 4), for pixel centres at integers.
        size: wanted columns; the image is shrunk by the whole factor ``cols // size`` (never enlarged).
        weights: of the pixels (b, view, rows, cols): the average counts them; where all are 0 it is the plain one.

    Returns:
        The image (b, view, rows / f, cols / f) and the matrices (b, view, 3, 4) of its pixels.
    """
    factor = max(1, image.shape[3] // size)
    if factor == 1:
        return image, matrices
    shift = (1.0 - factor) / (2.0 * factor)
    pixels = matrices[:, :, :2] / factor + shift * matrices[:, :, 2:]
    small = F.avg_pool2d(image, factor)
    if weights is not None:
        total = F.avg_pool2d(weights, factor)
        small = torch.where(total > 0, F.avg_pool2d(image * weights, factor) / total.clamp(min=1e-12), small)
    return small, torch.cat((pixels, matrices[:, :, 2:]), dim=2)


def shrink_weights(weights: Tensor, size: int) -> Tensor:
    """The weights of the pixels of :func:`shrink_radiographs`: the mean of those that were averaged."""
    factor = max(1, weights.shape[3] // size)
    return weights if factor == 1 else F.avg_pool2d(weights, factor)
