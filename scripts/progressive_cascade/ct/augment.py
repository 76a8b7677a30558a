# SPDX-License-Identifier: Apache-2.0
"""Anatomical augmentation: another patient out of a CT, whole volumes on the cube's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
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
        self._matrix = np.eye(3, 4)
        self._warp = np.zeros((3, *(_CONTROL_POINTS,) * 3))
        self._hu_shift = 0.0
        self._bone_scale = 0.0
        self._blur_mm = 0.0

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
        self._blur_mm = self.R.uniform() * self.max_blur_mm if self.R.uniform() < self.blur_prob else 0.0

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Transforms a copy of the item.

        Args:
            data: item with the volumes of `keys`.

        Returns:
            The item; the CT is float32, masks keep their dtype.
        """
        item = dict(data)
        self.randomize()
        label, *masks = self.key_iterator(item)
        if not self._do_transform:
            return {**item, label: item[label].float()}
        grid = self._grid(item[label].shape[1:], item[label].device)
        inside = grid.abs().amax(dim=0) <= 1
        # Along z the end slices go on: coordinates stop at the last slice's centre.
        depth = grid.shape[-1]
        grid[0].clamp_(-1 + 1 / depth, 1 - 1 / depth)
        # A mask is that of the nearest voxel: no look at its values, for which a GPU would have to be waited for.
        for key in masks:
            mask = inside & (_sample(item[key].float(), grid, nearest=True)[0] > 0.5)
            item[key] = mask[None].to(item[key].dtype)
        sampled = _sample(item[label].float() - AIR_HU, grid)
        hu = _blur(sampled[0], self._blur_mm / (2 * _HALF_CUBE_MM / depth)).add_(AIR_HU)
        item[label] = self._change_density(hu[None])
        return item

    def _grid(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Where each voxel of the new patient lies in the old one, (3, x, y, z) in the order z, y, x.

        Deformation and pose are one sum of products of functions of x, y and z: three small matrix products.
        """
        one, linear = _CONTROL_POINTS, _CONTROL_POINTS + 1
        weights = np.zeros((3, *(_CONTROL_POINTS + 2,) * 3))
        weights[:, :one, :one, :one] = self._warp
        weights[:, one, one, one] = self._matrix[:, 3]
        weights[:, linear, one, one] = self._matrix[:, 0]
        weights[:, one, linear, one] = self._matrix[:, 1]
        weights[:, one, one, linear] = self._matrix[:, 2]
        along_x, along_y, along_z = (_basis(size, device) for size in shape)
        control = torch.from_numpy(weights[::-1].copy()).float().to(device)
        grid = torch.einsum("dijk,xi->dxjk", control, along_x)
        return torch.einsum("dxjk,yj->dxyk", grid, along_y) @ along_z.T

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


@lru_cache(maxsize=8)
def _basis(size: int, device: torch.device) -> torch.Tensor:
    """Functions along an axis at the voxels' centres (size, 8): of the control points, 1, normalised coordinate."""
    points = torch.eye(_CONTROL_POINTS)[None]
    # Linear interpolation alone would kink at the control points.
    smooth = functional.interpolate(points, size=24, mode="linear", align_corners=True)
    smooth = functional.avg_pool1d(functional.pad(smooth, (2, 2), mode="replicate"), 5, stride=1)
    smooth = functional.interpolate(smooth, size=size, mode="linear", align_corners=True)[0]
    centers = (torch.arange(size) + 0.5) * (2 / size) - 1
    return torch.cat([smooth, torch.ones(1, size), centers[None]]).T.contiguous().to(device)


def _sample(volumes: torch.Tensor, grid: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
    """Samples of (c, x, y, z) at normalised coordinates (3, x, y, z) in the order z, y, x.

    Trilinear, 0 outside; or of the nearest voxel, outside that of the border.
    """
    how = {"mode": "nearest", "padding_mode": "border"} if nearest else {"mode": "bilinear"}
    return functional.grid_sample(volumes[None], grid.movedim(0, -1)[None], align_corners=False, **how)[0]


def _blur(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blurs (x, y, z) along x and y with a standard deviation [voxels]; a kernel acts in the plane of the slices.

    Three weights have exactly the variance that is asked for, also far below a voxel; several passes make a wide one.
    """
    passes = int(np.ceil(2 * sigma**2))
    for axis in (0, 1) * passes:
        side = sigma**2 / passes / 2
        last = volume.shape[axis] - 1
        blurred = volume * (1 - 2 * side)
        blurred.narrow(axis, 1, last).add_(volume.narrow(axis, 0, last), alpha=side)
        blurred.narrow(axis, 0, last).add_(volume.narrow(axis, 1, last), alpha=side)
        volume = blurred
    return volume
