# SPDX-License-Identifier: Apache-2.0
"""Distances, pitch and place of a pair of radiographs: as given, as tagged, as assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import PRESETS, ConeBeam
from progressive_cascade.radiograph.assumptions import CASSETTE_MM, COST_OF_LENGTH
from progressive_cascade.radiograph.fit import Fit, Model, fit_detector, is_inside
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.upright import Upright

_DISTANCE_SHARED = 0.01
INTENSITIES = ("calibrated", "scaled", "display")
"""What is known of pixel values: line integrals; those but for gain and offset; no more than their order."""


@dataclass(frozen=True)
class Choices:
    """What the user knows better than files and pictures.

    Attributes:
        pixel_spacing: pitch (row, column) in the detector's plane [mm].
        field_of_view: longer side of the picture in the detector's plane [mm].
        source_to_detector: [mm].
        source_to_isocenter: [mm].
        preset: a name of :data:`~progressive_cascade.geometry.PRESETS` whose distances and detector count.
        intensities: what pixel values are, one of :data:`INTENSITIES`; None: as the file says, or as they look.
        trust: "tags" or "picture", which decides where they contradict each other; None: the tags, with a warning.
        surroundings: whether the radiographs show the patient above and below the cube, one of
            :data:`~progressive_cascade.radiograph.surroundings.SURROUNDINGS`; None: as they were made.
        mirror_frontal: whether the frontal is to be flipped left to right.
    """

    pixel_spacing: tuple[float, float] | None = None
    field_of_view: float | None = None
    source_to_detector: float | None = None
    source_to_isocenter: float | None = None
    preset: str | None = None
    intensities: str | None = None
    trust: str | None = None
    surroundings: str | None = None
    mirror_frontal: bool = False


def target_geometry(
    uprights: Sequence[Upright], *, beam: ConeBeam | None, choices: Choices, model: Model
) -> tuple[ConeBeam, Fit | None, list[str]]:
    """The geometry the radiographs are brought to: the sidecar's where its detector is one of the model's.

    Args:
        uprights: frontal and lateral.
        beam: of a sidecar.
        choices: what the user knows better.
        model: whose detector it is to be.

    Returns:
        The geometry; what its detector shows of the films where that was chosen; and what was assumed.

    Raises:
        UserError: if the distances are impossible, or the two views disagree on them.
    """
    to_detector, to_isocenter, assumptions = _distances(uprights, beam, choices)
    if beam is not None and beam.detector_shape == (model.size, model.size):
        same = to_detector == beam.source_to_detector and to_isocenter == beam.source_to_isocenter
        changed = beam if same else replace(beam, source_to_detector=to_detector, source_to_isocenter=to_isocenter)
        if model.trained is None or is_inside(changed, model.size, model.trained):
            return changed, None, assumptions
    views = beam.views if beam is not None and len(beam.views) == 2 else tuple(one.view for one in uprights)
    isocenter = beam.isocenter if beam is not None else (0.0, 0.0, 0.0)
    # Six digits: the model's focal length is known in single precision.
    pitch = float(f"{to_detector / model.focal_length:.6g}")
    try:
        target = ConeBeam(to_isocenter, to_detector, (model.size, model.size), (pitch, pitch), views, isocenter)
    except ValueError as error:
        raise UserError(str(error)) from error
    if beam is not None:
        target = replace(target, detector_rotation=beam.detector_rotation)
    if model.trained is None:
        return target, None, assumptions
    wanted = max(_field(one, index, target, beam, choices) for index, one in enumerate(uprights))
    return *fit_detector(target, wanted, size=model.size, trained=model.trained), assumptions


def _field(upright: Upright, index: int, target: ConeBeam, beam: ConeBeam | None, choices: Choices) -> float:
    """Width of the field about the central ray that shows a film whole [mm], in the plane through the isocenter."""
    (spacing, offset), _ = place_on(upright, index, target, beam, choices)
    half = np.multiply(upright.radiograph.pixels.shape, spacing) / 2 + np.abs(offset)
    return 2 * float(half.max()) / target.magnification


def place_on(
    upright: Upright, index: int, target: ConeBeam, beam: ConeBeam | None, choices: Choices
) -> tuple[tuple[tuple[float, float], tuple[float, float]], list[str]]:
    """A film in the plane of a geometry's detector: pitch and place of its centre, each (row, column) [mm].

    Args:
        upright: the film.
        index: of its view.
        target: the geometry.
        beam: of a sidecar.
        choices: what the user knows better.

    Returns:
        Both, and what was assumed.
    """
    one = upright.radiograph
    spacing, assumptions = spacing_at_detector(upright, beam, choices)
    offset = centre_offset(upright, index, beam)
    # On the plane of the target's detector the same rays are that much further apart.
    own = one.source_to_detector if beam is None and not (choices.source_to_detector or choices.preset) else None
    factor = target.source_to_detector / own if own else 1.0
    return ((spacing[0] * factor, spacing[1] * factor), (offset[0] * factor, offset[1] * factor)), assumptions


def _distances(uprights: Sequence[Upright], beam: ConeBeam | None, choices: Choices) -> tuple[float, float, list[str]]:
    """source_to_detector, source_to_isocenter [mm], and what was assumed."""
    tags, assumptions = [upright.radiograph for upright in uprights], []
    given = beam or (PRESETS[choices.preset] if choices.preset else None)
    to_detector, to_isocenter = choices.source_to_detector, choices.source_to_isocenter
    if given is not None:
        return to_detector or given.source_to_detector, to_isocenter or given.source_to_isocenter, []
    name = "bedside_ap" if uprights[0].view == "ap" else "chest_stand"
    to_detector = to_detector or _shared("source_to_detector", tags)
    to_isocenter = to_isocenter or _shared("source_to_isocenter", tags)
    if to_detector is None:
        to_detector = PRESETS[name].source_to_detector
        assumptions.append(f"source_to_detector is that of preset {name}, {to_detector:g} mm: {COST_OF_LENGTH}")
    if to_isocenter is None:
        gap = PRESETS[name].source_to_detector - PRESETS[name].source_to_isocenter
        to_isocenter = to_detector - gap
        assumptions.append(
            f"source_to_isocenter is {to_isocenter:g} mm, {gap:g} mm before the detector as in preset {name}: "
            f"{COST_OF_LENGTH}"
        )
    return to_detector, to_isocenter, assumptions


def _shared(name: str, tags: Sequence[Radiograph]) -> float | None:
    """A distance that both radiographs name, or one of them; the model has one for both views.

    The detectors may stand apart: a radiograph is scaled to where the frontal one's detector is.
    """
    known = [(one, getattr(one, name)) for one in tags if getattr(one, name) is not None]
    values = [value for _, value in known]
    if name == "source_to_isocenter" and len(known) == 2 and abs(values[0] / values[1] - 1) > _DISTANCE_SHARED:
        raise UserError(
            f"{known[1][0].path} must have the {name} of {known[0][0].path}, {values[0]:g} mm, got {values[1]:g} mm; "
            "give --source-to-isocenter for both"
        )
    return float(values[0]) if values else None


def spacing_at_detector(
    upright: Upright, beam: ConeBeam | None, choices: Choices
) -> tuple[tuple[float, float], list[str]]:
    """Pitch (row, column) of a radiograph in its detector's plane [mm], and what was assumed."""
    one, shape = upright.radiograph, upright.radiograph.pixels.shape
    if choices.pixel_spacing is not None:
        pitch = choices.pixel_spacing
        return (pitch[1], pitch[0]) if upright.transposed else pitch, []
    if choices.field_of_view is None:
        if one.spacing is not None:
            # An affine is stored in single precision.
            same = beam is not None and np.allclose(one.spacing, beam.pixel_spacing, rtol=1e-5, atol=0)
            return beam.pixel_spacing if beam is not None and same else one.spacing, []
        if beam is not None and shape == beam.detector_shape:
            return beam.pixel_spacing, []
    preset = PRESETS[choices.preset or "chest_stand"]
    matches = shape == preset.detector_shape or choices.preset is not None
    width = choices.field_of_view or (
        max(np.multiply(preset.pixel_spacing, preset.detector_shape)) if matches else CASSETTE_MM
    )
    pitch = float(width) / max(shape)
    if choices.field_of_view or choices.preset:
        return (pitch, pitch), []
    return (pitch, pitch), [f"the longer side of {one.path} is {width:.0f} mm at the detector: {COST_OF_LENGTH}"]


def centre_offset(upright: Upright, index: int, beam: ConeBeam | None) -> tuple[float, float]:
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
