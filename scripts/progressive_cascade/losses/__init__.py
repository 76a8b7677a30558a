# SPDX-License-Identifier: Apache-2.0
"""Losses of the stages: L1, mean square, SSIM, perceptual, gradient, reprojection, and their weighted sum."""

from __future__ import annotations

from progressive_cascade.losses.cascade import TERMS, CascadeLoss, Reprojection
from progressive_cascade.losses.gradient import GradientLoss
from progressive_cascade.losses.masked import MaskedL1Loss, MaskedMSELoss
from progressive_cascade.losses.perceptual import VGGPerceptualLoss
from progressive_cascade.losses.reprojection import ReprojectionLoss
from progressive_cascade.losses.ssim import SSIMLoss3D

__all__ = [
    "TERMS",
    "CascadeLoss",
    "GradientLoss",
    "MaskedL1Loss",
    "MaskedMSELoss",
    "Reprojection",
    "ReprojectionLoss",
    "SSIMLoss3D",
    "VGGPerceptualLoss",
]
