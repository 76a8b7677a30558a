# SPDX-License-Identifier: Apache-2.0
"""The linear operator A from a volume of mu to line integrals on each view's detector, and its exact transpose.

On CUDA fused kernels do a whole batch of geometries at once (:mod:`.triton_backend`). Elsewhere
every view of every volume is planned on the host (:mod:`.plan`): by slices where the detector is parallel to a face of
the volume, by slices and a homography where it is oblique, ray by ray where neither holds or where the pose itself
needs a gradient. A is linear, so nothing is kept for the backward pass, which is Aᵀ; the derivative of Aᵀ is A again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.projector import torch_rays as ray_kernels
from progressive_cascade.projector import torch_slices as slice_kernels
from progressive_cascade.projector.backends import BACKENDS, choose_fused, choose_kernels
from progressive_cascade.projector.plan import SlicePlan, recall_plan
from progressive_cascade.projector.posed import project_posed

WEIGHTS = ("joseph", "distance")
METHODS = ("auto", "separable", "ray")


def project(
    mu: Tensor,
    matrices: Tensor,
    affines: Tensor,
    detector_shape: tuple[int, int],
    *,
    source_to_detector: Sequence[float] | None = None,
    weights: str = "joseph",
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """A on tensors: the form networks and losses call; every batch element has its own geometry.

    Args:
        mu: (b, 1, x, y, z) [1/mm].
        matrices: (b, view, 3, 4), RAS mm to pixels (:meth:`ConeBeam.projection_matrices`). Where they need a gradient,
            every view is projected ray by ray, and the gradient is that of Joseph's method.
        affines: (b, 4, 4), voxel index to RAS mm; as ``matrices``.
        detector_shape: (rows, cols).
        source_to_detector: (b,), where rays end [mm]; None: every detector stands behind the volume.
        weights: ``joseph`` or ``distance`` (distance-driven; by slices only, a view by rays stays Joseph's).
        method: ``auto``, ``separable`` (by slices) or ``ray``.
        backend: ``auto``, ``numba`` (CPU), ``torch``, or ``triton`` (CUDA; Joseph's weights, ray by ray).

    Returns:
        Line integrals (b, view, rows, cols), float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: if an argument is impossible (see :func:`.plan.plan_view`; a pose that lies on a device is read by
            ``triton`` without a look at it, and gives NaN where it is impossible), or memory does not suffice.
    """
    shape = (int(mu.shape[2]), int(mu.shape[3]), int(mu.shape[4]))
    _check_options(weights, method, backend)
    if torch.is_grad_enabled() and (matrices.requires_grad or affines.requires_grad):
        return project_posed(mu, matrices, affines, detector_shape, source_to_detector, backend)
    options = (weights, method, backend)
    operator = _operator(mu, matrices, affines, (shape, detector_shape), source_to_detector, options)
    return _Linear.apply(mu, operator, False)


def transpose_project(
    projections: Tensor,
    matrices: Tensor,
    affines: Tensor,
    shape: tuple[int, int, int],
    *,
    source_to_detector: Sequence[float] | None = None,
    weights: str = "joseph",
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Aᵀ on tensors, the counterpart of :func:`project`; the pose gets no gradient here.

    Args:
        projections: (b, view, rows, cols).
        matrices: (b, view, 3, 4).
        affines: (b, 4, 4).
        shape: voxels (x, y, z).
        source_to_detector: as for :func:`project`.
        weights: as for :func:`project`.
        method: as for :func:`project`.
        backend: as for :func:`project`.

    Returns:
        Volume (b, 1, x, y, z) [mm], float32 or float64.

    Raises:
        ValueError: if an argument is impossible (see :func:`.plan.plan_view`).
    """
    _check_options(weights, method, backend)
    sizes = (int(shape[0]), int(shape[1]), int(shape[2]))
    detector_shape = (int(projections.shape[2]), int(projections.shape[3]))
    options = (weights, method, backend)
    operator = _operator(projections, matrices, affines, (sizes, detector_shape), source_to_detector, options)
    return _Linear.apply(projections, operator, True)


def _operator(
    values: Tensor,
    matrices: Tensor,
    affines: Tensor,
    shapes: tuple[tuple[int, int, int], tuple[int, int]],
    source_to_detector: Sequence[float] | None,
    options: tuple[str, str, str],
) -> Any:
    """A and Aᵀ by the kernels that suit the values: fused over the batch, or planned view by view."""
    weights, method, backend = options
    fused = choose_fused(values.device, values.dtype, weights=weights, method=method, backend=backend)
    if fused is not None:
        return fused.FusedOperator(matrices, affines, *shapes, source_to_detector)
    return _Operator(matrices, affines, *shapes, source_to_detector, options)


def _check_options(weights: str, method: str, backend: str) -> None:
    for name, value, allowed in (
        ("weights", weights, WEIGHTS),
        ("method", method, METHODS),
        ("backend", backend, BACKENDS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    if weights == "distance" and method == "ray":
        raise ValueError("method must be 'auto' or 'separable' for weights 'distance', got 'ray'")


class _Linear(torch.autograd.Function):
    """A or Aᵀ; the backward of one is the other, so that derivatives of any order exist and none keeps a volume."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, operator: Any, transpose: bool) -> Tensor:
        ctx.operator, ctx.transpose, ctx.dtype = operator, transpose, values.dtype
        try:
            exact = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
            with torch.autocast(values.device.type, enabled=False):
                return operator.backproject(exact) if transpose else operator.project(exact)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"volume and detector must fit into the memory of {values.device}, got a batch of {len(values)} "
                f"volumes of {operator.shape} voxels and detectors of {operator.detector_shape} pixels; take a smaller "
                "batch, a smaller window or fewer pixels"
            ) from error

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Linear.apply(gradients[0], ctx.operator, not ctx.transpose).to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Linear.apply(tangents[0], ctx.operator, ctx.transpose)


class _Operator:
    """A and Aᵀ of a batch of geometries."""

    def __init__(
        self,
        matrices: Tensor,
        affines: Tensor,
        shape: tuple[int, int, int],
        detector_shape: tuple[int, int],
        source_to_detector: Sequence[float] | None,
        options: tuple[str, str, str],
    ) -> None:
        self.shape, self.detector_shape = shape, detector_shape
        self.weights, method, self.backend = options
        host, places = (np.asarray(t.detach().cpu(), dtype=np.float64) for t in (matrices, affines))
        self.views: list[list[SlicePlan | ray_kernels.Rays]] = []
        for index, (views, place) in enumerate(zip(host, places, strict=True)):
            reach = None if source_to_detector is None else float(source_to_detector[index])
            self.views.append([self._plan(matrix, place, reach, method) for matrix in views])

    def _plan(
        self, matrix: np.ndarray, affine: np.ndarray, reach: float | None, method: str
    ) -> SlicePlan | ray_kernels.Rays:
        plan = recall_plan(matrix.tobytes(), affine.tobytes(), self.shape, self.detector_shape, reach, method)
        common = {"shape": self.shape, "detector_shape": self.detector_shape, "source_to_detector": reach}
        return plan or ray_kernels.trace(torch.from_numpy(matrix), torch.from_numpy(affine), **common)

    def project(self, mu: Tensor) -> Tensor:
        """(b, 1, x, y, z) -> (b, view, rows, cols)."""
        samples = []
        for volume, views in zip(mu, self.views, strict=True):
            samples.append(torch.stack([self._project_view(volume[0], view) for view in views]))
        return torch.stack(samples)

    def backproject(self, projections: Tensor) -> Tensor:
        """(b, view, rows, cols) -> (b, 1, x, y, z)."""
        volumes = projections.new_zeros((len(projections), 1, *self.shape))
        for volume, values, views in zip(volumes, projections, self.views, strict=True):
            for value, view in zip(values, views, strict=True):
                self._spread_view(volume[0], value, view)
        return volumes

    def _project_view(self, volume: Tensor, view: SlicePlan | ray_kernels.Rays) -> Tensor:
        if isinstance(view, SlicePlan):
            kernels = _slice_kernels(volume.device, self.backend, view, self.weights)
            virtual = kernels.project_slices(volume.permute(view.axes), view, self.weights)
            return kernels.resample(virtual, view, self.detector_shape)
        axis, lines, span, length = ray_kernels.move_rays(view, volume)
        sums = choose_kernels(volume.device, self.backend, ray_kernels).sum_rays(volume, axis, lines, span)
        return ray_kernels.from_columns(sums * length.to(sums.dtype), self.detector_shape)

    def _spread_view(self, volume: Tensor, values: Tensor, view: SlicePlan | ray_kernels.Rays) -> None:
        if isinstance(view, SlicePlan):
            kernels = _slice_kernels(volume.device, self.backend, view, self.weights)
            virtual = kernels.resample_transpose(values, view)
            kernels.spread_slices(volume.permute(view.axes), virtual, view, self.weights)
            return
        axis, lines, span, length = ray_kernels.move_rays(view, volume)
        weighed = values.t().reshape(-1) * length.to(values.dtype)
        kernels = choose_kernels(volume.device, self.backend, ray_kernels)
        kernels.spread_rays(weighed, volume, axis, lines, span)


def _slice_kernels(device: torch.device, backend: str, view: SlicePlan, weights: str) -> Any:
    """As :func:`.backends.choose_kernels`, but plain where a footprint covers more voxels than the compiled two."""
    wide = weights == "distance" and max(np.abs(line.scale).max() for line in (view.row, view.col)) > 1.0
    return choose_kernels(device, "torch" if wide else backend, slice_kernels)
