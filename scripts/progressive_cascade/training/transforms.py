# SPDX-License-Identifier: Apache-2.0
"""MONAI dictionary transforms: cases to training volumes, radiographs to the network's input, its output to a CT."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import Transform
from torch.nn import functional

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.io import nifti_stem, read_nifti
from progressive_cascade.phantom import generate_phantom


class LoadCased(Transform):
    """Loads a case, prepared CT or phantom, on one stage's grid.

    Adds `label` (int16 tensor (1, g, g, g) [HU]), `valid` (uint8 tensor of the same shape, 1 where scanned),
    `affine` (float64 tensor (4, 4), voxel index to the patient's RAS mm) and `case` (a name). The result is
    deterministic and small, so that `PersistentDataset` and `CacheDataset` may keep it.

    Args:
        spatial_size: g; a divisor of 256. A prepared CT is averaged over blocks, a phantom is painted on the grid.

    Raises:
        UserError: at construction for another size; when called for an item that is neither kind, or a file that
            was not prepared.
    """

    def __init__(self, spatial_size: int = 256) -> None:
        if spatial_size < 1 or VOLUME_SHAPE[0] % spatial_size:
            raise UserError(f"spatial_size must divide {VOLUME_SHAPE[0]}, got {spatial_size}")
        self.spatial_size = spatial_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the volumes to a copy of the item.

        Args:
            data: {"seed": int}, with {"population": name} too where that is not `basic`, or {"label": path, "valid":
                path}; with {"mirrored": True} too, a CT comes as its mirror image, left for right.

        Returns:
            The item with `label`, `valid`, `affine` and `case`.
        """
        item = dict(data)
        if "seed" in item:
            return {**item, **self._paint(int(item["seed"]), item.get("population", "basic"))}
        if "label" in item and "valid" in item:
            loaded = self._load(str(item["label"]), str(item["valid"]))
            return {**item, **(_mirror(loaded) if item.get("mirrored") else loaded)}
        raise UserError(f"a case must have the key 'seed', or 'label' and 'valid', got {sorted(map(str, item))}")

    def _paint(self, seed: int, population: str) -> dict[Hashable, Any]:
        size = self.spatial_size
        spacing = VOLUME_SHAPE[0] * VOXEL_SIZE / size
        phantom = generate_phantom(seed, shape=(size, size, size), spacing=spacing, population=population)
        return {
            "label": torch.from_numpy(np.ascontiguousarray(phantom.hu))[None],
            # One stored voxel, seen everywhere: a cached phantom is a third smaller.
            "valid": torch.ones((1, 1, 1, 1), dtype=torch.uint8).expand(1, size, size, size),
            "affine": torch.from_numpy(phantom.affine),
            "case": f"phantom_{seed}",
        }

    def _load(self, label_path: str, valid_path: str) -> dict[Hashable, Any]:
        hu, affine = _read_prepared(label_path)
        valid, _ = _read_prepared(valid_path)
        factor = VOLUME_SHAPE[0] // self.spatial_size
        block = np.diag([factor, factor, factor, 1.0])
        block[:3, 3] = (factor - 1) / 2
        # A voxel of the coarse grid is valid only where all of it was scanned.
        all_valid = -functional.max_pool3d(-torch.from_numpy(valid.astype(np.float32))[None], factor)
        mean_hu = functional.avg_pool3d(torch.from_numpy(hu.astype(np.float32))[None], factor)
        return {
            "label": mean_hu.round().to(torch.int16),
            "valid": (all_valid > 0).to(torch.uint8),
            "affine": torch.from_numpy(affine @ block),
            "case": nifti_stem(label_path),
        }


def _mirror(case: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """Left for right; the cube stays where it is."""
    return {**case, **{key: case[key].flip(1) for key in ("label", "valid")}}


def _read_prepared(path: str) -> tuple[np.ndarray, np.ndarray]:
    volume, affine = read_nifti(path)
    if volume.shape != VOLUME_SHAPE:
        raise UserError(
            f"{path} must be a prepared CT of {VOLUME_SHAPE} voxels, got {volume.shape}: run `prepare` on it"
        )
    return volume, affine
