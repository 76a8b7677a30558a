# SPDX-License-Identifier: Apache-2.0
"""The sums that metrics are made of, over all regions of a volume at once.

What a voxel belongs to is its label: bit r is set where it lies in region r, and the higher bits are its tissue. On the
CPU the loops are compiled (:mod:`.kernels`), elsewhere and without numba they run in torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from progressive_cascade.losses.ssim import ssim_map

NUM_REGIONS = 3
"""Regions a label has bits for."""
AXES = (0, 1, 2)

Profiles = tuple[Tensor, Tensor, Tensor]
"""Sums over every plane across each axis, (region, planes), float64."""

_SLAB = 32  # planes per SSIM map: bounds the memory of the terms in float64 at 256³ to a few hundred MB


def ssim_profiles(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    taps: Tensor,
    axes: Sequence[int] = AXES,
    data_range: float = 1.0,
    sample_covariance: bool = False,
) -> Profiles:
    """Local SSIM, summed over the windows inside the volume whose centre is in a region.

    Args:
        prediction: (x, y, z), float32 or float64.
        target: same shape and type.
        labels: same shape, uint8.
        taps: symmetric window along each axis (t,), float64, t odd.
        axes: axes along which the window extends.
        data_range: span of possible values.
        sample_covariance: see :func:`progressive_cascade.losses.ssim.ssim_map`.

    Returns:
        Sums over planes; an axis in `axes` has t - 1 planes less.
    """
    windows = [taps if axis in axes else torch.ones(1, dtype=torch.float64) for axis in AXES]
    sizes = [size - len(window) + 1 for size, window in zip(prediction.shape, windows, strict=True)]
    compiled = _compiled_for(prediction)
    if compiled is None:
        slabs = []
        for start in range(0, sizes[0], _SLAB):
            stop = min(start + _SLAB, sizes[0]) + len(windows[0]) - 1
            parts = [volume[None, start:stop].double() for volume in (prediction, target)]
            options = {"data_range": data_range, "axes": [axis + 1 for axis in axes]}
            slabs.append(ssim_map(*parts, taps=taps.to(parts[0]), sample_covariance=sample_covariance, **options)[0])
        return _profiles(torch.cat(slabs), centres(labels, [len(window) - 1 for window in windows]))
    profiles = _no_profiles(sizes)
    count = len(taps) ** len(axes)
    constants = (
        data_range / 2,  # see ssim_map
        (0.01 * data_range) ** 2,
        (0.03 * data_range) ** 2,
        count / (count - 1) if sample_covariance else 1.0,
    )
    weights = tuple(window.numpy() for window in windows)
    compiled.ssim_profiles(*_arrays(prediction, target, labels), weights, constants, _arrays(*profiles))
    return profiles


def squared_profiles(prediction: Tensor, target: Tensor, labels: Tensor) -> Profiles:
    """Squared differences, summed over every plane of a region.

    Args:
        prediction: (x, y, z).
        target: same shape and type.
        labels: same shape, uint8.

    Returns:
        Sums over planes.
    """
    compiled = _compiled_for(prediction)
    if compiled is None:
        return _profiles((prediction.double() - target.double()).square(), labels)
    profiles = _no_profiles(prediction.shape)
    compiled.squared_profiles(*_arrays(prediction, target, labels), _arrays(*profiles))
    return profiles


def label_sums(prediction: Tensor, target: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """What the voxels of each label add up to.

    Args:
        prediction: (x, y, z).
        target: same shape and type.
        labels: same shape, uint8.
        num_labels: above the largest one.

    Returns:
        (label, 6), float64: the voxels, their differences, sizes of these, squares of these, squares of the
        prediction, and of the target.
    """
    flat = [volume.reshape(-1) for volume in (prediction, target, labels)]
    compiled = _compiled_for(prediction)
    if compiled is None:
        one, two = flat[0].double(), flat[1].double()
        difference = one - two
        terms = (torch.ones_like(one), difference, difference.abs(), difference.square(), one.square(), two.square())
        sums = [torch.bincount(flat[2].long(), weights=term, minlength=num_labels) for term in terms]
        return torch.stack(sums, dim=1).cpu()
    sums = torch.zeros(num_labels, 6, dtype=torch.float64)
    compiled.label_sums(*_arrays(*flat), sums.numpy())
    return sums


def count_profiles(labels: Tensor) -> Profiles:
    """Voxels of every region, counted over every plane."""
    return squared_profiles(torch.ones_like(labels), torch.zeros_like(labels), labels)


def centres(labels: Tensor, margins: Sequence[int]) -> Tensor:
    """Labels of the voxels that are the centre of a window inside the volume.

    Args:
        labels: (x, y, z).
        margins: taps of the window less one, along each axis.

    Returns:
        A part of them.
    """
    for axis, margin in enumerate(margins):
        labels = labels.narrow(axis, margin // 2, labels.shape[axis] - margin)
    return labels


@functools.cache
def _compiled() -> Any:
    try:
        from progressive_cascade.evaluation import kernels
    except ImportError:
        return None
    return kernels


def _compiled_for(volume: Tensor) -> Any:
    """The compiled loops, or None where torch must do."""
    return _compiled() if volume.device.type == "cpu" else None


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


def _no_profiles(sizes: Sequence[int]) -> Profiles:
    x, y, z = (torch.zeros(NUM_REGIONS, size, dtype=torch.float64) for size in sizes)
    return x, y, z


def _profiles(values: Tensor, labels: Tensor) -> Profiles:
    inside = [values * (labels >> region & 1) for region in range(NUM_REGIONS)]
    x, y, z = (
        torch.stack([part.sum([other for other in AXES if other != axis]) for part in inside]).cpu() for axis in AXES
    )
    return x, y, z
