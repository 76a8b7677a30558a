# SPDX-License-Identifier: Apache-2.0
"""The patient above and below the cube: rays that cross him there say less of the cube than they seem to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, volume_affine
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.record import Radiograph

SURROUNDINGS = ("seen", "none")
"""Whether radiographs show what is around the cube: acquired ones do, those simulated from a cube do not."""

_VOXEL_MM = 5.6
# How far above and below the cube, and around its axis, a trunk is looked for. It fills the middle of the cube: rays
# that pass it at the sides cross nobody.
_REACH_MM = 112.0
_HALF_TRUNK_MM = 120.0
# A shorter way through him outside is not worth the pixel.
_LONGEST_WAY_MM = 5.0


def show_surroundings(given: Sequence[Radiograph], choice: str | None) -> bool:
    """Whether a pair shows the patient beyond the cube.

    Args:
        given: the radiographs.
        choice: one of :data:`SURROUNDINGS`; None: not those whose own file or sidecar says that they hold line
            integrals.
    """
    if choice is not None:
        return choice == "seen"
    return not all(one.meaning == "line_integral" and one.sources.get("meaning") != "option" for one in given)


def misses_surroundings(beam: ConeBeam) -> np.ndarray:
    """Where rays stay in the cube while they cross a trunk that fills its middle and goes on above and below.

    Args:
        beam: geometry, the cube around its isocenter.

    Returns:
        1 where they do, else 0, (view, rows, cols), float32.
    """
    inner, reach = round(VOLUME_SHAPE[0] * VOXEL_SIZE / _VOXEL_MM), round(_REACH_MM / _VOXEL_MM)
    half = round(_HALF_TRUNK_MM / _VOXEL_MM)
    beyond = torch.ones(1, 1, 2 * half, 2 * half, inner + 2 * reach)
    beyond[..., reach:-reach] = 0
    affine = volume_affine((2 * half, 2 * half, inner + 2 * reach), _VOXEL_MM, beam.isocenter)
    return (line_integrals(beyond, beam, affine=affine)[0] < _LONGEST_WAY_MM).float().numpy()
