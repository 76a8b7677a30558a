# SPDX-License-Identifier: Apache-2.0
"""Any pose, ray by ray: Joseph's method along each ray's own main axis, and its derivative with respect to the pose.

A ray with main axis a crosses slice k at (b, c) = (b₀ + k b₁, c₀ + k c₁), and

    p = length · Σ_k bilinear(S_k, b₀ + k b₁, c₀ + k c₁),

with ``lines`` = (b₀, b₁, c₀, c₁) per ray. The sum is linear in the volume; its derivative with respect to the lines
comes from the same four voxels per slice, and autograd carries it on to source, detector and patient.

References:
    P. M. Joseph, IEEE TMI 1(3), 1982, doi 10.1109/TMI.1982.4307572.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from progressive_cascade.projector.torch_slices import add_at


class Rays(NamedTuple):
    """Rays of one view in voxel indices, on the host.

    Args:
        axis: (ray,) int64, main axis.
        lines: (ray, 4) float64, position in the two other axes at slice 0 and its step per slice [voxel].
        span: (ray, 2) int64, first slice and the one behind the last.
        length: (ray,) float64, length of the ray per slice [mm].
    """

    axis: Tensor
    lines: Tensor
    span: Tensor
    length: Tensor


def trace(
    matrix: Tensor,
    affine: Tensor,
    *,
    shape: tuple[int, int, int],
    detector_shape: tuple[int, int],
    source_to_detector: float | None = None,
) -> Rays:
    """The rays to all pixels, column by column, as z is densest in memory; differentiable in the matrix and the affine.

    Args:
        matrix: (3, 4) float64, RAS mm to pixels times depth.
        affine: (4, 4) float64, voxel index to RAS mm.
        shape: voxels (x, y, z).
        detector_shape: (rows, cols).
        source_to_detector: where rays end [mm]; None: behind the volume.

    Returns:
        The rays.
    """
    q = matrix @ affine
    inverse = torch.linalg.inv(q[:, :3])
    source = -(inverse @ q[:, 3])
    row, col = (torch.arange(count, dtype=q.dtype) for count in detector_shape)
    pixels = torch.stack(torch.meshgrid(col, row, indexing="ij"), dim=-1).reshape(-1, 2)
    direction = pixels @ inverse[:, :2].T + inverse[:, 2]
    # Of two axes that a ray runs along equally the first is the main one, whatever the rounding.
    axis = (direction.detach().abs() * torch.tensor([1.0, 1.0 - 1e-9, 1.0 - 2e-9], dtype=q.dtype)).argmax(dim=1)
    # The two other axes in ascending order, as the slices are stored.
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])[axis]
    along = direction.gather(1, axis.unsqueeze(1))
    slope = direction.gather(1, others) / along
    start = source[others] - source[axis].unsqueeze(1) * slope
    lines = torch.stack([start[:, 0], slope[:, 0], start[:, 1], slope[:, 1]], dim=1)
    length = torch.linalg.vector_norm(direction @ affine[:3, :3].T, dim=1) / along.squeeze(1).abs()
    sizes = torch.tensor(shape)[axis]
    with torch.no_grad():
        ends = _slices_between(source[axis], along.squeeze(1), sizes, source_to_detector)
        span = _inside(lines, ends, torch.tensor(shape)[others])
    return Rays(axis, lines, span, length)


def move_rays(rays: Rays, like: Tensor) -> Rays:
    """Rays on a tensor's device, in float64 where it has that.

    Args:
        rays: on the host.
        like: the tensor.

    Returns:
        The rays, moved.
    """
    if like.device.type == "cpu":
        return rays
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    axis, lines, span, length = rays
    return Rays(axis.to(like.device), lines.to(like.device, exact), span.to(like.device), length.to(like.device, exact))


def from_columns(values: Tensor, detector_shape: tuple[int, int]) -> Tensor:
    """Values of the rays of :func:`trace` as an image.

    Args:
        values: (ray,).
        detector_shape: (rows, cols).

    Returns:
        (rows, cols).
    """
    return values.reshape(detector_shape[1], detector_shape[0]).t()


def _slices_between(source: Tensor, along: Tensor, sizes: Tensor, source_to_detector: float | None) -> Tensor:
    """First slice and the one behind the last (ray, 2) between source and detector."""
    reach = torch.inf if source_to_detector is None else source_to_detector
    far = torch.where(torch.isfinite(along * reach), source + along * reach, along.sign() * torch.inf)
    low, high = torch.minimum(source, far), torch.maximum(source, far)
    limit = sizes.to(low.dtype)
    first = torch.minimum((low.floor() + 1).clamp(min=0), limit)
    last = torch.minimum(high.ceil().clamp(min=0), limit)
    return torch.stack([first, torch.maximum(first, last)], dim=1)


def _inside(lines: Tensor, ends: Tensor, sizes: Tensor) -> Tensor:
    """The ends narrowed to where a line runs through the volume; a slice too many does no harm."""
    first, last = ends[:, 0], ends[:, 1]
    for at in range(2):
        start, slope = lines[:, 2 * at], lines[:, 2 * at + 1]
        one, two = (-1.0 - start) / slope, (sizes[:, at] - start) / slope
        level = slope == 0
        first = torch.where(level, first, torch.maximum(first, torch.minimum(one, two).floor()))
        last = torch.where(level, last, torch.minimum(last, torch.maximum(one, two).ceil() + 1))
    return torch.stack([first, torch.maximum(first, last)], dim=1).to(torch.int64)


def sum_rays(volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> Tensor:
    """Bilinear samples of the slices summed along each ray.

    Args:
        volume: (x, y, z).
        axis: (ray,).
        lines: (ray, 4).
        span: (ray, 2).

    Returns:
        (ray,).
    """
    data = volume.reshape(-1)
    out = torch.zeros(len(axis), dtype=volume.dtype, device=volume.device)
    for _, rays, taps in _crossings(_sizes(volume), axis, lines, span):
        for index, inside, weight, _ in taps:
            out[rays] += torch.where(inside, weight, 0.0).to(out.dtype) * data[index]
    return out


def spread_rays(values: Tensor, volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> None:
    """Add the transpose of :func:`sum_rays` to a volume, in place.

    Args:
        values: (ray,).
        volume: (x, y, z), contiguous.
        axis: (ray,).
        lines: (ray, 4).
        span: (ray, 2).
    """
    out = volume.view(-1)
    for _, rays, taps in _crossings(_sizes(volume), axis, lines, span):
        for index, inside, weight, _ in taps:
            add_at(out, index, torch.where(inside, weight, 0.0).to(out.dtype) * values[rays])


def differentiate_rays(volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> Tensor:
    """Derivative of :func:`sum_rays` with respect to its lines.

    Args:
        volume: (x, y, z).
        axis: (ray,).
        lines: (ray, 4).
        span: (ray, 2).

    Returns:
        (ray, 4), float64 where the device has it.
    """
    data = volume.reshape(-1)
    out = torch.zeros_like(lines)
    for k, rays, taps in _crossings(_sizes(volume), axis, lines, span):
        for index, inside, _, slopes in taps:
            voxels = torch.where(inside, data[index].to(out.dtype), 0.0)
            part = torch.stack([slopes[0] * voxels, slopes[1] * voxels], dim=1)
            out[rays] += torch.stack([part[:, 0], k * part[:, 0], part[:, 1], k * part[:, 1]], dim=1)
    return out


def _sizes(volume: Tensor) -> tuple[int, int, int]:
    return volume.shape[0], volume.shape[1], volume.shape[2]


Tap = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]


def _crossings(
    shape: tuple[int, int, int], axis: Tensor, lines: Tensor, span: Tensor
) -> Iterator[tuple[int, Tensor, list[Tap]]]:
    """Slice by slice and main axis by main axis: the rays that cross it, and the four voxels around each crossing."""
    strides = (shape[1] * shape[2], shape[2], 1)
    for main, others in enumerate(((1, 2), (0, 2), (0, 1))):
        members = (axis == main).nonzero().squeeze(1)
        spans = span[members]
        for k in range(shape[main]):
            rays = members[(spans[:, 0] <= k) & (k < spans[:, 1])]
            if len(rays) == 0:
                continue
            at = [lines[rays, 2 * i] + k * lines[rays, 2 * i + 1] for i in range(2)]
            base = [position.floor() for position in at]
            fraction = [position - floor for position, floor in zip(at, base, strict=True)]
            taps = []
            for step_b in (0, 1):
                for step_c in (0, 1):
                    b, c = base[0].to(torch.int64) + step_b, base[1].to(torch.int64) + step_c
                    size_b, size_c = shape[others[0]], shape[others[1]]
                    inside = (b >= 0) & (b < size_b) & (c >= 0) & (c < size_c)
                    index = k * strides[main] + b.clamp(0, size_b - 1) * strides[others[0]]
                    index = index + c.clamp(0, size_c - 1) * strides[others[1]]
                    weight_b = fraction[0] if step_b else 1 - fraction[0]
                    weight_c = fraction[1] if step_c else 1 - fraction[1]
                    slopes = ((2 * step_b - 1) * weight_c, (2 * step_c - 1) * weight_b)
                    taps.append((index, inside, weight_b * weight_c, slopes))
            yield k, rays, taps
