# SPDX-License-Identifier: Apache-2.0
"""Views by slices in plain torch: banded matrix products, on any device, and in a form that compilers can follow.

The weights of Joseph's method are hats, ``relu(1 - |position - index|)``; the distance-driven ones are the share of a
pixel's footprint that lies in a voxel.

References:
    P. M. Joseph, IEEE TMI 1(3), 1982, doi 10.1109/TMI.1982.4307572.
    B. De Man, S. Basu, Distance-driven projection and backprojection in three dimensions, Phys. Med. Biol. 49(11),
    2004, doi 10.1088/0031-9155/49/11/024.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.projector.plan import PixelLine, SlicePlan

# Slices per matrix product: large enough to keep BLAS busy, small enough that the intermediate stays in tens of MB.
_SLICES_PER_BLOCK = 32


def project_slices(slices: Tensor, plan: SlicePlan, weights: str) -> Tensor:
    """Σ_k W_row(k) S_k W_col(k)ᵀ.

    Args:
        slices: (k, r, c), any strides.
        plan: the view.
        weights: ``joseph`` or ``distance``.

    Returns:
        (rows, cols) of the plan's detector.
    """
    out = torch.zeros(plan.row.count, plan.col.count, dtype=slices.dtype, device=slices.device)
    with _full_precision(slices.device):
        for low in range(0, len(slices), _SLICES_PER_BLOCK):
            block = slices[low : low + _SLICES_PER_BLOCK]
            part = slice(low, low + len(block))
            rows = torch.bmm(_weights(plan.row, part, weights, block), block).permute(1, 0, 2)
            cols = _weights(plan.col, part, weights, block).permute(0, 2, 1)
            out.addmm_(rows.reshape(len(out), -1), cols.reshape(-1, out.shape[1]))
    return out


def spread_slices(slices: Tensor, values: Tensor, plan: SlicePlan, weights: str) -> None:
    """Add W_row(k)ᵀ values W_col(k) to every slice, in place.

    Args:
        slices: (k, r, c), any strides.
        values: (rows, cols).
        plan: the view.
        weights: ``joseph`` or ``distance``.
    """
    with _full_precision(slices.device):
        for low in range(0, len(slices), _SLICES_PER_BLOCK):
            block = slices[low : low + _SLICES_PER_BLOCK]
            part = slice(low, low + len(block))
            cols = _weights(plan.col, part, weights, block)
            smeared = torch.matmul(values, cols.permute(1, 0, 2).reshape(values.shape[1], -1))
            smeared = smeared.reshape(len(values), len(block), block.shape[2]).permute(1, 0, 2)
            block += torch.bmm(_weights(plan.row, part, weights, block).permute(0, 2, 1), smeared)


def resample(virtual: Tensor, plan: SlicePlan, detector_shape: tuple[int, int]) -> Tensor:
    """Read a virtual detector at the real one's pixels and weigh by the length of a ray per slice.

    Args:
        virtual: (virtual rows, virtual cols).
        plan: the view.
        detector_shape: (rows, cols).

    Returns:
        (rows, cols).
    """
    length = _length(plan, detector_shape, virtual)
    if plan.homography is None:
        return virtual * length
    out = torch.zeros_like(length)
    for index, weight in _cubic_taps(plan.homography, (virtual.shape[0], virtual.shape[1]), detector_shape, virtual):
        out += weight * virtual.reshape(-1)[index].reshape(detector_shape)
    return out * length * _meets(plan, detector_shape, virtual)


def resample_transpose(values: Tensor, plan: SlicePlan) -> Tensor:
    """The transpose of :func:`resample`.

    Args:
        values: (rows, cols).
        plan: the view.

    Returns:
        (virtual rows, virtual cols).
    """
    detector_shape = (values.shape[0], values.shape[1])
    weighed = values * _length(plan, detector_shape, values)
    if plan.homography is None:
        return weighed
    virtual_shape = (plan.row.count, plan.col.count)
    weighed = weighed * _meets(plan, detector_shape, values)
    out = torch.zeros(virtual_shape[0] * virtual_shape[1], dtype=values.dtype, device=values.device)
    for index, weight in _cubic_taps(plan.homography, virtual_shape, detector_shape, values):
        add_at(out, index, (weight * weighed).reshape(-1))
    return out.reshape(virtual_shape)


def add_at(out: Tensor, index: Tensor, values: Tensor) -> None:
    """``out[index] += values`` for repeated indices, in an order that does not change from run to run.

    Args:
        out: (n,), changed in place.
        index: (m,) int64.
        values: (m,).
    """
    if out.device.type == "cpu":
        out.index_add_(0, index, values)  # sequential
    else:
        out.index_put_((index,), values, accumulate=True)  # sorts on CUDA, where index_add_ uses atomics


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32, also where the user allows TF32 for the networks."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _weights(line: PixelLine, part: slice, weights: str, like: Tensor) -> Tensor:
    """Weights (k, pixel, voxel) of some slices."""
    # MPS has no float64; its float32 positions err by 1e-5 voxel.
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    scale, offset = (
        torch.as_tensor(values[part], dtype=exact, device=like.device).unsqueeze(1)
        for values in (line.scale, line.offset)
    )
    at = scale * torch.arange(line.count, dtype=exact, device=like.device) + offset
    if weights == "joseph":
        return hat(at, line.size, like.dtype)
    half = 0.5 * scale.abs().unsqueeze(2)
    voxel = torch.arange(line.size, dtype=exact, device=like.device)
    overlap = torch.minimum(at.unsqueeze(2) + half, voxel + 0.5) - torch.maximum(at.unsqueeze(2) - half, voxel - 0.5)
    return (overlap.clamp(min=0.0) / (2 * half)).to(like.dtype)


def hat(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Linear interpolation weights relu(1 - |position - index|).

    Two scatters into zeros; a margin of two voxels on each side takes what falls outside the volume.

    Args:
        positions: (k, pixel) [voxel].
        size: voxels.
        dtype: of the result.

    Returns:
        (k, pixel, size).
    """
    inside = positions.clamp(-2.0, size + 0.999)
    below = inside.floor()
    fraction = (inside - below).to(dtype).unsqueeze(-1)
    index = (below.to(torch.int64) + 2).unsqueeze(-1)
    weights = torch.zeros([positions.shape[0], positions.shape[1], size + 4], dtype=dtype, device=positions.device)
    weights = weights.scatter(2, index, 1.0 - fraction).scatter(2, index + 1, fraction)
    return weights[:, :, 2 : size + 2]


def _length(plan: SlicePlan, detector_shape: tuple[int, int], like: Tensor) -> Tensor:
    """Length of a ray per slice (rows, cols) [mm]."""
    row, col = _pixels(detector_shape, like)
    m, n = plan.metric.tolist(), plan.inverse[plan.axes[0]].tolist()
    square = (m[0][0] * col + 2 * m[0][2]) * col + (m[1][1] * row + 2 * m[1][2] + 2 * m[0][1] * col) * row + m[2][2]
    return (square.sqrt() / (n[0] * col + n[1] * row + n[2]).abs()).to(like.dtype)


def _meets(plan: SlicePlan, detector_shape: tuple[int, int], like: Tensor) -> Tensor:
    """Whether a ray comes within a voxel of the volume: interpolation alone would blur the edge of its shadow."""
    row, col = _pixels(detector_shape, like)
    near, far = torch.zeros_like(row * col), torch.full_like(row * col, torch.inf)
    for (a, b, c), source, size in zip(plan.inverse.tolist(), plan.source.tolist(), plan.shape.tolist(), strict=True):
        along = a * col + b * row + c
        # A ray along the faces divides by zero: ±inf where it runs between them, as it should, or one inf on each side.
        low, high = (-1.0 - source) / along, (size - source) / along
        near = torch.maximum(near, torch.minimum(low, high))
        far = torch.minimum(far, torch.maximum(low, high))
    return near < far


def _cubic_taps(
    homography: np.ndarray, virtual_shape: tuple[int, int], detector_shape: tuple[int, int], like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The 16 virtual pixels around each pixel: flat index (pixel,) and weight (rows, cols), 0 outside."""
    row, col = _pixels(detector_shape, like)
    h = homography.tolist()
    depth = h[2][0] * col + h[2][1] * row + h[2][2]
    taps = []
    for (a, b, c), count in ((h[1], virtual_shape[0]), (h[0], virtual_shape[1])):
        at = (a * col + b * row + c) / depth
        base = at.floor()
        t = at - base
        weights = (
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )
        index = base.clamp(-4, count + 4).to(torch.int64)
        taps.append(
            [
                ((index + d).clamp(0, count - 1), weight * ((index + d >= 0) & (index + d < count)))
                for d, weight in zip((-1, 0, 1, 2), weights, strict=True)
            ]
        )
    for row_index, row_weight in taps[0]:
        for col_index, col_weight in taps[1]:
            yield (row_index * virtual_shape[1] + col_index).reshape(-1), (row_weight * col_weight).to(like.dtype)


def _pixels(detector_shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Row (rows, 1) and column (1, cols) of every pixel, in float64 where the device has it."""
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    rows, cols = (torch.arange(count, dtype=exact, device=like.device) for count in detector_shape)
    return rows.unsqueeze(1), cols.unsqueeze(0)
