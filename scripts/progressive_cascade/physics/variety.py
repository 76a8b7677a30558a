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
from typing import Any, NamedTuple

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
from progressive_cascade.physics.tones import AIR_SHARE, typical_line_integrals
from progressive_cascade.precision import upload

_SCATTER_SIGMA_MM = 60.0
# Scatter that is left in what calls itself calibrated, as a share of what the others have.
_CORRECTED_SCATTER = 0.2
# Widths of the blur that local contrast is measured against [share of the detector's side].
_LOCAL = (0.02, 0.15)
# Views of an examination: one frontal, then laterals.
_KINDS = ("frontal", "lateral")
# A detector saturates at this share of the beam without a patient, and a collimator cuts at most that share of a side.
_CEILING = (0.3, 0.9)
_SHUTTER = 0.15
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
        blur: largest standard deviation of focal spot and detector together [mm through the isocenter].
        scatter: most scattered over primary radiation in the patient's shadow; a fifth of it where calibrated.
        heel: largest fall of the beam from one end of the detector to the other, as a share; not where calibrated.
        saturated: share of the samples whose detector saturates where little or nothing is in the beam's way; not where
            calibrated.
        collimated: share of the samples whose views are cut by a collimator, up to 15 % from each side.
        gain: least and most gain of a view.
        offset: largest offset of a view.
        contrast: largest share of the surroundings' mean that local contrast takes from a picture for the eye.
        clipped: largest share of a view's pixels that such a picture shows black, and as many white.

    Raises:
        ValueError: if a value is impossible.
    """

    scaled: float = 0.2
    display: float = 0.2
    spectra: float = 0.5
    kilovolts: tuple[float, float] = (60.0, 140.0)
    photons: tuple[float, float] = (1e4, 1e6)
    blur: float = 0.6
    scatter: float = 0.5
    heel: float = 0.2
    saturated: float = 0.2
    collimated: float = 0.25
    gain: tuple[float, float] = (0.7, 1.4)
    offset: float = 0.3
    contrast: float = 0.8
    clipped: float = 0.04

    def __post_init__(self) -> None:
        for name in ("kilovolts", "photons", "gain"):
            low, high = (float(value) for value in getattr(self, name))
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must ascend from above 0, got {[low, high]}")
            object.__setattr__(self, name, (low, high))
        for name in ("scaled", "display", "spectra", "heel", "saturated", "collimated", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.scaled + self.display > 1:
            raise ValueError(f"scaled and display must not exceed 1 together, got {self.scaled} and {self.display}")
        for name, most in (("scatter", 100.0), ("blur", 10.0), ("offset", 100.0), ("clipped", 0.4)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [0, {most:g}], got {getattr(self, name)}")
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


class Acquired(NamedTuple):
    """Radiographs as they were acquired.

    Args:
        image: what is read off the detector (b, view, rows, cols).
        calibrated: 1 where these are line integrals, 0 where gain, offset or curve are unknown (b,).
        weights: 1 where a pixel shows the patient, 0 behind a collimator, same shape as the image; None: all do.
        display: 1 where these are pictures for the eye (b,); None: none is.
    """

    image: Tensor
    calibrated: Tensor
    weights: Tensor | None
    display: Tensor | None = None


def acquire(
    primary: Tensor, settings: AcquisitionRange, random: Sequence[np.random.Generator], *, pitch: Tensor
) -> Acquired:
    """Blur, scatter, heel, noise, saturation and collimation, and the loss of what is known of the values.

    A sample is a function of its generator, whatever stands beside it in the batch. All samples are worked on at once,
    and nothing waits for the device.

    Args:
        primary: line integrals (b, view, rows, cols).
        settings: what to draw from.
        random: one generator per sample.
        pitch: pixel size of each sample in the plane through the isocenter (b,) [mm].

    Returns:
        The images, what is known of them, and where they show the patient.
    """
    drawn = [_draw(settings, each, views=primary.shape[1]) for each in random]
    numbers = _to_device(drawn, primary)
    image = _detect(primary, numbers, [one["noise"] for one in drawn], pitch=pitch.to(primary))
    weights = None
    if settings.collimated > 0:
        image, weights = _collimate(image, numbers["shutters"])
    if settings.scaled > 0:
        image = image * numbers["gain"] + numbers["offset"]
    if settings.display > 0:
        image = torch.where(numbers["display"] > 0, _show(image, numbers, weights), image)
    return Acquired(image, numbers["calibrated"].flatten(), weights, numbers["display"].flatten())


def _coarse(spectrum: Spectrum) -> Spectrum:
    """The spectrum in bins of five energies, each at its photons' mean: as good behind a patient to 1e-3, in a fifth of
    the time.
    """
    energies, photons = np.array(spectrum.energies), np.array(spectrum.photons)
    parts = [slice(start, start + _ENERGIES_PER_BIN) for start in range(0, len(energies), _ENERGIES_PER_BIN)]
    parts = [part for part in parts if photons[part].sum() > 0]
    means = [float(np.average(energies[part], weights=photons[part])) for part in parts]
    return replace(spectrum, energies=tuple(means), photons=tuple(float(photons[part].sum()) for part in parts))


def _draw(settings: AcquisitionRange, random: np.random.Generator, *, views: int) -> dict[str, Any]:
    """All numbers of a sample; as many are drawn whatever becomes of them."""
    level = random.random()
    display, calibrated = level < settings.display, level >= settings.display + settings.scaled
    scaled = not display and not calibrated
    gain, offset = random.uniform(*settings.gain, views), random.uniform(-1, 1, views) * settings.offset
    scatter, heel = random.uniform(0, settings.scatter), random.uniform(-1, 1) * settings.heel
    saturates, ceiling = random.random() < settings.saturated, random.uniform(*_CEILING)
    collimated, shutters = random.random() < settings.collimated, random.uniform(0, _SHUTTER, (views, 4))
    return {
        "display": display,
        "calibrated": calibrated,
        "gain": gain if scaled else np.ones(views),
        "offset": offset if scaled else np.zeros(views),
        "blur": random.uniform(0, settings.blur),
        "scatter": scatter * (_CORRECTED_SCATTER if calibrated else 1.0),
        "heel": 0.0 if calibrated else heel,
        "ceiling": ceiling if saturates and not calibrated else np.inf,
        "shutters": shutters * collimated,
        "photons": np.exp(random.uniform(*np.log(settings.photons))),
        "curve": random.integers(3),
        "strength": random.uniform(),
        "centre": random.uniform(0.35, 0.65),
        "noise": int(random.integers(2**62)),
        "local": random.uniform(0, settings.contrast),
        "width": np.exp(random.uniform(*np.log(_LOCAL))),
        "black": random.uniform(0, settings.clipped, views),
        "white": random.uniform(0, settings.clipped, views),
    }


def _to_device(drawn: Sequence[dict[str, Any]], like: Tensor) -> dict[str, Tensor]:
    """The samples' numbers by name, each (b, n, 1, 1), in one copy that a GPU is not waited for."""
    names = [name for name in drawn[0] if name != "noise"]
    rows = np.stack([np.concatenate([np.ravel(one[name]) for name in names]) for one in drawn])
    table = upload(rows, like.device).to(like.dtype)[..., None, None]
    return dict(zip(names, table.split([np.size(drawn[0][name]) for name in names], dim=1), strict=True))


def _detect(lines: Tensor, numbers: dict[str, Tensor], seeds: Sequence[int], *, pitch: Tensor) -> Tensor:
    """Line integrals as a detector sees them (b, view, rows, cols)."""
    transmission = torch.exp(-lines)
    # Of a standard deviation of a hundredth of a pixel nothing is left.
    sigma = (numbers["blur"][..., 0, 0] / pitch[:, None]).clamp(min=0.01)
    rows, cols = (blur_matrix(size, sigma, lines) for size in lines.shape[-2:])
    transmission = rows @ transmission @ cols.mT
    wide = _SCATTER_SIGMA_MM / pitch[:, None]
    transmission = transmission + scattered(transmission, numbers["scatter"], sigma=(wide, wide))
    along = torch.linspace(-0.5, 0.5, lines.shape[-2], device=lines.device, dtype=lines.dtype)
    transmission = transmission * (1 + numbers["heel"] * along[:, None])
    expected = numbers["photons"] * transmission
    counts = torch.empty_like(expected)
    for sample, mean, seed in zip(counts, expected, seeds, strict=True):
        generator = torch.Generator(device=lines.device)
        generator.manual_seed(seed)
        sample.copy_(noisy_counts(mean, generator=generator))
    return log_counts(torch.minimum(counts, numbers["ceiling"] * numbers["photons"]), numbers["photons"])


def _collimate(image: Tensor, shutters: Tensor) -> tuple[Tensor, Tensor]:
    """Behind a collimator stands the nearest pixel beside it, as in radiographs that are read; 0 where that is so."""
    batch, views, *shape = image.shape
    edges = shutters.reshape(batch, views, 4)
    weights = torch.ones_like(image)
    for axis, size in enumerate(shape):
        at = torch.arange(size, device=image.device, dtype=image.dtype)
        first, last = edges[..., 2 * axis, None] * size, size - 1 - edges[..., 2 * axis + 1, None] * size
        nearest = torch.minimum(torch.maximum(at, first.ceil()), last.floor())
        index, seen = nearest.long().unsqueeze(3 - axis), (nearest == at).to(image).unsqueeze(3 - axis)
        image = image.gather(2 + axis, index.expand_as(image))
        weights = weights * seen
    return image, weights


def _show(image: Tensor, numbers: dict[str, Tensor], seen: Tensor | None) -> Tensor:
    """A monotone curve of each view, then local contrast, black and white, then read as any picture is."""
    low, high = _percentiles(image, 0.005, 0.995)
    share = ((image - low) / (high - low).clamp(min=1e-6)).clamp(-0.2, 1.2)
    body = (share > AIR_SHARE).to(share)
    curve, strength = numbers["curve"], numbers["strength"]
    gamma = share.clamp(min=0) ** (0.5 + 1.2 * strength)
    sigmoid = torch.sigmoid((share - numbers["centre"]) * (2 + 5 * strength))
    film = -torch.expm1(-share * (0.5 + 2.5 * strength))
    share = torch.where(curve == 0, gamma, torch.where(curve == 1, sigmoid, film))
    share = _enhance(share, body, numbers["local"], numbers["width"])
    share = _clip(share, numbers["black"], 1 - numbers["white"])
    kinds = [_KINDS[min(view, 1)] for view in range(image.shape[1])]
    return typical_line_integrals(share, kinds, seen=None if seen is None else seen > 0)


def _enhance(image: Tensor, body: Tensor, local: Tensor, width: Tensor) -> Tensor:
    """Less of what the body around a pixel has in common; the air beside it, 0 in `body`, is black."""
    rows, cols = (blur_matrix(size, width[..., 0, 0] * size, image) for size in image.shape[-2:])
    common = (rows @ (image * body) @ cols.mT) / (rows @ body @ cols.mT).clamp(min=1e-3)
    enhanced = image - local * common * body
    darkest = enhanced.where(body > 0, torch.inf).amin(dim=(-2, -1), keepdim=True)
    return enhanced.where(body > 0, darkest)


def _clip(image: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Between two quantiles of every view (b, view, 1, 1)."""
    few = image[..., ::4, ::4].flatten(-2).sort(dim=-1).values
    ends = ((few.shape[-1] - 1) * torch.cat([black, white], dim=-1)).round().long()[..., 0, :]
    low, high = few.gather(-1, ends).unsqueeze(-1).split(1, dim=-2)
    return torch.minimum(torch.maximum(image, low), high)


def _percentiles(image: Tensor, *shares: float) -> tuple[Tensor, ...]:
    """Quantiles of every view (..., 1, 1), of every fourth row and column."""
    few = image[..., ::4, ::4].flatten(-2)
    found = torch.quantile(few, upload(np.array(shares), few.device).to(few.dtype), dim=-1)
    return tuple(each[..., None, None] for each in found)
