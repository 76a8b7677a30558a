# SPDX-License-Identifier: Apache-2.0
"""Radiographs of a known CT, taken well or not so well, told rightly or wrongly: what an expected error learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose
from progressive_cascade.training.cases import Case

_STAND = ConeBeam()


@dataclass(frozen=True)
class Told:
    """A pair as a reconstruction gets it.

    Args:
        image: (view, rows, cols), on the scale of line integrals.
        beam: the geometry it is told, about the patient's isocenter.
        intensities: ``calibrated``, ``scaled`` or ``display``.
    """

    image: np.ndarray
    beam: ConeBeam
    intensities: str


@dataclass(frozen=True)
class Perturbation:
    """One way to take and tell a pair.

    Args:
        told: the geometry the reconstruction is told.
        taken: the geometry the radiographs have; None: the same.
        photons: per pixel without a patient; None: no noise.
        intensities: what the reconstruction is told of the values.
        change: of the line integrals (view, rows, cols), before they are told.
    """

    told: ConeBeam = _STAND
    taken: ConeBeam | None = None
    photons: float | None = None
    intensities: str = "calibrated"
    change: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def undeclared(self) -> bool:
        """Whether the reconstruction is told something wrong."""
        return self.taken is not None or (self.change is not None and self.intensities == "calibrated")

    def take(self, case: Case, seed: int) -> Told:
        """The radiographs of a case.

        Args:
            case: whose CT.
            seed: of the noise.
        """
        x, y, z, _ = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
        middle = (float(x), float(y), float(z))
        hu = torch.from_numpy(case.hu.astype(np.float32))[None, None]
        generator = torch.Generator().manual_seed(seed)
        exposure = Exposure(photons=self.photons)
        beam = (self.taken or self.told).at(middle)
        image = expose(hu, beam, affine=case.affine, exposure=exposure, generator=generator)[0].numpy()
        return Told(self.change(image) if self.change else image, self.told.at(middle), self.intensities)


def _fainter(image: np.ndarray) -> np.ndarray:
    return (0.8 * image).astype(np.float32)


def _shown(image: np.ndarray) -> np.ndarray:
    """On the scale that pictures are read to: windowed, with a gamma of 0.7."""
    low, high = np.percentile(image, [0.5, 99.5], axis=(1, 2), keepdims=True)
    return to_line_integrals(np.clip((image - low) / (high - low), 0, 1) ** 0.7, display=True)[0]


PERTURBATIONS: dict[str, Perturbation] = {
    "nominal": Perturbation(),
    "gain 0.8, told calibrated": Perturbation(change=_fainter),
    "distance wrong by 5 %": Perturbation(taken=replace(_STAND, source_to_isocenter=1.05 * _STAND.source_to_isocenter)),
    "display curve": Perturbation(intensities="display", change=_shown),
    "source at 1000 mm": Perturbation(ConeBeam(800.0, 1000.0)),
    "lateral turned 2°, untold": Perturbation(taken=replace(_STAND, views=("pa", "lao88"))),
    "turned 5°": Perturbation(replace(_STAND, views=("lao5", "lao87_cranial3"))),
    "gain 0.8, told scaled": Perturbation(intensities="scaled", change=_fainter),
    "1000 photons a pixel": Perturbation(photons=1e3),
}
"""Perturbations by name, those first that change most; of three the reconstruction is told something wrong."""
