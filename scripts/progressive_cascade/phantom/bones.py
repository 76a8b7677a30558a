# SPDX-License-Identifier: Apache-2.0
"""Paint the skeleton: a shell of cortical bone around spongy bone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom import skeleton
from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.raster import Layer
from progressive_cascade.phantom.scene import Scene
from progressive_cascade.phantom.tubes import tube

_CORTICAL = 820.0  # HU of the shells at a bone density of 1; spongy bone follows below
_SPONGY = 170.0
_OSTEOPHYTE = 480.0


def paint_bones(scene: Scene) -> None:
    """Spine, ribs, cartilage, sternum and shoulder girdle."""
    cage, density = scene.frame.cage, scene.frame.patient.tissue.bone_density
    ribs, cartilage = skeleton.ribs(cage)
    _paint_canal(scene)
    for name in cage.patient.vertebra_heights():
        _paint_vertebra(scene, name)
    scene.paint_tubes(cartilage, cage.patient.tissue.cartilage_hu, "costal_cartilage")
    for tubes, label, shell in (
        (skeleton.posterior_elements(cage), "vertebra", 1.0),
        (skeleton.scapulae(cage), "scapula", 1.0),
        (skeleton.humeri(cage), "humerus", 3.0),
        (ribs, "rib", 1.5),
        (skeleton.sternum(cage), "sternum", 1.0),
        (skeleton.clavicles(cage), "clavicle", 1.7),
    ):
        scene.paint_hollow(tubes, (_CORTICAL * density, _SPONGY * density), label, wall=shell)
    if cage.patient.osteophytes:
        scene.paint_tubes(skeleton.osteophytes(cage), _OSTEOPHYTE * density, "vertebra")


def _paint_canal(scene: Scene) -> None:
    cage = scene.frame.cage
    z = np.linspace(cage.patient.apex + 80, cage.patient.apex - 330, 20)
    points = np.stack([np.zeros(20), cage.spine.at(z) - 22, z], 1)
    scene.paint_hollow(tube(points, 9.0), (-20.0, 28.0), "spinal_canal", wall=3.0)


def _paint_vertebra(scene: Scene, name: str) -> None:
    """A vertebral body, waisted, and the disc below it."""
    frame = scene.frame
    p, spine = frame.patient, frame.cage.spine
    z = p.vertebra_heights()[name]
    a, b = skeleton.vertebra_sizes(name)
    pitch = p.vertebra_step * (
        0.8 if name[0] == "C" else 1.0 + 0.2 * (min(int(name[1:]) + 12 * (name[0] == "L"), 13) - 6.5) / 5.5
    )
    half = 0.5 * pitch - (2.0 if name[0] != "L" else 3.5)
    center = np.array([0.0, float(spine.at(z)), z])
    slope = float(spine.at(z + 10) - spine.at(z - 10)) / 20
    density = p.tissue.bone_density

    def body(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        u, v, h = p.pose.to_patient(x, y, w)
        h = h - z
        v = v - center[1] - slope * h
        up = (h + slope * v).abs()
        waist = 1 - 0.10 * (1 - (up / half).clamp(0, 1) ** 2)
        level = torch.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-6)
        side = (level - waist) * (0.5 * (a + b))
        return torch.maximum(side, up - half)

    def disc(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        u, v, h = p.pose.to_patient(x, y, w)
        h = h - z
        v = v - center[1] - slope * h
        side = (torch.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-6) - 1) * (0.5 * (a + b))
        return torch.maximum(side, (h + slope * v + 0.5 * pitch).abs() - 0.5 * pitch)

    place = p.pose.to_world(center[None])[0]
    scene.canvas.paint_local(place, 34.0 + half, distance=disc, layers=[Layer(85.0, LABELS["disc"])])
    label = LABELS["vertebra"]
    layers = [Layer(0.75 * _CORTICAL * density, label), Layer(_SPONGY * density, label, offset=1.3)]
    scene.canvas.paint_local(place, 34.0 + half, distance=body, layers=layers)
