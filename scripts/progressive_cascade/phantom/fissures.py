# SPDX-License-Identifier: Apache-2.0
"""The fissures between the lobes of the lungs: thin folds of pleura, which take no label from the lung."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.organs import Frame
from progressive_cascade.phantom.raster import LATTICE_STEP
from progressive_cascade.phantom.scene import Scene

_PLEURA = 20.0  # HU
_BULGE, _WAVE = 5.0, 38.0  # mm that a fissure bends, over how many


def oblique_fissure(frame: Frame, side: int) -> Tensor:
    """Distance above the oblique fissure [mm], which falls from the fourth vertebra to the front of the diaphragm.

    Args:
        frame: the patient.
        side: 1 for the right, -1 for the left.
    """
    p = frame.patient
    behind = p.apex - 3.5 * p.vertebra_step
    dome = p.dome_right if side > 0 else p.dome_left
    slope = (dome - 10 - behind) / (0.6 * p.cage_front - p.cage_back)
    return (frame.z - behind - slope * (frame.y - p.cage_back)) / float(np.hypot(1, slope))


def paint_fissures(scene: Scene) -> None:
    """Both oblique fissures and the horizontal one of the right lung, before any vessel crosses them."""
    frame, p = scene.frame, scene.frame.patient
    if not p.fissure:
        return
    for name, side in (("lung_right", 1), ("lung_left", -1)):
        oblique = oblique_fissure(frame, side)
        sheets = [oblique + _BULGE * torch.sin(frame.x / _WAVE)]
        if side > 0:
            level = frame.z - float(scene.layout.hila[side][2]) - 0.12 * frame.x
            sheets.append(torch.where(oblique > 0, level, 3 * LATTICE_STEP))
        for sheet in sheets:
            scene.canvas.paint_sheet(sheet, p.fissure, value=_PLEURA, label=LABELS[name])
