# SPDX-License-Identifier: Apache-2.0
"""Cases whose truth is known: which are evaluated, and their CTs at full resolution and on coarser grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from progressive_cascade import phantom
from progressive_cascade.io import read_nifti


@dataclass(frozen=True)
class Case:
    """One patient to reconstruct and to compare with.

    Args:
        name: of the case, in file names.
        patient: whose CT it is; a patient's cases count as one.
        hu: the CT (x, y, z) [HU].
        affine: 4x4, voxel index to RAS mm.
        valid: 1 where the scanner measured, same shape, None for everywhere.
    """

    name: str
    patient: str
    hu: np.ndarray
    affine: np.ndarray
    valid: np.ndarray | None

    def at_grid(self, size: int) -> Case:
        """The case on a coarser grid: HU averaged over blocks, valid where the whole block is.

        Args:
            size: voxels per axis, a divisor of the case's own.

        Raises:
            ValueError: if it is no divisor.
        """
        if size < 1 or any(side % size for side in self.hu.shape):
            raise ValueError(f"size must divide the case's {self.hu.shape} voxels, got {size}")
        factor = self.hu.shape[0] // size
        block = np.diag([factor, factor, factor, 1.0])
        block[:3, 3] = (factor - 1) / 2
        hu = F.avg_pool3d(torch.from_numpy(self.hu.astype(np.float32))[None], factor)[0].numpy()
        valid = self.valid
        if valid is not None:
            valid = -F.max_pool3d(-torch.from_numpy(valid.astype(np.float32))[None], factor)[0].numpy() > 0
        return Case(self.name, self.patient, hu, self.affine @ block, valid)


def load_case(item: Mapping[str, Any]) -> Case:
    """Reads the CT of an item, or generates the phantom, at full resolution.

    Args:
        item: of :func:`evaluation_items`.

    Returns:
        The case.
    """
    if "seed" in item:
        made = phantom.generate_phantom(item["seed"], population=item.get("population", "basic"))
        name = f"phantom_{item['seed']}"
        return Case(name, name, made.hu, made.affine, None)
    hu, affine = read_nifti(item["label"])
    valid, _ = read_nifti(item["valid"])
    return Case(item["case"], item["patient"], hu, affine, valid)
