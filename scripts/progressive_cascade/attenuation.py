# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units, linear attenuation, and the [0, 1] scale the networks work on.

Every function takes tensors or arrays and returns the same kind. HU are defined against water at the energy of the
scan: ``HU = 1000 (mu - mu_water) / mu_water``.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)

HU_MIN = -1024.0
"""Lower end of the HU window the networks see."""
HU_MAX = 1024.0
"""Upper end of the HU window the networks see."""
AIR_HU = -1000.0
"""Air, to a part in a thousand of water the same as vacuum; what stands outside the body."""
EFFECTIVE_ENERGY_KEV = 70.0
"""Effective energy of a filtered 120 kV chest beam [keV]; Johns & Cunningham, The Physics of Radiology, 4th ed."""

# Mass attenuation of liquid water with coherent scattering, photon energy [keV] -> mu/rho [cm²/g].
# NIST Standard Reference Database 126, Hubbell & Seltzer 1995, doi 10.18434/T4D01F, table 4 "Water, Liquid".
_WATER_MASS_ATTENUATION = (
    (20.0, 0.8096),
    (30.0, 0.3756),
    (40.0, 0.2683),
    (50.0, 0.2269),
    (60.0, 0.2059),
    (80.0, 0.1837),
    (100.0, 0.1707),
    (150.0, 0.1505),
    (200.0, 0.1370),
)


def water_attenuation(energy_kev: float = EFFECTIVE_ENERGY_KEV) -> float:
    """Linear attenuation of water, log-log interpolated between the values of NIST.

    Args:
        energy_kev: photon energy [keV], 20 to 200.

    Returns:
        mu of water [1/mm] at a density of 1 g/cm³.

    Raises:
        ValueError: if the energy lies outside the table.
    """
    energies, values = np.array(_WATER_MASS_ATTENUATION).T
    if not energies[0] <= energy_kev <= energies[-1]:
        raise ValueError(f"energy_kev must lie in [{energies[0]:g}, {energies[-1]:g}], got {energy_kev}")
    per_cm = np.exp(np.interp(np.log(energy_kev), np.log(energies), np.log(values)))
    return float(per_cm) / 10.0


def hu_to_mu(hu: Array, energy_kev: float = EFFECTIVE_ENERGY_KEV) -> Array:
    """Linear attenuation of a volume in HU: ``mu = mu_water (1 + HU / 1000)``, never below vacuum.

    Args:
        hu: CT numbers [HU], any shape.
        energy_kev: photon energy [keV] at which the CT numbers are read.

    Returns:
        mu [1/mm], same shape, floating point.
    """
    scale = water_attenuation(energy_kev) / 1000.0
    return (hu * scale + 1000.0 * scale).clip(0)


def mu_to_hu(mu: Array, energy_kev: float = EFFECTIVE_ENERGY_KEV) -> Array:
    """CT numbers of a volume of linear attenuation: ``HU = 1000 (mu / mu_water - 1)``.

    Args:
        mu: linear attenuation [1/mm], any shape.
        energy_kev: photon energy [keV].

    Returns:
        CT numbers [HU], same shape.
    """
    return mu * (1000.0 / water_attenuation(energy_kev)) - 1000.0


def hu_to_unit(hu: Array) -> Array:
    """Clip HU to [-1024, 1024] and map to [0, 1], the scale of the networks.

    Args:
        hu: CT numbers [HU], any shape.

    Returns:
        Values in [0, 1], same shape.
    """
    return (hu.clip(HU_MIN, HU_MAX) - HU_MIN) / (HU_MAX - HU_MIN)


def unit_to_hu(unit: Array) -> Array:
    """Map the networks' [0, 1] back to [-1024, 1024] HU.

    Args:
        unit: values in [0, 1], any shape.

    Returns:
        CT numbers [HU], same shape.
    """
    return unit * (HU_MAX - HU_MIN) + HU_MIN
