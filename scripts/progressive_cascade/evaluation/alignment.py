# SPDX-License-Identifier: Apache-2.0
"""A reconstruction brought onto the CT it is compared with, by what radiographs cannot tell: size, place and turn.

An error of a distance or of a pixel's size scales the answer. The radiographs are explained as well as before, since a
larger body that attenuates less casts the same shadow; no method can see it in them. A score after this alignment
says what else is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from progressive_cascade.attenuation import AIR_HU, HU_MAX, HU_MIN

_GRID = 64
"""Voxels a side on which the alignment is sought; finer ones change the scale by less than 0.1 %."""
_ROUNDS = 3
_SHRINK, _SMOOTHING_VOXELS = [2, 1], [1.0, 0.0]


@dataclass(frozen=True)
class Similarity:
    """How a reconstruction lies on the truth, about the middle of the cube.

    Attributes:
        scale: how many times as large as the truth it is.
        angle: by how much it is turned about some axis [degrees].
        shift: of its middle, along the axes of the array [mm].
    """

    scale: float
    angle: float
    shift: tuple[float, float, float]

    def __str__(self) -> str:
        return f"{self.scale:.3f} times as large, turned {self.angle:.1f}°, {math.hypot(*self.shift):.1f} mm aside"


def align(
    hu: np.ndarray, truth: np.ndarray, *, spacing: float, valid: np.ndarray | None = None
) -> tuple[np.ndarray, Similarity]:
    """Move, turn and scale a reconstruction so that it lies on the truth, by least squares of HU.

    Attenuation is per length: a volume that shrinks by a factor attenuates more by the same factor, which keeps its
    line integrals.

    Args:
        hu: reconstruction (x, y, z) [HU].
        truth: CT of the same grid [HU].
        spacing: of the voxels [mm].
        valid: 1 where the CT was measured, same shape; default: everywhere.

    Returns:
        The reconstruction on the truth's grid, float32 [HU], and where it lay.

    Raises:
        ValueError: if shapes differ.
    """
    for name, volume in (("hu", hu), ("valid", truth if valid is None else valid)):
        if volume.shape != truth.shape:
            raise ValueError(f"{name} must have truth's shape {truth.shape}, got {volume.shape}")
    fixed, moving = (_image(volume, spacing) for volume in (truth, hu))
    mask = None if valid is None else _image(valid, spacing, low=0, high=1)
    found = _register(fixed, moving, mask)
    # Beyond the cube the patient goes on.
    moved = sitk.Resample(moving, fixed, found, sitk.sitkLinear, AIR_HU, sitk.sitkFloat32, True)
    scale = found.GetScale()
    aligned = _denser(sitk.GetArrayFromImage(moved).T, scale)
    versor = found.GetVersor()
    angle = math.degrees(2 * math.atan2(math.hypot(*versor[:3]), abs(versor[3])))
    x, y, z = found.GetTranslation()
    return np.ascontiguousarray(aligned, dtype=np.float32), Similarity(scale, angle, (x, y, z))


def _image(volume: np.ndarray, spacing: float, low: float = HU_MIN, high: float = HU_MAX) -> sitk.Image:
    """An image about the origin, in the networks' window."""
    image = sitk.GetImageFromArray(np.clip(volume, low, high).astype(np.float32).T)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin([-spacing * (side - 1) / 2 for side in volume.shape])
    return image


def _register(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image | None) -> sitk.Similarity3DTransform:
    """The map from points of `fixed` to those of `moving`."""
    shrink = [max(1, side // _GRID) for side in fixed.GetSize()]
    fixed, moving = (sitk.BinShrink(image, shrink) for image in (fixed, moving))
    mask = None if mask is None else sitk.BinShrink(mask, shrink) > 0.999
    found = sitk.Similarity3DTransform()
    for _ in range(_ROUNDS):
        # Attenuation goes with the scale, which is known when the volumes have been laid on each other.
        found = _descend(fixed, _denser(moving, found.GetScale()), mask, start=found)
    return found


def _denser(volume: Any, scale: float) -> Any:
    """The CT numbers of a body (image or array) that shrinks by a factor and keeps its line integrals [HU]."""
    return (volume - AIR_HU) * scale + AIR_HU


def _descend(
    fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image | None, *, start: sitk.Similarity3DTransform
) -> sitk.Similarity3DTransform:
    """The similarity of the least mean square, found from another one."""
    method = sitk.ImageRegistrationMethod()
    # Sums of several threads differ in their last digits from run to run.
    method.SetNumberOfThreads(1)
    method.SetMetricAsMeanSquares()
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel([sigma * fixed.GetSpacing()[0] for sigma in _SMOOTHING_VOXELS])
    found = sitk.Similarity3DTransform(start)
    method.SetInitialTransform(found, inPlace=True)
    method.Execute(fixed, moving)
    return found
