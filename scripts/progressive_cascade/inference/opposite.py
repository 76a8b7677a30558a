# SPDX-License-Identifier: Apache-2.0
"""Views from the other side, an AP or a right lateral, read like a PA and a left lateral.

An AP looks like a PA, and a mirrored right lateral like a left one, but for what lies near the detector being magnified
less. A cascade whose range holds both sides takes them by their true matrices. One that learnt a PA and a left lateral
alone knows their magnification by heart: its stage 1 sees such a pair as the usual one, which is right to a few
millimetres. The later stages and data consistency go on from there with the true geometry, so that the volume lies in
the patient's true frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.networks import ProgressiveCascade

_USUAL = {"ap": "pa", "right_lateral": "left_lateral"}
# Where columns of the views run that are read as they are: of those nearest to a frontal, and to a lateral.
_COLUMNS = (np.array([-1.0, 0.0, 0.0]), np.array([0.0, -1.0, 0.0]))


def usual_beam(beam: ConeBeam) -> ConeBeam | None:
    """The geometry with each view from the usual side; None where all are."""
    views = tuple(_USUAL.get(view, view) for view in beam.views)
    return None if views == beam.views else replace(beam, views=views)


def detour(network: ProgressiveCascade, beam: ConeBeam) -> ConeBeam | None:
    """The geometry that stage 1 takes a pair for; None where it takes it as it is."""
    trained = network.geometry_range
    return None if trained is not None and trained.opposite else usual_beam(beam)


def mirrored_views(beam: ConeBeam) -> list[int]:
    """Which views show the usual ones' mirror image: a right lateral, a C-arm's from behind the patient."""
    axes = enumerate(beam.poses()[2])
    return [i for i, (column, _, along) in axes if column @ _COLUMNS[int(abs(along[0]) > abs(along[1]))] < 0]


def mirror_pictures(image: np.ndarray, beam: ConeBeam) -> np.ndarray:
    """Pictures (view, rows, cols) with those of :func:`mirrored_views` flipped; the same twice is the first."""
    flipped = image.copy()
    for index in mirrored_views(beam):
        flipped[index] = flipped[index][:, ::-1]
    return flipped


def mirror_matrices(matrices: Tensor, beam: ConeBeam) -> Tensor:
    """World to pixel matrices (b, view, 3, 4) of the flipped pictures: column c becomes the last column minus c."""
    flipped = matrices.clone()
    last = beam.detector_shape[1] - 1
    for index in mirrored_views(beam):
        flipped[:, index, 0] = last * matrices[:, index, 2] - matrices[:, index, 0]
    return flipped


def first_volume(
    network: torch.nn.Module, image: Tensor, matrices: Tensor, calibrated: Tensor, weights: Tensor | None
) -> Tensor:
    """What stage 1 makes of a pair, made consistent with it (b, 1, g, g, g) in [0, 1]."""
    with torch.inference_mode():
        volume, context = network.prepare_stage(image, matrices, calibrated, weights, None, 1)  # pyright: ignore
        stage = network.stages[0]  # pyright: ignore
        return stage.consistency(stage(volume, [0, 0, 0], context), image, matrices, calibrated, weights)  # pyright: ignore
