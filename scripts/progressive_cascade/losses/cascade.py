# SPDX-License-Identifier: Apache-2.0
"""The loss of a stage: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from progressive_cascade.losses.gradient import GradientLoss
from progressive_cascade.losses.masked import MaskedL1Loss, MaskedMSELoss
from progressive_cascade.losses.perceptual import VGGPerceptualLoss
from progressive_cascade.losses.reprojection import ReprojectionLoss
from progressive_cascade.losses.ssim import SSIMLoss3D

TERMS = ("l1", "mse", "ssim", "perceptual", "gradient", "reprojection")
"""Names of the terms."""


@dataclass(frozen=True)
class Reprojection:
    """What the reprojection term needs to know.

    Args:
        image: line integrals (b, view, rows, cols) which the predicted volume alone has to explain.
        matrices: projection matrices (b, view, 3, 4), RAS mm to pixels.
        affine: voxel index of the projected volume to RAS mm, (b, 4, 4).
        calibrated: whether scale and offset of the image hold; one flag, or one per sample (b,).
        weights: of the image's pixels, 0 where one does not show the patient; None: all count alike.
        volume: the whole volume (b, 1, x, y, z) in [0, 1] to project, where the prediction is a window of it.
    """

    image: Tensor
    matrices: Tensor
    affine: Tensor
    calibrated: bool | Tensor = True
    weights: Tensor | None = None
    volume: Tensor | None = None


class CascadeLoss(nn.Module):
    """Weighted sum of the terms of a stage, each reported by name.

    Args:
        weights: weight by term: "l1", "mse", "ssim", "perceptual", "gradient", "reprojection". A term that is missing
            or weighs 0 is not even built.
        perceptual_weights: weights of the perceptual trunk, see :class:`VGGPerceptualLoss`.
        perceptual_slices: slices per plane of the perceptual term.
        amp: let the perceptual term's trunk run in bfloat16.

    Raises:
        ValueError: if a term is unknown, a weight negative, or none positive.

    Example:
        >>> loss = CascadeLoss({"l1": 1.0, "ssim": 0.5})
        >>> terms = loss(prediction, target)
        >>> terms["loss"].backward()
        >>> {name: round(value.item(), 4) for name, value in terms.items()}  # l1, ssim, loss
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        perceptual_weights: str | Path = "ct",
        perceptual_slices: int = 4,
        amp: bool = False,
    ) -> None:
        super().__init__()
        for name, weight in weights.items():
            if name not in TERMS:
                raise ValueError(f"weights must name terms among {', '.join(TERMS)}, got {name!r}")
            if not weight >= 0:
                raise ValueError(f"weights must not be negative, got {name}={weight}")
        self.weights = {name: float(weights[name]) for name in TERMS if weights.get(name, 0) > 0}
        if not self.weights:
            raise ValueError(f"weights must have a positive entry, got {dict(weights)}")
        builders = {
            "l1": MaskedL1Loss,
            "mse": MaskedMSELoss,
            "ssim": SSIMLoss3D,
            "perceptual": lambda: VGGPerceptualLoss(perceptual_weights, num_slices=perceptual_slices, amp=amp),
            "gradient": GradientLoss,
            "reprojection": ReprojectionLoss,
        }
        self.terms = nn.ModuleDict({name: builders[name]() for name in self.weights})

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        valid: Tensor | None = None,
        reprojection: Reprojection | None = None,
    ) -> dict[str, Tensor]:
        """All active terms.

        Args:
            prediction: volumes (b, 1, x, y, z) in [0, 1].
            target: truth, same shape.
            valid: mask, same shape, 1 where voxels count; the reprojection term takes no notice of it.
            reprojection: radiographs and geometry, for the term of that name.

        Returns:
            The unweighted terms by name, in the order of `TERMS`, and "loss", their weighted sum.

        Raises:
            ValueError: if shapes differ, or the reprojection term is active and `reprojection` is None.
        """
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if name != "reprojection":
                values[name] = term(prediction, target, valid=valid)
            elif reprojection is None:
                raise ValueError("reprojection must be given while its term has a weight, got None")
            else:
                values[name] = term(
                    prediction if reprojection.volume is None else reprojection.volume,
                    reprojection.image,
                    matrices=reprojection.matrices,
                    affine=reprojection.affine,
                    calibrated=reprojection.calibrated,
                    weights=reprojection.weights,
                )
        total = prediction.new_zeros((), dtype=next(iter(values.values())).dtype).as_subclass(Tensor)
        for name, weight in self.weights.items():
            total = total + weight * values[name]
        return {**values, "loss": total}

    @property
    def perceptual_weights_name(self) -> str | None:
        """Which weights the perceptual term uses, None without that term."""
        for term in self.terms.values():
            if isinstance(term, VGGPerceptualLoss):
                return term.weights_name
        return None
