# SPDX-License-Identifier: Apache-2.0
"""The basic population: healthy builds, upright and centred, arms raised or out of the picture, few findings.

The shipped weights were trained on it, and every published number on phantoms is about it. The order of the draws is
part of it: seeds stay the patients they are.
"""

from __future__ import annotations

import numpy as np

from progressive_cascade.phantom.patient import Findings, Patient, Pose, Tissue, rotation


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        rotation=rotation(rng.uniform(-1, 1, 3) * (3.0, 1.5, 4.0)),
        shift=rng.uniform(-1, 1, 3) * (6.0, 9.0, 8.0),
        bend=float(abs(rng.normal(0, 3.5)) if rng.random() < 0.75 else rng.uniform(6, 12)),
        bend_phase=float(rng.uniform(0, 2 * np.pi)),
        bend_length=float(rng.uniform(280, 460)),
    )


def _draw_tissue(rng: np.random.Generator) -> Tissue:
    return Tissue(
        lung_hu=rng.uniform(-885, -800),
        lung_gradient=rng.uniform(0.1, 0.7),
        liver_hu=rng.uniform(50, 68) if rng.random() < 0.85 else rng.uniform(0, 35),
        bone_density=rng.uniform(0.7, 1.3),
        cartilage_hu=rng.uniform(85, 130) if rng.random() < 0.7 else rng.uniform(160, 320),
    )


def _draw_findings(rng: np.random.Generator) -> Findings:
    fluid = [0.0, 0.0]
    if rng.random() < 0.18:
        fluid[int(rng.integers(2))] = rng.uniform(12, 55)
    return Findings(
        contrast=rng.uniform(60, 260) if rng.random() < 0.35 else 0.0,
        emphysema=rng.uniform(0.4, 1.0) if rng.random() < 0.15 else 0.0,
        nodules=int(rng.integers(1, 5)) if rng.random() < 0.35 else 0,
        effusion=(fluid[0], fluid[1]),
        consolidation=rng.uniform(18, 42) if rng.random() < 0.15 else 0.0,
        device=str(rng.choice(["", "pacemaker", "port"], p=[0.88, 0.06, 0.06])),
    )


def draw_basic(rng: np.random.Generator) -> Patient:
    """Draw one patient of the basic population.

    Args:
        rng: where all the randomness comes from.
    """
    pose = _draw_pose(rng)
    female = bool(rng.random() < 0.5)
    habitus = rng.uniform(0, 1)  # 0 lean, 1 obese
    width = rng.uniform(104, 121) if female else rng.uniform(110, 127)
    depth = width * rng.uniform(1.22, 1.5)
    wall = rng.uniform(15, 21) + (0 if female else 3)
    # The chest has to fit a cube of 358 mm with a margin: fat fills what bone, muscle and bend leave of it.
    fat_side = float(np.clip(3 + 30 * habitus + rng.normal(0, 2), 2.5, 156 - pose.bend - width - wall))
    apex, step = rng.uniform(98, 126), rng.uniform(19.5, 24.0)
    dome_right = apex - step * rng.uniform(7.4, 9.7)
    return Patient(
        pose=pose,
        female=female,
        cage_width=width,
        cage_front=depth / 2,
        cage_back=-depth / 2,
        wall=wall,
        fat_side=fat_side,
        fat_front=fat_side * rng.uniform(0.9, 1.6),
        fat_back=4 + fat_side * rng.uniform(0.5, 1.1),
        breast=rng.uniform(0.55, 1.25) * (0.7 + 0.5 * habitus) if female else 0.0,
        apex=apex,
        vertebra_step=step,
        kyphosis=rng.uniform(-6, 16),
        rib_drop=rng.uniform(0.78, 1.2),
        sternum_length=rng.uniform(150, 185) * (0.92 if female else 1.0),
        shoulder=rng.uniform(0.9, 1.1),
        arms_up=bool(rng.random() < 0.65),
        dome_right=dome_right,
        dome_left=dome_right - rng.uniform(2, 20) + (30 if rng.random() < 0.04 else 0),
        dome_height=rng.uniform(60, 95),
        heart_scale=rng.uniform(0.86, 1.1) * (rng.uniform(1.12, 1.32) if rng.random() < 0.15 else 1.0),
        heart_tilt=rng.uniform(25, 50),
        heart_shift=rng.uniform(-6, 8),
        aorta_radius=rng.uniform(11.5, 15.5) * (1.25 if rng.random() < 0.08 else 1.0),
        stomach_scale=rng.uniform(0.75, 1.25),
        gas=rng.uniform(0.1, 0.9),
        liver_reach=dome_right - rng.uniform(110, 180),
        tissue=_draw_tissue(rng),
        findings=_draw_findings(rng),
    )
