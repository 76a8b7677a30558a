# SPDX-License-Identifier: Apache-2.0
"""A reconstruction brought onto the CT it is compared with, by what projections leave open: size, place and turn.

An error of a distance or of a pixel's size scales the answer. The radiographs are explained as well as before, since a
larger body that attenuates less casts the same shadow (only how dense tissue is tells: :mod:`.inference.size`). A score
after this alignment says what else is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from progressive_cascade.attenuation import AIR_HU, HU_MAX, HU_MIN

_GRID = 64
"""Voxels a side on which the alignment is sought; finer ones change the scale by less than 0.1 %."""
_ROUNDS = 3
_SHRINK, _SMOOTHING_VOXELS = [2, 1], [1.0, 0.0]
_SEAM_VOXELS = 2
"""Next to what a reconstruction does not reach, smoothing mixes in what stands there; it draws the volume away."""


@dataclass(frozen=True)
class Similarity:
    """How a reconstruction lies on the truth, about the middle of the cube.

    Attributes:
        scale: how many times as large as the truth it is.
        angle: by how much it is turned [degrees].
        shift: of its middle, along the axes of the array [mm].
        axis: about which it is turned by the right hand, of length 1, along the axes of the array.
    """

    scale: float
    angle: float
    shift: tuple[float, float, float]
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @property
    def matrix(self) -> np.ndarray:
        """4x4: from a point of the truth to where the reconstruction shows it, both about the middle [mm]."""
        found = np.eye(4)
        turn = Rotation.from_rotvec(np.array(self.axis) * self.angle, degrees=True)
        found[:3, :3] = self.scale * turn.as_matrix()
        found[:3, 3] = self.shift
        return found

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
    found = _register(hu, truth, spacing=spacing, valid=valid)
    # Beyond the cube the patient goes on.
    fixed, moving = (_image(volume, spacing) for volume in (truth, hu))
    moved = sitk.Resample(moving, fixed, found, sitk.sitkLinear, AIR_HU, sitk.sitkFloat32, True)
    aligned = denser(sitk.GetArrayFromImage(moved).T, found.GetScale())
    return np.ascontiguousarray(aligned, dtype=np.float32), _similarity(found)


def find_similarity(
    hu: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: float,
    valid: np.ndarray | None = None,
    reached: np.ndarray | None = None,
) -> Similarity:
    """Where a reconstruction lies, as :func:`align` finds it.

    Args:
        hu: reconstruction (x, y, z) [HU].
        truth: CT of the same grid [HU].
        spacing: of the voxels [mm].
        valid: 1 where the CT was measured, same shape; default: everywhere.
        reached: 1 where the reconstruction shows something, same shape; default: everywhere.

    Raises:
        ValueError: if shapes differ.
    """
    return _similarity(_register(hu, truth, spacing=spacing, valid=valid, reached=reached))


def denser(hu: Any, scale: float) -> Any:
    """The CT numbers of a body (array or image) that shrinks by a factor and keeps its line integrals [HU]."""
    return (hu - AIR_HU) * scale + AIR_HU


def _similarity(found: sitk.Similarity3DTransform) -> Similarity:
    x, y, z, w = found.GetVersor()
    sine = math.copysign(math.hypot(x, y, z), w)
    angle = math.degrees(2 * math.atan2(abs(sine), abs(w)))
    axis = (x / sine, y / sine, z / sine) if sine else Similarity.axis
    right, front, head = found.GetTranslation()
    return Similarity(found.GetScale(), angle, (right, front, head), axis)


def _image(volume: np.ndarray, spacing: float, low: float = HU_MIN, high: float = HU_MAX) -> sitk.Image:
    """An image about the origin, in the networks' window."""
    image = sitk.GetImageFromArray(np.clip(volume, low, high).astype(np.float32).T)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin([-spacing * (side - 1) / 2 for side in volume.shape])
    return image


def _register(
    hu: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: float,
    valid: np.ndarray | None = None,
    reached: np.ndarray | None = None,
) -> sitk.Similarity3DTransform:
    """The map from points of the truth to those of the reconstruction, see :func:`find_similarity`."""
    counts = {"valid": valid, "reached": reached}
    for name, volume in {"hu": hu, **counts}.items():
        if volume is not None and volume.shape != truth.shape:
            raise ValueError(f"{name} must have truth's shape {truth.shape}, got {volume.shape}")
    # It warns of steps that lead nowhere, as from volumes that show different things.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    shrink = [max(1, side // _GRID) for side in truth.shape]
    fixed, moving = (sitk.BinShrink(_image(volume, spacing), shrink) for volume in (truth, hu))
    masks = [
        None if volume is None else sitk.BinShrink(_image(volume, spacing, low=0, high=1), shrink) > 0.999
        for volume in counts.values()
    ]
    if masks[1] is not None:
        masks[1] = sitk.BinaryErode(masks[1], [_SEAM_VOXELS] * 3)
    found = sitk.Similarity3DTransform()
    for _ in range(_ROUNDS):
        # Attenuation goes with the scale, which is known when the volumes have been laid on each other.
        found = _descend(fixed, denser(moving, found.GetScale()), masks, start=found)
    return found


def _descend(
    fixed: sitk.Image, moving: sitk.Image, masks: list[sitk.Image | None], *, start: sitk.Similarity3DTransform
) -> sitk.Similarity3DTransform:
    """The similarity of the least mean square, found from another one."""
    method = sitk.ImageRegistrationMethod()
    # Sums of several threads differ in their last digits from run to run.
    method.SetNumberOfThreads(1)
    method.SetMetricAsMeanSquares()
    for mask, use in zip(masks, (method.SetMetricFixedMask, method.SetMetricMovingMask), strict=True):
        if mask is not None:
            use(mask)
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
