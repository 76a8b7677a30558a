# SPDX-License-Identifier: Apache-2.0
"""Structural similarity of volumes: MONAI's numbers, without the dense 11³ kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progressive_cascade.losses.masked import as_float32, autocast_disabled, masked_mean

# Outputs per banded matrix product. A block of n outputs needs n + taps - 1 inputs: larger blocks multiply by more
# zeros, smaller ones keep the matrix units less busy. On 2 CPU cores at 128³, 16 to 64 are within 50 %, 128 is twice
# as slow.
_BLOCK = 32


def gaussian_taps(win_size: int, sigma: float) -> Tensor:
    """Samples of a Gaussian that sum to 1.

    Args:
        win_size: number of taps, odd.
        sigma: standard deviation [voxels].

    Returns:
        Taps (win_size,), float64.

    Raises:
        ValueError: if `win_size` is not odd and positive, or `sigma` not positive.
    """
    if win_size < 1 or win_size % 2 == 0:
        raise ValueError(f"win_size must be odd and positive, got {win_size}")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    distance = torch.arange(win_size, dtype=torch.float64) - win_size // 2
    taps = torch.exp(-0.5 * (distance / sigma) ** 2)
    return taps / taps.sum()


def _correlate(volume: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Valid correlation of (n, x, y, z) with `taps` along `axis`, as products with one banded matrix per block."""
    size = volume.shape[axis] - len(taps) + 1
    shape = list(volume.shape)
    shape[axis] = size
    result = volume.new_empty(shape)
    band = volume.new_zeros(min(_BLOCK, size), min(_BLOCK, size) + len(taps) - 1)
    for row in range(len(band)):
        band[row, row : row + len(taps)] = taps
    for start in range(0, size, _BLOCK):
        rows = min(_BLOCK, size - start)
        columns = rows + len(taps) - 1
        matrix = band[:rows, :columns]
        source = volume.narrow(axis, start, columns)
        part = result.narrow(axis, start, rows)
        if axis == 3:
            part.copy_(source @ matrix.T)
        elif axis == 2:
            part.copy_(matrix @ source)
        else:
            part.copy_((matrix @ source.flatten(2)).view(part.shape))
    return result


class _Filter(torch.autograd.Function):
    """Valid correlation along one axis with a symmetric kernel; its transpose filters the padded gradient alike."""

    @staticmethod
    def forward(ctx, volume: Tensor, taps: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(taps)
        ctx.axis = axis
        return _correlate(volume, taps, axis)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (taps,) = ctx.saved_tensors
        margin = len(taps) - 1
        padded = F.pad(gradients[0], [0, 0] * (3 - ctx.axis) + [margin, margin])
        return _Filter.apply(padded, taps, ctx.axis), None, None  # pyright: ignore[reportReturnType]


def local_mean(volume: Tensor, taps: Tensor, axes: Sequence[int] = (1, 2, 3)) -> Tensor:
    """Separable weighted mean around every voxel whose window lies inside the volume.

    Args:
        volume: (n, x, y, z).
        taps: symmetric weights (t,) in the volume's dtype.
        axes: axes along which the window extends.

    Returns:
        Means, each of those axes t - 1 shorter.
    """
    # Last axis first: the later, costlier strides then work on fewer voxels.
    for axis in sorted(axes, reverse=True):
        volume = _Filter.apply(volume, taps, axis)  # pyright: ignore[reportAssignmentType]
    return volume


def ssim_map(
    prediction: Tensor,
    target: Tensor,
    *,
    taps: Tensor,
    data_range: float,
    axes: Sequence[int] = (1, 2, 3),
    sample_covariance: bool = False,
) -> Tensor:
    r"""Local SSIM, with k1 = 0.01 and k2 = 0.03.

    .. math:: \frac{(2\mu_x\mu_y + c_1)(2\sigma_{xy} + c_2)}{(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}

    Only the sum of the two variances is needed, so that four local means do.

    Args:
        prediction: (n, x, y, z).
        target: same shape.
        taps: window along each axis (t,), same dtype.
        data_range: span of possible values.
        axes: axes along which the window extends: all for 3-D SSIM, two for slice-wise SSIM.
        sample_covariance: divide by N - 1 of the window's N voxels, as scikit-image does by default.

    Returns:
        SSIM, each of `axes` t - 1 shorter.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    count = len(taps) ** len(axes)
    unbias = count / (count - 1) if sample_covariance else 1.0
    # Variances do not depend on the origin, but E[x²] - E[x]² loses digits away from it: half the range lies near soft
    # tissue, where the error on flat volumes falls from 2e-4 to 2e-7 in float32.
    origin = data_range / 2
    x, y = prediction - origin, target - origin
    mean_x, mean_y = local_mean(x, taps, axes), local_mean(y, taps, axes)
    covariance = unbias * (local_mean(x * y, taps, axes) - mean_x * mean_y)
    variances = unbias * (local_mean(x.square() + y.square(), taps, axes) - mean_x.square() - mean_y.square())
    mean_x, mean_y = mean_x + origin, mean_y + origin
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


class SSIMLoss3D(nn.Module):
    """One minus the mean 3-D SSIM, in a separable Gaussian window.

    Equal to ``monai.losses.SSIMLoss(spatial_dims=3, data_range=data_range)`` and many times faster, see
    benchmarks/losses.py. (Volumes without any contrast excepted: there MONAI's float32 errs by up to 3e-3.)
    Local SSIM exists where the whole window lies in the volume. With `valid`, it is averaged over those windows whose
    centre is valid; their outskirts may still see voxels that are not.

    Args:
        data_range: span of possible values: 1 on the networks' scale.
        win_size: taps along each axis, odd.
        sigma: standard deviation of the window [voxels].

    Raises:
        ValueError: if `data_range` or `sigma` is not positive, or `win_size` not odd and positive.

    Example:
        >>> loss = SSIMLoss3D(data_range=1.0)
        >>> loss(prediction, target)  # (b, 1, x, y, z) in [0, 1]

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (2004), doi:10.1109/TIP.2003.819861.
    """

    taps: Tensor

    def __init__(self, data_range: float = 1.0, *, win_size: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        if data_range <= 0:
            raise ValueError(f"data_range must be positive, got {data_range}")
        self.data_range = data_range
        self.register_buffer("taps", gaussian_taps(win_size, sigma), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            prediction: volumes (b, 1, x, y, z).
            target: truth, same shape.
            valid: mask, same shape, 1 where voxels count.

        Returns:
            A scalar: 0 where both are equal or no window's centre is valid, at most 2.

        Raises:
            ValueError: if shapes differ, or a side is shorter than the window.
        """
        prediction, target, valid = as_float32(prediction, target, valid)
        if min(prediction.shape[2:]) < len(self.taps):
            raise ValueError(
                f"prediction must measure at least {len(self.taps)} voxels a side, got {tuple(prediction.shape)}"
            )
        with autocast_disabled(prediction):
            taps = self.taps.to(prediction)
            similarity = ssim_map(prediction[:, 0], target[:, 0], taps=taps, data_range=self.data_range)
            if valid is None:
                return 1 - similarity.mean()
            margin = len(taps) // 2
            centre = valid[:, 0, margin : -margin or None, margin : -margin or None, margin : -margin or None]
            return masked_mean(1 - similarity[:, None], centre[:, None])
