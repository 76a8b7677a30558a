# SPDX-License-Identifier: Apache-2.0
"""The solver: conjugate gradients that pull a volume towards the ones its radiographs allow.

The regularised projection of x onto the volumes that explain the line integrals y,

    argmin_z |z - x|² + |A z - y|² / λ  =  x + Aᵀ (A Aᵀ + λ I)⁻¹ (y - A x),

is solved by conjugate gradients in projection space, where a vector is as small as a radiograph. λ [mm²] is the
variance of the line integrals over the variance of mu: large λ trusts the volume, small λ the radiographs. Weights per
pixel W (0 where a pixel does not show the patient) make it (A z - y)ᵀ W (A z - y) / λ; with W½ A in place of A and W½ y
in place of y the system stays symmetric.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.projector import aligned_axes, project, project_aligned, transpose_aligned, transpose_project


def solve_consistency(
    mu: Tensor,
    line_integrals: Tensor,
    matrices: Tensor,
    affines: Tensor,
    regularization: Tensor,
    num_iterations: int,
    axes: Optional[List[int]] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Pull a volume towards the ones whose projections equal the radiographs.

    Args:
        mu: starting volume x (b, 1, x, y, z) [1/mm].
        line_integrals: measured y (b, view, rows, cols).
        matrices: (b, view, 3, 4), RAS mm to pixels of ``line_integrals``.
        affines: (b, 4, 4), voxel index to RAS mm.
        regularization: λ [mm²], a scalar tensor.
        num_iterations: conjugate-gradient steps; each costs one A and one Aᵀ.
        axes: volume axes along (beam, rows, columns) of every view, for programs; see :func:`apply_projector`.
        weights: of the pixels, at least 0 (b, view, rows, cols); default: 1 everywhere.

    Returns:
        The corrected volume (b, 1, x, y, z) [1/mm]. Differentiable in mu, the line integrals and λ.
    """
    detector_shape = (line_integrals.shape[2], line_integrals.shape[3])
    shape = (mu.shape[2], mu.shape[3], mu.shape[4])
    if num_iterations == 0:
        return mu
    root = None if weights is None else weights.sqrt()
    residual = _scaled(line_integrals - apply_projector(mu, matrices, affines, detector_shape, axes), root)
    direction = residual
    energy = _dot(residual, residual)
    for _ in range(num_iterations):
        smeared = apply_transpose(_scaled(direction, root), matrices, affines, shape, axes)
        explained = _scaled(apply_projector(smeared, matrices, affines, detector_shape, axes), root)
        normal = explained + regularization * direction
        # A residual of exactly zero (a volume that explains its radiographs) must give a step of zero, not 0 / 0.
        step = energy / _dot(direction, normal).clamp(min=1e-30)
        mu = torch.addcmul(mu, step.unsqueeze(-1), smeared)
        residual = residual - step * normal
        previous, energy = energy, _dot(residual, residual)
        direction = residual + energy / previous.clamp(min=1e-30) * direction
    return mu


def apply_projector(
    mu: Tensor, matrices: Tensor, affines: Tensor, detector_shape: Tuple[int, int], axes: Optional[List[int]] = None
) -> Tensor:
    """A, by the projector that suits the caller.

    A compiled program (TorchScript, torch.export, ONNX) cannot look at the matrices to find out which axis of the
    volume a view looks along; it is told by ``axes`` and runs on plain torch. Otherwise the projector chooses itself.

    Args:
        mu: (b, 1, x, y, z) [1/mm].
        matrices: (b, view, 3, 4).
        affines: (b, 4, 4).
        detector_shape: (rows, cols).
        axes: three numbers per view, the volume axes along the beam, the detector's rows and its columns
            (:func:`program_axes`); empty where a view is oblique.

    Returns:
        Line integrals (b, view, rows, cols).
    """
    if torch.jit.is_scripting():
        return project_aligned(mu, matrices, affines, detector_shape, _given(axes))
    if axes and _is_traced():
        with _full_precision(mu):
            return project_aligned(mu, matrices, affines, detector_shape, axes)
    return project(mu, matrices, affines, detector_shape)


def apply_transpose(
    projections: Tensor,
    matrices: Tensor,
    affines: Tensor,
    shape: Tuple[int, int, int],
    axes: Optional[List[int]] = None,
) -> Tensor:
    """Aᵀ, the counterpart of :func:`apply_projector`.

    Args:
        projections: (b, view, rows, cols).
        matrices: (b, view, 3, 4).
        affines: (b, 4, 4).
        shape: voxels (x, y, z).
        axes: see :func:`apply_projector`.

    Returns:
        Volume (b, 1, x, y, z) [mm].
    """
    if torch.jit.is_scripting():
        return transpose_aligned(projections, matrices, affines, shape, _given(axes))
    if axes and _is_traced():
        with _full_precision(projections):
            return transpose_aligned(projections, matrices, affines, shape, axes)
    return transpose_project(projections, matrices, affines, shape)


def program_axes(beam: ConeBeam) -> List[int]:
    """What a compiled program must know of the views: the ``axes`` of :func:`apply_projector`.

    Args:
        beam: the geometry.

    Returns:
        Three axes per view; nothing where one is oblique: such a geometry runs in eager mode alone.
    """
    try:
        return aligned_axes(beam)
    except ValueError:
        return []


def _given(axes: Optional[List[int]]) -> List[int]:
    if axes is None or len(axes) == 0:
        raise ValueError("axes must be known in a scripted program: its views must be parallel to the volume's faces")
    return axes


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Line integrals in half precision are worthless; without autocast a program is left as it is."""
    device_type = like.device.type
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def _scaled(image: Tensor, factor: Optional[Tensor]) -> Tensor:
    return image if factor is None else image * factor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, shaped (b, 1, 1, 1)."""
    return (a * b).sum(dim=[1, 2, 3], keepdim=True)
