# SPDX-License-Identifier: Apache-2.0
"""Radiographs as they are acquired, no two alike: tubes, scatter, noise, and what is known of the values afterwards.

Training draws an acquisition for every sample. What is known of its values is one of three things:

- ``calibrated``: line integrals at one energy, as a detector gives them that was corrected for its tube's spectrum;
- ``scaled``: line integrals but for a gain and an offset of each view;
- ``display``: a picture made for the eye by an unknown monotone curve, and by some local contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.physics.detection import (
    blur_matrix,
    log_counts,
    noisy_counts,
    polyenergetic,
    scattered,
    water_equivalent,
)
from progressive_cascade.physics.spectrum import Spectrum, tube_spectrum

PATIENT_RANGE = 6.0
"""Display values: a view's 1st and 99th percentiles are moved to 0 and this, typical of a thorax at 70 keV."""
_SCATTER_SIGMA_MM = 60.0
# Scatter that is left in what calls itself calibrated, as a share of what the others have.
_CORRECTED_SCATTER = 0.2
# Widths of the blur that local contrast is measured against [share of the detector's side].
_LOCAL = 0.08
_ENERGIES_PER_BIN = 5


@dataclass(frozen=True)
class AcquisitionRange:
    """What acquisitions training draws from.

    Args:
        scaled: share of the samples whose gain and offset are unknown.
        display: share of the samples that are pictures for the eye.
        spectra: share of the steps taken with a tube's whole spectrum in place of one energy.
        kilovolts: least and most tube voltage of these.
        photons: least and most photons a pixel detects without a patient.
        scatter: most scattered over primary radiation in the patient's shadow; a fifth of it where calibrated.
        heel: largest fall of the beam from one end of the detector to the other, as a share; not where calibrated.
        gain: least and most gain of a view.
        offset: largest offset of a view.

    Raises:
        ValueError: if a value is impossible.
    """

    scaled: float = 0.2
    display: float = 0.2
    spectra: float = 0.5
    kilovolts: tuple[float, float] = (60.0, 140.0)
    photons: tuple[float, float] = (1e4, 1e6)
    scatter: float = 0.5
    heel: float = 0.2
    gain: tuple[float, float] = (0.7, 1.4)
    offset: float = 0.3

    def __post_init__(self) -> None:
        for name in ("kilovolts", "photons", "gain"):
            low, high = (float(value) for value in getattr(self, name))
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must ascend from above 0, got {[low, high]}")
            object.__setattr__(self, name, (low, high))
        for name in ("scaled", "display", "spectra", "heel"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.scaled + self.display > 1:
            raise ValueError(f"scaled and display must not exceed 1 together, got {self.scaled} and {self.display}")
        if not 0 <= self.scatter <= 100 or not 0 <= self.offset < math.inf:
            raise ValueError(
                f"scatter must lie in [0, 100] and offset be at least 0, got {self.scatter}, {self.offset}"
            )
        for kilovolts in self.kilovolts:
            tube_spectrum(kilovolts)  # one that cannot be is refused here, not at its first use

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AcquisitionRange:
        """From the fields by name, as a config holds them.

        Raises:
            ValueError: if a key is unknown or a value impossible.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"acquisition: unknown keys {unknown}; the keys are {names}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def draw_kilovolts(self, random: np.random.Generator) -> float | None:
        """Tube voltage of a step [kV]; None: one energy."""
        return float(random.uniform(*self.kilovolts)) if random.random() < self.spectra else None


def harden(water: Tensor, bone: Tensor, kilovolts: float) -> Tensor:
    """Line integrals at one energy as a detector gives them that was corrected for its spectrum behind water.

    Args:
        water: line integrals of the density of water, any shape [g/cm³ mm].
        bone: of the density of cortical bone, same shape [g/cm³ mm].
        kilovolts: tube voltage.

    Returns:
        Line integrals, same shape: exact behind water, too small behind bone.
    """
    spectrum = _coarse(tube_spectrum(round(kilovolts)))
    return water_equivalent(polyenergetic(water, bone, spectrum), spectrum)


def acquire(
    primary: Tensor, settings: AcquisitionRange, random: Sequence[np.random.Generator], *, pitch: Tensor
) -> tuple[Tensor, Tensor]:
    """Scatter, noise, and the loss of what is known of the values.

    Args:
        primary: line integrals (b, view, rows, cols).
        settings: what to draw from.
        random: one generator per sample.
        pitch: pixel size on the detector of each sample (b,) [mm].

    Returns:
        The images (b, view, rows, cols), and for each sample 1 where they are calibrated, else 0 (b,).
    """
    images, known = [], []
    for sample, each, pixel in zip(primary, random, pitch.tolist(), strict=True):
        level = each.random()
        is_display, is_calibrated = level < settings.display, level >= settings.display + settings.scaled
        image = _expose(sample, settings, each, pixel=pixel, corrected=is_calibrated)
        if is_display:
            image = _show(image, each)
        elif not is_calibrated:
            views = image.shape[:1]
            gain, offset = each.uniform(*settings.gain, views), each.uniform(-1, 1, views) * settings.offset
            image = image * _column(gain, image) + _column(offset, image)
        images.append(image)
        known.append(float(is_calibrated))
    return torch.stack(images), torch.tensor(known, device=primary.device)


def stretch(image: Tensor) -> Tensor:
    """Each view's 1st and 99th percentiles moved to 0 and :data:`PATIENT_RANGE` (view, rows, cols)."""
    low, high = _percentiles(image, 0.01, 0.99)
    return (image - low) * (PATIENT_RANGE / (high - low).clamp(min=1e-6))


def _coarse(spectrum: Spectrum) -> Spectrum:
    """The spectrum in bins of five energies, each at its photons' mean: as good behind a patient to 1e-3, in a fifth of
    the time.
    """
    energies, photons = np.array(spectrum.energies), np.array(spectrum.photons)
    parts = [slice(start, start + _ENERGIES_PER_BIN) for start in range(0, len(energies), _ENERGIES_PER_BIN)]
    parts = [part for part in parts if photons[part].sum() > 0]
    means = [float(np.average(energies[part], weights=photons[part])) for part in parts]
    return replace(spectrum, energies=tuple(means), photons=tuple(float(photons[part].sum()) for part in parts))


def _expose(
    lines: Tensor, settings: AcquisitionRange, random: np.random.Generator, *, pixel: float, corrected: bool
) -> Tensor:
    transmission = torch.exp(-lines)
    ratio = random.uniform(0, settings.scatter) * (_CORRECTED_SCATTER if corrected else 1.0)
    if ratio > 0:
        sigma = _SCATTER_SIGMA_MM / pixel
        transmission = transmission + scattered(transmission, ratio, sigma=(sigma, sigma))
    if not corrected:
        fall = random.uniform(-1, 1) * settings.heel
        along = torch.linspace(-0.5, 0.5, lines.shape[1], device=lines.device, dtype=lines.dtype)
        transmission = transmission * (1 + fall * along)[:, None]
    photons = float(np.exp(random.uniform(*np.log(settings.photons))))
    generator = torch.Generator(device=lines.device)
    generator.manual_seed(int(random.integers(2**62)))
    return log_counts(noisy_counts(photons * transmission, generator=generator), photons)


def _show(image: Tensor, random: np.random.Generator) -> Tensor:
    """A monotone curve of each view, then local contrast, then the scale that display values are read on."""
    low, high = _percentiles(image, 0.005, 0.995)
    share = ((image - low) / (high - low).clamp(min=1e-6)).clamp(-0.2, 1.2)
    kind, strength, local = random.integers(3), random.uniform(), random.uniform(0, 0.4)
    if kind == 0:
        share = share.clamp(min=0) ** float(0.5 + 1.2 * strength)
    elif kind == 1:
        share = torch.sigmoid((share - float(random.uniform(0.35, 0.65))) * float(2 + 5 * strength))
    else:
        share = -torch.expm1(-share * float(0.5 + 2.5 * strength))
    blur = blur_matrix(share.shape[-1], _LOCAL * share.shape[-1], share)
    rows = blur if share.shape[-2] == share.shape[-1] else blur_matrix(share.shape[-2], _LOCAL * share.shape[-2], share)
    return stretch(share - local * (rows @ share @ blur.mT))


def _percentiles(image: Tensor, *shares: float) -> tuple[Tensor, ...]:
    """Quantiles of every view (view, 1, 1), of every fourth row and column."""
    few = image[:, ::4, ::4].flatten(1)
    found = torch.quantile(few, torch.tensor(shares, dtype=few.dtype, device=few.device), dim=1)
    return tuple(each[:, None, None] for each in found)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
