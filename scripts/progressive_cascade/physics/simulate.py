# SPDX-License-Identifier: Apache-2.0
"""Radiographs of a CT: geometry and exposure together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, bilinear_hu_to_mu, decompose_hu
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.physics import Exposure, detect, polyenergetic
from progressive_cascade.projector import line_integrals


class Uniform(Protocol):
    """Numpy's old and new random generators, as far as :func:`jittered_beam` needs them."""

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        """Independent numbers between low and high."""
        ...


def expose(
    hu: Tensor,
    beam: ConeBeam | Sequence[ConeBeam],
    *,
    affine: np.ndarray | Tensor,
    exposure: Exposure | None = None,
    ct_energy_kev: float = EFFECTIVE_ENERGY_KEV,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Take the radiographs of CT volumes.

    At one energy a volume is projected once, as mu. For a tube's spectrum two volumes are, the densities of water and
    of bone, and the energies are summed on the detector. Scatter, noise and logarithm follow.

    Args:
        hu: CT numbers (b, 1, x, y, z) [HU].
        beam: the geometry, or one per volume (of the same views, detector shape and pixel spacing).
        affine: voxel index to RAS mm, (4, 4) or (b, 4, 4).
        exposure: the settings; default: the ideal exposure.
        ct_energy_kev: effective energy of the CT scan [keV].
        generator: of the noise, on the volume's device; default: torch's own.
        differentiable: noise with a gradient in place of Poisson counts.

    Returns:
        Line integrals as the detector reports them (b, view, rows, cols), no unit, finite for a finite CT.

    Raises:
        ValueError: if the CT or the geometry cannot be projected (see :func:`line_integrals`), or pixel sizes differ.

    Example:
        >>> import torch
        >>> from progressive_cascade import ConeBeam, volume_affine
        >>> water = torch.zeros(1, 1, 32, 32, 32)
        >>> image = expose(water, ConeBeam(), affine=volume_affine((32, 32, 32), 2.0), exposure=Exposure("120kV"))
        >>> image.shape
        torch.Size([1, 2, 512, 512])
    """
    exposure = exposure or Exposure()
    spacings = {beam.pixel_spacing} if isinstance(beam, ConeBeam) else {one.pixel_spacing for one in beam}
    if len(spacings) != 1:
        raise ValueError(f"beam must have one pixel_spacing per batch, got {sorted(spacings)}")
    spectrum = exposure.beam_spectrum
    hu = hu if hu.dtype == torch.float64 else hu.float()
    if exposure.is_monoenergetic:
        primary = line_integrals(bilinear_hu_to_mu(hu, spectrum.energies[0], ct_energy_kev), beam, affine=affine)
    else:
        water, bone = (line_integrals(part, beam, affine=affine) for part in decompose_hu(hu, ct_energy_kev))
        primary = polyenergetic(water, bone, spectrum, exposure.scintillator)
    return detect(primary, exposure, pixel_spacing=spacings.pop(), generator=generator, differentiable=differentiable)


def jittered_beam(beam: ConeBeam, random: Uniform, *, distance_jitter: float, shift_jitter: float) -> ConeBeam:
    """A geometry that differs from the nominal one as it does from one examination to the next.

    Args:
        beam: the nominal geometry.
        random: where the numbers come from.
        distance_jitter: both distances vary by this share, uniformly.
        shift_jitter: the isocenter varies by this much per axis, uniformly [mm].

    Returns:
        The varied geometry.
    """
    factors = 1 + random.uniform(-distance_jitter, distance_jitter, 2)
    shift = random.uniform(-shift_jitter, shift_jitter, 3)
    x, y, z = (float(value) for value in np.add(beam.isocenter, shift))
    return replace(
        beam,
        source_to_isocenter=beam.source_to_isocenter * float(factors[0]),
        source_to_detector=beam.source_to_detector * float(factors[1]),
        isocenter=(x, y, z),
    )
