# SPDX-License-Identifier: Apache-2.0
"""The settings of an exposure, and what they make of the line integrals of water and bone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from progressive_cascade.physics.detection import SCINTILLATOR, log_counts, noisy_counts, scattered
from progressive_cascade.physics.spectrum import FILTRATION_MM_AL, Spectrum, parse_spectrum

_EXPOSURE_FORMAT = "progressive-cascade exposure 1"
# Far beyond any radiograph; counts beyond 64 bits would wrap around.
_LARGEST = {"photons": 1e12, "scatter": 100.0}


@dataclass(frozen=True)
class Exposure:
    """How a radiograph is taken; the default is the ideal one: 70 keV, no noise, no scatter.

    Args:
        spectrum: ``70keV`` for one energy, ``120kV`` for a tube voltage.
        filtration: total filtration of a tube, its own and added [mm Al].
        photons: photons a pixel detects without a patient, up to 1e12; None: no noise at all.
        electronic_noise: standard deviation of the read-out, with photons only [photons].
        scatter: scattered over primary radiation in the patient's shadow, up to 100; 0: none.
        scatter_sigma: of the Gaussian that spreads scatter over the detector [mm].
        scintillator: caesium iodide of the detector [g/cm²]; None: every photon is absorbed.

    Raises:
        ValueError: if a value is impossible.
        TypeError: if a field is of the wrong type.

    Example:
        >>> Exposure(spectrum="120kV", photons=1e5, scatter=0.5).is_monoenergetic
        False
    """

    spectrum: str = "70keV"
    filtration: float = FILTRATION_MM_AL
    photons: float | None = None
    electronic_noise: float = 0.0
    scatter: float = 0.0
    scatter_sigma: float = 60.0
    scintillator: float | None = SCINTILLATOR

    def __post_init__(self) -> None:
        if not isinstance(self.spectrum, str):
            raise TypeError(f"spectrum must be text such as '120kV' or '70keV', got {self.spectrum!r}")
        for name in ("filtration", "electronic_noise", "scatter"):
            self._check_number(name, zero=True)
        self._check_number("scatter_sigma")
        for name in ("photons", "scintillator"):
            if getattr(self, name) is not None:
                self._check_number(name, or_none=True)
        for name, most in _LARGEST.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name} must be at most {most:g}, got {getattr(self, name):g}")
        if self.electronic_noise > 0 and self.photons is None:
            raise ValueError(f"electronic_noise must come with photons, got {self.electronic_noise:g} without")
        parse_spectrum(self.spectrum, filtration=self.filtration)  # a wrong one is refused here, not at its first use

    def _check_number(self, name: str, *, zero: bool = False, or_none: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number{' or None' if or_none else ''}, got {value!r}")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            wanted = "at least 0" if zero else "positive"
            raise ValueError(f"{name} must be finite and {wanted}{' or None' if or_none else ''}, got {value!r}")

    @property
    def beam_spectrum(self) -> Spectrum:
        """The photons' energies."""
        return parse_spectrum(self.spectrum, filtration=self.filtration)

    @property
    def is_monoenergetic(self) -> bool:
        """Whether all photons have one energy."""
        return len(self.beam_spectrum.energies) == 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, with a format tag."""
        return {"format": _EXPOSURE_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Exposure:
        """Build from a mapping of field names, as a JSON config or :meth:`to_dict` holds it.

        Raises:
            ValueError: if a key is unknown or a value impossible.
        """
        if values.get("format", _EXPOSURE_FORMAT) != _EXPOSURE_FORMAT:
            raise ValueError(f"exposure: format must be {_EXPOSURE_FORMAT!r}, got {values['format']!r}")
        names = [field.name for field in fields(cls)]
        given = {key: value for key, value in values.items() if key != "format"}
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"exposure: unknown keys {unknown}; the keys are {names}")
        return cls(**given)


def detect(
    line_integrals: Tensor,
    exposure: Exposure,
    *,
    pixel_spacing: tuple[float, float],
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Scatter, noise and logarithm of an exposure, on line integrals of primary radiation.

    Args:
        line_integrals: at one energy, or :func:`polyenergetic` ones (..., rows, cols).
        exposure: the settings; its spectrum is not looked at.
        pixel_spacing: detector pixel pitch (row, column) [mm].
        generator: of the noise, on the tensor's device.
        differentiable: see :func:`noisy_counts`.

    Returns:
        Line integrals as the detector reports them, same shape, always finite; those given where there is neither
        scatter nor noise.
    """
    if exposure.scatter == 0 and exposure.photons is None:
        return line_integrals
    transmission = torch.exp(-line_integrals)
    if exposure.scatter > 0:
        sigma = exposure.scatter_sigma / pixel_spacing[0], exposure.scatter_sigma / pixel_spacing[1]
        transmission = transmission + scattered(transmission, exposure.scatter, sigma=sigma)
    if exposure.photons is None:
        return -torch.log(transmission.clamp(min=torch.finfo(transmission.dtype).tiny))
    counts = noisy_counts(
        exposure.photons * transmission,
        electronic_noise=exposure.electronic_noise,
        generator=generator,
        differentiable=differentiable,
    )
    return log_counts(counts, exposure.photons)
