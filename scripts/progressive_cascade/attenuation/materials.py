# SPDX-License-Identifier: Apache-2.0
"""Mass attenuation coefficients of what X-rays pass through: patient, tube, filter and detector.

References:
    J. H. Hubbell and S. M. Seltzer, Tables of X-ray mass attenuation coefficients and mass energy-absorption
    coefficients, NIST Standard Reference Database 126, doi 10.18434/T4D01F: table 3 (elements), table 4 (compounds).
"""

from __future__ import annotations

from typing import overload

import numpy as np

MIN_ENERGY_KEV = 10.0
"""Lower end of the tables [keV]."""
MAX_ENERGY_KEV = 200.0
"""Upper end of the tables [keV]."""

DENSITY = {"water": 1.0, "cortical bone": 1.92, "aluminium": 2.699, "tungsten": 19.3, "caesium iodide": 4.51}
"""Densities [g/cm³] of NIST's tables 1 and 2; the materials :func:`mass_attenuation` knows."""

# Photon energy [keV] -> mu/rho with coherent scattering [cm²/g]. An absorption edge is a pair of equal energies.
_MASS_ATTENUATION: dict[str, tuple[tuple[float, float], ...]] = {
    "water": (
        *((10.0, 5.329), (15.0, 1.673), (20.0, 0.8096), (30.0, 0.3756), (40.0, 0.2683), (50.0, 0.2269)),
        *((60.0, 0.2059), (80.0, 0.1837), (100.0, 0.1707), (150.0, 0.1505), (200.0, 0.1370)),
    ),
    "cortical bone": (  # ICRU-44
        *((10.0, 28.51), (15.0, 9.032), (20.0, 4.001), (30.0, 1.331), (40.0, 0.6655), (50.0, 0.4242)),
        *((60.0, 0.3148), (80.0, 0.2229), (100.0, 0.1855), (150.0, 0.1480), (200.0, 0.1309)),
    ),
    "aluminium": (
        *((10.0, 26.23), (15.0, 7.955), (20.0, 3.441), (30.0, 1.128), (40.0, 0.5685), (50.0, 0.3681)),
        *((60.0, 0.2778), (80.0, 0.2018), (100.0, 0.1704), (150.0, 0.1378), (200.0, 0.1223)),
    ),
    "tungsten": (  # edges L3, L2, L1, K
        *((10.0, 96.91), (10.2068, 92.01), (10.2068, 233.4), (11.544, 168.9), (11.544, 231.2), (12.0998, 206.5)),
        *((12.0998, 238.2), (15.0, 138.9), (20.0, 65.73), (30.0, 22.73), (40.0, 10.67), (50.0, 5.949)),
        *((60.0, 3.713), (69.525, 2.552), (69.525, 11.23), (80.0, 7.810), (100.0, 4.438), (150.0, 1.581)),
        (200.0, 0.7844),
    ),
    # K edges of iodine and caesium; the row between them (34.5483 keV) is left out, it does not fit its neighbours.
    "caesium iodide": (
        *((10.0, 171.1), (15.0, 58.15), (20.0, 26.86), (30.0, 9.045), (33.1694, 6.923), (33.1694, 21.22)),
        *((35.9846, 17.19), (35.9846, 30.27), (40.0, 22.97), (50.0, 12.87), (60.0, 7.921), (80.0, 3.677)),
        *((100.0, 2.035), (150.0, 0.7290), (200.0, 0.3805)),
    ),
}
# Photon energy [keV] -> mu_en/rho of dry air [cm²/g].
_AIR_ENERGY_ABSORPTION = (
    *((10.0, 4.742), (15.0, 1.334), (20.0, 0.5389), (30.0, 0.1537), (40.0, 0.06833), (50.0, 0.04098)),
    *((60.0, 0.03041), (80.0, 0.02407), (100.0, 0.02325), (150.0, 0.02496), (200.0, 0.02672)),
)


@overload
def mass_attenuation(material: str, energy_kev: float) -> float: ...
@overload
def mass_attenuation(material: str, energy_kev: np.ndarray) -> np.ndarray: ...
def mass_attenuation(material: str, energy_kev: float | np.ndarray) -> float | np.ndarray:
    """Mass attenuation coefficient, log-log interpolated between the values of NIST.

    Args:
        material: a key of :data:`DENSITY`.
        energy_kev: photon energy, or an array of them [keV], 10 to 200.

    Returns:
        mu / rho [cm²/g], a float for a float.

    Raises:
        ValueError: if the material is unknown or an energy lies outside the tables.

    Example:
        >>> mass_attenuation("water", 60.0)
        0.2059
    """
    if material not in _MASS_ATTENUATION:
        raise ValueError(f"material must be one of {sorted(_MASS_ATTENUATION)}, got {material!r}")
    return _interpolate(_MASS_ATTENUATION[material], energy_kev)


def air_energy_absorption(energy_kev: np.ndarray) -> np.ndarray:
    """Mass energy-absorption coefficient of dry air: what turns a photon fluence into air kerma.

    Args:
        energy_kev: photon energies [keV], 10 to 200.

    Returns:
        mu_en / rho [cm²/g].

    Raises:
        ValueError: if an energy lies outside the table.
    """
    return np.asarray(_interpolate(_AIR_ENERGY_ABSORPTION, energy_kev))


def _interpolate(table: tuple[tuple[float, float], ...], energy_kev: float | np.ndarray) -> float | np.ndarray:
    energies, values = np.array(table).T
    given = np.asarray(energy_kev, dtype=np.float64)
    if not ((given >= energies[0]) & (given <= energies[-1])).all():
        raise ValueError(f"energy_kev must lie in [{energies[0]:g}, {energies[-1]:g}], got {energy_kev}")
    found = np.exp(np.interp(np.log(given), np.log(energies), np.log(values)))
    return float(found) if given.ndim == 0 else found
