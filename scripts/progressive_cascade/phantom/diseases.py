# SPDX-License-Identifier: Apache-2.0
"""Paint what takes air from a lung, or adds it, over large parts: fluid, collapse, consolidation, tumour, surgery."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.cage import smooth_max
from progressive_cascade.phantom.fissures import oblique_fissure
from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.organs import ellipsoid
from progressive_cascade.phantom.raster import Layer
from progressive_cascade.phantom.scene import Scene
from progressive_cascade.phantom.tubes import tube

_SIDES = (("lung_right", 1), ("lung_left", -1))
_FLUID = 12.0  # HU
_COLLAPSED = 38.0
_METAL = 2800.0
_BOWEL_WALL = 4.0  # mm


def paint_diseases(scene: Scene) -> None:
    """Both lungs' large findings, each inside its own lung, then the tumour."""
    disease = scene.frame.patient.disease
    for index, (name, side) in enumerate(_SIDES):
        lung = scene.fields[name]
        if disease.lobe[index]:
            infected = (-40 + 55 * scene.blotches).clamp(-500.0, 60.0)
            _paint(scene, smooth_max(lung, _lobe(scene, index, side), 6.0), infected, "consolidation")
        if disease.collapse[index]:
            part = smooth_max(lung, _beside_spine(scene, index, side), 8.0)
            _paint(scene, part, scene.tissue(_COLLAPSED), "consolidation")
        if disease.resection[index]:
            top = scene.frame.patient.apex + 5 - disease.resection[index]
            _paint(scene, smooth_max(lung, top - scene.frame.z, 14.0), scene.tissue(_FLUID), "effusion")
        if disease.standing_fluid[index]:
            _paint(scene, smooth_max(lung, _standing(scene, index), 4.0), scene.tissue(_FLUID), "effusion")
        if disease.pneumothorax[index]:
            _paint(scene, smooth_max(lung, _in_front(scene, index), 4.0), -1000.0, "pneumothorax")
    _paint_mass(scene)


def _paint(scene: Scene, field: Tensor, value: float | Tensor, label: str) -> None:
    scene.canvas.paint_field(field, [Layer(value, LABELS[label])])


def _lobe(scene: Scene, index: int, side: int) -> Tensor:
    """Negative in the lobe below the oblique fissure, or above it."""
    above = oblique_fissure(scene.frame, side)
    return above if scene.frame.patient.disease.lobe[index] == 1 else -above


def _beside_spine(scene: Scene, index: int, side: int) -> Tensor:
    """Negative in the wedge between spine, back and diaphragm that a lower lobe without air becomes."""
    frame, p = scene.frame, scene.frame.patient
    across = 0.8 * (side * frame.x - 22) + 0.6 * (frame.y - p.cage_back - 12) - p.disease.collapse[index]
    return smooth_max(across, frame.z - float(scene.layout.hila[side][2]) - 8, 12.0)


def _standing(scene: Scene, index: int) -> Tensor:
    """Negative below the level of the fluid, which climbs at the wall of the chest."""
    frame, p = scene.frame, scene.frame.patient
    dome = (p.dome_right, p.dome_left)[index]
    level = dome - 28 + p.disease.standing_fluid[index]
    return frame.z - level - 20 * torch.exp(scene.fields["cage"].clamp_max(0.0) / 14)


def _in_front(scene: Scene, index: int) -> Tensor:
    """Negative between the wall of the chest in front and a lung that has fallen back."""
    frame, p = scene.frame, scene.frame.patient
    width = p.disease.pneumothorax[index] * torch.sigmoid((frame.y - 5) / 22)
    return -scene.fields["cage"] - width


def _paint_mass(scene: Scene) -> None:
    """A tumour between a hilum and the wall, with an uneven edge."""
    p = scene.frame.patient
    radius, share = p.disease.mass
    if not radius:
        return
    side = 1 if share < 0.5 else -1
    reach = 2 * share if side > 0 else 2 * (share - 0.5)
    hilum = scene.layout.hila[side]
    wall = np.array([side * 0.85 * p.cage_width, 0.4 * p.cage_back, hilum[2] + 55 * np.sin(40 * share)])
    place = hilum + reach * (wall - hilum)
    stretch = 1 + 0.25 * np.sin(np.array([70.0, 110.0, 170.0]) * share)
    tumour = ellipsoid(scene.frame, place, radius * stretch) + 0.18 * radius * scene.blotches
    _paint(scene, smooth_max(tumour, scene.fields["cage"] - 3.0, 4.0), scene.tissue(36.0), "lesion")


def paint_bowel_gas(scene: Scene) -> None:
    """Pockets of gas in the bowel below the domes."""
    frame, p = scene.frame, scene.frame.patient
    for x, y, below, radius in p.bowel_gas:
        pocket = ellipsoid(frame, np.array([x, y, p.dome_right + below]), radius * np.array([1.3, 0.9, 1.0]))
        pocket = smooth_max(pocket + 0.15 * radius * scene.blotches, scene.fields["under"] + _BOWEL_WALL, 4.0)
        _paint(scene, pocket, -940.0, "bowel_gas")


def paint_rods(scene: Scene) -> None:
    """Two rods of metal that fix the lower thoracic spine, with their screws."""
    p, spine = scene.frame.patient, scene.frame.cage.spine
    if not p.rods:
        return
    z = p.apex - p.vertebra_step * np.linspace(7, 14, 8)
    for side in (1, -1):
        rod = np.stack([np.full(8, side * 17.0), spine.at(z) - 38, z], 1)
        scene.paint_tubes(tube(rod, 3.0), _METAL, "device")
        for place in rod[::2]:
            scene.paint_tubes(
                tube(np.stack([place, place + np.array([-side * 4.0, 34.0, 0.0])]), 2.6), _METAL, "device"
            )


def paint_sternal_wires(scene: Scene) -> None:
    """Loops of wire that hold a sternum together after surgery."""
    p, front = scene.frame.patient, scene.frame.cage.front
    turn = np.linspace(0, 2 * np.pi, 13)
    for z in p.sternum_top - p.sternum_length * np.linspace(0.08, 0.85, p.sternal_wires):
        middle = float(front.at(z)) + 7.0
        loop = np.stack([19 * np.cos(turn), middle + 8 * np.sin(turn), z + 2 * np.cos(turn)], 1)
        scene.paint_tubes(tube(loop, 0.5), _METAL, "device", add=True)
