# SPDX-License-Identifier: Apache-2.0
"""The chest's frame: the inner wall of the rib cage, on which ribs and lungs are built, and the line of the spine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.patient import Patient, Profile
from progressive_cascade.phantom.raster import Lattice

_APEX_WIDTH = 56.0  # half the cage's width at its top [mm]
_EXPONENT = 2.35  # of the super-ellipse of an axial section: a little boxier than an ellipse


def smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersection of two distance fields whose edge is rounded over `radius` mm."""
    h = (radius - (a - b).abs()).clamp_min(0.0) / radius
    return torch.maximum(a, b) + h * h * (radius / 4)


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two distance fields whose groove is filled over `radius` mm."""
    return -smooth_max(-a, -b, radius)


class Cage:
    """The inner wall of the rib cage of a patient: a super-ellipse at each height.

    Args:
        patient: whose cage.
    """

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        top = patient.apex + 2
        length = 12.2 * patient.vertebra_step
        t = np.linspace(0, 1.2, 49)
        z = top - t * length
        bulge = 1 - (1 - np.minimum(t / 0.6, 1)) ** 2.9
        low = np.clip((t - 0.8) / 0.4, 0, 1)
        width = _APEX_WIDTH + (patient.cage_width - _APEX_WIDTH) * bulge - 0.07 * patient.cage_width * low
        rise = 0.12 + 0.88 * (1 - (1 - np.minimum(np.maximum(t, 0) / 0.66, 1)) ** 2.1)
        front = -2 + (patient.cage_front + 2) * rise - 10 * low
        back = (
            patient.cage_back
            + (26 + patient.kyphosis) * np.maximum(1 - t / 0.42, 0) ** 1.6
            + (10 + 0.5 * patient.kyphosis) * np.maximum((t - 0.6) / 0.5, 0) ** 1.4
        )
        self.top = top
        self.width = Profile(z[::-1], width[::-1], 2.0)
        self.front = Profile(z[::-1], front[::-1], 4.0)
        self.back = Profile(z[::-1], back[::-1], 6.0)
        self.spine = self._spine()

    def _spine(self) -> Profile:
        """Height to y of the vertebral bodies' centres; the neck leans forward."""
        p = self.patient
        heights = np.array([-260, p.apex - 11 * p.vertebra_step, p.apex - 40, p.apex + 10, p.apex + 70, p.apex + 160])
        back = self.back.at(np.minimum(heights, p.apex - 6))
        return Profile(heights, back + np.array([46, 40, 34, 32, 50, 52]), 22.0)

    def distance(self, lattice: Lattice, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Distance to the wall [mm], negative inside, for the patient's coordinates of the lattice; a dome on top."""
        front, back, width = self.front(z), self.back(z), self.width(z)
        center, depth = 0.5 * (front + back), 0.5 * (front - back)
        total = ((x / width).abs().clamp_min(1e-4) ** _EXPONENT) + ((y - center) / depth).abs().clamp_min(
            1e-4
        ) ** _EXPONENT
        return smooth_max(lattice.distance(total ** (1 / _EXPONENT) - 1), z - self.top - 5.0, 36.0)

    def surface(self, angle: np.ndarray, z: np.ndarray, *, side: int, offset: float | np.ndarray = 0.0) -> np.ndarray:
        """Points (n, 3) [mm] outside the wall by `offset`.

        Args:
            angle: 0 at the back, pi at the front [rad].
            z: heights [mm].
            side: 1 for the patient's right, -1 for the left.
            offset: [mm].
        """
        front, back = self.front.at(z), self.back.at(z)
        width = self.width.at(z) + offset
        depth = 0.5 * (front - back) + offset
        sin, cos = np.sin(angle), np.cos(angle)
        x = side * width * np.abs(sin) ** (2 / _EXPONENT)
        y = 0.5 * (front + back) - depth * np.sign(cos) * np.abs(cos) ** (2 / _EXPONENT)
        return np.stack([x, y, np.broadcast_to(z, x.shape)], 1)
