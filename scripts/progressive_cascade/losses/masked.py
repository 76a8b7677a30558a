# SPDX-License-Identifier: Apache-2.0
"""What the losses share: full precision, shape checks, means over valid voxels; and the voxel losses built of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def autocast_disabled(tensor: Tensor) -> torch.autocast:
    """Context in which operations on the tensor's device keep full precision."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def as_float32(prediction: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check that volumes match, and bring them to full precision (float64 stays).

    Args:
        prediction: volumes (b, 1, x, y, z); tensor subclasses with metadata become plain tensors.
        target: same shape.
        valid: same shape or None.

    Returns:
        prediction, target and valid in one dtype.

    Raises:
        ValueError: if shapes differ, or are not (b, 1, x, y, z).
    """
    if prediction.ndim != 5 or prediction.shape[1] != 1:
        raise ValueError(f"prediction must have shape (b, 1, x, y, z), got {tuple(prediction.shape)}")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    plain = []
    for name, tensor in (("target", target), ("valid", valid)):
        if tensor is not None and tensor.shape != prediction.shape:
            raise ValueError(
                f"{name} must have prediction's shape {tuple(prediction.shape)}, got {tuple(tensor.shape)}"
            )
        plain.append(None if tensor is None else tensor.as_subclass(Tensor).to(dtype))
    return prediction.as_subclass(Tensor).to(dtype), plain[0], plain[1]


def masked_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the samples of each one's weighted mean; a sample whose weights are all 0 counts 0.

    Samples have equal say, however much of each counts, so that a loss does not depend on how a batch is dealt out to
    processes.

    Args:
        values: (b, channels, ...).
        weight: (b, 1, ...), counted alike for all channels; None gives the plain mean.

    Returns:
        A scalar.
    """
    return masked_means(values, weight, groups=len(values)).mean()


def masked_means(values: Tensor, weight: Tensor | None, *, groups: int) -> Tensor:
    """Weighted means over groups of consecutive samples; 0 where all weights of a group are 0.

    Args:
        values: (b, channels, ...).
        weight: (b, 1, ...), counted alike for all channels; None gives plain means.
        groups: a divisor of b.

    Returns:
        (groups,).
    """
    if weight is None:
        return values.reshape(groups, -1).mean(dim=1)
    total = (values * weight).reshape(groups, -1).sum(dim=1)
    count = weight.reshape(groups, -1).sum(dim=1) * values.shape[1]
    return total / count.clamp_min(torch.finfo(values.dtype).tiny)


class MaskedL1Loss(nn.Module):
    """Mean absolute difference over valid voxels, in full precision.

    Example:
        >>> MaskedL1Loss()(torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4))
        tensor(1.)
    """

    def forward(self, prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            prediction: volumes (b, 1, x, y, z) in [0, 1].
            target: truth, same shape.
            valid: mask, same shape, 1 where voxels count.

        Returns:
            A scalar, 0 where both are equal or nothing is valid.

        Raises:
            ValueError: if shapes differ.
        """
        prediction, target, valid = as_float32(prediction, target, valid)
        return masked_mean((prediction - target).abs(), valid)


class MaskedMSELoss(nn.Module):
    """Mean squared difference over valid voxels, in full precision: what the PSNR is made of.

    Where two radiographs leave a voxel open between two tissues, L1 asks for the likelier one and this for their mean.

    Example:
        >>> MaskedMSELoss()(torch.zeros(1, 1, 4, 4, 4), torch.full((1, 1, 4, 4, 4), 2.0))
        tensor(4.)
    """

    def forward(self, prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """The loss; arguments, result and errors are those of :class:`MaskedL1Loss`."""
        prediction, target, valid = as_float32(prediction, target, valid)
        return masked_mean((prediction - target).square(), valid)
