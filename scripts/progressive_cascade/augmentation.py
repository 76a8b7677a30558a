# SPDX-License-Identifier: Apache-2.0
"""Anatomical augmentation: another patient out of a CT, whole volumes on the cube's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch.nn import functional

from progressive_cascade.attenuation import AIR_HU, HU_MIN
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE

# Half the cube's width: what 1 is in the normalised coordinates of grid_sample [mm].
_HALF_CUBE_MM = VOLUME_SHAPE[0] * VOXEL_SIZE / 2
# Control points per axis of the smooth deformation: one for every 70 mm.
_CONTROL_POINTS = 6
_BONE_HU = 150.0


class RandAnatomyd(RandomizableTransform, MapTransform):
    """Another patient out of this one: smooth deformation, size, pose, density; never a mirror image.

    The cube's content goes on along z with its end slices and across with air, as in preparation; what comes from
    outside the cube is not valid.

    Args:
        keys: volumes (1, g, g, g) of the whole cube, the CT [HU] first; the others are masks.
        prob: probability that anything changes.
        max_scale: largest change of size, per axis, half of it shared by all axes.
        max_shift_mm: largest shift, per axis [mm].
        max_rotation_deg: largest rotation about each axis [degrees].
        max_warp_mm: standard deviation of the smooth deformation [mm].
        hu_shift: largest shift of water [HU]; air stays, as if the attenuation were scaled.
        bone_scale: largest relative change of what exceeds 150 HU: bone density, contrast medium.
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
        self._matrix = np.eye(3, 4)
        self._warp = np.zeros((3, *(_CONTROL_POINTS,) * 3))
        self._hu_shift = 0.0
        self._bone_scale = 0.0

    def randomize(self, data: Any = None) -> None:
        """Draws the next patient."""
        super().randomize(None)
        if not self._do_transform:
            return
        scale = 1 + self.max_scale * (self.R.uniform(-0.5, 0.5) + self.R.uniform(-0.5, 0.5, 3))
        rotation = _rotation(np.deg2rad(self.R.uniform(-1, 1, 3) * self.max_rotation_deg))
        shift = self.R.uniform(-1, 1, 3) * self.max_shift_mm / _HALF_CUBE_MM
        self._matrix = np.hstack([rotation / scale, shift[:, None]])
        self._warp = self.R.normal(size=self._warp.shape) * self.max_warp_mm / _HALF_CUBE_MM
        self._hu_shift = self.R.uniform(-1, 1) * self.hu_shift
        self._bone_scale = self.R.uniform(-1, 1) * self.bone_scale

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Transforms a copy of the item.

        Args:
            data: item with the volumes of `keys`.

        Returns:
            The item; the CT is float32, masks keep their dtype.
        """
        item = dict(data)
        self.randomize()
        present = list(self.key_iterator(item))
        if not self._do_transform:
            return {**item, present[0]: item[present[0]].float()}
        grid = self._grid(tuple(item[present[0]].shape[1:]))
        # Along z the end slices go on: coordinates stop at the last slice's centre.
        held = grid.clone()
        depth = item[present[0]].shape[-1]
        held[..., 0].clamp_(-1 + 1 / depth, 1 - 1 / depth)
        for number, key in enumerate(present):
            volume = item[key]
            if number == 0:
                item[key] = self._change_density(_sample(volume.float() - AIR_HU, held, "bilinear") + AIR_HU)
            else:
                item[key] = _sample(volume.float(), grid, "nearest").to(volume.dtype)
        return item

    def _grid(self, shape: Sequence[int]) -> torch.Tensor:
        """Where each voxel of the new patient lies in the old one, (1, x, y, z, 3) in the order z, y, x."""
        matrix = torch.from_numpy(self._matrix[::-1, [2, 1, 0, 3]].copy()).float()
        grid = functional.affine_grid(matrix[None], [1, 1, *shape], align_corners=False)
        warp = torch.from_numpy(self._warp[::-1].copy()).float()[None]
        # Linear interpolation alone would kink at the control points.
        warp = functional.interpolate(warp, size=(24, 24, 24), mode="trilinear", align_corners=True)
        warp = functional.avg_pool3d(functional.pad(warp, (2,) * 6, mode="replicate"), 5, stride=1)
        warp = functional.interpolate(warp, size=tuple(shape), mode="trilinear", align_corners=True)
        return grid + warp.movedim(1, -1)

    def _change_density(self, hu: torch.Tensor) -> torch.Tensor:
        bone = (hu - _BONE_HU).clamp(min=0) * self._bone_scale
        return (hu + bone + (hu + 1000).clamp(min=0) * (self._hu_shift / 1000)).clamp(min=HU_MIN)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix about x, then y, then z by the given angles (3,) [rad]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _sample(volume: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    """Samples (1, x, y, z) at normalised coordinates; 0 outside."""
    return functional.grid_sample(volume[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
