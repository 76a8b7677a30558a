# SPDX-License-Identifier: Apache-2.0
"""Trachea, esophagus and great vessels as curves through the patient's frame [mm]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from progressive_cascade.phantom.cage import Cage
from progressive_cascade.phantom.tubes import Tubes, join, tube

Curve = tuple[np.ndarray, float]
"""Control points (k, 3) and a radius [mm]."""


@dataclass(frozen=True)
class Mediastinum:
    """Curves through the middle of the chest: control points (k, 3), with their radii where they differ."""

    aorta: np.ndarray
    branches: list[Curve]
    pulmonary: list[Curve]
    cava: Curve
    brachiocephalic: dict[int, Curve]  # 1 for the right, -1 for the left
    lower_veins: list[Curve]
    trachea: np.ndarray
    bronchi: dict[int, np.ndarray]
    esophagus: np.ndarray
    hila: dict[int, np.ndarray]

    @property
    def veins(self) -> list[Curve]:
        """All systemic and pulmonary veins."""
        return [self.cava, *self.brachiocephalic.values(), *self.lower_veins]


@dataclass(frozen=True)
class _Landmarks:
    """Where the middle of the chest has its fixed points [mm]."""

    heart: np.ndarray  # its middle
    apex: float  # z of the first thoracic vertebra
    carina: float  # z
    trachea: float  # y at the carina
    spine: float  # y of the vertebral bodies at the carina
    top: float  # z where the curves leave upwards
    neck: float  # y of the vertebral bodies there
    low: float  # z of the diaphragm
    behind: tuple[float, float, float]  # y of the vertebral bodies at the diaphragm, 80 and 160 mm below it


def _find_landmarks(cage: Cage, heart_center: np.ndarray) -> _Landmarks:
    p = cage.patient
    # At the fifth vertebra, higher where a large or high heart lifts it.
    lifted = min(float(heart_center[2]) + 20 * p.heart_scale + 34, p.apex - 3.4 * p.vertebra_step)
    carina = max(p.apex - 4.5 * p.vertebra_step, lifted)
    spine = float(cage.spine.at(carina))
    low, top = float(heart_center[2]) - 40, p.apex + 90
    return _Landmarks(
        heart=heart_center,
        apex=p.apex,
        carina=carina,
        trachea=spine + 0.40 * (float(cage.front.at(carina)) - spine),
        spine=spine,
        top=top,
        neck=float(cage.spine.at(top)),
        low=low,
        behind=(float(cage.spine.at(low)), float(cage.spine.at(low - 80)), float(cage.spine.at(low - 160))),
    )


def _aorta(m: _Landmarks) -> np.ndarray:
    _, hy, hz = m.heart
    arch = m.carina + 26
    return np.array(
        [
            (2, hy + 6, hz + 22),
            (16, m.trachea + 24, m.carina - 24),
            (14, m.trachea + 24, m.carina + 6),
            (0, m.trachea + 18, arch - 2),
            (-16, m.trachea - 4, arch),
            (-24, m.spine + 20, arch - 16),
            (-24, m.spine + 19, m.carina - 20),
            (-20, m.behind[0] + 24, m.low),
            (-8, m.behind[1] + 30, m.low - 80),
            (-3, m.behind[2] + 31, m.low - 160),
        ]
    )


def _branches(m: _Landmarks, radius: float) -> list[Curve]:
    """Brachiocephalic, left carotid and left subclavian artery."""
    t, arch, neck = m.trachea, m.carina + 30, m.neck + 34
    trunk = np.array([(4, t + 17, arch), (14, t + 8, m.apex - 28), (24, neck, m.top)])
    carotid = np.array([(-8, t + 10, arch), (-16, t, m.apex - 26), (-24, neck, m.top)])
    subclavian = np.array([(-17, t - 4, arch), (-24, m.spine + 32, m.apex - 24), (-62, m.spine + 38, m.apex - 6)])
    return [(trunk, 0.42 * radius), (carotid, 0.3 * radius), (subclavian, 0.34 * radius)]


def _pulmonary(m: _Landmarks, hila: dict[int, np.ndarray]) -> list[Curve]:
    """The trunk with the left pulmonary artery, and the right one."""
    hx, hy, hz = m.heart
    t, z = m.trachea, m.carina
    left = np.array([(hx - 8, hy + 22, hz + 18), (-18, t + 24, z - 26), (-26, t + 8, z - 14), hila[-1] + [4, 2, 2]])
    right = np.array([(-12, t + 16, z - 30), (12, t + 12, z - 27), hila[1] + [0, 6, 0]])
    return [(left, 12.0), (right, 10.5)]


def _brachiocephalic_veins(m: _Landmarks) -> dict[int, Curve]:
    t, z = m.trachea, m.apex
    right = np.array([(30, t + 17, z - 36), (46, t + 10, z - 8), (70, t, z + 6)])
    left = np.array([(28, t + 18, z - 38), (-10, t + 24, z - 26), (-60, t + 4, z + 4)])
    return {1: (right, 6.0), -1: (left, 6.0)}


def _lower_veins(m: _Landmarks, hila: dict[int, np.ndarray]) -> list[Curve]:
    """Inferior vena cava and the pulmonary veins."""
    _, hy, hz = m.heart
    cava = np.array([(26, hy - 8, hz - 18), (22, m.behind[0] + 46, m.low - 10), (18, m.behind[2] + 30, m.low - 170)])
    lungs = [np.array([(side * 14 + 6, hy - 28, hz + 18), hila[side] + [0, -4, -22]]) for side in (1, -1)]
    return [(cava, 11.0), *((points, 7.0) for points in lungs)]


def lay_out_mediastinum(cage: Cage, heart_center: np.ndarray) -> Mediastinum:
    """Place the great vessels and airways between the spine, the sternum and the heart."""
    m = _find_landmarks(cage, heart_center)
    t, z = m.trachea, m.carina
    hila = {1: np.array([46.0, t - 2, z - 32]), -1: np.array([-46.0, t - 2, z - 23])}
    _, hy, hz = m.heart
    return Mediastinum(
        aorta=_aorta(m),
        branches=_branches(m, cage.patient.aorta_radius),
        pulmonary=_pulmonary(m, hila),
        cava=(np.array([(30, t + 16, m.apex - 34), (29, t + 16, z), (28, hy + 8, hz + 26)]), 9.0),
        brachiocephalic=_brachiocephalic_veins(m),
        lower_veins=_lower_veins(m, hila),
        trachea=np.array([(0, m.neck + 42, m.top), (1, 0.5 * (m.spine + t) + 16, m.apex - 8), (4, t - 2, z + 2)]),
        bronchi={
            1: np.array([(4, t - 2, z), (20, t - 3, z - 16), hila[1] + [-4, -6, 2]]),
            -1: np.array([(4, t - 2, z), (-14, t - 3, z - 14), hila[-1] + [4, -6, -6]]),
        },
        esophagus=np.array(
            [
                (-4, m.neck + 26, m.top),
                (-6, m.spine + 27, z + 30),
                (-4, m.spine + 28, z - 30),
                (-12, m.behind[0] + 40, m.low),
            ]
        ),
        hila=hila,
    )


def tubes_of(curves: list[Curve], step: float = 4.0) -> Tubes:
    """One set of tubes from control points and radii."""
    return join([tube(points, radius, step=step) for points, radius in curves])
