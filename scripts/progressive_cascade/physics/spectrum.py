# SPDX-License-Identifier: Apache-2.0
"""X-ray spectra: one energy, or a tungsten anode behind aluminium.

The tube model is that of Tucker, Barnes and Chakraborty with their published constants: bremsstrahlung of electrons
that slow down in the anode, its own attenuation on the way out, and the K lines. Its half-value layers lie 2 to 7 %
below those of SpekPy (tests/test_physics_spectrum.py).

References:
    D. M. Tucker, G. T. Barnes, D. P. Chakraborty, Semiempirical model for generating tungsten target x-ray spectra,
    Medical Physics 18, 1991, doi 10.1118/1.596709.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from progressive_cascade.attenuation import (
    DENSITY,
    MAX_ENERGY_KEV,
    MIN_ENERGY_KEV,
    air_energy_absorption,
    mass_attenuation,
)

KILOVOLT_RANGE = (60.0, 150.0)
"""Tube voltages the model was checked for [kV]."""
KEV_RANGE = (20.0, 150.0)
"""Photon energies of a radiograph at one energy [keV]."""
FILTRATION_MM_AL = 3.0
"""Total filtration, of the tube and added [mm Al]; the least a chest unit should have (European guidelines on
quality criteria for diagnostic radiographic images, EUR 16260)."""
ANODE_ANGLE = 12.0
"""Angle between the anode's surface and the central ray [degrees]."""

_BIN_KEV = 1.0
_SPECTRUM = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(kev|kvp?)\s*", re.IGNORECASE)

# Tucker et al. 1991, tungsten. Energies in keV.
_ELECTRON_REST_ENERGY = 511.0
_AMPLITUDE = (3.685e-2, 2.900e-5)
_SHAPE = (1.0, -5.049, 10.847, -10.516, 3.842)
_STOPPING_POWER = (2024.1, 10361.0, 0.04695)
# Thomson and Whiddington: an electron of energy T0 has T² = T0² - rho C x left at depth x; C [keV² cm²/g] against kV.
_SLOWING_DOWN = ((50.0, 5.40e5), (75.0, 6.25e5), (100.0, 7.00e5), (150.0, 8.40e5))
# 1000 alpha r_e² N_A Z² / A: the constants above want the atoms of a kilogram.
_CROSS_SECTION = 1e3 * 7.2974e-3 * (2.8179e-13) ** 2 * 6.0221e23 * 74**2 / 183.84
_K_EDGE = 69.525
_K_AMPLITUDE, _K_EXPONENT = 1.349e-3, 1.648
# K alpha 1, alpha 2, beta 1, beta 2: energy and share.
_K_LINES = ((59.32, 0.4500), (57.98, 0.2592), (67.20, 0.1521), (69.10, 0.0387))


@dataclass(frozen=True)
class Spectrum:
    """How many photons have which energy.

    Args:
        energies: photon energies [keV], 10 to 200, ascending.
        photons: photons at each energy; only their ratio counts, they are scaled to a sum of 1.

    Raises:
        ValueError: if the two do not match, an energy lies outside the range, or there are no photons.

    Example:
        >>> Spectrum((60.0, 80.0), (3.0, 1.0)).mean_energy
        65.0
    """

    energies: tuple[float, ...]
    photons: tuple[float, ...]

    def __post_init__(self) -> None:
        energies, photons = np.asarray(self.energies, dtype=float), np.asarray(self.photons, dtype=float)
        if energies.ndim != 1 or energies.shape != photons.shape or len(energies) == 0:
            raise ValueError(f"photons must be as many as energies, got {photons.shape} and {energies.shape}")
        if energies[0] < MIN_ENERGY_KEV or energies[-1] > MAX_ENERGY_KEV or not (np.diff(energies) > 0).all():
            raise ValueError(
                f"energies must ascend between {MIN_ENERGY_KEV:g} and {MAX_ENERGY_KEV:g} keV, got {self.energies}"
            )
        if not np.isfinite(photons).all() or (photons < 0).any() or photons.sum() == 0:
            raise ValueError(f"photons must be finite, nowhere negative and not all zero, got {self.photons}")
        object.__setattr__(self, "energies", tuple(energies.tolist()))
        object.__setattr__(self, "photons", tuple((photons / photons.sum()).tolist()))

    @property
    def mean_energy(self) -> float:
        """Mean photon energy [keV]."""
        return float(np.dot(self.energies, self.photons))

    def filtered(self, material: str, thickness: float) -> Spectrum:
        """The spectrum behind a layer.

        Args:
            material: a key of :data:`progressive_cascade.materials.DENSITY`.
            thickness: of the layer [mm].

        Returns:
            The spectrum, again with a sum of 1.
        """
        depth = DENSITY[material] * thickness / 10.0
        passed = np.exp(-mass_attenuation(material, np.array(self.energies)) * depth)
        return Spectrum(self.energies, tuple((np.array(self.photons) * passed).tolist()))


def tube_spectrum(
    kilovolt: float, *, filtration: float = FILTRATION_MM_AL, anode_angle: float = ANODE_ANGLE
) -> Spectrum:
    """Spectrum of a tungsten anode at constant voltage, in bins of 1 keV.

    Args:
        kilovolt: tube voltage [kV], 60 to 150.
        filtration: total filtration, of the tube and added [mm Al].
        anode_angle: between the anode's surface and the central ray [degrees].

    Returns:
        The spectrum; K lines from 69.5 kV on.

    Raises:
        ValueError: if an argument lies outside its range.

    Example:
        >>> round(tube_spectrum(120.0).mean_energy, 1)
        54.2
    """
    if not KILOVOLT_RANGE[0] <= kilovolt <= KILOVOLT_RANGE[1]:
        raise ValueError(f"kilovolt must lie in [{KILOVOLT_RANGE[0]:g}, {KILOVOLT_RANGE[1]:g}], got {kilovolt}")
    if not 0 <= filtration <= 50:
        raise ValueError(f"filtration must lie in [0, 50] mm Al, got {filtration}")
    if not 3 <= anode_angle <= 45:
        raise ValueError(f"anode_angle must lie in [3, 45] degrees, got {anode_angle}")
    slowing_down = float(np.interp(kilovolt, *np.array(_SLOWING_DOWN).T))
    # Way out of the anode per squared energy lost [g/(cm² keV²)].
    way_out = 1.0 / (slowing_down * math.sin(math.radians(anode_angle)))
    energies = np.arange(MIN_ENERGY_KEV + _BIN_KEV / 2, kilovolt, _BIN_KEV)
    photons = _bremsstrahlung(energies, kilovolt, way_out)
    for energy, share in _K_LINES if kilovolt > _K_EDGE else ():
        photons[int((energy - MIN_ENERGY_KEV) / _BIN_KEV)] += share * _k_photons(energy, kilovolt, way_out)
    return Spectrum(tuple(energies), tuple(photons)).filtered("aluminium", filtration)


def monoenergetic(energy_kev: float) -> Spectrum:
    """A spectrum of one energy.

    Args:
        energy_kev: photon energy [keV], 20 to 150.

    Returns:
        The spectrum.

    Raises:
        ValueError: if the energy lies outside the range.
    """
    if not KEV_RANGE[0] <= energy_kev <= KEV_RANGE[1]:
        raise ValueError(f"energy_kev must lie in [{KEV_RANGE[0]:g}, {KEV_RANGE[1]:g}], got {energy_kev}")
    return Spectrum((float(energy_kev),), (1.0,))


def parse_spectrum(text: str, *, filtration: float = FILTRATION_MM_AL) -> Spectrum:
    """The spectrum a user writes as ``120kV`` (a tube) or ``70keV`` (one energy).

    Args:
        text: number and unit; capitals and spaces do not matter, kVp is kV.
        filtration: of a tube, see :func:`tube_spectrum` [mm Al].

    Returns:
        The spectrum.

    Raises:
        ValueError: if the text is no spectrum or out of range.
    """
    match = _SPECTRUM.fullmatch(text)
    is_energy = match is not None and match[2].lower() == "kev"
    low, high = KEV_RANGE if is_energy else KILOVOLT_RANGE
    if match is None or not low <= float(match[1]) <= high:
        raise ValueError(
            f"spectrum must be a tube voltage from {KILOVOLT_RANGE[0]:g}kV to {KILOVOLT_RANGE[1]:g}kV or a photon "
            f"energy from {KEV_RANGE[0]:g}keV to {KEV_RANGE[1]:g}keV, got {text!r}"
        )
    number = float(match[1])
    return monoenergetic(number) if is_energy else tube_spectrum(number, filtration=filtration)


def half_value_layer(spectrum: Spectrum, transmitted: float = 0.5) -> float:
    """Thickness of aluminium that lets a share of the air kerma pass, by bisection.

    Args:
        spectrum: the beam.
        transmitted: the share; 0.5 for the first half-value layer, 0.25 for the first and second together.

    Returns:
        Thickness [mm Al].
    """
    energies = np.array(spectrum.energies)
    kerma = np.array(spectrum.photons) * energies * air_energy_absorption(energies)
    per_mm = mass_attenuation("aluminium", energies) * DENSITY["aluminium"] / 10.0
    low, high = 0.0, -math.log(transmitted) / float(per_mm.min())
    for _ in range(50):
        middle = (low + high) / 2
        passed = float((kerma * np.exp(-per_mm * middle)).sum() / kerma.sum())
        low, high = (middle, high) if passed > transmitted else (low, middle)
    return low


def _bremsstrahlung(energies: np.ndarray, kilovolt: float, way_out: float) -> np.ndarray:
    """Photons per electron and bin that leave the anode: the integral over the electron's energy on its way in."""
    electron = np.linspace(energies[0], kilovolt, 500)
    ratio = np.minimum(energies[:, None] / electron, 1.0)
    cross_section = np.polyval(_SHAPE[::-1], ratio) * (energies[:, None] < electron)
    cross_section *= (_AMPLITUDE[0] + _AMPLITUDE[1] * kilovolt) * (electron + _ELECTRON_REST_ENERGY) / electron
    stopping_power = _STOPPING_POWER[0] + _STOPPING_POWER[1] * np.exp(-_STOPPING_POWER[2] * electron)
    absorbed = mass_attenuation("tungsten", energies)[:, None] * (kilovolt**2 - electron**2) * way_out
    integrand = cross_section / stopping_power * np.exp(-absorbed)
    return _CROSS_SECTION * _BIN_KEV / energies * _integral(integrand, electron)


def _k_photons(energy: float, kilovolt: float, way_out: float) -> float:
    """Photons per electron of a K line of share 1: made down to where the electron's energy falls to the K edge."""
    depth = np.linspace(0.0, 1.0, 200)
    absorbed = mass_attenuation("tungsten", energy) * (kilovolt**2 - _K_EDGE**2) * way_out * depth
    escaped = _integral(1.5 * (1 - depth**2) * np.exp(-absorbed), depth)
    return _K_AMPLITUDE * (kilovolt / _K_EDGE - 1.0) ** _K_EXPONENT * float(escaped)


def _integral(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Trapezoidal rule along the last axis."""
    return ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(at)).sum(axis=-1)
