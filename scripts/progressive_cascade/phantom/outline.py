# SPDX-License-Identifier: Apache-2.0
"""What makes a body's outline differ from a smooth oval: limbs, hanging fat, a table under the back [mm]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.cage import smooth_max, smooth_min
from progressive_cascade.phantom.organs import Frame, capsule
from progressive_cascade.phantom.patient import Patient, Profile

_UPPER_ARM = 290.0  # shoulder to elbow [mm]
_FOREARM = 250.0
_MATTRESS = 6  # lattice points to either side over which a table's height is averaged
_PRESSED_SKIN = 4.0  # what a table leaves of the fat over the muscles of the back [mm]


def arm_points(p: Patient, side: int) -> np.ndarray:
    """Shoulder joint, elbow and wrist (3, 3) of an arm in the patient's frame [mm].

    Args:
        p: a patient with :attr:`Outline.arms`.
        side: 1 for the right, -1 for the left.
    """
    assert p.outline.arms is not None
    arm = p.outline.arms[0 if side > 0 else 1]
    share = np.clip((arm.raised - 20) / 120, 0, 1)  # the blade turns and lifts the joint
    joint = np.array([132 * p.shoulder - 10 * share, -20 + 6 * share, p.apex - 26 + 38 * share])
    trunk = p.cage_width + p.wall + p.fat_side + arm.radius
    angle = np.radians(arm.raised)
    if arm.raised < 60:  # beside the trunk, without entering it
        elbow = np.array([max(trunk + 6, joint[0] + 10), joint[1] + 0.5 * arm.forward - 15, joint[2] - 280])
        wrist = elbow + np.array([-10.0, 40 + 0.5 * arm.forward, -_FOREARM])
    else:
        elbow = joint + _UPPER_ARM * np.array([np.sin(angle), arm.forward / _UPPER_ARM, -np.cos(angle)])
        wrist = elbow + _FOREARM * np.array([-0.6, 0.2, 0.75])
    points = np.stack([joint, elbow, wrist])
    points[:, 0] *= side
    return points


def add_limbs(frame: Frame, muscle: Tensor) -> Tensor:
    """The muscles' surface with shoulders and arms."""
    p = frame.patient
    if p.outline.arms is None:
        return muscle
    for side, arm in zip((1, -1), p.outline.arms, strict=True):
        joint, elbow, wrist = arm_points(p, side)
        neck = np.array([side * 52.0, float(frame.cage.spine.at(p.apex)) + 4, p.apex + 8])
        radius = p.outline.shoulder_radius
        shoulder = smooth_min(
            capsule(frame, neck, joint, radius), capsule(frame, joint, joint + 0.2 * (elbow - joint), radius + 6), 20.0
        )
        pectoral = np.array([side * 0.62 * p.cage_width, 0.55 * p.cage_front, p.apex - 62])
        shoulder = smooth_min(shoulder, capsule(frame, pectoral, joint, 0.62 * radius), 22.0)
        muscle = smooth_min(muscle, shoulder, 30.0)
        limb = torch.minimum(capsule(frame, joint, elbow, arm.radius), capsule(frame, elbow, wrist, 0.72 * arm.radius))
        muscle = smooth_min(muscle, limb, 10.0)
    return muscle


def uneven_fat(frame: Frame, fat: Tensor) -> Tensor:
    """The thickness of the fat with flanks that hang, a crease below the chest, and waves."""
    p, outline = frame.patient, frame.patient.outline
    if outline.flank:
        turn = torch.atan2(frame.y, frame.x.abs())  # 0 at the side, negative towards the back
        height = Profile([p.dome_right - 120, p.dome_right - 30, p.apex - 60], [1.0, 0.75, 0.1], 15.0)
        fat = fat + outline.flank * torch.exp(-(((turn + 0.35) / 0.5) ** 2)) * height(frame.z)
    if outline.fold:
        crease = torch.exp(-(((frame.z - p.dome_right + 55 - 0.1 * frame.y) / 9) ** 2))
        fat = fat - outline.fold * crease
    for kx, ky, kz, phase, amplitude in outline.waves:
        fat = fat + amplitude * torch.sin(kx * frame.x + ky * frame.y + kz * frame.z + phase)
    return fat.clamp_min(1.5)


def press_back(frame: Frame, body: Tensor, muscle: Tensor) -> tuple[Tensor, Tensor]:
    """Skin and muscles flattened by a table, which is level in the world whichever way the patient lies."""
    p = frame.patient
    if not p.outline.press:
        return body, muscle
    y = frame.lattice.points()[1]
    trunk = (frame.x.abs() < 0.8 * p.cage_width) & (body < 0)
    lowest = torch.where(trunk, y, torch.inf).amin((0, 1))
    height = frame.lattice.axes[2] - float(p.pose.shift[2])
    seen = (torch.isfinite(lowest) & (height < p.apex - 30) & (height > p.dome_right - 120)).nonzero().ravel()
    if not len(seen):
        return body, muscle
    # A mattress follows the spine along the body, not from side to side.
    backs = lowest[int(seen[0]) : int(seen[-1]) + 1]
    smooth = np.convolve(np.pad(backs.numpy(), _MATTRESS, mode="edge"), np.full(2 * _MATTRESS + 1, 1.0), mode="valid")
    table = np.interp(np.arange(len(lowest)), np.arange(int(seen[0]), int(seen[-1]) + 1), smooth / (2 * _MATTRESS + 1))
    level = torch.from_numpy(table.astype(np.float32)) + p.outline.press - y
    level = level.expand_as(body)
    return smooth_max(body, level, 10.0), smooth_max(muscle, level + _PRESSED_SKIN, 10.0)
