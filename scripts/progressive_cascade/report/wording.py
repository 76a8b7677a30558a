# SPDX-License-Identifier: Apache-2.0
"""What a result's numbers mean, in plain words.

A sidecar may hold more than this version knows: known keys are explained, lists named ``warnings`` and
``assumptions`` are shown as they are, and everything stands in the page as the record itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from progressive_cascade.geometry import ConeBeam, GeometryRange
from progressive_cascade.inference.acceptance import describe_range
from progressive_cascade.inference.first_look import LEAST_AGREEMENT
from progressive_cascade.report.drawing import view_title

BODY_HU = -500.0
"""Halfway between air and water: what is above it counts as body in the page's uncertainty [HU]."""

_SCORES: dict[str, tuple[str, str, str]] = {
    "psnr_3d_db": (
        "PSNR, 3-D",
        "{:.1f} dB",
        "Peak signal to noise over the whole volume; higher is better, 6 dB more is half the error.",
    ),
    "ssim_3d": ("SSIM, 3-D", "{:.3f}", "Likeness of local structure; 1 is identical."),
    "mae_hu": ("Mean absolute error", "{:.0f} HU", "How far a voxel is off on average."),
    "body_psnr_3d_db": ("PSNR inside the body", "{:.1f} dB", "The same without the air around the patient."),
    "body_ssim_3d": ("SSIM inside the body", "{:.3f}", "The same without the air around the patient."),
    "body_mae_hu": (
        "Mean absolute error inside the body",
        "{:.0f} HU",
        "How far a voxel of the patient is off on average.",
    ),
}
_REFINEMENT = {
    "steps": ("Steps taken", "{:.0f}", "How often the first stage learned on this patient's own radiographs."),
    "kept": ("Steps kept", "{:.0f}", "After how many of them the CT was best where it was not looked; 0 is unrefined."),
    "stopped": ("Stopped by", "", ""),
    "residual_before": ("Unexplained before", "{:.3f}", "Root mean square difference of the line integrals (no unit)."),
    "residual_after": ("Unexplained after", "{:.3f}", "The same for the CT that was kept."),
    "held_out_before": ("Unexplained where not looked, before", "{:.3f}", "The same in patches that were kept back."),
    "held_out_after": (
        "Unexplained where not looked, after",
        "{:.3f}",
        "If this does not fall as the one above does, refining only memorised.",
    ),
    "spread_hu": (
        "Spread of the first stage",
        "{:.0f} HU",
        "How far its volumes deviate inside the body when its cube is laid 6 mm aside; the CT is made of their mean.",
    ),
    "calibration": ("Found along", "", "Gain, offset, tone and pose of each radiograph."),
}
_STOPPED = {
    "steps": "the limit of steps",
    "discrepancy": "nothing unexplained but noise and grid",
    "held_out": "the patches kept back, which no longer gained",
    "rising": "a difference that rose: the unrefined CT was kept",
    "unexplained": "so much left unexplained that no step was taken",
}


@dataclass(frozen=True)
class Row:
    """A number with its name and meaning."""

    label: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page that is text.

    Args:
        title: its heading.
        id: its anchor.
        paragraphs: texts.
        bullets: texts of a list.
        rows: of a table.
    """

    title: str
    id: str = ""
    paragraphs: Sequence[str] = ()
    bullets: Sequence[str] = ()
    rows: Sequence[Row] = field(default_factory=list)


def texts_of(items: Any) -> list[str]:
    """The entries of a sidecar's ``warnings`` or ``assumptions`` as lines, whatever form they have.

    Example:
        >>> texts_of([{"what": "spacing", "text": "assumed 0.2 mm"}, "upside down"])
        ['assumed 0.2 mm', 'upside down']
    """
    if items is None:
        return []
    if isinstance(items, Mapping):
        return [f"{plain(str(key))}: {_text_of(value)}" for key, value in items.items()]
    if isinstance(items, (list, tuple)):
        return [_text_of(item) for item in items]
    return [str(items)]


def _text_of(item: Any) -> str:
    if isinstance(item, Mapping):
        for key in ("text", "message"):
            if key in item:
                return str(item[key])
        return ", ".join(f"{plain(str(key))}: {_text_of(value)}" for key, value in item.items())
    if isinstance(item, (list, tuple)):
        return ", ".join(_text_of(part) for part in item)
    return str(item)


def plain(key: str) -> str:
    """A key as words.

    Example:
        >>> plain("source_to_detector")
        'source to detector'
    """
    return key.replace("_", " ")


def warnings(record: Mapping[str, Any]) -> list[str]:
    """What a reader must know first: the sidecar's own warnings, and what follows from its flags."""
    found = texts_of(record.get("warnings")) + texts_of(_mapping(record.get("refinement")).get("warnings"))
    if record.get("calibrated") is False:
        found.append(
            "The radiographs are pictures, not measured line integrals. Their contrast was normalised and the CT was "
            "not made to agree with them: shapes are less certain, and HU even less so."
        )
    if record.get("uncertainty_belongs") is False:
        found.append("The uncertainty was calibrated with other weights than those that made this CT.")
    return found


def cards(record: Mapping[str, Any], sigma: np.ndarray | None, hu: np.ndarray) -> list[Row]:
    """The numbers to see at a glance.

    Args:
        record: the sidecar.
        sigma: standard deviation of the error (x, y, z) [HU], of the CT's grid or a coarser one.
        hu: the CT on sigma's grid [HU].
    """
    found = []
    shares = [
        f"{view_title(view)} {scores['relative_residual']:.2%}"
        for view, scores in _mapping(record.get("agreement")).items()
        if _is_number(_mapping(scores).get("relative_residual"))
    ]
    first = [
        f"{view_title(view)} {score:.0f} dB"
        for view, score in _mapping(record.get("first_agreement")).items()
        if _is_number(score)
    ]
    if first:
        found.append(Row("First look", ", ".join(first), _FIRST))
    if shares:
        found.append(Row("Left unexplained of the radiographs", ", ".join(shares), _AGREEMENT))
    if sigma is not None and (hu > BODY_HU).any():
        inside = sigma[hu > BODY_HU]
        value = f"± {np.sqrt(np.mean(np.square(inside, dtype=np.float64))):.0f} HU"
        found.append(Row("Standard deviation inside the body", value, _SIGMA))
    return found


_FIRST = (
    "How well the first stage alone explains the radiographs, before the CT is made to agree with them. Below "
    f"{LEAST_AGREEMENT[True]:g} dB, or {LEAST_AGREEMENT[False]:g} dB for values of unknown scale, something about the "
    "radiographs may be wrong."
)
_AGREEMENT = (
    "Small values mean that the CT casts the same shadows. Many different CTs do; it is no sign that this one is right."
)
_SIGMA = (
    "One standard deviation, root mean square over the body: about two thirds of errors are smaller. The overlay shows "
    "where they are larger."
)


def score_rows(scores: Mapping[str, Any]) -> list[Row]:
    """Scores against the true CT, the known ones explained, the others by their names."""
    rows = []
    for name, value in scores.items():
        if not _is_number(value):
            continue
        protocol, _, rest = name.partition("_")
        if rest in _SCORES:
            label, form, meaning = _SCORES[rest]
            rows.append(Row(f"{label} ({protocol})", form.format(value), meaning))
    known = {row.label for row in rows}
    if not known:
        rows = [Row(plain(name), f"{value:.4g}") for name, value in scores.items() if _is_number(value)]
    return rows


def clinical_rows(record: Mapping[str, Any]) -> list[Row]:
    """What people measure, where the record has it: each name with its number, or with that of CT and truth."""
    rows = []
    for name, value in _mapping(record.get("clinical")).items():
        if _is_number(value):
            rows.append(Row(plain(name), f"{value:.4g}"))
        elif isinstance(value, Mapping):
            parts = [f"{plain(key)} {item:.4g}" for key, item in value.items() if _is_number(item)]
            rows.append(Row(plain(name), ", ".join(parts)))
    return rows


def refinement_rows(record: Mapping[str, Any]) -> list[Row]:
    """How the first stage went on learning on this case, where it did; its warnings stand with the others."""
    rows = []
    for name, value in _mapping(record.get("refinement")).items():
        label, form, meaning = _REFINEMENT.get(name, (plain(name), "{:.4g}", ""))
        if name == "warnings" or value in (None, [], {}):
            continue
        if name == "stopped":
            rows.append(Row(label, "", _STOPPED.get(str(value), plain(str(value)))))
        elif _is_number(value):
            rows.append(Row(label, form.format(value), meaning))
        elif isinstance(value, (Mapping, list, tuple)):
            rows.append(Row(label, "", "; ".join(texts_of(_rounded(value)))))
        else:
            rows.append(Row(label, str(value), meaning))
    return rows


def geometry_rows(beam: ConeBeam, record: Mapping[str, Any]) -> list[Row]:
    """How the radiographs were taken, as the CT was told, and for what geometries the weights were trained."""
    (rows, columns), (height, width) = beam.detector_shape, beam.pixel_spacing
    x, y, z = beam.isocenter
    found = [
        Row(
            "Views",
            ", ".join(view_title(view) for view in beam.views),
            "How the patient stood between tube and detector.",
        ),
        Row("Tube to detector", f"{beam.source_to_detector:g} mm", "Source to detector."),
        Row(
            "Tube to patient",
            f"{beam.source_to_isocenter:g} mm",
            f"Source to the middle of the cube: shadows there are {beam.magnification:.3g} times as large.",
        ),
        Row(
            "Detector",
            f"{columns} × {rows} pixels",
            f"{width:g} × {height:g} mm each, {columns * width:.0f} × {rows * height:.0f} mm in all.",
        ),
        Row(
            "Middle of the cube",
            f"{x:.1f}, {y:.1f}, {z:.1f} mm",
            "Where the CT lies in the patient's coordinates (right, front, head).",
        ),
    ]
    if any(beam.detector_offset) or beam.detector_rotation:
        down, right = beam.detector_offset
        text = f"{down:g} mm down, {right:g} mm to the right, turned by {beam.detector_rotation:g}°"
        found.append(Row("Detector moved", text, "Against the central ray."))
    if record.get("geometry_range"):
        try:
            trained = describe_range(GeometryRange.from_dict(dict(_mapping(record["geometry_range"]))))
        except (TypeError, ValueError):  # of another version
            return found
        found.append(Row("Weights trained for", "", f"{trained}. What lies beyond is warned of or refused."))
    return found


def reading_section(*, has_sigma: bool) -> Section:
    """What such a CT can and cannot tell."""
    bullets = [
        "Two radiographs leave most of a CT open. Outlines that both views show, such as the body, the diaphragm and "
        "the heart's borders, are supported by evidence; what lies one behind the other in a view is filled in from "
        "what chests usually look like.",
        "Small things, nodules, fractures and vessels among them, can be missing, misplaced, or made up. HU are "
        "estimates.",
        "Compare the re-projection with the radiograph: what differs there is certainly wrong. What agrees may still "
        "be.",
    ]
    if has_sigma:
        bullets.append(
            "The uncertainty overlay is the model's own estimate of its error, calibrated on other patients. It knows "
            "nothing of findings that those did not have."
        )
    return Section("How to read this CT", "reading", bullets=bullets)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return f"{value:.4g}" if isinstance(value, float) else value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
