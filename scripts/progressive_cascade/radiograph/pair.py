# SPDX-License-Identifier: Apache-2.0
"""A frontal and a lateral radiograph as the network's input: upright, on its detector, with all that was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import PRESETS, ConeBeam
from progressive_cascade.radiograph.assumptions import CASSETTE_MM, COST_OF_LENGTH, COST_OF_SCALE, GAP_MM
from progressive_cascade.radiograph.check import check_views
from progressive_cascade.radiograph.onto import find_border, find_markers, open_field, resample
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.upright import Upright, kind_of, make_upright
from progressive_cascade.radiograph.warn import pair_warnings, view_warnings

# Percentiles of a display radiograph that are moved to these line integrals, typical of a thorax at 70 keV.
_DISPLAY_PERCENTILES, _DISPLAY_INTEGRALS = (1, 99), (0.0, 6.0)
_DISTANCE_SHARED = 0.01


@dataclass(frozen=True)
class Choices:
    """What the user knows better than files and pictures.

    Attributes:
        pixel_spacing: pitch (row, column) in the detector's plane [mm].
        field_of_view: longer side of the picture in the detector's plane [mm].
        source_to_detector: [mm].
        source_to_isocenter: [mm].
        trust: "tags" or "picture", which decides where they contradict each other; None: the tags, with a warning.
    """

    pixel_spacing: tuple[float, float] | None = None
    field_of_view: float | None = None
    source_to_detector: float | None = None
    source_to_isocenter: float | None = None
    trust: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two radiographs, ready for the network.

    Attributes:
        image: line integrals, or display values on their scale (2, rows, cols), frontal first.
        weights: 1 where a pixel shows the patient (2, rows, cols); None: everywhere.
        beam: their geometry.
        calibrated: whether the image holds true line integrals.
        assumptions: what was taken for granted, each with what an error costs.
        warnings: what may be wrong.
        notes: what was done to the pictures.
        facts: of each radiograph, see :meth:`Radiograph.facts`.
    """

    image: np.ndarray
    weights: np.ndarray | None
    beam: ConeBeam
    calibrated: bool
    assumptions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What the reconstruction's sidecar says of its radiographs."""
        names = ("assumptions", "warnings", "notes")
        return {"radiographs": self.facts, **{name: list(getattr(self, name)) for name in names}}


def assemble_pair(
    frontal: Radiograph,
    lateral: Radiograph,
    *,
    size: int,
    focal_length: float,
    beam: ConeBeam | None = None,
    choices: Choices | None = None,
) -> Pair:
    """Brings two radiographs onto the model's detector.

    Args:
        frontal: PA or AP; exchanged with the other where both tell so.
        lateral: left or right.
        size: rows and columns of the model's detector.
        focal_length: of the model, source_to_detector over pixel spacing [pixels].
        beam: geometry of a sidecar; it goes before the files' tags.
        choices: what the user knows better.

    Returns:
        The pair.

    Raises:
        UserError: if they are no frontal and lateral of one patient, or contradict each other.
    """
    choices = choices or Choices()
    given, notes = _in_order([frontal, lateral])
    uprights = [make_upright(one, slot, choices.trust) for one, slot in zip(given, ("frontal", "lateral"), strict=True)]
    assumptions: list[str] = []
    views = beam.views if beam is not None and len(beam.views) == 2 else (uprights[0].view, uprights[1].view)
    target = _target(uprights, beam, choices, size, focal_length, views, assumptions)
    images, weights, calibrated, warnings = [], [], [], []
    for index, upright in enumerate(uprights):
        image, seen, true_values, found = _onto_detector(upright, index, target, beam, choices, assumptions)
        images.append(image)
        weights.append(seen)
        calibrated.append(true_values)
        warnings += [*upright.warnings, *found]
        notes += upright.notes
        assumptions += upright.assumptions
    image, seen = np.stack(images), np.stack(weights)
    check_views(torch.from_numpy(image))
    if not all(calibrated):
        assumptions.append(f"the scale of the grey levels is unknown: {COST_OF_SCALE}")
    warnings += pair_warnings(image, seen, calibrated=all(calibrated))
    return Pair(
        image=image,
        weights=None if seen.all() else seen,
        beam=target,
        calibrated=all(calibrated),
        assumptions=list(dict.fromkeys(assumptions)),
        warnings=list(dict.fromkeys(warnings)),
        notes=notes,
        facts=[upright.facts for upright in uprights],
    )


def _in_order(given: list[Radiograph]) -> tuple[list[Radiograph], list[str]]:
    """Frontal first; two of one kind are refused."""
    ids = [one.patient for one in given]
    if all(ids) and ids[0] != ids[1]:
        raise UserError(f"{given[1].path} must show the patient of {given[0].path}, got another PatientID")
    kinds = [kind_of(one) for one in given]
    if kinds == ["lateral", "frontal"]:
        return given[::-1], ["the two radiographs were exchanged: the first is a lateral, the second a frontal"]
    if kinds[0] == kinds[1] and kinds[0] is not None:
        raise UserError(f"{given[0].path} and {given[1].path} must be a frontal and a lateral, got two {kinds[0]}s")
    return given, []


def _target(
    uprights: Sequence[Upright],
    beam: ConeBeam | None,
    choices: Choices,
    size: int,
    focal_length: float,
    views: tuple[str, ...],
    assumptions: list[str],
) -> ConeBeam:
    """The geometry the radiographs are brought to: the sidecar's where it has the model's detector."""
    to_detector, to_isocenter = _distances(uprights, beam, choices, assumptions)
    isocenter = beam.isocenter if beam is not None else (0.0, 0.0, 0.0)
    if beam is not None and beam.detector_shape == (size, size):
        same = to_detector == beam.source_to_detector and to_isocenter == beam.source_to_isocenter
        return beam if same else replace(beam, source_to_detector=to_detector, source_to_isocenter=to_isocenter)
    # Six digits: the model's focal length is known in single precision.
    pitch = float(f"{to_detector / focal_length:.6g}")
    try:
        return ConeBeam(to_isocenter, to_detector, (size, size), (pitch, pitch), views, isocenter)
    except ValueError as error:
        raise UserError(str(error)) from error


def _distances(
    uprights: Sequence[Upright], beam: ConeBeam | None, choices: Choices, assumptions: list[str]
) -> tuple[float, float]:
    name = "bedside_ap" if uprights[0].view == "ap" and "bedside_ap" in PRESETS else "chest_stand"
    preset = PRESETS[name]
    tags = [upright.radiograph for upright in uprights]
    known = [one.source_to_isocenter for one in tags if one.source_to_isocenter is not None]
    if len(known) == 2 and abs(known[0] / known[1] - 1) > _DISTANCE_SHARED and choices.source_to_isocenter is None:
        raise UserError(
            f"{tags[1].path} must have the source_to_isocenter of {tags[0].path}, {known[0]:g} mm, got "
            f"{known[1]:g} mm; "
            "give --source-to-isocenter for both"
        )
    to_detector = choices.source_to_detector or (beam.source_to_detector if beam else tags[0].source_to_detector)
    to_isocenter = choices.source_to_isocenter or (beam.source_to_isocenter if beam else known[0] if known else None)
    if to_detector is None:
        to_detector = preset.source_to_detector
        assumptions.append(f"source_to_detector is that of preset {name}, {to_detector:g} mm: {COST_OF_LENGTH}")
    if to_isocenter is None:
        gap = preset.source_to_detector - preset.source_to_isocenter if name != "chest_stand" else GAP_MM
        to_isocenter = to_detector - gap
        assumptions.append(
            f"source_to_isocenter is {to_isocenter:g} mm, {gap:g} mm before the detector as in preset {name}: "
            f"{COST_OF_LENGTH}"
        )
    return float(to_detector), float(to_isocenter)


def _onto_detector(
    upright: Upright,
    index: int,
    target: ConeBeam,
    beam: ConeBeam | None,
    choices: Choices,
    assumptions: list[str],
) -> tuple[np.ndarray, np.ndarray, bool, list[str]]:
    """One view: image, weights, whether these are true line integrals, and warnings."""
    one = upright.radiograph
    spacing = _spacing(upright, beam, choices, assumptions)
    offset = _offset(upright, index, beam)
    # On the plane of the target's detector the same rays are that much further apart.
    own = one.source_to_detector if choices.source_to_detector is None and beam is None else None
    factor = target.source_to_detector / own if own else 1.0
    warnings = view_warnings(one)
    mask = one.mask
    if one.meaning != "line_integral":
        mask = mask & find_border(-one.pixels if one.meaning == "detector_signal" else one.pixels)
    try:
        image, seen = resample(
            one.pixels,
            mask,
            spacing=(spacing[0] * factor, spacing[1] * factor),
            offset=(offset[0] * factor, offset[1] * factor),
            target_spacing=target.pixel_spacing,
            target_offset=target.detector_offset,
            shape=target.detector_shape,
        )
    except ValueError as error:
        raise UserError(f"{one.path}: {error}") from error
    image, true_values, more = _to_line_integrals(image, seen > 0, one)
    if one.meaning != "line_integral":
        markers = find_markers(image, target.pixel_spacing)
        if markers.any():
            seen = seen * ~markers
            image = _without(image, seen > 0)
    return image.astype(np.float32), seen.astype(np.float32), true_values, [*warnings, *more]


def _without(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    from progressive_cascade.radiograph.onto import fill

    return fill(image, seen)


def _to_line_integrals(image: np.ndarray, seen: np.ndarray, one: Radiograph) -> tuple[np.ndarray, bool, list[str]]:
    if one.meaning == "line_integral":
        return image, True, []
    if one.meaning == "detector_signal":
        least = max(float(image.max()) * 1e-6, 1e-12)
        unattenuated = open_field(image, seen)
        logarithm = -np.log(np.maximum(image, least) / (unattenuated or float(image.max())))
        if unattenuated is not None:
            return logarithm, True, []
        image = logarithm
    low, high = np.percentile(image[seen], _DISPLAY_PERCENTILES)
    black, white = _DISPLAY_INTEGRALS
    scaled = black + (image - low) * ((white - black) / max(float(high - low), 1e-6))
    more = [f"{one.path} shows no open field beside the patient: its scale is unknown"]
    return scaled, False, more if one.meaning == "detector_signal" else []


def _spacing(upright: Upright, beam: ConeBeam | None, choices: Choices, assumptions: list[str]) -> tuple[float, float]:
    one, shape = upright.radiograph, upright.radiograph.pixels.shape
    if choices.pixel_spacing is not None:
        pitch = choices.pixel_spacing
        return (pitch[1], pitch[0]) if upright.transposed else pitch
    if one.spacing is not None and choices.field_of_view is None:
        # An affine is stored in single precision.
        same = beam is not None and np.allclose(one.spacing, beam.pixel_spacing, rtol=1e-5, atol=0)
        return beam.pixel_spacing if beam is not None and same else one.spacing
    if beam is not None and shape == beam.detector_shape and choices.field_of_view is None:
        return beam.pixel_spacing
    preset = PRESETS["chest_stand"]
    width = choices.field_of_view or (
        preset.pixel_spacing[0] * shape[0] if shape == preset.detector_shape else CASSETTE_MM
    )
    pitch = width / max(shape)
    if choices.field_of_view is None:
        assumptions.append(f"the longer side of {one.path} is {width:.0f} mm at the detector: {COST_OF_LENGTH}")
    return pitch, pitch


def _offset(upright: Upright, index: int, beam: ConeBeam | None) -> tuple[float, float]:
    """Where the image's centre lies: as its affine says, where the sidecar knows the isocenter; else as tags say."""
    one = upright.radiograph
    if beam is None:
        return one.offset
    row, col = beam.detector_offset
    if one.center is None or index >= len(beam.views):
        return row, col
    _, centers, rotations = beam.poses()
    shift = np.asarray(one.center) - centers[index]
    down, right = float(rotations[index, 1] @ shift), float(rotations[index, 0] @ shift)
    half = [pitch * pixels / 2 for pitch, pixels in zip(beam.pixel_spacing, beam.detector_shape, strict=True)]
    if abs(down) > half[0] or abs(right) > half[1]:
        return row, col
    tolerance = 1e-3 * min(beam.pixel_spacing)
    return row + (down if abs(down) > tolerance else 0.0), col + (right if abs(right) > tolerance else 0.0)
