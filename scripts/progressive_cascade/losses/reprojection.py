# SPDX-License-Identifier: Apache-2.0
"""Reprojection loss: the volume must explain the radiographs it was made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, hu_to_mu, unit_to_hu
from progressive_cascade.losses.masked import autocast_disabled
from progressive_cascade.projector import project


def fit_scale_offset(image: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Per radiograph, the ``scale * image + offset`` closest to `wanted` in the least-squares sense.

    The scale is kept from being negative: a film that is bright where the volume is thick explains nothing. Scale and
    offset are constants to autograd. Since what remains is orthogonal to the image, descending on it does not shrink
    the volume towards a flat one.

    Args:
        image: (b, view, rows, cols), any linear scale.
        wanted: line integrals, same shape.
        weights: of the pixels, same shape, 0 where a pixel does not count; default: all count alike.

    Returns:
        The fitted image, same shape, on the scale of `wanted`.
    """
    wanted = wanted.detach()
    share = torch.ones_like(image) if weights is None else weights
    share = share / share.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(image.dtype).tiny)
    centred = image - (share * image).sum((-2, -1), keepdim=True)
    power = (share * centred.square()).sum((-2, -1), keepdim=True)
    overlap = (share * centred * wanted).sum((-2, -1), keepdim=True)
    scale = (overlap / power.clamp_min(torch.finfo(image.dtype).tiny)).clamp_min(0)
    return (scale * centred + (share * wanted).sum((-2, -1), keepdim=True)).detach()


class ReprojectionLoss(nn.Module):
    r"""Mean absolute difference between a volume's line integrals and its radiographs'.

    .. math:: \mathrm{mean} |A \mu(\hat x) - p|

    For uncalibrated radiographs, whose line integrals are known up to scale and offset only, :math:`p` is fitted to the
    projection first (:func:`fit_scale_offset`).

    Args:
        energy_kev: photon energy [keV] at which HU become attenuation.

    Example:
        >>> loss = ReprojectionLoss()
        >>> loss(prediction, image, matrices=matrices, affine=affine)
    """

    def __init__(self, energy_kev: float = EFFECTIVE_ENERGY_KEV) -> None:
        super().__init__()
        self.energy_kev = energy_kev

    def forward(
        self,
        prediction: Tensor,
        image: Tensor,
        *,
        matrices: Tensor,
        affine: Tensor,
        calibrated: bool | Tensor = True,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            prediction: volumes (b, 1, x, y, z) in [0, 1], whole or cropped.
            image: line integrals (b, view, rows, cols) which this volume alone has to explain.
            matrices: projection matrices (b, view, 3, 4), RAS mm to pixels.
            affine: voxel index of `prediction` to RAS mm, (b, 4, 4).
            calibrated: whether the image's scale and offset are to be believed; one flag, or one per sample (b,).
            weights: of the pixels, like the image, 0 where one does not show the patient; default: all count alike.

        Returns:
            A scalar in units of line integrals, 0 where the volume explains the image.

        Raises:
            ValueError: if a shape is wrong, or the geometry cannot be projected.
        """
        batch = len(prediction)
        if prediction.ndim != 5 or prediction.shape[1] != 1:
            raise ValueError(f"prediction must have shape (b, 1, x, y, z), got {tuple(prediction.shape)}")
        if image.ndim != 4 or len(image) != batch:
            raise ValueError(f"image must have shape ({batch}, view, rows, cols), got {tuple(image.shape)}")
        if matrices.shape != (batch, image.shape[1], 3, 4) or affine.shape != (batch, 4, 4):
            raise ValueError(
                f"matrices and affine must have shapes ({batch}, {image.shape[1]}, 3, 4) and ({batch}, 4, 4), "
                f"got {tuple(matrices.shape)} and {tuple(affine.shape)}"
            )
        with autocast_disabled(prediction):
            prediction = prediction.as_subclass(Tensor).to(torch.promote_types(prediction.dtype, torch.float32))
            mu = hu_to_mu(unit_to_hu(prediction), self.energy_kev)
            projection = project(mu, matrices, affine, (image.shape[2], image.shape[3]))
            measured = image.as_subclass(Tensor).to(projection).detach()
            known = torch.as_tensor(calibrated, dtype=torch.bool, device=projection.device).reshape(-1, 1, 1, 1)
            seen = None if weights is None else weights.as_subclass(Tensor).to(projection)
            measured = torch.where(known, measured, fit_scale_offset(measured, projection, seen))
            error = (projection - measured).abs()
            return error.mean() if seen is None else (seen * error).sum() / seen.sum().clamp_min(1)
