# SPDX-License-Identifier: Apache-2.0
"""Views from the other side, an AP or a right lateral, for a cascade that learnt a PA and a left lateral.

An AP looks like a PA, and a mirrored right lateral like a left one, but for what lies near the detector being magnified
less. Stage 1 knows the usual magnification by heart: it sees such a pair as the usual one, which is right to a few
millimetres. The later stages and data consistency go on from there with the true geometry, so that the volume lies in
the patient's true frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.geometry import ConeBeam

_USUAL = {"ap": "pa", "right_lateral": "left_lateral"}
_MIRRORED = ("right_lateral",)


def usual_beam(beam: ConeBeam) -> ConeBeam | None:
    """The geometry with each view from the usual side; None where all are."""
    views = tuple(_USUAL.get(view, view) for view in beam.views)
    return None if views == beam.views else replace(beam, views=views)


def mirrored_views(beam: ConeBeam) -> list[int]:
    """Which views are read with the patient's front on the other side than the usual ones."""
    return [index for index, view in enumerate(beam.views) if view in _MIRRORED]


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
