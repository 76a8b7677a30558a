# SPDX-License-Identifier: Apache-2.0
"""A frontal and a lateral radiograph as the network's input: upright, on its detector, with all that was assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.physics.tones import typical_line_integrals
from progressive_cascade.radiograph.assumptions import (
    COST_OF_LENGTH,
    COST_OF_SCALE,
    COST_OF_SURROUNDINGS,
    tell_cost_once,
)
from progressive_cascade.radiograph.check import check_views
from progressive_cascade.radiograph.fit import Model
from progressive_cascade.radiograph.lengths import (
    INTENSITIES,
    Choices,
    place_on,
    target_geometry,
)
from progressive_cascade.radiograph.onto import fill, find_border, find_markers, open_field, resample
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.surroundings import misses_surroundings, show_surroundings
from progressive_cascade.radiograph.upright import Upright, kind_of, make_upright
from progressive_cascade.radiograph.warn import (
    BODY_LEAVES,
    pair_warnings,
    size_warnings,
    slice_difference,
    view_warnings,
)

# Line integrals of a patient stay below this; a display intensity of 8 to 16 bits does not.
_LARGEST_LINE_INTEGRAL = 30.0
# Of 82 films from the web lead letters and cables take 0.2 % in the median and at most 2 %, of an ultrasound 46 %.
_MOST_MARKERS = 0.25


@dataclass(frozen=True)
class Pair:
    """Two radiographs, ready for the network.

    Attributes:
        image: line integrals, or display values on their scale (2, rows, cols), frontal first.
        weights: 1 where a pixel shows the patient (2, rows, cols); None: everywhere.
        beam: their geometry.
        intensities: what is known of both, one of :data:`~progressive_cascade.radiograph.lengths.INTENSITIES`.
        assumptions: what was taken for granted, each with what an error costs.
        warnings: what may be wrong.
        notes: what was done to the pictures.
        facts: of each radiograph, see :meth:`Radiograph.facts`.
        mirror: probability that the frontal is mirrored, by its picture; None where it was not looked at.
        sized: whether both films' sizes are known.
        lengths_told: whether their sizes and the distances are, none of them assumed.
        slice_difference: see :func:`~progressive_cascade.radiograph.warn.slice_difference`; of grey levels None until
            the first stage was asked.
        first_agreement: PSNR by view of what stage 1 explains of them [dB], where it was looked at.
        first_mirrored: likewise of the frontal's mirror image.
    """

    image: np.ndarray
    weights: np.ndarray | None
    beam: ConeBeam
    intensities: str
    assumptions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    mirror: float | None = None
    sized: bool = True
    lengths_told: bool = True
    slice_difference: float | None = None
    first_agreement: dict[str, float] = field(default_factory=dict)
    first_mirrored: float | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the image holds true line integrals."""
        return self.intensities == "calibrated"

    def record(self) -> dict[str, Any]:
        """What the reconstruction's sidecar says of its radiographs."""
        names = ("assumptions", "warnings", "notes", "first_agreement")
        return {
            "radiographs": self.facts,
            "intensities": self.intensities,
            **{name: getattr(self, name) for name in names},
        }


def assemble_pair(
    frontal: Radiograph,
    lateral: Radiograph,
    *,
    model: Model,
    beam: ConeBeam | None = None,
    choices: Choices | None = None,
    check_beam: Callable[[ConeBeam], list[str]] | None = None,
) -> Pair:
    """Brings two radiographs onto the model's detector.

    Args:
        frontal: PA or AP; exchanged with the other where both tell so.
        lateral: left or right.
        model: whose detector it is.
        beam: geometry of a sidecar; it goes before the files' tags.
        choices: what the user knows better.
        check_beam: refuses a geometry the model does not take, before a picture is looked at, and returns warnings.

    Raises:
        UserError: if they are no frontal and lateral of one patient, or contradict each other.
    """
    choices = choices or Choices()
    given, notes = _in_order([_declared(one, choices.intensities) for one in (frontal, lateral)])
    uprights = _uprights(given, choices)
    target, fit, assumptions = target_geometry(uprights, beam=beam, choices=choices, model=model)
    doubts = [] if check_beam is None else check_beam(target)
    views = [_onto_detector(one, index, target, beam, choices) for index, one in enumerate(uprights)]
    least = choices.intensities or "calibrated"
    pair = _joined(uprights, views, target, max((least, *(view.intensities for view in views)), key=INTENSITIES.index))
    if fit is not None:
        fit.check([line for line in pair.warnings if line.startswith(BODY_LEAVES)])
        notes += fit.notes()
    if show_surroundings(given, choices.surroundings):
        pair = _without_surroundings(pair)
    assumptions += pair.assumptions
    warnings = [*doubts, *_contradicted(uprights, beam), *pair.warnings]
    return replace(
        pair,
        assumptions=tell_cost_once(_without_paths(assumptions, given)),
        lengths_told=not any(COST_OF_LENGTH in line for line in assumptions),
        warnings=_without_paths(warnings, given),
        notes=_without_paths([*notes, *pair.notes], given),
    )


def _joined(uprights: Sequence[Upright], views: Sequence[_View], target: ConeBeam, known: str) -> Pair:
    """Two views as one input, with what is said of them, by the names of their files."""
    image, seen = np.stack([view.image for view in views]), np.stack([view.seen for view in views])
    check_views(torch.from_numpy(image))
    difference = slice_difference(image, seen) if known == "calibrated" else None
    both = list(zip(uprights, views, strict=True))
    scale = [] if known == "calibrated" else [f"the scale of the grey levels is unknown: {COST_OF_SCALE[known]}"]
    warnings = [line for pair in both for one in pair for line in one.warnings]
    return Pair(
        image=image,
        weights=None if seen.all() else seen,
        beam=target,
        intensities=known,
        assumptions=[*(line for pair in both for one in pair for line in one.assumptions), *scale],
        warnings=[*warnings, *pair_warnings(image, seen, difference, source_to_isocenter=target.source_to_isocenter)],
        notes=[line for upright in uprights for line in upright.notes],
        facts=[upright.facts for upright in uprights],
        mirror=uprights[0].mirror,
        sized=all(view.sized for view in views),
        slice_difference=difference,
    )


def _without_surroundings(pair: Pair) -> Pair:
    """The pair with no weight where rays cross the patient above or below the cube."""
    inside = misses_surroundings(pair.beam)
    share = 1 - float(inside.mean())
    line = (
        f"the patient goes on above and below the cube: {share:.0%} of the pixels, whose rays cross him there, "
        f"have no weight; {COST_OF_SURROUNDINGS}"
    )
    weights = inside if pair.weights is None else pair.weights * inside
    return replace(pair, weights=weights, assumptions=[*pair.assumptions, line]) if share else pair


def _uprights(given: Sequence[Radiograph], choices: Choices) -> list[Upright]:
    """Frontal and lateral as they are read."""
    return [
        make_upright(given[0], "frontal", choices.trust, mirror=choices.mirror_frontal),
        make_upright(given[1], "lateral", choices.trust),
    ]


def _without_paths(lines: Iterable[str], given: Sequence[Radiograph]) -> list[str]:
    """Lines that stay with the result, each once: where files lay and what they were called may say whose they are."""
    names = [(one.path, f"the {slot} X-ray") for one, slot in zip(given, ("frontal", "lateral"), strict=True)]
    found = []
    for line in dict.fromkeys(lines):
        for path, name in names:
            line = line.replace(path, name)
        found.append(line)
    return found


def _declared(one: Radiograph, intensities: str | None) -> Radiograph:
    """The radiograph with the meaning that the user gives it."""
    if intensities is None or one.meaning == "detector_signal":
        return one
    sources = {**one.sources, "meaning": "option"}
    if intensities == "display":
        return replace(one, meaning="display", sources=sources)
    if one.meaning == "display" and not (one.pixels.min() > -1.0 and one.pixels.max() < _LARGEST_LINE_INTEGRAL):
        raise UserError(
            f"--intensities {intensities} wants values that can be line integrals, 0 to 30, got {one.path} with "
            f"{one.pixels.min():g} to {one.pixels.max():g}; try display"
        )
    return replace(one, meaning="line_integral", sources=sources)


def _contradicted(uprights: list[Upright], beam: ConeBeam | None) -> list[str]:
    """A view that the geometry calls otherwise than the file."""
    if beam is None or len(beam.views) != 2:
        return []
    return [
        f"{one.radiograph.path} is a {one.view.replace('_', ' ')} by its {one.radiograph.sources.get('view', 'tag')}, "
        f"but a {view.replace('_', ' ')} by --geometry, which was taken"
        for one, view in zip(uprights, beam.views, strict=True)
        if one.radiograph.view is not None and one.view != view
    ]


def _in_order(given: list[Radiograph]) -> tuple[list[Radiograph], list[str]]:
    """Frontal first; two of one kind are refused."""
    ids = [one.patient for one in given]
    if all(ids) and ids[0] != ids[1]:
        raise UserError(f"{given[1].path} must show the patient of {given[0].path}, got another PatientID")
    kinds = [kind_of(one) for one in given]
    if kinds == ["lateral", "frontal"]:
        return given[::-1], ["the two radiographs were exchanged: the first is a lateral, the second a frontal"]
    if kinds[0] == kinds[1] and kinds[0] is not None:
        views = " and ".join(one.view for one in given if one.view is not None)
        found = f"two {kinds[0]}s{f' by their views, {views}' if ' and ' in views else ''}"
        raise UserError(f"{given[0].path} and {given[1].path} must be a frontal and a lateral, got {found}")
    return given, []


@dataclass(frozen=True)
class _View:
    """One view on the model's detector."""

    image: np.ndarray
    seen: np.ndarray
    intensities: str
    warnings: list[str]
    assumptions: list[str]
    sized: bool


def _onto_detector(upright: Upright, index: int, target: ConeBeam, beam: ConeBeam | None, choices: Choices) -> _View:
    one = upright.radiograph
    (spacing, offset), assumptions = place_on(upright, index, target, beam, choices)
    mask = one.mask
    if one.meaning != "line_integral":
        mask = mask & find_border(-one.pixels if one.meaning == "detector_signal" else one.pixels)
    try:
        image, seen = resample(
            one.pixels,
            mask,
            spacing=spacing,
            offset=offset,
            target_spacing=target.pixel_spacing,
            target_offset=target.detector_offset,
            shape=target.detector_shape,
        )
    except ValueError as error:
        raise UserError(f"{one.path}: {error}") from error
    image, intensities, warnings = _to_line_integrals(image, seen > 0, one, "lateral" if index else "frontal")
    if one.meaning != "line_integral":
        image, seen = _without_markers(image, seen, target.pixel_spacing, one.path)
    found = [*view_warnings(one), *size_warnings(one.path, one.pixels.shape, spacing), *warnings]
    sized = not assumptions  # a size alone is assumed of a view by itself
    return _View(image.astype(np.float32), seen.astype(np.float32), intensities, found, assumptions, sized)


def _without_markers(
    image: np.ndarray, seen: np.ndarray, spacing: tuple[float, float], path: str
) -> tuple[np.ndarray, np.ndarray]:
    """The image with what is around lead letters in their place, where they have no weight.

    Raises:
        UserError: where so much is narrow and bright that it is no chest.
    """
    markers = find_markers(image, spacing)
    share = float((markers & (seen > 0)).mean())
    if share > _MOST_MARKERS:
        raise UserError(
            f"{path} must show a chest, got narrow, bright structures on {share:.0%} of it, as of an ultrasound"
        )
    if not markers.any():
        return image, seen
    seen = seen * ~markers
    return fill(image, seen > 0), seen


def _to_line_integrals(
    image: np.ndarray, seen: np.ndarray, one: Radiograph, kind: str
) -> tuple[np.ndarray, str, list[str]]:
    """On the scale of line integrals, what is known of them, and warnings."""
    if one.meaning == "line_integral":
        return image, "calibrated", []
    known, warnings = "display", []
    if one.meaning == "detector_signal":
        least = max(float(image.max()) * 1e-6, 1e-12)
        unattenuated = open_field(image, seen)
        image = -np.log(np.maximum(image, least) / (unattenuated or float(image.max())))
        if unattenuated is not None:
            return image, "calibrated", []
        known = "scaled"
        warnings = [f"{one.path} shows no open field beside the patient: its scale is unknown"]
    straight = known == "scaled"
    found = typical_line_integrals(
        torch.from_numpy(image)[None], [kind], seen=torch.from_numpy(seen), straight=straight
    )
    return found[0].numpy(), known, warnings
