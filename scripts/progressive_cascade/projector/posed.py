# SPDX-License-Identifier: Apache-2.0
"""A with a gradient for the pose: ray by ray, the rays traced by autograd on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from progressive_cascade.projector import torch_rays as ray_kernels
from progressive_cascade.projector.backends import choose_kernels
from progressive_cascade.projector.plan import check_pose


def project_posed(
    mu: Tensor,
    matrices: Tensor,
    affines: Tensor,
    detector_shape: tuple[int, int],
    source_to_detector: Sequence[float] | None,
    backend: str,
) -> Tensor:
    """A, differentiable in the volume, the matrices and the affines.

    Args:
        mu: (b, 1, x, y, z) [1/mm].
        matrices: (b, view, 3, 4), RAS mm to pixels.
        affines: (b, 4, 4), voxel index to RAS mm.
        detector_shape: (rows, cols).
        source_to_detector: (b,), where rays end [mm]; None: behind the volume.
        backend: as for :func:`.operator.project`.

    Returns:
        Line integrals (b, view, rows, cols).

    Raises:
        ValueError: if a pose is impossible.
    """
    shape = (int(mu.shape[2]), int(mu.shape[3]), int(mu.shape[4]))
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    samples = []
    for index in range(len(mu)):
        reach = None if source_to_detector is None else float(source_to_detector[index])
        views = []
        for matrix in matrices[index].cpu().double():
            place = affines[index].cpu().double()
            check_pose(matrix.detach().numpy(), place.detach().numpy(), shape, detector_shape)
            rays = ray_kernels.trace(
                matrix, place, shape=shape, detector_shape=detector_shape, source_to_detector=reach
            )
            axis, lines, span, length = ray_kernels.move_rays(rays, mu)
            sums = _SumRays.apply(mu[index, 0].to(dtype), axis, lines, span, backend)
            views.append(ray_kernels.from_columns((sums * length).to(dtype), detector_shape))
        samples.append(torch.stack(views))
    return torch.stack(samples)


class _SumRays(torch.autograd.Function):
    """Sums along rays, differentiable in the volume to any order and once in the lines."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(volume, axis, lines, span)
        ctx.backend = backend
        return choose_kernels(volume.device, backend, ray_kernels).sum_rays(volume, axis, lines, span)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        volume, axis, lines, span = ctx.saved_tensors
        to_volume = to_lines = None
        if ctx.needs_input_grad[0]:
            to_volume = _SpreadRays.apply(gradients[0], axis, lines, span, tuple(volume.shape), ctx.backend)
        if ctx.needs_input_grad[2]:
            to_lines = _LineGradient.apply(volume, gradients[0], axis, lines, span, ctx.backend)
        return to_volume, None, to_lines, None, None


class _SpreadRays(torch.autograd.Function):
    """The transpose of :class:`_SumRays`."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, axis: Tensor, lines: Tensor, span: Tensor, shape: tuple[int, int, int], backend: str
    ) -> Tensor:
        ctx.save_for_backward(values, axis, lines, span)
        ctx.backend = backend
        volume = values.new_zeros(shape)
        choose_kernels(values.device, backend, ray_kernels).spread_rays(values, volume, axis, lines, span)
        return volume

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        values, axis, lines, span = ctx.saved_tensors
        to_values = to_lines = None
        if ctx.needs_input_grad[0]:
            to_values = _SumRays.apply(gradients[0], axis, lines, span, ctx.backend)
        if ctx.needs_input_grad[2]:
            # <v, Aᵀ y> = <A v, y>: the derivative is that of A v weighed by y.
            to_lines = _LineGradient.apply(gradients[0], values, axis, lines, span, ctx.backend)
        return to_values, None, to_lines, None, None, None


class _LineGradient(torch.autograd.Function):
    """d <values, A(lines) volume> / d lines; piecewise constant in the lines, and not differentiated further."""

    @staticmethod
    def forward(
        ctx: Any, volume: Tensor, values: Tensor, axis: Tensor, lines: Tensor, span: Tensor, backend: str
    ) -> Tensor:
        slopes = choose_kernels(volume.device, backend, ray_kernels).differentiate_rays(volume, axis, lines, span)
        return slopes * values.unsqueeze(1).to(slopes.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("the gradient for the pose has no second derivative")
