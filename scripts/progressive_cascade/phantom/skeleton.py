# SPDX-License-Identifier: Apache-2.0
"""The bones as curves: ribs and cartilage, sternum, shoulder girdle, vertebrae. All in the patient's frame [mm]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from progressive_cascade.phantom.cage import Cage
from progressive_cascade.phantom.outline import arm_points
from progressive_cascade.phantom.patient import Patient
from progressive_cascade.phantom.tubes import Tubes, join, resample, tube

# How far each pair of ribs falls from the spine to the midline in front [mm]; where the bone ends (1: the midline).
_RIB_DROP = (40, 62, 78, 90, 98, 105, 110, 112, 106, 92, 55, 32)
_RIB_END = (0.76, 0.80, 0.82, 0.82, 0.81, 0.80, 0.78, 0.74, 0.69, 0.62, 0.43, 0.28)
# Where the cartilage of the upper seven pairs meets the sternum, from its top (0) to its lower end (1).
_NOTCHES = (0.10, 0.30, 0.43, 0.55, 0.66, 0.76, 0.84)


def _rib_height(cage: Cage, index: int, angle: np.ndarray) -> np.ndarray:
    start = cage.patient.vertebra_heights()[f"T{index + 1}"] + 5
    return start - cage.patient.rib_drop * _RIB_DROP[index] * (angle / np.pi) ** 1.25


def _facing(curve: np.ndarray, cage: Cage) -> np.ndarray:
    """Directions of the long axis of a strap that lies flat on the cage: (n, 3)."""
    middle = np.array([0.0, 0.5 * float(cage.front.at(0) + cage.back.at(0)), 0.0])
    outward = (curve[1:] + curve[:-1]) / 2 - middle
    outward[:, 2] = 0
    axis = np.cross(curve[1:] - curve[:-1], outward)
    return axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)


def _strap(points: np.ndarray, thickness: float, width: float, *, cage: Cage) -> Tubes:
    """A tube with elliptic section that lies flat on the cage."""
    curve = resample(points, 4.0)
    count = len(curve) - 1
    return Tubes(curve[:-1], curve[1:], np.full(count, thickness), np.full(count, width), _facing(curve, cage))


def ribs(cage: Cage) -> tuple[Tubes, Tubes]:
    """The twelve pairs of ribs and their cartilage."""
    p = cage.patient
    heights = p.vertebra_heights()
    bones, cartilages = [], []
    for side in (1, -1):
        for index in range(12):
            end = _RIB_END[index] * np.pi
            first = 0.22 * np.pi
            angle = np.linspace(first, max(end, first + 0.2), 12)
            z = _rib_height(cage, index, angle)
            arc = cage.surface(angle, z, side=side, offset=5.5)
            head_z = heights[f"T{index + 1}"] + 0.35 * p.vertebra_step
            spine = float(cage.spine.at(head_z))
            head = np.array([side * 18.0, spine - 6, head_z])
            neck = np.array([side * 36.0, min(spine - 28.0, float(cage.back.at(head_z)) + 10), head_z - 1])
            width = 4.6 if index in (0, 10, 11) else 6.7
            bones.append(_strap(np.vstack([head, neck, arc]), 3.4, width, cage=cage))
            if index < 10:
                cartilages.append(_cartilage(cage, index, side=side, end=end, start=float(z[-1])))
    return join(bones), join(cartilages)


def _cartilage(cage: Cage, index: int, *, side: int, end: float, start: float) -> Tubes:
    """Cartilage from the end of a rib to the sternum, or to the cartilage above for ribs 8 to 10."""
    p = cage.patient
    if index < 7:
        target = p.sternum_top - _NOTCHES[index] * p.sternum_length
        stop = 0.94 * np.pi
    else:
        target = p.sternum_top - (0.9 + 0.13 * (index - 6)) * p.sternum_length
        stop = (0.94 - 0.07 * (index - 6)) * np.pi
    s = np.linspace(0, 1, 6)
    z = start + (target - start) * s**1.4
    return _strap(cage.surface(end + (stop - end) * s, z, side=side, offset=5.5), 4.0, 6.0, cage=cage)


def sternum(cage: Cage) -> Tubes:
    """Manubrium, body and xiphoid process."""
    p = cage.patient
    s = np.array([0.0, 0.12, 0.27, 0.34, 0.6, 0.82, 0.9, 1.0])
    half_width = np.array([20.0, 27.0, 17.0, 15.0, 18.0, 18.0, 8.0, 4.0])
    z = p.sternum_top - s * p.sternum_length
    points = np.stack([np.zeros(len(z)), cage.front.at(z) + 7.0, z], 1)
    return tube(points, 5.0, half_width, axis=(1.0, 0.0, 0.0), step=5.0)


def clavicles(cage: Cage) -> Tubes:
    """Both clavicles."""
    p = cage.patient
    top = p.sternum_top
    front = float(cage.front.at(top))
    lift = 26.0 if p.arms_up else 12.0
    span = 132 * p.shoulder
    parts = []
    for side in (1, -1):
        x = np.array([0.17, 0.45, 0.75, 1.0]) * span * side
        y = front + np.array([6.0, 6.0, -16.0, -34.0])
        z = top + np.array([2.0, 8.0, 0.7 * lift, lift])
        if p.outline.arms is not None:  # it ends above the joint
            end = _shoulder_joint(cage, side) + np.array([side * 6.0, 14.0, 16.0])
            share = np.array([0.0, 0.2, 0.65, 1.0])
            x, y = x + share * (end[0] - x[-1]), y + share * (end[1] - y[-1])
            z = z + share * (end[2] - z[-1])
        parts.append(tube(np.stack([x, y, z], 1), np.array([7.5, 5.0, 5.0, 6.0])))
    return join(parts)


def scapulae(cage: Cage) -> Tubes:
    """Both shoulder blades: a thin sheet on the back of the cage, its spine, and the joint's socket."""
    p = cage.patient
    parts = []
    top, length = p.apex - 8, 128.0 * p.shoulder
    turn = 0.07 if p.arms_up else 0.0
    for side in (1, -1):
        joint = _shoulder_joint(cage, side)
        for s in np.linspace(0, 1, 34):
            z = top - s * length
            inner = (0.30 + turn * s) * np.pi
            outer = (0.50 - 0.16 * s + turn * s) * np.pi
            angle = np.linspace(inner, max(outer, inner + 0.05), 8)
            sheet = cage.surface(angle, np.full(8, z), side=side, offset=18.0)
            if s < 0.25:  # the neck of the blade turns away from the cage to the joint
                blend = np.linspace(0, 1, 8)[:, None] ** 3 * (1 - s / 0.25)
                sheet = sheet * (1 - blend) + joint * blend
            parts.append(_strap(sheet, 1.6, 4.0, cage=cage))
        lower = cage.surface(np.array([0.345 + turn]) * np.pi, np.array([top - length]), side=side, offset=18.0)[0]
        middle = cage.surface(np.array([0.43]) * np.pi, np.array([top - 0.5 * length]), side=side, offset=20.0)[0]
        parts.append(tube(np.stack([lower, middle, joint]), np.array([3.5, 4.0, 7.0])))
        medial = cage.surface(np.array([0.29]) * np.pi, np.array([top - 28.0]), side=side, offset=20.0)[0]
        acromion = joint + np.array([side * 10, 10, 30])
        parts.append(tube(np.stack([medial, 0.5 * (medial + acromion) + np.array([0, -10, 0]), acromion]), 3.5, 7.0))
    return join(parts)


def humeri(cage: Cage) -> Tubes:
    """The upper arms; in a patient without :attr:`Outline.arms` raised, or not in the picture."""
    p = cage.patient
    if p.outline.arms is not None:
        return join([_arm_bones(p, side) for side in (1, -1)])
    parts = []
    for side in (1, -1):
        head = np.array([side * ((p.cage_width + 10) * p.shoulder + 24), -18.0, p.apex - 12])
        elbow = np.array([side * (p.cage_width + p.wall + 40), -2.0, p.apex + 170])
        neck = head + 0.2 * (elbow - head)
        radii = np.array([21.0, 14.0, 11.0, 11.0])
        parts.append(tube(np.stack([head, neck, 0.5 * (head + elbow), elbow]), radii, step=8.0))
    return join(parts) if p.arms_up else parts[0].shrunk(1e6)


def _arm_bones(p: Patient, side: int) -> Tubes:
    """Humerus, ulna and radius."""
    joint, elbow, wrist = arm_points(p, side)
    neck = joint + 0.2 * (elbow - joint)
    humerus = tube(np.stack([joint, neck, 0.5 * (joint + elbow), elbow]), np.array([20.0, 13.0, 11.0, 15.0]), step=8.0)
    apart = np.array([0.0, 9.0, 0.0])
    forearm = [tube(np.stack([elbow + s * apart, wrist + s * apart]), 7.0, step=10.0) for s in (1, -1)]
    return join([humerus, *forearm])


def _shoulder_joint(cage: Cage, side: int) -> np.ndarray:
    """Socket of the shoulder (3,) [mm]."""
    p = cage.patient
    if p.outline.arms is None:
        return np.array([side * (p.cage_width + 10) * p.shoulder, -26.0, p.apex - 22])
    joint = arm_points(p, side)[0]
    return joint - np.array([side * 17.0, 4.0, 0.0])


def vertebra_sizes(name: str) -> tuple[float, float]:
    """Half the width and half the depth of a vertebral body [mm]."""
    number = int(name[1:])
    if name[0] == "C":
        return 12.0, 8.5
    if name[0] == "L":
        return 23.0 + number, 17.0
    return 14.0 + 0.7 * number, 10.5 + 0.5 * number


def posterior_elements(cage: Cage) -> Tubes:
    """Pedicles, laminae, articular, transverse and spinous processes of all vertebrae."""
    p = cage.patient
    parts = []
    for name, z in p.vertebra_heights().items():
        half_width, half_depth = vertebra_sizes(name)
        spine = float(cage.spine.at(z))
        back = spine - half_depth
        drop = {"C": 6.0, "T": 24.0, "L": 8.0}[name[0]]
        reach = {"C": 26.0, "T": 30.0, "L": 36.0}[name[0]]
        parts.append(
            tube(
                np.array(
                    [
                        [0, back - 19, z - 4],
                        [0, back - 19 - 0.5 * reach, z - 4 - 0.5 * drop],
                        [0, back - 18 - reach, z - 4 - drop],
                    ]
                ),
                2.6,
                5.5,
                axis=(0, 0.3, 1),
            )
        )
        for side in (1, -1):
            pedicle = _rows(side, [(0.62 * half_width, back + 4, z + 4), (0.72 * half_width, back - 10, z + 3)])
            lamina = _rows(side, [(0.72 * half_width, back - 10, z + 2), (0.0, back - 20, z - 5)])
            facet = _rows(side, [(0.8 * half_width, back - 11, z + 13), (0.8 * half_width, back - 13, z - 12)])
            tip = (half_width + (16 if name[0] != "C" else 4), back - 18, z + 4)
            process = _rows(side, [(0.72 * half_width, back - 10, z + 2), tip])
            parts += [tube(pedicle, 3.2, 5.0), tube(lamina, 2.2, 7.0), tube(facet, 4.0), tube(process, 4.0, 5.0)]
    return join(parts)


def osteophytes(cage: Cage) -> Tubes:
    """Spurs that bridge some of the discs in front on the right, where the aorta does not keep them away."""
    p = cage.patient
    heights = p.vertebra_heights()
    names = [f"T{number}" for number in range(5, 13)] + ["L1", "L2", "L3"]
    parts = []
    for upper, lower in pairwise(names):
        a, b = vertebra_sizes(upper)
        z = 0.5 * (heights[upper] + heights[lower])
        size = p.osteophytes * (0.65 + 0.35 * float(np.sin(37 * p.osteophytes + 2.4 * z)))  # not every disc alike
        rim = np.array([0.72 * a + 0.5 * size, float(cage.spine.at(z)) + 0.69 * b + 0.3 * size, z])
        bridge = rim + np.array([[-0.4 * size, -0.2 * size, 7.0], [0, 0, 0], [-0.4 * size, -0.2 * size, -7.0]])
        parts.append(tube(bridge, max(0.5 * size, 0.8)))
    return join(parts)


def _rows(side: int, points: Sequence[tuple[float, float, float]]) -> np.ndarray:
    return np.array([(side * x, y, z) for x, y, z in points])
