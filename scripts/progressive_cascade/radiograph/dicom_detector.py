# SPDX-License-Identifier: Apache-2.0
"""What a DICOM radiograph says of its detector: view and orientation, pixels, and where they lie on the beam.

Sections are those of DICOM PS3.3; :mod:`.dicom_geometry` says which attributes are trusted, and why.
"""

from __future__ import annotations

import numpy as np

from progressive_cascade.geometry.views import ACCEPTED_VIEWS, view_axes, view_name
from progressive_cascade.radiograph.dicom_tags import DicomHeader

_VIEW_POSITIONS = {"PA": "pa", "AP": "ap", "LL": "left_lateral", "RL": "right_lateral"}
# CID 4010 "DX View": the SNOMED CT codes and their predecessors.
_VIEW_CODES = {
    **dict.fromkeys(("272479007", "R-10214", "R-40888"), "pa"),
    **dict.fromkeys(("399348003", "R-10206"), "ap"),
    **dict.fromkeys(("399173006", "R-10236"), "left_lateral"),
    **dict.fromkeys(("399198007", "R-10232"), "right_lateral"),
}
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
# Cosines of rows and columns with their letters. A view rounded to the nearest letters sums up to 1.28 or more; one
# wrong direction leaves 1.
_LEAST_FIT = 1.2
# Cosine of 50 degrees: no angles called a PA differ more from it.
_LEAST_AGREEMENT = 0.64


def read_view(header: DicomHeader) -> str:
    """The view's name: from the positioner's angles of a C-arm, else from ViewPosition or ViewCodeSequence.

    Args:
        header: the file's.

    Returns:
        A name that :func:`~progressive_cascade.geometry.views.view_axes` knows.

    Raises:
        UserError: if neither is there, or what is there names no one direction (LAO, LATERAL, LLO, RLD, ...).
    """
    position, item = header.text("ViewPosition"), header.item("ViewCodeSequence")
    is_carm = header.text("PositionerType") == "CARM" or header.text("Modality") in ("XA", "RF")
    named = _VIEW_POSITIONS.get(position)
    if named is None and not position:
        named = _VIEW_CODES.get(str(getattr(item, "CodeValue", "")).strip())
    if is_carm and header.number("PositionerPrimaryAngle") is not None:
        return _view_of_angles(header, named)
    if named is not None:
        return named
    keyword = "PositionerPrimaryAngle" if is_carm else "ViewPosition"
    keyword = "ViewPosition" if position else "ViewCodeSequence" if item is not None else keyword
    expected = "name the direction of the beam (ViewPosition PA, AP, LL or RL, or the angles of a C-arm)"
    raise header.error(keyword, expected, f"give view= one of {ACCEPTED_VIEWS}")


def read_orientation(header: DicomHeader, view: str) -> tuple[str, float]:
    """How the stored pixels are turned against the view as it is read.

    PatientOrientation names where the rows, then the columns, point to (C.7.6.1.1.1). Without it the pixels are taken
    to be stored as the view is read, unless they are known to have been turned or flipped.

    Args:
        header: the file's.
        view: the view's name.

    Returns:
        The view, which is ``ap`` where the orientation shows that a C-arm at 180 degrees was hung as one, and the
        detector's rotation, a multiple of 90 [degrees].

    Raises:
        UserError: if the pixels are a mirror image, or the orientation does not fit the view.
    """
    letters = header.texts("PatientOrientation")
    if not letters:
        turn, flip = read_field_of_view(header)
        if turn or flip:
            keyword = "FieldOfViewHorizontalFlip" if flip else "FieldOfViewRotation"
            way_out = "set PatientOrientation (0020,0020), such as L\\F for a PA as it is read"
            raise header.error(keyword, "come with PatientOrientation, which says how the patient is shown", way_out)
        return view, 0.0
    if len(letters) != 2 or not all(set(text) <= set(_DIRECTIONS) for text in letters):
        raise header.error("PatientOrientation", "be two directions out of R, L, A, P, H and F")
    toward_right, toward_bottom = (_direction(text) for text in letters)
    along, column, row = view_axes(view)
    fits = {}
    for quarter in range(4):
        fits[float(90 * quarter), False] = column @ toward_right + row @ toward_bottom
        fits[float(90 * quarter), True] = -column @ toward_right + row @ toward_bottom
        column, row = row, -column
    (turn, mirrored), fit = max(fits.items(), key=lambda pair: pair[1])
    if fit < _LEAST_FIT:
        raise header.error("PatientOrientation", f"fit the view {view}", "give view= if the view is another")
    if not mirrored:
        return view, turn
    if view != "ap" and np.array_equal(along, view_axes("ap")[0]):
        return read_orientation(header, "ap")
    raise header.error(
        "PatientOrientation",
        f"not show a mirror image of the view {view}",
        "flip the pixels left to right and set PatientOrientation to match, or give view= if the view is another",
    )


def read_detector_shape(header: DicomHeader) -> tuple[int, int]:
    """Stored pixels (rows, columns).

    Raises:
        UserError: if the file does not say.
    """
    rows, cols = (header.positive(keyword, 1) for keyword in ("Rows", "Columns"))
    if rows is None or cols is None:
        raise header.error("Rows" if rows is None else "Columns", "be present")
    return int(rows[0]), int(cols[0])


def read_pixel_spacing(header: DicomHeader, shape: tuple[int, int]) -> tuple[float, float]:
    """Pitch (row, column) of the stored pixels in the detector's plane [mm].

    Args:
        header: the file's.
        shape: stored pixels (rows, columns).

    Raises:
        UserError: if no attribute is known to give it.
    """
    pitch = header.positive("ImagerPixelSpacing", 2) or _spacing_of_elements(header, shape)
    is_plain = header.text("Modality") == "CR" and not header.text("PixelSpacingCalibrationType")
    if pitch is None and is_plain:
        pitch = header.positive("PixelSpacing", 2)
    if pitch is None:
        raise header.error(
            "ImagerPixelSpacing",
            "be present (PixelSpacing may be calibrated to a plane of the patient)",
            "give pixel_spacing= [mm in the detector's plane]",
        )
    return pitch[0], pitch[1]


def read_detector_offset(
    header: DicomHeader, pixel_spacing: tuple[float, float], shape: tuple[int, int]
) -> tuple[float, float]:
    """Where the stored image's centre lies relative to that of the detector's active area.

    Args:
        header: the file's.
        pixel_spacing: pitch (row, column) of the stored pixels [mm].
        shape: stored pixels (rows, columns).

    Returns:
        Along the rows and columns of the stored image (row, column) [mm]; zero where the file does not say, or says
        less than half a pixel, which is the rounding of its lengths.

    Raises:
        UserError: if the image would lie off the detector.
    """
    origin, element = header.numbers("FieldOfViewOrigin", 2), header.positive("DetectorElementSpacing", 2)
    active = header.positive("DetectorActiveDimensions", 1, 2)
    if origin is None or element is None or active is None:
        return 0.0, 0.0
    turn, flip = read_field_of_view(header)
    size = np.multiply(pixel_spacing, shape)
    # From here to the turn: rows and columns of the physical detector.
    size = size[::-1] if turn % 180 else size
    active_origin = header.numbers("DetectorActiveOrigin", 2) or (0.0, 0.0)
    active_size = np.broadcast_to(active, 2)
    row, col = np.multiply(np.subtract(origin, active_origin), element) + (size - active_size) / 2
    if np.any(np.abs((row, col)) >= (size + active_size) / 2):
        raise header.error("FieldOfViewOrigin", "place the image on the detector", "give detector_offset= [mm]")
    for _ in range(turn // 90):
        row, col = col, -row
    col = -col if flip else col
    offset = [
        0.0 if abs(value) < pitch / 2 else float(value) for value, pitch in zip((row, col), pixel_spacing, strict=True)
    ]
    return offset[0], offset[1]


def read_field_of_view(header: DicomHeader) -> tuple[int, bool]:
    """What was done to the detector's pixels: a clockwise turn [degrees], and then a horizontal flip or none.

    Raises:
        UserError: if the turn is no multiple of 90, or the flip neither YES nor NO.
    """
    turn = header.number("FieldOfViewRotation") or 0.0
    if turn not in (0, 90, 180, 270):
        raise header.error("FieldOfViewRotation", "be 0, 90, 180 or 270")
    flip = header.text("FieldOfViewHorizontalFlip")
    if flip not in ("", "YES", "NO"):
        raise header.error("FieldOfViewHorizontalFlip", "be YES or NO")
    return int(turn), flip == "YES"


def _view_of_angles(header: DicomHeader, named: str | None) -> str:
    """The view at the positioner's angles, which may not contradict the one that was named."""
    primary = header.number("PositionerPrimaryAngle") or 0.0
    secondary = header.number("PositionerSecondaryAngle") or 0.0
    if abs(primary) > 180:
        raise header.error("PositionerPrimaryAngle", "lie between -180 (RAO) and 180 (LAO) degrees")
    if abs(secondary) > 90:
        raise header.error("PositionerSecondaryAngle", "lie between -90 (caudal) and 90 (cranial) degrees")
    view = view_name(primary, secondary)
    if named is not None and view_axes(named)[0] @ view_axes(view)[0] < _LEAST_AGREEMENT:
        raise header.error("PositionerPrimaryAngle", f"agree with the view {named} of the same file", "give view=")
    return view


def _spacing_of_elements(header: DicomHeader, shape: tuple[int, int]) -> tuple[float, ...] | None:
    """Pitch of the detector's elements times how many make a pixel, where the file leaves no doubt of it."""
    element, binning = header.positive("DetectorElementSpacing", 2), header.positive("DetectorBinning", 2)
    if element is None:
        return None
    pitch = np.multiply(element, binning or (1.0, 1.0))
    if read_field_of_view(header)[0] % 180:
        pitch = pitch[::-1]
    field = header.positive("FieldOfViewDimensions", 1, 2)
    # The dimensions are whole millimetres; a missing binning is wrong by a factor of two or more.
    confirmed = field is not None and np.all(np.abs(pitch * shape - np.broadcast_to(field, 2)) <= 0.02 * np.max(field))
    declared = field is None and binning is not None
    return tuple(float(value) for value in pitch) if confirmed or declared else None


def _direction(letters: str) -> np.ndarray:
    """Unit vector (RAS) of letters such as ``LP``, each after the first half as important."""
    total = sum(np.array(_DIRECTIONS[letter], dtype=np.float64) / 2**rank for rank, letter in enumerate(letters))
    return np.asarray(total) / np.linalg.norm(total)
