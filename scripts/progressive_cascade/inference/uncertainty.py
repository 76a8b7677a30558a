# SPDX-License-Identifier: Apache-2.0
"""The standard deviation of a reconstruction's error, voxel by voxel in HU, and the laws it is trained and judged by.

Two radiographs leave most of a CT open. A small network, :class:`UncertaintyHead`, looks at a finished reconstruction
and its radiographs, averaged over blocks of 4³ voxels, and says how large its error is in the root mean square. It is
trained on errors of reconstructions whose truth is known, by the Gaussian likelihood (Nix and Weigend, 1994, doi
10.1109/ICNN.1994.374138), and then multiplied by the one factor that makes the mean squared ratio of error and sigma 1
on held-out cases.

Errors are those within the networks' HU window, [-1024, 1024].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import HU_MAX, HU_MIN, hu_to_unit
from progressive_cascade.consistency import shrink_radiographs
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.io import read_state
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks.lifting import lift, voxel_axes
from progressive_cascade.networks.uncertainty import UncertaintyHead
from progressive_cascade.paths import bundle_root, check_shipped

BLOCK = 4
"""Voxels per axis of a block with one standard deviation."""
UNCERTAINTY_WEIGHTS = "uncertainty.pt"
"""File name of the shipped weights in the bundle's `models`."""
# What brings texture (share of the HU window), line integrals and unexplained line integrals to the size of 1.
_TEXTURE_GAIN, _IMAGE_GAIN, _RESIDUAL_GAIN = 10.0, 0.2, 4.0
_HALF_CUBE_MM = 179.2


def default_uncertainty() -> Path:
    """The shipped weights, ``models/uncertainty.pt`` of the bundle."""
    return bundle_root() / "models" / UNCERTAINTY_WEIGHTS


def load_uncertainty(path: str | Path | None = None, device: str | torch.device = "cpu") -> UncertaintyHead:
    """Read the network of :class:`UncertaintyHead` with its calibration.

    Args:
        path: bare state dict; default: the shipped weights.
        device: where to put the network.

    Returns:
        The network in eval mode.

    Raises:
        UserError: naming the file, if it is missing or holds anything else.
    """
    path = default_uncertainty() if path is None else Path(path)
    if not path.is_file():
        raise UserError(
            f"weights of the uncertainty {path} must exist; "
            "python -m progressive_cascade.training.uncertainty writes them"
        )
    check_shipped(path)
    head = UncertaintyHead()
    try:
        head.load_state_dict(read_state(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} must hold the weights of an UncertaintyHead, it differs: {reason}") from error
    return head.to(device).eval()


def belongs_to(head: UncertaintyHead, checkpoint: str | Path) -> bool:
    """Whether the errors the network learned were those of this checkpoint."""
    return bytes(head.cascade_sha256.cpu().tolist()).hex() == file_hash(checkpoint)


def remember_cascade(head: UncertaintyHead, checkpoint: str | Path) -> None:
    """Note in the network's state which checkpoint's errors it learns."""
    digest = bytes.fromhex(file_hash(checkpoint))
    head.cascade_sha256.copy_(torch.tensor(list(digest), dtype=torch.uint8))


def describe(result: Reconstruction, beam: ConeBeam) -> Tensor:
    """What the network sees of a reconstruction, on a grid of one point per block.

    Args:
        result: the reconstruction, of g voxels per axis.
        beam: the geometry of its radiographs.

    Returns:
        float32 (1, 10, g / 4, g / 4, g / 4): mean and standard deviation inside the block; per view the line integral
        and what the reconstruction leaves unexplained of it; the block's x, y and z, ±1 at the faces of the cube; 1
        where the radiographs are calibrated.

    Raises:
        ValueError: if the volume is no cube of a multiple of 32 voxels.
    """
    size = result.hu.shape[0]
    if result.hu.shape != (size,) * 3 or size % (8 * BLOCK):
        raise ValueError(f"hu must be a cube of a multiple of {8 * BLOCK} voxels, got {result.hu.shape}")
    grid = size // BLOCK
    unit = hu_to_unit(torch.from_numpy(result.hu.astype(np.float32))[None, None])
    mean = F.avg_pool3d(unit, BLOCK)
    # Deviations first, squares then: the difference of two large means would be noise in single precision.
    deviation = unit - mean.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3).repeat_interleave(BLOCK, 4)
    texture = F.avg_pool3d(deviation.square_(), BLOCK).sqrt()
    voxel = float(np.linalg.norm(result.affine[:3, 0])) * BLOCK
    axes = voxel_axes([0, 0, 0], [grid] * 3, voxel, voxel * grid, mean)
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] / _HALF_CUBE_MM
    flag = torch.full_like(mean, float(result.calibrated))
    lifted = _lift_radiographs(result, beam, axes)
    return torch.cat([mean, texture * _TEXTURE_GAIN, lifted, position, flag], dim=1)


def _lift_radiographs(result: Reconstruction, beam: ConeBeam, axes: list[Tensor]) -> Tensor:
    """Line integrals and their unexplained part at the projections of the blocks (1, 2 view, g, g, g)."""
    image = torch.from_numpy(np.ascontiguousarray(result.image, dtype=np.float32))[None]
    explained = torch.from_numpy(np.ascontiguousarray(result.reprojected, dtype=np.float32))[None]
    matrices = torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices(), dtype=torch.float32)[None]
    features = []
    for values, gain in ((image, _IMAGE_GAIN), (image - explained, _RESIDUAL_GAIN)):
        small, _ = shrink_radiographs(values, matrices, 2 * len(axes[0]))
        features.append(small * gain)
    return lift(torch.stack(features, dim=2), matrices, axes, beam.detector_shape[1])


def predict_sigma(result: Reconstruction, beam: ConeBeam, head: UncertaintyHead) -> np.ndarray:
    """The standard deviation of the error of every voxel.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        head: network of :func:`load_uncertainty`.

    Returns:
        float32 (x, y, z) [HU], positive; interpolated between the centres of blocks.
    """
    inputs = describe(result, beam).to(head.scale.device)
    with torch.inference_mode():
        return interpolate_sigma(head(inputs))[0, 0].cpu().numpy()


def interpolate_sigma(log_sigma: Tensor) -> Tensor:
    """From log sigma of blocks (b, 1, g, g, g) to sigma of voxels [HU], four times as many per axis.

    The standard deviations are interpolated, not their logarithms: beside a block of large errors sigma must not be
    too small.
    """
    return F.interpolate(log_sigma.exp(), scale_factor=float(BLOCK), mode="trilinear", align_corners=False)


def block_errors(hu: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error of a reconstruction in every block.

    Args:
        hu: reconstruction (x, y, z) [HU].
        truth: CT of the same shape [HU]; clipped to the networks' window.
        valid: 1 where the scanner measured, same shape; None for everywhere.

    Returns:
        Mean squared error over the block's scanned voxels [HU²] (0 where there is none), and their share of the block,
        both float32 (1, 1, x / 4, y / 4, z / 4).
    """
    scanned = np.ones(hu.shape, np.float32) if valid is None else (valid > 0).astype(np.float32)
    error = (hu.astype(np.float32) - truth.astype(np.float32).clip(HU_MIN, HU_MAX)) * scanned
    squared = F.avg_pool3d(torch.from_numpy(error**2)[None, None], BLOCK)
    share = F.avg_pool3d(torch.from_numpy(scanned)[None, None], BLOCK)
    return squared / share.clamp_min(BLOCK**-3), share


def gaussian_nll(log_sigma: Tensor, mse: Tensor, weight: Tensor) -> Tensor:
    """Negative log likelihood of Gaussian errors whose standard deviation is constant in a block.

    mean of log(sigma) + mse / (2 sigma²), without the constant log(2 pi) / 2.

    Args:
        log_sigma: log(sigma / HU) of the blocks.
        mse: their mean squared errors [HU²], same shape.
        weight: their shares of scanned voxels, same shape.

    Returns:
        A scalar, per voxel.
    """
    loss = log_sigma + 0.5 * mse * torch.exp(-2.0 * log_sigma)
    return (loss * weight).sum() / weight.sum().clamp_min(1.0)


def calibration_factor(log_sigma: Tensor, mse: Tensor, weight: Tensor) -> float:
    """The factor that makes the mean squared ratio of error and sigma 1.

    Args:
        log_sigma: log(sigma / HU) of the blocks.
        mse: their mean squared errors [HU²], same shape.
        weight: their shares of scanned voxels, same shape.

    Raises:
        ValueError: if no voxel was scanned, or no error was made.
    """
    squared = float((mse * torch.exp(-2.0 * log_sigma) * weight).double().sum() / weight.double().sum())
    if not 0 < squared < float("inf"):
        raise ValueError(f"the mean squared ratio of error and sigma must be positive and finite, got {squared}")
    return squared**0.5
