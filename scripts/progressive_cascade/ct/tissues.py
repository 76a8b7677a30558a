# SPDX-License-Identifier: Apache-2.0
"""Errors by tissue: which kind of voxel a reconstruction gets wrong, and whether it is too dense or too thin there.

The tissue is told by the HU of the truth alone. The classes cover the whole scale without a gap, so that the errors of
the classes, weighted by their voxels, are the error of all; what lies between the published ranges, from -500 to
-190 HU, is mostly the lung's border and vessels smaller than a voxel, and counts as lung.
"""

from __future__ import annotations

import torch
from torch import Tensor

TISSUES: dict[str, tuple[float, float]] = {
    "air": (float("-inf"), -950.0),
    "lung": (-950.0, -190.0),
    "fat": (-190.0, -29.0),
    "soft": (-29.0, 150.0),
    "bone": (150.0, float("inf")),
}
"""Classes by the HU of the truth, [from, to): air beyond emphysema's threshold (Gevenois et al. 1995,
doi 10.1164/ajrccm.152.2.7633722), adipose tissue and muscle (Mitsiopoulos et al. 1998,
doi 10.1152/jappl.1998.85.1.115), and bone, or contrast medium, above."""


def tissue_classes(target_hu: Tensor) -> Tensor:
    """Which tissue every voxel is.

    Args:
        target_hu: truth, any shape [HU].

    Returns:
        Index into :data:`TISSUES`, same shape, uint8.

    Example:
        >>> list(TISSUES)[tissue_classes(torch.tensor([40.0]))[0]]
        'soft'
    """
    classes = torch.zeros(target_hu.shape, dtype=torch.uint8, device=target_hu.device)
    for low, _ in list(TISSUES.values())[1:]:
        classes += target_hu >= low
    return classes
