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


def tissue_errors(error: Tensor, target_hu: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Mean absolute error and bias of every tissue.

    Args:
        error: prediction minus truth [HU], any shape.
        target_hu: truth of the same shape [HU].
        mask: bool, which voxels count; default: all.

    Returns:
        ``<tissue>_mae_hu`` and ``<tissue>_bias_hu`` (positive: too dense); nan where there is no such tissue.

    Example:
        >>> tissue_errors(torch.tensor([3.0, -5.0]), torch.tensor([-1000.0, 40.0]))["soft_bias_hu"]
        -5.0
    """
    if mask is not None:
        error, target_hu = error[mask], target_hu[mask]
    borders = torch.tensor([low for low, _ in TISSUES.values()][1:], dtype=target_hu.dtype, device=target_hu.device)
    classes = torch.bucketize(target_hu.flatten(), borders, right=True)
    counts, absolute, signed = (
        torch.bincount(classes, weights=weights, minlength=len(TISSUES)).double()
        for weights in (None, error.abs().flatten(), error.flatten())
    )
    scores = {}
    for index, tissue in enumerate(TISSUES):
        scores[f"{tissue}_mae_hu"] = float(absolute[index] / counts[index])
        scores[f"{tissue}_bias_hu"] = float(signed[index] / counts[index])
    return scores
