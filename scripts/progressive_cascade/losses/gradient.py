# SPDX-License-Identifier: Apache-2.0
"""Gradient loss: edges must stand where the truth has them, and as steep."""

from __future__ import annotations

from torch import Tensor, nn

from progressive_cascade.losses.masked import as_float32, masked_mean


class GradientLoss(nn.Module):
    r"""Mean absolute difference between the finite differences of two volumes.

    .. math:: \frac{1}{3} \sum_{i \in \{x, y, z\}} \mathrm{mean} |\partial_i \hat x - \partial_i x|

    in units per voxel. A difference counts where both of its voxels are valid.

    Example:
        >>> x = torch.zeros(1, 1, 2, 2, 2)
        >>> x[..., 1] = 1  # a step along z: one axis of three is wrong by 1 everywhere
        >>> round(GradientLoss()(x, torch.zeros_like(x)).item(), 4)
        0.3333
    """

    def forward(self, prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            prediction: volumes (b, 1, x, y, z) in [0, 1], at least 2 voxels a side.
            target: truth, same shape.
            valid: mask, same shape, 1 where voxels count.

        Returns:
            A scalar, 0 where both are equal up to a constant, or nothing is valid.

        Raises:
            ValueError: if shapes differ, or a side has a single voxel.
        """
        prediction, target, valid = as_float32(prediction, target, valid)
        if min(prediction.shape[2:]) < 2:
            raise ValueError(f"prediction must measure at least 2 voxels a side, got {tuple(prediction.shape)}")
        # The difference operator is linear: differentiating the error once does for both volumes.
        error = prediction - target
        total = error.new_zeros(())
        for axis in (2, 3, 4):
            size = error.shape[axis] - 1
            both = None if valid is None else valid.narrow(axis, 0, size) * valid.narrow(axis, 1, size)
            total = total + masked_mean(error.diff(dim=axis).abs(), both)
        return total / 3
