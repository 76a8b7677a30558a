# SPDX-License-Identifier: Apache-2.0
"""The numbers that make one patient differ from the next, all drawn from the seed before any voxel exists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TABLE_LOW = -320.0  # profiles are tables over z with a step of 1 mm
_TABLE_SIZE = 641


class Profile:
    """A smooth function of z given at a few heights; constant beyond them.

    Args:
        knots: heights [mm], ascending.
        values: the function there.
        smoothing: standard deviation of the Gaussian that rounds the corners [mm].
    """

    def __init__(self, knots: object, values: object, smoothing: float = 10.0) -> None:
        z = np.arange(_TABLE_SIZE) + _TABLE_LOW
        width = int(3 * smoothing)
        kernel = np.exp(-0.5 * (np.arange(-width, width + 1) / smoothing) ** 2)
        table = np.interp(z, np.asarray(knots, dtype=float), np.asarray(values, dtype=float))
        table = np.convolve(np.pad(table, width, mode="edge"), kernel / kernel.sum(), mode="valid")
        self.table = torch.from_numpy(table.astype(np.float32))

    def __call__(self, z: Tensor) -> Tensor:
        """The function at heights z [mm]."""
        position = (z - _TABLE_LOW).clamp(0.0, _TABLE_SIZE - 1.001)
        low = position.long()
        return torch.lerp(self.table[low], self.table[low + 1], position - low)

    def at(self, z: float | np.ndarray) -> np.ndarray:
        """The function at heights z [mm], as numpy."""
        return np.asarray(np.interp(z, np.arange(_TABLE_SIZE) + _TABLE_LOW, self.table.numpy()))


@dataclass(frozen=True)
class Pose:
    """How the patient stands in the world: a lateral bend of the spine, then a rotation and a shift.

    Args:
        rotation: (3, 3) patient to world.
        shift: (3,) patient to world [mm].
        bend: amplitude of the scoliosis [mm].
        bend_phase: its phase [rad].
        bend_length: its wavelength [mm].
    """

    rotation: np.ndarray
    shift: np.ndarray
    bend: float
    bend_phase: float
    bend_length: float

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """World points of patient points (n, 3) [mm]."""
        bent = np.array(points, dtype=float)
        bent[:, 0] += self.bend * np.sin(2 * np.pi * bent[:, 2] / self.bend_length + self.bend_phase)
        return bent @ self.rotation.T + self.shift

    def to_patient(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patient coordinates of broadcastable world coordinates [mm]."""
        x, y, z = (c - float(s) for c, s in zip((x, y, z), self.shift, strict=True))
        r = self.rotation
        u, v, w = (float(r[0, i]) * x + float(r[1, i]) * y + float(r[2, i]) * z for i in range(3))
        return u - self.bend * torch.sin(2 * np.pi * w / self.bend_length + self.bend_phase), v, w


@dataclass(frozen=True)
class Tissue:
    """HU of the tissues that differ between patients."""

    lung_hu: float
    lung_gradient: float  # HU per mm towards the back
    liver_hu: float
    bone_density: float  # factor
    cartilage_hu: float


@dataclass(frozen=True)
class Findings:
    """What only some patients have; 0 or empty for none."""

    contrast: float  # HU added to blood
    emphysema: float  # 0 to 1
    nodules: int
    effusion: tuple[float, float]  # depth of the fluid behind the right and left lung [mm]
    consolidation: float  # radius [mm]
    device: str  # "pacemaker" or "port"


@dataclass(frozen=True)
class Patient:
    """Everything but the pose that shapes one patient; lengths in mm, positions in the patient's frame (RAS)."""

    pose: Pose
    female: bool
    cage_width: float  # half the inner width of the rib cage
    cage_front: float  # y of the inner sternum at the lower chest
    cage_back: float  # y of the deepest paravertebral gutter
    wall: float  # bone and muscle around the cage
    fat_side: float
    fat_front: float
    fat_back: float
    breast: float  # breast size, 0 for none
    apex: float  # z of the first thoracic vertebra
    vertebra_step: float  # mean distance of thoracic vertebrae
    kyphosis: float
    rib_drop: float  # factor on the slope of the ribs
    sternum_length: float
    shoulder: float
    arms_up: bool
    dome_right: float  # z of the right dome of the diaphragm
    dome_left: float
    dome_height: float
    heart_scale: float
    heart_tilt: float  # degrees
    heart_shift: float
    aorta_radius: float
    stomach_scale: float
    gas: float  # how much of the stomach is gas
    liver_reach: float  # z of the liver's lowest tip
    tissue: Tissue
    findings: Findings

    @property
    def sternum_top(self) -> float:
        """Height of the jugular notch [mm]."""
        return self.apex - 2.05 * self.vertebra_step

    def vertebra_heights(self) -> dict[str, float]:
        """Centre of each vertebra from C5 down to L3 [mm]."""
        scale = 1 + 0.2 * (np.arange(12) - 5.5) / 5.5
        heights = {}
        z = self.apex
        for i in range(12):
            heights[f"T{i + 1}"] = float(z)
            z -= self.vertebra_step * scale[i]
        for i in range(3):
            z -= self.vertebra_step * 0.15
            heights[f"L{i + 1}"] = float(z)
            z -= self.vertebra_step * 1.32
        for i in range(4):
            heights[f"C{7 - i}"] = float(self.apex + self.vertebra_step * 0.8 * (i + 1))
        return heights


def _rotation(degrees: np.ndarray) -> np.ndarray:
    ax, ay, az = np.radians(degrees)
    cx, cy, cz = np.cos([ax, ay, az])
    sx, sy, sz = np.sin([ax, ay, az])
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        rotation=_rotation(rng.uniform(-1, 1, 3) * (3.0, 1.5, 4.0)),
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


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw one patient.

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
