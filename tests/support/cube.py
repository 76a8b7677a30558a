# SPDX-License-Identifier: Apache-2.0
"""CTs on few voxels: what is read, written and said is the same, in a hundredth of the time."""

from __future__ import annotations

from functools import partial

import pytest

from progressive_cascade.ct import placement
from progressive_cascade.ct.placement import place_ct
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE


def place_coarsely(patch: pytest.MonkeyPatch, size: int = 32) -> None:
    """Places CTs on the same cube in the world, of so many voxels along each axis."""
    spacing = VOLUME_SHAPE[0] * VOXEL_SIZE / size
    patch.setattr(placement, "place_ct", partial(place_ct, shape=(size, size, size), spacing=spacing))


def reconstruct_coarsely(patch: pytest.MonkeyPatch, size: int = 32) -> None:
    """Reconstructs on the same cube, of so many voxels along each axis."""
    patch.setattr("progressive_cascade.inference.reconstruct.VOLUME_SHAPE", (size, size, size))
    patch.setattr("progressive_cascade.inference.reconstruct.VOXEL_SIZE", VOLUME_SHAPE[0] * VOXEL_SIZE / size)
