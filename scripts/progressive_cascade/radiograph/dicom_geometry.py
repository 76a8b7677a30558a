# SPDX-License-Identifier: Apache-2.0
"""The acquisition geometry that DICOM radiographs declare (CR, DX, XA, RF) as a :class:`ConeBeam`.

Sections are those of DICOM PS3.3.

- **Distances.** DistanceSourceToDetector reaches to the detector's centre. DistanceSourceToPatient reaches to the
  middle of the field of view, the isocenter, in XA and RF (C.8.7.5, C.8.7.6); in CR and DX it reaches to the side of
  the table or bucky next to the patient (C.8.11.5), which is not the isocenter and is not taken for it. An
  EstimatedRadiographicMagnificationFactor stands in, unless it merely repeats that distance.
- **Pixels.** ImagerPixelSpacing is the pitch in the detector's plane. PixelSpacing is the pitch in some plane of the
  patient wherever it was calibrated (10.7), and is taken only from a CR that has nothing better and declares no
  calibration. DetectorElementSpacing times DetectorBinning is taken where FieldOfViewDimensions confirm it, or where
  they are absent and the binning is declared (C.8.11.4).
- **Directions.** The positioner's angles, LAO and cranial positive (C.8.7.5.1.2), for XA, RF and every C-arm;
  ViewPosition (C.8.1.1, C.8.11.5) or the code of the view for stands and tables, where those angles have no meaning.
  PatientOrientation (C.7.6.1.1.1) tells whether the stored pixels are turned or mirrored.
- **Centring.** The central ray is taken to meet the middle of the detector's active area, as no attribute says where it
  does; FieldOfViewOrigin says where the stored pixels lie on the detector, before the rotation and then the flip
  that were applied to them (C.8.11.4.1.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.radiograph.dicom_detector import (
    read_detector_offset,
    read_detector_shape,
    read_orientation,
    read_pixel_spacing,
    read_view,
)
from progressive_cascade.radiograph.dicom_tags import DicomHeader, tag_name

if TYPE_CHECKING:
    from pydicom import Dataset

_MODALITIES = ("CR", "DX", "XA", "RF")
# In these, DistanceSourceToPatient reaches to the isocenter.
_ISOCENTRIC = ("XA", "RF")
# Their geometry stands in functional groups, frame by frame.
_ENHANCED = {"1.2.840.10008.5.1.4.1.1.12.1.1": "Enhanced XA", "1.2.840.10008.5.1.4.1.1.12.2.1": "Enhanced XRF"}
# Degrees; over 1800 mm that moves the foot of the beam by 3 mm, about as well as a tube is centred.
_LARGEST_TILT = 0.1
# Two readings of the same distance or pitch may differ by this share of it, two offsets by this many pixels.
_SHARED = 1e-3
_SHARED_PIXELS = 0.5


@dataclass(frozen=True)
class _Given:
    """What the caller knows better than the files."""

    source_to_detector: float | None
    source_to_isocenter: float | None
    pixel_spacing: tuple[float, float] | None
    detector_offset: tuple[float, float] | None
    isocenter: tuple[float, float, float]


def beam_from_dicom(
    source: str | os.PathLike[str] | Dataset,
    *,
    view: str | None = None,
    source_to_detector: float | None = None,
    source_to_isocenter: float | None = None,
    pixel_spacing: tuple[float, float] | None = None,
    detector_offset: tuple[float, float] | None = None,
    isocenter: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> ConeBeam:
    """The geometry of one radiograph.

    What is given is taken instead of the file's attributes; what is not must stand in the file.

    Args:
        source: path of a DICOM file, or a ``pydicom`` dataset.
        view: the view's name, where the file has none or an ambiguous one.
        source_to_detector: distance from the source to the detector [mm].
        source_to_isocenter: distance from the source to the isocenter, about the middle of the patient [mm].
        pixel_spacing: pitch (row, column) of the stored pixels in the detector's plane [mm].
        detector_offset: where the image's centre lies relative to the foot of the central ray (row, column) [mm].
        isocenter: RAS [mm]; no radiograph knows it.

    Returns:
        The geometry with one view; its rows and columns are those of the stored pixels.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if pydicom is not installed.
        UserError: if an attribute is missing, impossible, or says what :class:`ConeBeam` cannot express, such as a
            mirrored image, a beam oblique to its detector or a moving C-arm; file, attribute and value are named.

    Example:
        >>> beam = beam_from_dicom("pa.dcm", source_to_isocenter=1650.0)  # doctest: +SKIP
    """
    given = _Given(source_to_detector, source_to_isocenter, pixel_spacing, detector_offset, isocenter)
    return _read_beam(DicomHeader(source), view, given)


def beam_from_dicoms(
    sources: Sequence[str | os.PathLike[str] | Dataset],
    *,
    views: Sequence[str] | None = None,
    source_to_detector: float | None = None,
    source_to_isocenter: float | None = None,
    pixel_spacing: tuple[float, float] | None = None,
    detector_offset: tuple[float, float] | None = None,
    isocenter: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> ConeBeam:
    """The geometry of several radiographs of a patient, such as a PA and a lateral, that share detector and distances.

    Distances and pitch may differ by a thousandth, as two readings of one stand do; the first file's are taken.

    Args:
        sources: paths of DICOM files, or ``pydicom`` datasets, in the order of the views.
        views: their names, where the files have none or ambiguous ones.
        source_to_detector: as for :func:`beam_from_dicom`, for all files.
        source_to_isocenter: likewise.
        pixel_spacing: likewise.
        detector_offset: likewise.
        isocenter: likewise.

    Returns:
        The geometry with one view per file.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if pydicom is not installed.
        UserError: as for :func:`beam_from_dicom`, and where the files differ: both files and both values are named.
        ValueError: if there are no files, or not as many views.
    """
    if isinstance(sources, (str, os.PathLike)) or len(sources) == 0:
        raise ValueError(f"sources must be a non-empty sequence of DICOM files, got {sources!r}")
    if views is not None and (isinstance(views, str) or len(views) != len(sources)):
        raise ValueError(f"views must name one view per file, {len(sources)}, got {views!r}")
    given = _Given(source_to_detector, source_to_isocenter, pixel_spacing, detector_offset, isocenter)
    headers = [DicomHeader(source) for source in sources]
    beams = [
        _read_beam(header, view, given) for header, view in zip(headers, views or [None] * len(headers), strict=True)
    ]
    for header, beam in zip(headers[1:], beams[1:], strict=True):
        _check_shared((headers[0], beams[0]), (header, beam))
    names = tuple(beam.views[0] for beam in beams)
    if len(set(names)) < len(names):
        shown = ", ".join(f"{header.name}: {name}" for header, name in zip(headers, names, strict=True))
        raise UserError(f"radiographs must show different views, got {shown}")
    return replace(beams[0], views=names)


def _read_beam(header: DicomHeader, view: str | None, given: _Given) -> ConeBeam:
    _check_kind(header)
    shape = read_detector_shape(header)
    to_detector, to_isocenter, pitch = given.source_to_detector, given.source_to_isocenter, given.pixel_spacing
    if to_detector is None:
        to_detector = _read_source_to_detector(header)
    if to_isocenter is None:
        to_isocenter = _read_source_to_isocenter(header, to_detector)
    if pitch is None:
        pitch = read_pixel_spacing(header, shape)
    try:
        beam = ConeBeam(
            source_to_isocenter=to_isocenter,
            source_to_detector=to_detector,
            detector_shape=shape,
            pixel_spacing=pitch,
            views=(read_view(header) if view is None else view,),
            isocenter=given.isocenter,
            detector_offset=(0.0, 0.0) if given.detector_offset is None else given.detector_offset,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{header.name}: {error}") from error
    if given.detector_offset is None:
        beam = replace(beam, detector_offset=read_detector_offset(header, beam.pixel_spacing, shape))
    name, turn = read_orientation(header, beam.views[0])
    return replace(beam, views=(name,), detector_rotation=turn)


def _check_kind(header: DicomHeader) -> None:
    """Refuses what is no radiograph, or one whose rays :class:`ConeBeam` cannot describe."""
    enhanced = _ENHANCED.get(header.text("SOPClassUID"))
    if enhanced:
        raise header.error("SOPClassUID", f"be a CR, DX, XA or RF image, not {enhanced} with a geometry per frame")
    if header.text("Modality") not in _MODALITIES:
        raise header.error("Modality", f"be one of {', '.join(_MODALITIES)}")
    if header.text("AnatomicalOrientationType") == "QUADRUPED":
        raise header.error("AnatomicalOrientationType", "be BIPED")
    if header.text("PositionerMotion") == "DYNAMIC":
        raise header.error("PositionerMotion", "be STATIC", "store the frames as files with their own angles")
    for keyword in ("DetectorPrimaryAngle", "DetectorSecondaryAngle", "ColumnAngulation"):
        if abs(header.number(keyword) or 0.0) > _LARGEST_TILT:
            raise header.error(keyword, "be 0 degrees, a beam at right angles to the detector")


def _read_source_to_detector(header: DicomHeader) -> float:
    distance = header.positive("DistanceSourceToDetector", 1)
    if distance is None:
        raise header.error("DistanceSourceToDetector", "be present", "give source_to_detector= [mm]")
    return distance[0]


def _read_source_to_isocenter(header: DicomHeader, source_to_detector: float) -> float:
    """DistanceSourceToPatient where it reaches to the isocenter, else what the estimated magnification implies."""
    distance = header.positive("DistanceSourceToPatient", 1)
    factor = header.positive("EstimatedRadiographicMagnificationFactor", 1)
    if distance is not None and header.text("Modality") in _ISOCENTRIC:
        return distance[0]
    way_out = "give source_to_isocenter= [mm], about the middle of the patient"
    if distance is None and factor is None:
        raise header.error(
            "DistanceSourceToPatient", "be present, or EstimatedRadiographicMagnificationFactor", way_out
        )
    if factor is None or (distance is not None and abs(factor[0] * distance[0] / source_to_detector - 1) < 0.01):
        raise header.error(
            "DistanceSourceToPatient", "reach to the isocenter, which it does only in XA and RF", way_out
        )
    if factor[0] <= 1:
        raise header.error("EstimatedRadiographicMagnificationFactor", "exceed 1", way_out)
    return source_to_detector / factor[0]


def _check_shared(first: tuple[DicomHeader, ConeBeam], other: tuple[DicomHeader, ConeBeam]) -> None:
    """Refuses two files of different patients, or whose detector or distances one geometry cannot hold."""
    (header_a, a), (header_b, b) = first, other
    if header_a.text("PatientID") and header_b.text("PatientID") not in ("", header_a.text("PatientID")):
        raise UserError(f"{header_b.name}: {tag_name('PatientID')} must be that of {header_a.name}, got another's")
    offset = _SHARED_PIXELS * min(a.pixel_spacing)
    comparisons = (
        ("detector_shape", ("Rows", "Columns"), 0.0, 0.0),
        ("detector_rotation", ("PatientOrientation",), 0.0, 0.0),
        ("pixel_spacing", ("ImagerPixelSpacing",), _SHARED, 0.0),
        ("source_to_detector", ("DistanceSourceToDetector",), _SHARED, 0.0),
        ("source_to_isocenter", ("DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor"), _SHARED, 0.0),
        ("detector_offset", ("FieldOfViewOrigin",), 0.0, offset),
    )
    for field, keywords, relative, absolute in comparisons:
        ours, theirs = getattr(a, field), getattr(b, field)
        if not np.allclose(ours, theirs, rtol=relative, atol=absolute):
            tags = ", ".join(tag_name(keyword) for keyword in keywords)
            way_out = "" if field in ("detector_shape", "detector_rotation") else f"; give {field}= for both"
            raise UserError(
                f"{header_b.name}: {field}, from {tags}, must be that of {header_a.name}, {ours}, got {theirs}{way_out}"
            )
