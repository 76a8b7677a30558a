# SPDX-License-Identifier: Apache-2.0
"""Paint the body, the abdomen, the lungs and what lies between them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom import organs
from progressive_cascade.phantom.cage import smooth_max, smooth_min
from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.mediastinum import Mediastinum, tubes_of
from progressive_cascade.phantom.outline import add_limbs, press_back, uneven_fat
from progressive_cascade.phantom.patient import Profile
from progressive_cascade.phantom.raster import Layer
from progressive_cascade.phantom.scene import Scene
from progressive_cascade.phantom.trees import draw_targets, grow_tree
from progressive_cascade.phantom.tubes import join, tube

_SKIN = 2.0  # mm
_BLOOD = 42.0  # HU without contrast
_TREE_DEPTH = 10  # forks from the hilum to the finest vessel: 1024 tips in each lung


def paint_body(scene: Scene) -> None:
    """Skin, fat, muscles and breasts, and the space inside the rib cage."""
    frame = scene.frame
    muscle = add_limbs(frame, organs.muscle_field(frame))
    body = muscle - uneven_fat(frame, organs.fat_thickness(frame))
    fat = scene.tissue(-103.0, 5.0)
    layers = [Layer(15.0, LABELS["skin"]), Layer(fat, LABELS["fat"], offset=_SKIN)]
    if frame.patient.female:
        skin, gland = organs.breast_fields(frame)
        body = smooth_min(body, skin, 24.0)
        body, muscle = press_back(frame, body, muscle)
        scene.canvas.paint_field(body, layers)
        scene.canvas.paint_field(
            gland + 5 * scene.blotches, [Layer(-15 + 35 * scene.texture.clamp(-1.5, 1.5), LABELS["breast"])]
        )
    else:
        body, muscle = press_back(frame, body, muscle)
        scene.canvas.paint_field(body, layers)
    wall = frame.cage.distance(frame.lattice, frame.x, frame.y, frame.z)
    flesh = [Layer(52 - 45 * torch.sigmoid(4 * (scene.blotches - 1.3)) + 5 * scene.texture, LABELS["muscle"])]
    scene.canvas.paint_field(muscle, flesh)
    _paint_fat_planes(scene, wall, muscle, fat)
    scene.fields.update(body=body, muscle=muscle, cage=wall)


def _paint_fat_planes(scene: Scene, wall: Tensor, muscle: Tensor, fat: Tensor) -> None:
    """Fat between the layers of muscle, here more, there less, and in the armpits."""
    frame, p = scene.frame, scene.frame.patient
    lean = 2.2 - 0.08 * p.fat_side
    pits = None
    for side in (1.0, -1.0):
        low = np.array([side * (p.cage_width + 10), -4.0, p.apex - 95])
        high = np.array([side * (p.cage_width + 2), 2.0, p.apex - 38])
        pit = organs.capsule(frame, low, high, 13.0 + 0.3 * p.fat_side) + 2 * scene.blotches
        pits = pit if pits is None else torch.minimum(pits, pit)
        if p.outline.supraclavicular:  # between the neck and the clavicle
            depth = float(frame.cage.spine.at(p.apex)) + 46
            low, high = np.array([side * 88, depth, p.apex - 4]), np.array([side * 46, depth, p.apex + 16])
            pits = torch.minimum(pits, organs.capsule(frame, low, high, p.outline.supraclavicular))
    layers = [Layer(fat, LABELS["fat"])]
    scene.canvas.paint_field(smooth_max(pits, muscle + 9.0, 6.0), layers)
    for depth, wave in ((13.5, scene.blotches), (24.0, scene.texture)):
        plane = (wall - depth).abs() - 1.6 + 1.2 * wave + lean
        scene.canvas.paint_field(torch.maximum(plane, muscle + 4.0), layers)


def paint_abdomen(scene: Scene) -> None:
    """Fat and bowel below the diaphragm, liver, spleen, stomach and kidneys."""
    frame, canvas = scene.frame, scene.canvas
    p = frame.patient
    above = organs.diaphragm_field(frame)
    under = smooth_max(scene.fields["cage"] + 1.0, frame.lattice.distance(above) + 2.0, 4.0)
    if p.outline.belly:
        low = frame.z - (p.dome_right - 70)
        wall = 12.0 + 0.1 * p.fat_side
        under = smooth_min(
            under, smooth_max(smooth_max(scene.fields["muscle"] + wall, low, 20.0), -frame.y, 20.0), 10.0
        )
    bowel = -95 + 130 * torch.sigmoid(4 * (scene.blotches - 0.2)) + 6 * scene.texture
    canvas.paint_field(scene.fields["cage"] + 1.0, [Layer(scene.tissue(-90.0, 6.0), LABELS["mediastinum"])])
    canvas.paint_field(under - 2.0, [Layer(48.0, LABELS["muscle"]), Layer(bowel, LABELS["abdomen"], offset=3.0)])
    for side in (1, -1):
        spine = float(frame.cage.spine.at(-150))
        center = np.array([side * 58.0, spine - 4, p.dome_right - 112 - (8 if side > 0 else 0)])
        kidney = organs.ellipsoid(frame, center, np.array([28.0, 26.0, 52.0]))
        canvas.paint_field(kidney, [Layer(32 + 0.5 * p.findings.contrast, LABELS["kidney"])])
    stomach = organs.stomach_field(frame, under)
    gas_level = 34 - 38 * p.gas  # gas rises to the front of a patient on the back
    gas = smooth_max(stomach + 4.0, gas_level - frame.y, 2.0)
    canvas.paint_field(
        stomach, [Layer(38.0, LABELS["stomach"]), Layer(scene.tissue(18.0, 12.0), LABELS["stomach"], offset=4.0)]
    )
    canvas.paint_field(gas, [Layer(-985.0, LABELS["stomach_gas"])])
    spleen = scene.tissue(50 + 0.35 * p.findings.contrast)
    canvas.paint_field(organs.spleen_field(frame, under), [Layer(spleen, LABELS["spleen"])])
    liver = scene.tissue(p.tissue.liver_hu + 0.25 * p.findings.contrast)
    canvas.paint_field(organs.liver_field(frame, under), [Layer(liver, LABELS["liver"])])
    scene.fields.update(diaphragm=above, under=under)


def _mediastinum_field(scene: Scene, layout: Mediastinum, heart: Tensor) -> Tensor:
    """What the lungs leave free: heart, great vessels, spine and the slab between the lungs."""
    frame = scene.frame
    p, cage = frame.patient, frame.cage
    ys = cage.spine(frame.z)
    spine = torch.sqrt(frame.x**2 + (frame.y - ys) ** 2) - 24.0
    behind = torch.sqrt(frame.x**2 + (frame.y - ys + 30) ** 2) - 25.0
    carina_z = float(layout.bronchi[1][0, 2])
    half = Profile([carina_z - 60, carina_z - 20, carina_z + 30, p.apex - 15, p.apex + 10], [8, 13, 14, 16, 24], 8.0)
    front = ((frame.y - float(layout.trachea[-1, 1]) - 25) / 25).clamp(0.0, 1.0)
    fat = p.disease.mediastinal_fat
    slab = frame.x.abs() - (half(frame.z) + fat) * (1 - 0.7 * front)
    field = smooth_min(smooth_min(spine, behind, 6.0), slab, 8.0)
    field = smooth_min(field, heart - 3.0 - fat, 8.0)
    margin = 2.5
    a = layout.aorta
    for i in range(1, len(a) - 2):
        field = smooth_min(field, organs.capsule(frame, a[i], a[i + 1], p.aorta_radius + margin), 5.0)
    for points, radius in (layout.cava, *layout.brachiocephalic.values(), *layout.branches):
        field = smooth_min(field, organs.capsule(frame, points[0], points[1], radius + margin), 5.0)
    for points, radius in layout.pulmonary:
        for start, end in pairwise(points):
            inner = end if abs(end[0]) < 30 else start + 0.5 * (end - start)
            field = smooth_min(field, organs.capsule(frame, start, inner, radius + margin), 5.0)
    return field


def paint_lungs(scene: Scene) -> None:
    """Both lungs with the gradient of gravity, texture, and emphysema where the patient has it."""
    frame, canvas = scene.frame, scene.canvas
    p = frame.patient
    parts = organs.heart_parts(frame)
    heart = parts["left_ventricle"]
    for name in ("right_ventricle", "right_atrium", "left_atrium"):
        heart = smooth_min(heart, parts[name], 12.0)
    below = frame.lattice.distance(scene.fields["diaphragm"])
    heart = smooth_max(heart, -below - 1.0, 8.0)  # it rests on the diaphragm
    mediastinum = _mediastinum_field(scene, scene.layout, heart)
    lungs = organs.lung_field(
        frame, cage_distance=scene.fields["cage"], diaphragm=scene.fields["diaphragm"], mediastinum=mediastinum
    )
    density = (
        p.tissue.lung_hu
        - 45 * p.findings.emphysema
        - p.tissue.lung_gradient * frame.y.clamp(-100, 100)
        + 14 * scene.texture
    )
    density = density - 110 * p.findings.emphysema * torch.sigmoid(4 * (scene.blotches - 0.3))
    density = density.clamp(-1000.0, -500.0)
    for name, side in (("lung_right", 1.0), ("lung_left", -1.0)):
        lung = torch.maximum(lungs, -side * frame.x)
        canvas.paint_field(lung, [Layer(density, LABELS[name])])
        scene.fields[name] = lung
    scene.fields.update(heart=heart, lungs=lungs, **parts)


def paint_mediastinum(scene: Scene) -> None:
    """Heart, aorta, great vessels, esophagus, trachea and main bronchi."""
    frame, canvas, layout = scene.frame, scene.canvas, scene.layout
    p = frame.patient
    muscle, blood = 48 + 0.3 * p.findings.contrast, _BLOOD + p.findings.contrast
    heart = scene.fields["heart"]
    canvas.paint_field(heart, [Layer(scene.tissue(muscle), LABELS["heart"])])
    for name, wall in (("left_ventricle", 11.0), ("right_ventricle", 5.0), ("right_atrium", 4.0), ("left_atrium", 4.0)):
        chamber = torch.maximum(scene.fields[name] + wall, heart + wall)
        canvas.paint_field(chamber, [Layer(scene.tissue(blood), LABELS["heart"])])
    scene.paint_tubes(tubes_of(layout.veins), blood, "great_vessel")
    scene.paint_tubes(tubes_of(layout.pulmonary), blood, "great_vessel")
    scene.paint_tubes(tubes_of(layout.branches), blood, "great_vessel")
    scene.paint_tubes(tube(layout.aorta, p.aorta_radius * np.linspace(1.12, 0.8, len(layout.aorta))), blood, "aorta")
    scene.paint_tubes(tube(layout.esophagus, 5.5, 8.5, axis=(1, 0, 0)), 36.0, "esophagus")


def paint_trees(scene: Scene, rng: np.random.Generator) -> None:
    """Arteries, veins and bronchi branch from the hila into the lungs."""
    p, layout = scene.frame.patient, scene.layout
    vessels, airways = [], []
    for name, side in (("lung_right", 1), ("lung_left", -1)):
        field = scene.fields[name]

        def depth_at(points: np.ndarray, field: Tensor = field) -> np.ndarray:
            return scene.canvas.lattice.value_at(field, p.pose.to_world(points))

        low = np.array([0.0 if side > 0 else -p.cage_width, p.cage_back, p.dome_right - 100])
        high = np.array([p.cage_width if side > 0 else 0.0, p.cage_front, p.apex])
        targets = draw_targets(rng, depth_at, low=low, high=high, count=3 * 2**_TREE_DEPTH)
        arterial, venous, bronchial = np.split(targets, 3)
        hilum = layout.hila[side]
        vessels += grow_tree(rng, hilum, arterial, radius=7.0, depth=_TREE_DEPTH)
        vessels += grow_tree(rng, hilum + np.array([0, -4, -22]), venous, radius=6.2, depth=_TREE_DEPTH)
        airways += grow_tree(rng, layout.bronchi[side][-1], bronchial, radius=4.6, depth=6)
    bronchi = join(airways)
    # Labels from the lungs to the mediastinum may be painted over: no branch runs through the heart.
    chest = ("lung_right", "mediastinum")
    scene.paint_tubes(join(vessels), _BLOOD + 0.8 * p.findings.contrast, "lung_vessel", add=True, within=chest)
    scene.paint_hollow(bronchi.grown(1.1), (10.0, -990.0), "airway", wall=1.1, within=chest)
    main = [tube(points, np.array([7.4, 6.5, 4.8])) for points in layout.bronchi.values()]
    trachea = join([tube(layout.trachea, 9.0), *main])
    scene.paint_hollow(trachea.grown(1.4), (25.0, -990.0), "airway", wall=1.4)
