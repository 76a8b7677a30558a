# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units, linear attenuation, the networks' [0, 1] scale, and the mass attenuation of materials."""

from __future__ import annotations

from progressive_cascade.attenuation.hounsfield import (
    AIR_HU,
    EFFECTIVE_ENERGY_KEV,
    HU_MAX,
    HU_MIN,
    SOFT_TISSUE_HU,
    bilinear_hu_to_mu,
    cortical_bone_hu,
    decompose_hu,
    hu_to_mu,
    hu_to_unit,
    mu_to_hu,
    unit_to_hu,
    water_attenuation,
)
from progressive_cascade.attenuation.materials import (
    DENSITY,
    MAX_ENERGY_KEV,
    MIN_ENERGY_KEV,
    air_energy_absorption,
    mass_attenuation,
)

__all__ = [
    "AIR_HU",
    "DENSITY",
    "EFFECTIVE_ENERGY_KEV",
    "HU_MAX",
    "HU_MIN",
    "MAX_ENERGY_KEV",
    "MIN_ENERGY_KEV",
    "SOFT_TISSUE_HU",
    "air_energy_absorption",
    "bilinear_hu_to_mu",
    "cortical_bone_hu",
    "decompose_hu",
    "hu_to_mu",
    "hu_to_unit",
    "mass_attenuation",
    "mu_to_hu",
    "unit_to_hu",
    "water_attenuation",
]
