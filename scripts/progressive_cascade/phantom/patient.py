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


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z by so many degrees."""
    ax, ay, az = np.radians(degrees)
    cx, cy, cz = np.cos([ax, ay, az])
    sx, sy, sz = np.sin([ax, ay, az])
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


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
class Arm:
    """One arm.

    Args:
        raised: 0 beside the trunk to 180 beside the head [degrees].
        forward: of the elbow [mm].
        radius: of the upper arm, flesh alone [mm].
    """

    raised: float
    forward: float
    radius: float


@dataclass(frozen=True)
class Outline:
    """What makes the skin differ from a smooth oval; all zero for the oval itself.

    Args:
        boxiness: added to the exponent of the super-ellipse of the muscles.
        flank: fat that hangs at the sides, towards the back [mm].
        belly: how far the front of the abdomen stands out [mm].
        waist: share of its width that the trunk loses between chest and pelvis.
        press: how far a table presses the back flat [mm].
        fold: depth of the crease below the chest [mm].
        waves: rows of wave vector x, y, z [1/mm], phase [rad] and amplitude [mm]: unevenness of the fat.
        breast_aside: how far breasts fall to the sides [mm].
        breast_drop: how far they hang [mm].
        supraclavicular: radius of the fat above the clavicles [mm].
        shoulder_radius: of the flesh between neck and shoulder [mm], 0 for none.
        arms: right and left, None where :attr:`Patient.arms_up` says it all.
    """

    boxiness: float = 0.0
    flank: float = 0.0
    belly: float = 0.0
    waist: float = 0.0
    press: float = 0.0
    fold: float = 0.0
    waves: tuple[tuple[float, float, float, float, float], ...] = ()
    breast_aside: float = 0.0
    breast_drop: float = 0.0
    supraclavicular: float = 0.0
    shoulder_radius: float = 0.0
    arms: tuple[Arm, Arm] | None = None


@dataclass(frozen=True)
class Diaphragm:
    """What makes the two domes differ, right and left.

    Args:
        recess: slope of the dome towards the back.
        peak: how far its top lies aside of the middle, as a share of the dome's half width.
        spread: how wide the dome is against a schematic one.
    """

    recess: tuple[float, float] = (0.16, 0.16)
    peak: tuple[float, float] = (0.0, 0.0)
    spread: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Disease:
    """Large findings in the chest, each for the right and the left lung; 0 for none [mm].

    Args:
        standing_fluid: effusion with a level, above the top of the dome.
        collapse: thickness of the collapsed part of the lower lobe beside the spine.
        lobe: consolidation of the lower (1) or upper (2) lobe.
        resection: height of lung that surgery took from the top, filled with fluid and fat.
        pneumothorax: width of the air in front of the lung.
        mass: radius of a tumour, 0 for none, and where it lies: share of the way from the hilum to the wall.
        mediastinal_fat: thickness of the fat around heart and vessels.
    """

    standing_fluid: tuple[float, float] = (0.0, 0.0)
    collapse: tuple[float, float] = (0.0, 0.0)
    lobe: tuple[int, int] = (0, 0)
    resection: tuple[float, float] = (0.0, 0.0)
    pneumothorax: tuple[float, float] = (0.0, 0.0)
    mass: tuple[float, float] = (0.0, 0.0)
    mediastinal_fat: float = 0.0


@dataclass(frozen=True)
class Scan:
    """What a CT scanner sees of the patient: world coordinates [mm], None where it sees everything.

    Args:
        ends: lowest and highest slice; beyond them they are repeated, as when a short CT is placed on the cube.
        field: centre x, y and radius of the field of view; air beyond it.
    """

    ends: tuple[float, float] | None = None
    field: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Scanner:
    """What a CT scanner makes of the tissues it sees.

    Args:
        noise: standard deviation in the body [HU].
        kernel: frequency at which the reconstruction's window ends [1/mm].
        blur: standard deviation of its point within a slice [mm].
        thickness: of a slice [mm].
        interval: of the slices [mm].
        grain: factor on the texture of the tissues.
    """

    noise: float
    kernel: float
    blur: float
    thickness: float
    interval: float
    grain: float


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
    outline: Outline = Outline()
    diaphragm: Diaphragm = Diaphragm()
    disease: Disease = Disease()
    scan: Scan = Scan()
    scanner: Scanner | None = None  # every tissue is smooth where there is none
    bowel_gas: tuple[tuple[float, float, float, float], ...] = ()  # centre x, y, z below the domes, and radius
    rods: bool = False  # metal beside the spine
    fissure: float = 0.0  # thickness of the folds between the lobes of the lungs
    sternal_wires: int = 0
    osteophytes: float = 0.0  # how far spurs stand off the spine
    heart_depth: float = 1.0  # of the ventricles across their axis, against a schematic heart

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
