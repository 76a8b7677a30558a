# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units, linear attenuation, and the [0, 1] scale the networks work on.

Every function takes tensors or arrays and returns the same kind. HU are defined against water at the energy of the
scan: ``HU = 1000 (mu - mu_water) / mu_water``.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from progressive_cascade.attenuation.materials import DENSITY, mass_attenuation

Array = TypeVar("Array", torch.Tensor, np.ndarray)

HU_MIN = -1024.0
"""Lower end of the HU window the networks see."""
HU_MAX = 1024.0
"""Upper end of the HU window the networks see."""
AIR_HU = -1000.0
"""Air, to a part in a thousand of water the same as vacuum; what stands outside the body."""
EFFECTIVE_ENERGY_KEV = 70.0
"""Effective energy of a filtered 120 kV chest beam [keV]; Johns & Cunningham, The Physics of Radiology, 4th ed."""

SOFT_TISSUE_HU = 100.0
"""Up to here a voxel is water of some density; above, it holds bone. Muscle and blood, with the noise of a CT, stay
below."""


def water_attenuation(energy_kev: float = EFFECTIVE_ENERGY_KEV) -> float:
    """Linear attenuation of water.

    Args:
        energy_kev: photon energy [keV], 10 to 200.

    Returns:
        mu of water [1/mm] at a density of 1 g/cm³.

    Raises:
        ValueError: if the energy lies outside the table.
    """
    return mass_attenuation("water", energy_kev) / 10.0


def cortical_bone_hu(ct_energy_kev: float = EFFECTIVE_ENERGY_KEV) -> float:
    """CT number of cortical bone (ICRU-44, 1.92 g/cm³): 1594 HU at 70 keV.

    Args:
        ct_energy_kev: effective energy of the CT scan [keV].

    Returns:
        CT number [HU].
    """
    bone = DENSITY["cortical bone"] * mass_attenuation("cortical bone", ct_energy_kev)
    return 1000.0 * (bone / mass_attenuation("water", ct_energy_kev) - 1.0)


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


def decompose_hu(hu: Array, ct_energy_kev: float = EFFECTIVE_ENERGY_KEV) -> tuple[Array, Array]:
    """A CT as two volumes of density, water and cortical bone, that attenuate at the CT's energy as it says.

    Up to :data:`SOFT_TISSUE_HU` a voxel is water of density ``1 + HU / 1000``; from there to the CT number of
    cortical bone the volume share of bone rises linearly from 0 to 1; above, bone grows denser.

    Args:
        hu: CT numbers [HU], any shape.
        ct_energy_kev: effective energy of the CT scan [keV].

    Returns:
        Densities of water and of cortical bone [g/cm³], same shape, floating point, nowhere negative.
    """
    bone_hu = cortical_bone_hu(ct_energy_kev)
    relative = (hu / 1000.0 + 1.0).clip(min=0)
    share = ((hu - SOFT_TISSUE_HU) / (bone_hu - SOFT_TISSUE_HU)).clip(min=0, max=1)
    water = (1.0 - share) * relative.clip(max=1.0 + SOFT_TISSUE_HU / 1000.0)
    bone = share * DENSITY["cortical bone"] * (relative / (1.0 + bone_hu / 1000.0)).clip(min=1)
    return water, bone


def bilinear_hu_to_mu(
    hu: Array, energy_kev: float = EFFECTIVE_ENERGY_KEV, ct_energy_kev: float = EFFECTIVE_ENERGY_KEV
) -> Array:
    """Linear attenuation at another energy than the CT's: a water line for soft tissue, a steeper or flatter bone line.

    ``mu = (mu / rho)_water rho_water + (mu / rho)_bone rho_bone`` with the densities of :func:`decompose_hu`. At the
    CT's own energy this is :func:`hu_to_mu`, whose values it then returns.

    Args:
        hu: CT numbers [HU], any shape.
        energy_kev: photon energy of the radiograph [keV].
        ct_energy_kev: effective energy of the CT scan [keV].

    Returns:
        mu [1/mm], same shape, floating point.

    References:
        J. P. J. Carney et al., Method for transforming CT images for attenuation correction in PET/CT imaging,
        Medical Physics 33(4), 2006, doi 10.1118/1.2174132.
    """
    if energy_kev == ct_energy_kev:
        return hu_to_mu(hu, energy_kev)
    water, bone = decompose_hu(hu, ct_energy_kev)
    return water * water_attenuation(energy_kev) + bone * (mass_attenuation("cortical bone", energy_kev) / 10.0)


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
