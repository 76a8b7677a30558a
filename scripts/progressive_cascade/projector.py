# SPDX-License-Identifier: Apache-2.0
"""The linear operator A from a volume of mu to line integrals on each view's detector, and its exact transpose.

For a detector parallel to a face of the volume the projection is separable: between slice k of the volume and the
detector lie a scale and a shift per axis, so that with hat weights W (Joseph's method)

    p = obliquity · Σ_k  W_row(k) S_k W_col(k)ᵀ,

two banded matrix products per slice. The map is linear: nothing is kept for the backward pass, which is the transpose.

References:
    P. M. Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE TMI 1(3), 1982,
    doi 10.1109/TMI.1982.4307572.
"""

from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, hu_to_mu
from progressive_cascade.geometry import ConeBeam

# Slices per matrix product: large enough to keep BLAS busy, small enough that the intermediate stays in tens of MB.
_SLICES_PER_BLOCK = 32
# An off-axis entry of a projection matrix below this share of the largest counts as zero (float32 matrices).
_ALIGNED_TOLERANCE = 1e-4


def line_integrals(mu: Tensor, beam: ConeBeam, *, affine: "np.ndarray | Tensor") -> Tensor:
    """Project a volume of linear attenuation onto the detectors of a geometry: ``p = ∫ mu dl``.

    Args:
        mu: linear attenuation (b, 1, x, y, z) [1/mm].
        beam: the acquisition geometry.
        affine: voxel index to RAS mm, (4, 4), or (b, 4, 4) for one per volume.

    Returns:
        Line integrals (b, view, rows, cols), without unit.

    Raises:
        ValueError: if a shape is wrong, the affine is singular or not aligned with the views, or a source lies inside.
        TypeError: if ``mu`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from progressive_cascade import ConeBeam, line_integrals, volume_affine
        >>> cube = torch.full((1, 1, 32, 32, 32), 0.02)
        >>> p = line_integrals(cube, ConeBeam(), affine=volume_affine((32, 32, 32), 2.0))
        >>> round(float(p[0, 0, 255, 255]), 3)
        1.28
    """
    _check_volume(mu)
    matrices, affines = _batch_geometry(beam, affine, len(mu), mu.device)
    return project(mu, matrices, affines, beam.detector_shape)


def backproject(projections: Tensor, beam: ConeBeam, *, shape: Sequence[int], affine: "np.ndarray | Tensor") -> Tensor:
    """The exact transpose of :func:`line_integrals`: ``<A x, y> = <x, Aᵀ y>``.

    Args:
        projections: line integrals (b, view, rows, cols).
        beam: the acquisition geometry.
        shape: voxels (x, y, z) of the volume.
        affine: voxel index to RAS mm, (4, 4) or (b, 4, 4).

    Returns:
        Volume (b, 1, x, y, z) [mm].

    Raises:
        ValueError: if a shape is wrong or the geometry cannot be projected (see :func:`line_integrals`).
    """
    expected = (len(beam.views), *beam.detector_shape)
    if projections.dim() != 4 or tuple(projections.shape[1:]) != expected:
        raise ValueError(f"projections must have shape (b, {expected}), got {tuple(projections.shape)}")
    matrices, affines = _batch_geometry(beam, affine, len(projections), projections.device)
    return transpose_project(projections, matrices, affines, (int(shape[0]), int(shape[1]), int(shape[2])))


def project(mu: Tensor, matrices: Tensor, affines: Tensor, detector_shape: Tuple[int, int]) -> Tensor:
    """A on tensors: the form networks and losses call; every batch element has its own geometry.

    Args:
        mu: (b, 1, x, y, z) [1/mm].
        matrices: (b, view, 3, 4), RAS mm to pixels (:meth:`ConeBeam.projection_matrices`).
        affines: (b, 4, 4), voxel index to RAS mm.
        detector_shape: (rows, cols).

    Returns:
        Line integrals (b, view, rows, cols), float32 (float64 for float64 input), also under autocast.
    """
    if torch.jit.is_scripting():
        return _project(mu, matrices, affines, detector_shape)
    return _Project.apply(mu, matrices, affines, detector_shape)


def transpose_project(projections: Tensor, matrices: Tensor, affines: Tensor, shape: Tuple[int, int, int]) -> Tensor:
    """Aᵀ on tensors, the counterpart of :func:`project`.

    Args:
        projections: (b, view, rows, cols).
        matrices: (b, view, 3, 4).
        affines: (b, 4, 4).
        shape: voxels (x, y, z).

    Returns:
        Volume (b, 1, x, y, z) [mm], float32 or float64.
    """
    if torch.jit.is_scripting():
        return _transpose_project(projections, matrices, affines, shape)
    return _TransposeProject.apply(projections, matrices, affines, shape)


class DRR(nn.Module):
    """Digitally reconstructed radiographs of a CT in HU: ``p = ∫ mu(HU) dl`` on each view's detector.

    Args:
        beam: the geometry, as :class:`ConeBeam` or the mapping of its fields that a JSON config holds.
        energy_kev: effective photon energy [keV].
        affine: voxel index to RAS mm of the volumes that come without one.
    """

    def __init__(
        self,
        beam: "ConeBeam | dict | str" = "chest_stand",
        energy_kev: float = EFFECTIVE_ENERGY_KEV,
        affine: "np.ndarray | None" = None,
    ) -> None:
        super().__init__()
        self.beam = parse_beam(beam)
        self.energy_kev = energy_kev
        self.affine = affine

    def forward(self, hu: Tensor, affine: "np.ndarray | Tensor | None" = None) -> Tensor:
        """Project.

        Args:
            hu: CT numbers (b, 1, x, y, z) [HU].
            affine: voxel index to RAS mm, (4, 4) or (b, 4, 4); default: the one given at construction.

        Returns:
            Line integrals (b, view, rows, cols).

        Raises:
            ValueError: if there is no affine at all, or the geometry cannot be projected.
        """
        affine = self.affine if affine is None else affine
        if affine is None:
            raise ValueError("affine must be given here or at construction, got None")
        return line_integrals(hu_to_mu(hu.float(), self.energy_kev), self.beam, affine=affine)


def parse_beam(beam: "ConeBeam | dict | str") -> ConeBeam:
    """A geometry from what a config may hold: a preset's name, the mapping of its fields, or the object itself.

    Args:
        beam: preset name, mapping or :class:`ConeBeam`.

    Returns:
        The geometry.

    Raises:
        ValueError: if the name or a field is unknown or impossible.
    """
    if isinstance(beam, ConeBeam):
        return beam
    return ConeBeam.preset(beam) if isinstance(beam, str) else ConeBeam.from_dict(dict(beam))


class _Project(torch.autograd.Function):
    """A with Aᵀ as its backward; double backward follows since each is the other's derivative."""

    @staticmethod
    def forward(ctx, mu, matrices, affines, detector_shape):
        ctx.save_for_backward(matrices, affines)
        ctx.shape, ctx.dtype = tuple(mu.shape[2:]), mu.dtype
        with torch.autocast(mu.device.type, enabled=False):
            return _project(mu, matrices, affines, detector_shape)

    @staticmethod
    def backward(ctx, grad):
        matrices, affines = ctx.saved_tensors
        return _TransposeProject.apply(grad, matrices, affines, ctx.shape).to(ctx.dtype), None, None, None


class _TransposeProject(torch.autograd.Function):
    """Aᵀ with A as its backward."""

    @staticmethod
    def forward(ctx, projections, matrices, affines, shape):
        ctx.save_for_backward(matrices, affines)
        ctx.detector_shape, ctx.dtype = tuple(projections.shape[2:]), projections.dtype
        with torch.autocast(projections.device.type, enabled=False):
            return _transpose_project(projections, matrices, affines, shape)

    @staticmethod
    def backward(ctx, grad):
        matrices, affines = ctx.saved_tensors
        return _Project.apply(grad, matrices, affines, ctx.detector_shape).to(ctx.dtype), None, None, None


def _project(mu: Tensor, matrices: Tensor, affines: Tensor, detector_shape: Tuple[int, int]) -> Tensor:
    mu = mu.to(torch.float64 if mu.dtype == torch.float64 else torch.float32)
    samples: List[Tensor] = []
    for b in range(mu.shape[0]):
        views: List[Tensor] = []
        for v in range(matrices.shape[1]):
            axes, at_row, at_col, length = _separable(matrices[b, v], affines[b], list(mu.shape[2:]), detector_shape)
            views.append(_project_view(mu[b, 0].permute(axes), at_row, at_col) * length.to(mu.dtype))
        samples.append(torch.stack(views))
    return torch.stack(samples)


def _transpose_project(projections: Tensor, matrices: Tensor, affines: Tensor, shape: Tuple[int, int, int]) -> Tensor:
    p = projections.to(torch.float64 if projections.dtype == torch.float64 else torch.float32)
    sizes = [shape[0], shape[1], shape[2]]
    volumes = torch.zeros([p.shape[0], 1] + sizes, dtype=p.dtype, device=p.device)
    for b in range(p.shape[0]):
        for v in range(p.shape[1]):
            axes, at_row, at_col, length = _separable(matrices[b, v], affines[b], sizes, (p.shape[2], p.shape[3]))
            _add_backprojection(volumes[b, 0].permute(axes), p[b, v] * length.to(p.dtype), at_row, at_col)
    return volumes


def _project_view(slices: Tensor, at_row: Tensor, at_col: Tensor, step: int = _SLICES_PER_BLOCK) -> Tensor:
    """Σ_k W_row(k) S_k W_col(k)ᵀ: slices (k, r, c), positions (k, rows) and (k, cols) -> (rows, cols)."""
    out = torch.zeros([at_row.shape[1], at_col.shape[1]], dtype=slices.dtype, device=slices.device)
    for k in range(0, slices.shape[0], step):
        block = slices[k : k + step]
        weights_row = _hat(at_row[k : k + step], block.shape[1], block.dtype)
        weights_col = _hat(at_col[k : k + step], block.shape[2], block.dtype)
        rows = torch.bmm(weights_row, block).permute(1, 0, 2).reshape(out.shape[0], -1)
        out.addmm_(rows, weights_col.permute(0, 2, 1).reshape(-1, out.shape[1]))
    return out


def _add_backprojection(
    slices: Tensor, p: Tensor, at_row: Tensor, at_col: Tensor, step: int = _SLICES_PER_BLOCK
) -> None:
    """Add W_row(k)ᵀ p W_col(k) to every slice, in place: slices (k, r, c) is a view of the volume."""
    for k in range(0, slices.shape[0], step):
        block = slices[k : k + step]
        weights_row = _hat(at_row[k : k + step], block.shape[1], block.dtype)
        weights_col = _hat(at_col[k : k + step], block.shape[2], block.dtype)
        smeared = torch.matmul(p, weights_col.permute(1, 0, 2).reshape(p.shape[1], -1))
        smeared = smeared.reshape(p.shape[0], block.shape[0], block.shape[2]).permute(1, 0, 2)
        block += torch.bmm(weights_row.permute(0, 2, 1), smeared)


def _separable(
    matrix: Tensor,
    affine: Tensor,
    shape: List[int],
    detector_shape: Tuple[int, int],
    tolerance: float = _ALIGNED_TOLERANCE,
) -> Tuple[List[int], Tensor, Tensor, Tensor]:
    """One view's volume axes (beam, row, column), voxel positions (k, rows), (k, cols), and length per slice [mm].

    With Q = P·affine (voxel index to pixel) and the detector parallel to the slices, w = Q[2]·(i, j, k, 1) depends on
    the beam axis alone, so that each pixel column meets slice k at one voxel coordinate, and each pixel row likewise.
    """
    # MPS has no float64; its float32 coordinates err by 1e-5 voxel.
    exact = torch.float32 if matrix.device.type == "mps" else torch.float64
    q = torch.matmul(matrix.to(exact), affine.to(exact))
    spacing = torch.linalg.vector_norm(affine[:3, :3].to(exact), dim=0)
    beam = int(q[2, :3].abs().argmax())
    row, col = (beam + 1) % 3, (beam + 2) % 3
    if float(q[0, row].abs()) > float(q[0, col].abs()):
        row, col = col, row
    crosstalk = torch.stack(
        (q[2, row] / q[2, beam], q[2, col] / q[2, beam], q[0, row] / q[0, col], q[1, col] / q[1, row])
    )
    if not bool((crosstalk.abs() < tolerance).all()):
        raise ValueError(
            "affine must be aligned with the views (detector parallel to a volume face); resample it to RAS"
        )
    k = torch.arange(shape[beam], dtype=exact, device=q.device)
    depth = q[2, beam] * k + q[2, 3]
    if not bool((depth > 0).all()):
        raise ValueError("source must lie outside the volume's slab along the beam; move the volume or the source")
    pixel_row = torch.arange(detector_shape[0], dtype=exact, device=q.device)
    pixel_col = torch.arange(detector_shape[1], dtype=exact, device=q.device)
    at_row = (torch.outer(depth, pixel_row) - (q[1, beam] * k + q[1, 3]).unsqueeze(1)) / q[1, row]
    at_col = (torch.outer(depth, pixel_col) - (q[0, beam] * k + q[0, 3]).unsqueeze(1)) / q[0, col]
    step_row = spacing[row] * (q[2, beam] * pixel_row - q[1, beam]) / q[1, row]
    step_col = spacing[col] * (q[2, beam] * pixel_col - q[0, beam]) / q[0, col]
    length = torch.sqrt(step_row.unsqueeze(1) ** 2 + step_col.unsqueeze(0) ** 2 + spacing[beam] ** 2)
    return [beam, row, col], at_row, at_col, length


def _hat(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Linear interpolation weights relu(1 - |position - index|): (k, pixel) -> (k, pixel, size).

    Two scatters into zeros; a margin of two voxels on each side takes what falls outside the volume.
    """
    inside = positions.clamp(-2.0, size + 0.999)
    below = inside.floor()
    fraction = (inside - below).to(dtype).unsqueeze(-1)
    index = (below.to(torch.int64) + 2).unsqueeze(-1)
    weights = torch.zeros([positions.shape[0], positions.shape[1], size + 4], dtype=dtype, device=positions.device)
    weights.scatter_(2, index, 1.0 - fraction)
    weights.scatter_(2, index + 1, fraction)
    return weights[:, :, 2 : size + 2]


def _batch_geometry(
    beam: ConeBeam, affine: "np.ndarray | Tensor", batch: int, device: Optional[torch.device]
) -> Tuple[Tensor, Tensor]:
    """Matrices (b, view, 3, 4) and affines (b, 4, 4), float64 where the device has it."""
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
    affines = torch.as_tensor(affine, dtype=dtype, device=device)
    if affines.shape not in ((4, 4), (batch, 4, 4)):
        raise ValueError(f"affine must have shape (4, 4) or ({batch}, 4, 4), got {tuple(affines.shape)}")
    determinant = torch.linalg.det(affines[..., :3, :3])
    if not bool(torch.isfinite(affines).all()) or bool((determinant == 0).any()):
        raise ValueError(f"affine must be finite and invertible, got {affines.tolist()}")
    matrices = torch.as_tensor(beam.projection_matrices(), dtype=dtype, device=device)
    return matrices.expand(batch, -1, -1, -1), affines.expand(batch, 4, 4)


def _check_volume(mu: Tensor) -> None:
    if not isinstance(mu, Tensor) or not mu.is_floating_point():
        raise TypeError(f"mu must be a floating-point tensor, got {getattr(mu, 'dtype', type(mu).__name__)}")
    if mu.dim() != 5 or mu.shape[1] != 1:
        raise ValueError(f"mu must have shape (b, 1, x, y, z), got {tuple(mu.shape)}")
