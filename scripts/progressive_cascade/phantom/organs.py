# SPDX-License-Identifier: Apache-2.0
"""The soft organs as signed distance fields on the lattice [mm], negative inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.cage import Cage, smooth_max, smooth_min
from progressive_cascade.phantom.patient import Patient, Profile
from progressive_cascade.phantom.raster import Lattice


@dataclass(frozen=True)
class Frame:
    """A patient, the cage, and where the lattice's points lie in the patient [mm]."""

    patient: Patient
    cage: Cage
    lattice: Lattice
    x: Tensor
    y: Tensor
    z: Tensor


def make_frame(patient: Patient, lattice: Lattice) -> Frame:
    """The lattice seen from the patient."""
    x, y, z = patient.pose.to_patient(*lattice.points())
    return Frame(patient, Cage(patient), lattice, *torch.broadcast_tensors(x, y, z))


def ellipsoid(frame: Frame, center: np.ndarray, radii: np.ndarray, axes: np.ndarray | None = None) -> Tensor:
    """Distance to an ellipsoid [mm]; rows of `axes` (3, 3) are its directions."""
    basis = np.eye(3) if axes is None else axes
    d = (frame.x - float(center[0]), frame.y - float(center[1]), frame.z - float(center[2]))
    near = torch.zeros_like(frame.x)
    slope = torch.zeros_like(frame.x)
    for direction, radius in zip(basis, radii, strict=True):
        along = (float(direction[0]) * d[0] + float(direction[1]) * d[1] + float(direction[2]) * d[2]) / float(radius)
        near += along**2
        slope += (along / float(radius)) ** 2
    near = near.sqrt_()
    return near * (near - 1) / slope.sqrt_().clamp_min(1e-6)


def capsule(frame: Frame, start: np.ndarray, end: np.ndarray, radius: float) -> Tensor:
    """Distance to a capsule [mm]."""
    a, d = np.asarray(start, dtype=float), np.asarray(end, dtype=float) - np.asarray(start, dtype=float)
    p = (frame.x - a[0], frame.y - a[1], frame.z - a[2])
    t = ((p[0] * d[0] + p[1] * d[1] + p[2] * d[2]) / float(d @ d)).clamp(0.0, 1.0)
    return torch.sqrt((p[0] - t * d[0]) ** 2 + (p[1] - t * d[1]) ** 2 + (p[2] - t * d[2]) ** 2) - radius


def muscle_field(frame: Frame) -> Tensor:
    """Outer surface of the muscles and the abdominal wall: what the fat lies on."""
    p, cage = frame.patient, frame.cage
    reach = p.cage_width + p.wall
    base = p.apex - 12 * p.vertebra_step
    knots = np.array([base - 60, base, p.apex - 60, p.apex - 25, p.apex + 8, p.apex + 34, p.apex + 60, p.apex + 130])
    side = np.array([0.93 * reach, 0.98 * reach, reach + 3, reach + 5, 122 * p.shoulder, 82, 62, 60])
    side[:2] *= 1 - p.outline.waist
    if p.arms_up and p.outline.arms is None:
        side[4:6] += (14, 10)
    heights = np.arange(-300.0, 300.0, 10.0)
    neck = np.clip((heights - p.apex - 20) / 50, 0, 1)
    ahead = frame.cage.front.at(heights) + np.interp(heights, knots, [12, 16, 20, 22, 26, 30, 30, 30])
    ahead = ahead + p.outline.belly * np.clip((p.dome_right - 25 - heights) / 110, 0, 1)
    behind = frame.cage.back.at(heights) - np.interp(heights, knots, [28, 28, 29, 29, 30, 28, 26, 26])
    spine = cage.spine.at(heights)
    ahead = ahead + neck * (np.maximum(spine + 56, ahead - 12) - ahead)
    behind = behind + neck * (spine - 58 - behind)
    width, front, back = Profile(knots, side, 12.0), Profile(heights, ahead, 8.0), Profile(heights, behind, 8.0)
    f, b, w = front(frame.z), back(frame.z), width(frame.z)
    power = 2.8 + p.outline.boxiness
    level = (frame.x / w).abs() ** power + ((frame.y - 0.5 * (f + b)) / (0.5 * (f - b))).abs() ** power
    field = frame.lattice.distance(level.clamp_min(1e-6) ** (1 / power) - 1)
    for sign in (1.0, -1.0):
        # The erector spinae beside the spine and, where they are raised, the upper arms.
        x = 25.0 * sign
        field = smooth_min(
            field,
            capsule(
                frame,
                np.array([x, cage.back.at(-150) - 6, -330]),
                np.array([x, cage.back.at(p.apex - 60) - 6, p.apex - 20]),
                24,
            ),
            14.0,
        )
        if p.arms_up and p.outline.arms is None:
            joint = np.array([sign * (reach - 8), -22.0, p.apex - 30])
            hand = np.array([sign * (reach + 34), -2.0, p.apex + 150])
            field = smooth_min(field, capsule(frame, joint, hand, 40.0), 25.0)
    return field


def fat_thickness(frame: Frame) -> Tensor:
    """Thickness of the subcutaneous fat over the muscles [mm]."""
    p = frame.patient
    turn = torch.atan2(frame.y, frame.x.abs())  # -pi/2 at the back, 0 at the side, pi/2 at the front
    s = torch.sin(turn)
    fat = (
        p.fat_side + (p.fat_front - p.fat_side) * s.clamp_min(0) ** 2 + (p.fat_back - p.fat_side) * s.clamp_max(0) ** 2
    )
    height = Profile([-200, -60, p.apex - 30, p.apex + 40], [1.25, 1.0, 0.85, 0.55], 20.0)
    return fat * height(frame.z) + 1.0


def breast_fields(frame: Frame) -> tuple[Tensor, Tensor]:
    """The breasts' skin and their glandular tissue."""
    p = frame.patient
    height = p.apex - 6.4 * p.vertebra_step
    radii = np.array([60.0, 30.0 * p.breast + 12, 56.0]) * (0.75 + 0.25 * p.breast)
    pairs = []
    for sign in (1.0, -1.0):
        aside = sign * (0.6 * p.cage_width + p.outline.breast_aside)
        center = np.array([aside, p.cage_front - 2 - 0.5 * p.outline.breast_aside, height - p.outline.breast_drop])
        outer = ellipsoid(frame, center + np.array([0, 6, -5]), radii)
        inner = ellipsoid(frame, center + np.array([0, 10 + 6 * p.breast, -5]), radii * (0.55, 0.6, 0.55))
        pairs.append((outer, inner))
    return torch.minimum(pairs[0][0], pairs[1][0]), torch.minimum(pairs[0][1], pairs[1][1])


def diaphragm_field(frame: Frame) -> Tensor:
    """Height above the diaphragm [mm]: negative below it."""
    p, cage = frame.patient, frame.cage
    width = 0.5 * p.cage_width
    front, back = cage.front(frame.z), cage.back(frame.z)
    depth, center = 0.56 * (front - back), 0.5 * (front + back) + 6
    surface = torch.full_like(frame.x, -1e3)
    shape = p.diaphragm
    for index, (sign, top) in enumerate(((1.0, p.dome_right), (-1.0, p.dome_left))):
        # The recess behind is deeper than the one in front.
        tilt = (shape.recess[index] * (frame.y - center)).clamp(-22.0, 22.0)
        across = (sign * frame.x - width * (1 + shape.peak[index])) / (width * shape.spread[index])
        across = torch.where(across < 0, 0.62 * across, 0.97 * across)
        q = across**2 + ((frame.y - center) / depth) ** 2
        drop = 0.45 * q.clamp_max(1.0) + 0.55 * (1 - torch.sqrt((1 - q).clamp_min(0.0) + 0.02))
        dome = top - p.dome_height * drop - 60 * (q - 1).clamp_min(0.0) + tilt
        surface = torch.maximum(surface, dome) if sign > 0 else smooth_max(surface, dome, 14.0)
    return frame.z - surface


def heart_center(frame: Frame) -> np.ndarray:
    """Middle of the heart (3,) in the patient's frame [mm]."""
    p = frame.patient
    floor = 0.5 * (p.dome_left + p.dome_right)
    front = float(frame.cage.front.at(floor + 35))
    return np.array([p.heart_shift - 14 * p.heart_scale, front - 52 * p.heart_scale - 8, floor + 36 * p.heart_scale])


def heart_parts(frame: Frame) -> dict[str, Tensor]:
    """Ventricles and atria; their union is the heart."""
    p = frame.patient
    s, base = p.heart_scale, heart_center(frame)
    angle = np.radians(p.heart_tilt)
    along = np.array([-np.cos(angle) * 0.86, 0.5, -np.sin(angle)])
    along = along / np.linalg.norm(along)
    side = np.cross(along, (0.0, 0.0, 1.0))
    side /= np.linalg.norm(side)
    axes = np.stack([along, side, np.cross(along, side)])
    deep = np.array([1.0, p.heart_depth, p.heart_depth]) * s
    return {
        "left_ventricle": ellipsoid(
            frame, base + 22 * s * along + np.array([-10, -6, 0]) * s, np.array([54, 36, 36]) * deep, axes
        ),
        "right_ventricle": ellipsoid(
            frame, base + 12 * s * along + np.array([10, 18, -8]) * s, np.array([50, 30, 30]) * deep, axes
        ),
        "right_atrium": ellipsoid(frame, base + np.array([38, 4, 2]) * s, np.array([23, 27, 33]) * s),
        "left_atrium": ellipsoid(frame, base + np.array([10, -30, 20]) * s, np.array([33, 21, 24]) * s),
    }


def lung_field(frame: Frame, *, cage_distance: Tensor, diaphragm: Tensor, mediastinum: Tensor) -> Tensor:
    """Both lungs: inside the cage, above the diaphragm, outside the mediastinum."""
    above = -frame.lattice.distance(diaphragm)
    return smooth_max(smooth_max(cage_distance + 2.0, above, 6.0), -mediastinum, 8.0)


def liver_field(frame: Frame, under: Tensor) -> Tensor:
    """The liver fills the right dome and tapers towards the left; `under` is the space below the diaphragm."""
    p = frame.patient
    right, left = p.cage_width, -0.42 * p.cage_width
    slope = (p.dome_left - 22 - p.liver_reach) / (right - left)
    lower = (p.liver_reach + slope * (right - frame.x) - frame.z + 0.28 * (-frame.y - 10).clamp(-60, 60)) / 1.2
    cut = (left - 0.35 * (frame.y - 10) - frame.x) * 0.9
    return smooth_max(smooth_max(under + 1.0, lower, 22.0), cut, 26.0)


def spleen_field(frame: Frame, under: Tensor) -> Tensor:
    """The spleen, behind and to the left."""
    p = frame.patient
    center = np.array([-0.72 * p.cage_width, 0.48 * p.cage_back, p.dome_left - 62])
    return smooth_max(under + 2.0, ellipsoid(frame, center, np.array([30.0, 46.0, 50.0])), 6.0)


def stomach_field(frame: Frame, under: Tensor) -> Tensor:
    """The stomach below the left dome."""
    p = frame.patient
    s = p.stomach_scale
    fundus = ellipsoid(frame, np.array([-0.5 * p.cage_width, 2.0, p.dome_left - 42 * s]), np.array([34, 38, 36]) * s)
    body = ellipsoid(frame, np.array([-0.32 * p.cage_width, 36.0, p.dome_left - 92]), np.array([32, 30, 48]) * s)
    return smooth_max(under + 3.5, smooth_min(fundus, body, 20.0), 6.0)
