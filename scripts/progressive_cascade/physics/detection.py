# SPDX-License-Identifier: Apache-2.0
"""From line integrals to what a detector reports: energies, scatter, photons, noise, the logarithm.

Pure functions of tensors, differentiable but for the draw of Poisson counts. A radiograph is carried as ``-ln`` of its
transmission, which neither underflows nor becomes infinite however thick the patient is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, mass_attenuation, water_attenuation
from progressive_cascade.physics.spectrum import Spectrum

SCINTILLATOR = 0.2
"""Caesium iodide of a flat-panel detector [g/cm²]: 0.6 mm of needles that fill three quarters of the space."""
HALF_PHOTON = 0.5
"""What a pixel that caught no photon reads as, so that the logarithm stays finite."""

# Thickness up to which hardening is tabulated [mm].
_WATER_MM = 1000
# Behind less than this line integral there is no patient, and the scatter ratio is not measured.
_SHADOW = 0.5


def detector_signal(spectrum: Spectrum, scintillator: float | None = SCINTILLATOR) -> np.ndarray:
    """Signal of an energy-integrating detector by photon energy: ``photons E (1 - exp(-mu / rho d))``.

    The energy that leaves the scintillator as fluorescence is neglected.

    Args:
        spectrum: the beam.
        scintillator: thickness of the caesium iodide [g/cm²]; None: every photon is absorbed.

    Returns:
        Shares of the signal without a patient, with a sum of 1, one for each of the spectrum's energies.
    """
    energies = np.array(spectrum.energies)
    absorbed = 1.0 if scintillator is None else -np.expm1(-mass_attenuation("caesium iodide", energies) * scintillator)
    signal = np.array(spectrum.photons) * energies * absorbed
    return signal / signal.sum()


def polyenergetic(water: Tensor, bone: Tensor, spectrum: Spectrum, scintillator: float | None = SCINTILLATOR) -> Tensor:
    """Attenuation of a whole spectrum: ``p = -ln sum_E s_E exp(-m_water,E water - m_bone,E bone)``.

    The beam hardens on its way: p grows less than the thickness does.

    Args:
        water: line integrals of the density of water, any shape [g/cm³ mm].
        bone: line integrals of the density of cortical bone, same shape [g/cm³ mm].
        spectrum: the beam.
        scintillator: see :func:`detector_signal`.

    Returns:
        -ln of the detector's relative signal, same shape, no unit.
    """
    energies = np.array(spectrum.energies)
    shares = detector_signal(spectrum, scintillator).tolist()
    in_water = (mass_attenuation("water", energies) / 10.0).tolist()
    in_bone = (mass_attenuation("cortical bone", energies) / 10.0).tolist()
    # The highest energy, the most penetrating, is taken out of the sum: nothing underflows behind a thick patient.
    last = water * in_water[-1] + bone * in_bone[-1]
    total = torch.full_like(last, shares[-1])
    for share, per_water, per_bone in zip(shares[:-1], in_water[:-1], in_bone[:-1], strict=True):
        total = total + share * torch.exp(-(water * (per_water - in_water[-1]) + bone * (per_bone - in_bone[-1])))
    return last - torch.log(total)


def water_equivalent(
    image: Tensor,
    spectrum: Spectrum,
    *,
    energy_kev: float = EFFECTIVE_ENERGY_KEV,
    scintillator: float | None = SCINTILLATOR,
) -> Tensor:
    """Undo beam hardening as if all were water: line integrals at one energy, as ``reconstruct`` expects them.

    Exact behind water; bone becomes as much water as attenuates the beam alike, more than it would at that energy.
    Linear between the attenuation of whole millimetres, and beyond a metre.

    Args:
        image: line integrals of a whole spectrum, any shape.
        spectrum: the beam they were taken with.
        energy_kev: the energy to go to [keV].
        scintillator: see :func:`detector_signal`.

    Returns:
        Line integrals of as much water at that energy, same shape; differentiable.
    """
    water = torch.arange(_WATER_MM + 1, dtype=torch.float64)
    attenuation = polyenergetic(water, torch.zeros_like(water), spectrum, scintillator).to(image)
    index = torch.searchsorted(attenuation, image.detach().contiguous()).clamp(1, _WATER_MM)
    below, above = attenuation[index - 1], attenuation[index]
    thickness = index - 1 + (image - below) / (above - below)
    return thickness * water_attenuation(energy_kev)


def scattered(transmission: Tensor, ratio: float | Tensor, *, sigma: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Scattered radiation on the detector, relative to the beam without a patient: a wide blur of what scatters.

    A ray scatters in proportion to ``-T ln T``: what arrives times what stood in its way. Blurred with a Gaussian and
    scaled so that its mean in the patient's shadow (line integrals of 0.5 and more) is ``ratio`` times the mean
    primary there. One width for all thicknesses, and no energy of its own: enough for veil and lost contrast.

    Args:
        transmission: primary radiation over that without a patient (..., rows, cols), 0 to 1.
        ratio: scatter over primary in the patient's shadow; with a grid about 0.5, without 2 and more. A tensor that
            broadcasts to the transmission: one each.
        sigma: of the Gaussian (rows, cols) [pixels]. Tensors of the transmission's leading axes: one each.

    Returns:
        What scatter adds to the transmission, same shape.

    References:
        L. A. Love and R. A. Kruger, Scatter estimation for a digital radiographic system using convolution filtering,
        Medical Physics 14, 1987.
        M. Sun and J. M. Star-Lack, Improved scatter correction using adaptive scatter kernel superposition, Physics
        in Medicine and Biology 55(22), 2010, doi 10.1088/0031-9155/55/22/007.
    """
    tiny = torch.finfo(transmission.dtype).tiny
    potential = -transmission * torch.log(transmission.clamp(min=tiny, max=1.0))
    rows, cols = (
        blur_matrix(size, width, transmission) for size, width in zip(transmission.shape[-2:], sigma, strict=True)
    )
    with torch.autocast(transmission.device.type, enabled=False):
        spread = rows @ potential @ cols.mT
    shadow = (transmission.detach() <= np.exp(-_SHADOW)).to(transmission.dtype)
    primary = (transmission * shadow).sum(dim=(-2, -1), keepdim=True)
    inside = (spread * shadow).sum(dim=(-2, -1), keepdim=True)
    return ratio * spread * primary / inside.clamp(min=tiny)


def noisy_counts(
    expected: Tensor,
    *,
    electronic_noise: float = 0.0,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Photon counts with quantum and electronic noise.

    The spread of the energies a photon leaves in an energy-integrating detector is neglected.

    Args:
        expected: mean photons per pixel, any shape.
        electronic_noise: standard deviation of the read-out [photons].
        generator: of the random numbers, on the tensor's device; default: torch's own.
        differentiable: draw ``expected + sqrt(expected + electronic_noise²) n`` with standard normal n in place of
            Poisson counts: the same mean and variance, and a gradient.

    Returns:
        Counts, same shape; below zero where electronic noise is.
    """

    def normal() -> Tensor:
        return torch.randn(expected.shape, generator=generator, dtype=expected.dtype, device=expected.device)

    if differentiable:
        # The square root's slope is infinite at zero.
        variance = (expected + electronic_noise**2).clamp(min=torch.finfo(expected.dtype).tiny)
        return expected + torch.sqrt(variance) * normal()
    counts = torch.poisson(expected, generator=generator)
    return counts + electronic_noise * normal() if electronic_noise > 0 else counts


def log_counts(counts: Tensor, photons: float | Tensor) -> Tensor:
    """Line integrals a detector reports: ``-ln(counts / photons)``, with no fewer than half a photon.

    Args:
        counts: photons per pixel, any shape.
        photons: photons per pixel without a patient; a tensor that broadcasts to the counts: one each.

    Returns:
        Line integrals, same shape, always finite.
    """
    return -torch.log(counts.clamp(min=HALF_PHOTON) / photons)


def blur_matrix(size: int, sigma: float | Tensor, like: Tensor) -> Tensor:
    """A Gaussian as a matrix whose rows sum to 1: a constant stays a constant.

    Args:
        size: pixels.
        sigma: standard deviation [pixels]; a tensor of any shape: one matrix each.
        like: tensor whose type and device the matrix has.

    Returns:
        (..., size, size).
    """
    at = torch.arange(size, dtype=like.dtype, device=like.device)
    width = sigma[..., None, None].to(at) if isinstance(sigma, Tensor) else sigma
    weights = torch.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
    return weights / weights.sum(dim=-1, keepdim=True)
