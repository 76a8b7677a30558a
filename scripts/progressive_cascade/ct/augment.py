# SPDX-License-Identifier: Apache-2.0
"""Anatomical augmentation: another patient out of a CT, whole volumes on the cube's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

from progressive_cascade.attenuation import AIR_HU, HU_MIN
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.precision import upload

# Half the cube's width: what 1 is in the normalised coordinates of grid_sample [mm].
_HALF_CUBE_MM = VOLUME_SHAPE[0] * VOXEL_SIZE / 2
# Control points per axis of the smooth deformation: one for every 70 mm.
_CONTROL_POINTS = 6
_BONE_HU = 150.0


class _Patient(NamedTuple):
    """What makes another patient of one: of normalised coordinates (3, 4), of the control points (3, n, n, n)."""

    changed: bool
    matrix: np.ndarray = np.eye(3, 4)
    warp: np.ndarray = np.zeros((3, *(_CONTROL_POINTS,) * 3))
    hu_shift: float = 0.0
    bone_scale: float = 0.0
    blur_mm: float = 0.0


class RandAnatomyd(RandomizableTransform, MapTransform):
    """Another patient out of this one: smooth deformation, size, pose, density, scanner; never a mirror image.

    The cube's content goes on along z with its end slices and across with air, as in preparation; what comes from
    outside the cube is not valid.

    Args:
        keys: volumes (1, g, g, g) of the whole cube, the CT [HU] first; the others are masks. On any device, where the
            work is done.
        prob: probability that anything changes.
        max_scale: largest change of size, per axis, half of it shared by all axes.
        max_shift_mm: largest shift, per axis [mm].
        max_rotation_deg: largest rotation about each axis [degrees].
        max_warp_mm: standard deviation of the smooth deformation [mm].
        hu_shift: largest shift of water [HU]; air stays, as if the attenuation were scaled.
        bone_scale: largest relative change of what exceeds 150 HU: bone density, contrast medium.
        blur_prob: share of the changed cases that get another reconstruction kernel: blurred in the axial plane.
        max_blur_mm: largest standard deviation of that blur [mm].
        allow_missing_keys: passes over keys an item lacks.
    """

    def __init__(
        self,
        keys: KeysCollection = ("label", "valid"),
        *,
        prob: float = 0.9,
        max_scale: float = 0.1,
        max_shift_mm: float = 15.0,
        max_rotation_deg: float = 5.0,
        max_warp_mm: float = 4.0,
        hu_shift: float = 20.0,
        bone_scale: float = 0.15,
        blur_prob: float = 0.3,
        max_blur_mm: float = 1.2,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.max_scale = max_scale
        self.max_shift_mm = max_shift_mm
        self.max_rotation_deg = max_rotation_deg
        self.max_warp_mm = max_warp_mm
        self.hu_shift = hu_shift
        self.bone_scale = bone_scale
        self.blur_prob = blur_prob
        self.max_blur_mm = max_blur_mm
        self._patient = _Patient(False)

    def randomize(self, data: Any = None) -> None:
        """Draws the next patient."""
        super().randomize(None)
        if not self._do_transform:
            self._patient = _Patient(False)
            return
        scale = 1 + self.max_scale * (self.R.uniform(-0.5, 0.5) + self.R.uniform(-0.5, 0.5, 3))
        rotation = _rotation(np.deg2rad(self.R.uniform(-1, 1, 3) * self.max_rotation_deg))
        shift = self.R.uniform(-1, 1, 3) * self.max_shift_mm / _HALF_CUBE_MM
        self._patient = _Patient(
            changed=True,
            matrix=np.hstack([rotation / scale, shift[:, None]]),
            warp=self.R.normal(size=_Patient(True).warp.shape) * self.max_warp_mm / _HALF_CUBE_MM,
            hu_shift=self.R.uniform(-1, 1) * self.hu_shift,
            bone_scale=self.R.uniform(-1, 1) * self.bone_scale,
            blur_mm=self.R.uniform() * self.max_blur_mm if self.R.uniform() < self.blur_prob else 0.0,
        )

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Transforms a copy of the item.

        Args:
            data: item with the volumes of `keys`.

        Returns:
            The item; the CT is float32, masks keep their dtype.
        """
        item = dict(data)
        self.randomize()
        first, *others = self.key_iterator(item)
        label, masks = self._vary(item[first][None], [item[key][None] for key in others], [self._patient])
        return {**item, first: label[0], **{key: mask[0] for key, mask in zip(others, masks, strict=True)}}

    def vary(self, label: Tensor, mask: Tensor, seeds: Sequence[int], *, margin: int = 0) -> tuple[Tensor, Tensor]:
        """Other patients out of a batch, all at once: each is a function of its seed, as by ``set_random_state``.

        Args:
            label: CTs (b, 1, g, g, g) [HU].
            mask: where they are valid, same shape.
            seeds: one per sample.
            margin: voxels that the CT returned reaches beyond the cube on every side: what the radiographs see of the
                patient there.

        Returns:
            The CTs (b, 1, g + 2 margin, ...), float32, and their masks (b, 1, g, g, g) of the dtype given.
        """
        patients = []
        for seed in seeds:
            self.set_random_state(seed=seed)
            self.randomize()
            patients.append(self._patient)
        varied, (varied_mask,) = self._vary(label, [mask], patients, margin)
        return varied, varied_mask

    def _vary(
        self, label: Tensor, masks: Sequence[Tensor], patients: Sequence[_Patient], margin: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        if not any(patient.changed for patient in patients):
            return surround(label.float(), margin), list(masks)
        depth = label.shape[-1]
        grid = _grid(patients, depth, margin, label.device)
        inner = slice(margin, margin + depth)
        cube = grid[:, :, inner, inner, inner]
        inside = cube.abs().amax(dim=1, keepdim=True) <= 1
        # Along z the end slices go on: coordinates stop at the last slice's centre.
        grid[:, 0].clamp_(-1 + 1 / depth, 1 - 1 / depth)
        # A mask is that of the nearest voxel: no look at its values, for which a GPU would have to be waited for.
        varied = [(inside & (_sample(mask.float(), cube, nearest=True) > 0.5)).to(mask.dtype) for mask in masks]
        sampled = _sample(label.float() - AIR_HU, grid)
        numbers = np.array([[each.blur_mm, each.hu_shift, each.bone_scale, each.changed] for each in patients])
        blur, shift, bone, changed = upload(numbers, label.device).T[..., None, None, None, None]
        voxel = 2 * _HALF_CUBE_MM / depth
        hu = _blur(sampled, blur / voxel, self.max_blur_mm / voxel).add_(AIR_HU)
        hu = _change_density(hu, shift, bone)
        if all(patient.changed for patient in patients):
            return hu, varied
        kept = changed == 0
        hu = torch.where(kept, surround(label.float(), margin), hu)
        return hu, [torch.where(kept, mask, each) for mask, each in zip(masks, varied, strict=True)]


def surround(hu: Tensor, margin: int) -> Tensor:
    """A cube with what lies around it: the end slices go on along z, air stands across.

    Args:
        hu: CTs (b, 1, x, y, z) [HU].
        margin: voxels on every side.
    """
    if margin == 0:
        return hu
    longer = functional.pad(hu, (margin, margin, 0, 0, 0, 0), mode="replicate")
    return functional.pad(longer, (0, 0, margin, margin, margin, margin), value=AIR_HU)


def _grid(patients: Sequence[_Patient], size: int, margin: int, device: torch.device) -> Tensor:
    """Where each voxel of the new patients lies in the old ones, (b, 3, x, y, z) in the order z, y, x.

    Deformation and pose are one sum of products of functions of x, y and z: three small matrix products.
    """
    one, linear = _CONTROL_POINTS, _CONTROL_POINTS + 1
    weights = np.zeros((len(patients), 3, *(_CONTROL_POINTS + 2,) * 3))
    for weight, patient in zip(weights, patients, strict=True):
        weight[:, :one, :one, :one] = patient.warp
        weight[:, one, one, one] = patient.matrix[:, 3]
        weight[:, linear, one, one] = patient.matrix[:, 0]
        weight[:, one, linear, one] = patient.matrix[:, 1]
        weight[:, one, one, linear] = patient.matrix[:, 2]
    along = _basis(size, margin, device)
    control = upload(weights[:, ::-1], device)
    grid = torch.einsum("bdijk,xi->bdxjk", control, along)
    return torch.einsum("bdxjk,yj->bdxyk", grid, along) @ along.T


def _change_density(hu: Tensor, shift: Tensor, bone_scale: Tensor) -> Tensor:
    bone = (hu - _BONE_HU).clamp(min=0) * bone_scale
    return (hu + bone + (hu + 1000).clamp(min=0) * (shift / 1000)).clamp(min=HU_MIN)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix about x, then y, then z by the given angles (3,) [rad]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@lru_cache(maxsize=8)
def _basis(size: int, margin: int, device: torch.device) -> Tensor:
    """Functions along an axis at the voxels' centres (size + 2 margin, 8): control points, 1, normalised coordinate."""
    points = torch.eye(_CONTROL_POINTS)[None]
    # Linear interpolation alone would kink at the control points.
    smooth = functional.interpolate(points, size=24, mode="linear", align_corners=True)
    smooth = functional.avg_pool1d(functional.pad(smooth, (2, 2), mode="replicate"), 5, stride=1)
    smooth = functional.interpolate(smooth, size=size, mode="linear", align_corners=True)
    smooth = functional.pad(smooth, (margin, margin), mode="replicate")[0]
    centers = (torch.arange(-margin, size + margin) + 0.5) * (2 / size) - 1
    return torch.cat([smooth, torch.ones_like(centers)[None], centers[None]]).T.contiguous().to(device)


def _sample(volumes: Tensor, grid: Tensor, *, nearest: bool = False) -> Tensor:
    """Samples of (b, 1, x, y, z) at normalised coordinates (b, 3, x, y, z) in the order z, y, x.

    Trilinear, 0 outside; or of the nearest voxel, outside that of the border.
    """
    how = {"mode": "nearest", "padding_mode": "border"} if nearest else {"mode": "bilinear"}
    return functional.grid_sample(volumes, grid.movedim(1, -1), align_corners=False, **how)


def _blur(volumes: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blurs (b, 1, x, y, z) along x and y by standard deviations (b, 1, 1, 1, 1) [voxels], none above the largest.

    A kernel acts in the plane of the slices. Three weights have exactly the variance that is asked for, also far below
    a voxel; several passes, as many as the largest needs, make a wide one.
    """
    passes = int(np.ceil(2 * largest**2))
    side = sigma**2 / max(passes, 1) / 2
    for axis in (2, 3) * passes:
        last = volumes.shape[axis] - 1
        blurred = volumes * (1 - 2 * side)
        blurred.narrow(axis, 1, last).add_(volumes.narrow(axis, 0, last) * side)
        blurred.narrow(axis, 0, last).add_(volumes.narrow(axis, 1, last) * side)
        volumes = blurred
    return volumes
