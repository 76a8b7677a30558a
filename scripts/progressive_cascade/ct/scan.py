# SPDX-License-Identifier: Apache-2.0
"""A CT as it was read, before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from progressive_cascade.attenuation import AIR_HU


@dataclass(frozen=True)
class Scan:
    """A CT as it was read.

    Args:
        hu: array (i, j, k) of int16 or float32 [HU]; NaN where the file says that nothing was measured.
        affine: 4x4, voxel index to RAS mm.
        notes: what was mended or assumed on reading, a sentence each.
    """

    hu: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()


def undefined_to_air(scan: Scan) -> Scan:
    """Gives voxels without a number the CT number of air, or the least that was measured where that is less.

    The least value of all is what :func:`~progressive_cascade.ct.body.find_field_of_view` knows padding by.

    Returns:
        The scan and, where there were any, a note of how many.
    """
    hu = scan.hu
    undefined = np.isnan(hu) if hu.dtype.kind == "f" else np.zeros((), dtype=bool)
    if not undefined.any():
        return scan
    least = np.float32(min(AIR_HU, np.nanmin(hu)))
    count, share = int(undefined.sum()), undefined.mean()
    note = f"{count} voxels ({share:.1%}) were padding or not a number and are taken for air"
    return Scan(np.where(undefined, least, hu), scan.affine, (*scan.notes, note))
