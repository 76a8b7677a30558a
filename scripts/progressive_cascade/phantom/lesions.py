# SPDX-License-Identifier: Apache-2.0
"""Paint what some patients have: nodules, consolidation, effusion, devices."""

from __future__ import annotations

import numpy as np
import torch

from progressive_cascade.phantom.cage import smooth_max
from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.organs import ellipsoid
from progressive_cascade.phantom.raster import Layer
from progressive_cascade.phantom.scene import Scene
from progressive_cascade.phantom.trees import draw_targets
from progressive_cascade.phantom.tubes import tube

_METAL = 2800.0  # HU; CT scanners clip titanium at about 3071
_PORT = 1500.0
_CATHETER = 700.0


def paint_lesions(scene: Scene, rng: np.random.Generator) -> None:
    """Effusion at the lungs' backs and bases, consolidation, nodules."""
    frame, canvas = scene.frame, scene.canvas
    p = frame.patient
    for name, height in zip(("lung_right", "lung_left"), p.findings.effusion, strict=True):
        if height > 0:  # fluid collects at the back of a patient on the back
            level = frame.y - (p.cage_back + height) + 0.25 * (frame.z - p.dome_right)
            fluid = smooth_max(scene.fields[name], level, 8.0)
            canvas.paint_field(fluid, [Layer(scene.tissue(12.0), LABELS["effusion"])])

    def depth_at(points: np.ndarray) -> np.ndarray:
        return canvas.lattice.value_at(scene.fields["lungs"], p.pose.to_world(points)) + 8.0

    low = np.array([-p.cage_width, p.cage_back, p.dome_right - 60])
    high = np.array([p.cage_width, p.cage_front, p.apex])
    places = draw_targets(rng, depth_at, low=low, high=high, count=8)
    if p.findings.consolidation > 0:
        radii = p.findings.consolidation * rng.uniform(0.7, 1.2, 3)
        cloud = ellipsoid(frame, places[-1], radii) + 7 * scene.blotches
        cloud = torch.maximum(cloud, scene.fields["lungs"])
        haze = [Layer(-500.0, LABELS["lesion"], opacity=0.6), Layer(15.0, LABELS["lesion"], offset=5.0, opacity=0.9)]
        canvas.paint_field(cloud, haze)
    for place in places[: p.findings.nodules]:
        radius = float(rng.uniform(2.5, 6) if rng.random() < 0.75 else rng.uniform(7, 16))
        stretch = rng.uniform(-0.15, 0.15) * radius
        hu = float(rng.uniform(10, 60) if rng.random() < 0.85 else rng.uniform(250, 500))
        ends = np.stack([place - stretch, place + stretch])
        scene.paint_tubes(tube(ends, radius), hu, "lesion")


def paint_device(scene: Scene, rng: np.random.Generator) -> None:
    """A pacemaker with its lead on the left, or a port with its catheter on the right."""
    p, cage, layout = scene.frame.patient, scene.frame.cage, scene.layout
    if not p.findings.device:
        return
    pacemaker = p.findings.device == "pacemaker"
    side = -1 if pacemaker else 1
    z = p.apex - rng.uniform(48, 62)
    place = np.array([side * rng.uniform(0.55, 0.68) * p.cage_width, float(cage.front.at(z)) + 20.0, z])
    vein, cava = layout.brachiocephalic[side][0], layout.cava[0]
    if pacemaker:
        across = np.array([-19.0, -12.0, 12.0, 19.0])
        box = place + np.stack([across, -0.1 * across, 0.1 * across], 1)
        scene.paint_tubes(tube(box, 4.5, np.array([11.0, 20.0, 20.0, 11.0])), _METAL, "device")
        tip = [cava[2] + [-4, 4, -40], cava[2] + [-42, 20, -70]]  # right atrium and the ventricle's apex
    else:
        depth = np.array([0.0, 4.0, 0.0])
        scene.paint_tubes(tube(np.stack([place + depth, place - depth]), 9.0), _PORT, "device")
        tip = []
    path = np.stack([place, vein[2] + [0, 10, 0], vein[1], cava[0], cava[1], *tip])
    scene.paint_tubes(tube(path, 1.1), _METAL if pacemaker else _CATHETER, "device", add=True)
