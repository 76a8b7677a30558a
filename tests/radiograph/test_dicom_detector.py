# SPDX-License-Identifier: Apache-2.0
"""Laws of the detector read from DICOM radiographs: its view, its orientation, its pixels and their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.geometry.views import view_axes
from progressive_cascade.radiograph.dicom_geometry import beam_from_dicom
from tests.support.dicom_files import SPACING, STAND, code, cr, dx, xa


@pytest.mark.parametrize(
    ("position", "orientation", "view"),
    [("PA", "L\\F", "pa"), ("AP", "L\\F", "ap"), ("LL", "P\\F", "left_lateral"), ("RL", "A\\F", "right_lateral")],
)
def test_view_position_names_the_view(position, orientation, view):
    """Each position is its view, shown as it is read: with PatientOrientation, without it, and by its code."""
    for dataset in (
        dx(ViewPosition=position, PatientOrientation=orientation),
        dx(ViewPosition=position, PatientOrientation=None),
        cr(ViewPosition=position),
    ):
        assert beam_from_dicom(dataset, **STAND).views == (view,)
    codes = {"pa": "272479007", "ap": "R-10206", "left_lateral": "399173006", "right_lateral": "R-10232"}
    coded = dx(ViewPosition=None, PatientOrientation=orientation, ViewCodeSequence=code(codes[view], position))
    assert beam_from_dicom(coded, **STAND).views == (view,)


@pytest.mark.parametrize(
    ("primary", "secondary", "detector", "view"),
    [
        (0, 0, (0, 1, 0), "pa"),
        (90, 0, (-1, 0, 0), "left_lateral"),
        (-90, 0, (1, 0, 0), "right_lateral"),
        (30, 0, (-0.5, 3**0.5 / 2, 0), "lao30"),
        (-45.5, 0, None, "rao45.5"),
        (0, 20, None, "cranial20"),
        (-30, -25, None, "rao30_caudal25"),
        (30, 15.3, None, "lao30_cranial15.3"),
    ],
)
def test_positioner_angles_are_lao_and_cranial(primary, secondary, detector, view):
    """A positive primary angle puts the detector at the patient's left, a positive secondary one at the head."""
    beam = beam_from_dicom(xa(PositionerPrimaryAngle=primary, PositionerSecondaryAngle=secondary))
    assert beam.views == (view,)
    assert (beam.source_to_isocenter, beam.source_to_detector) == (700.0, 1020.0)
    if detector is not None:
        np.testing.assert_allclose(view_axes(view)[0], detector, atol=1e-15)


def test_carm_angles_count_for_any_modality_and_for_no_stand():
    """A DX from a C-arm takes its angles; on a column they mean nothing and ViewPosition counts."""
    attributes = {"ViewPosition": "PA", "PositionerPrimaryAngle": "20", "PatientOrientation": None}
    assert beam_from_dicom(dx(PositionerType="CARM", **attributes), **STAND).views == ("lao20",)
    assert beam_from_dicom(dx(PositionerType="COLUMN", **attributes), **STAND).views == ("pa",)


def test_missing_secondary_angle_is_zero_and_missing_angles_leave_the_view_position():
    """Type 2 attributes may be empty."""
    assert beam_from_dicom(xa(PositionerPrimaryAngle="30", PositionerSecondaryAngle="")).views == ("lao30",)
    assert beam_from_dicom(xa(PositionerPrimaryAngle="", ViewPosition="LL")).views == ("left_lateral",)


@pytest.mark.parametrize(
    ("orientation", "turn"), [("L\\F", 0.0), ("F\\R", 90.0), ("R\\H", 180.0), ("H\\L", 270.0), ("LP\\FA", 0.0)]
)
def test_patient_orientation_turns_the_detector(orientation, turn):
    """Rows and columns of the stored pixels point where PatientOrientation says, in world coordinates."""
    beam = beam_from_dicom(dx(PatientOrientation=orientation), **STAND)
    assert beam.detector_rotation == turn
    letters = {"R": (1, 0, 0), "L": (-1, 0, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    affine = beam.detector_affine(0)
    for axis, letter in enumerate(orientation.split("\\")):
        np.testing.assert_allclose(affine[:3, axis] / np.linalg.norm(affine[:3, axis]), letters[letter[0]], atol=1e-12)


def test_carm_behind_the_patient_is_an_ap_where_it_is_hung_as_one():
    """At 180 degrees the detector is behind the patient; the orientation says which way the image was hung."""
    assert beam_from_dicom(xa(PositionerPrimaryAngle="180")).views == ("lao180",)
    assert beam_from_dicom(xa(PositionerPrimaryAngle="180", PatientOrientation="R\\F")).views == ("lao180",)
    assert beam_from_dicom(xa(PositionerPrimaryAngle="180", PatientOrientation="L\\F")).views == ("ap",)


def test_pixel_spacing_of_a_plain_cr_is_the_plates():
    """An old CR knows only PixelSpacing, and means its plate by it."""
    beam = beam_from_dicom(cr(**{SPACING: None}, PixelSpacing=["0.1", "0.2"]), **STAND)
    assert beam.pixel_spacing == (0.1, 0.2)


@pytest.mark.parametrize(
    "dataset",
    [
        cr(**{SPACING: None}, PixelSpacing=["0.1", "0.1"], PixelSpacingCalibrationType="GEOMETRY"),
        dx(**{SPACING: None}, PixelSpacing=["0.1", "0.1"]),
        xa(**{SPACING: None}, PixelSpacing=["0.1", "0.1"]),
        dx(**{SPACING: None}, DetectorElementSpacing=["0.14", "0.14"]),
        dx(**{SPACING: None}, DetectorElementSpacing=["0.14", "0.14"], FieldOfViewDimensions=["860", "717"]),
    ],
    ids=["calibrated_cr", "dx", "xa", "binning_unknown", "binning_contradicted"],
)
def test_pixel_spacing_in_the_patient_is_refused(dataset):
    """What may be a pitch in the patient, or one of unbinned elements, is not taken for the pitch on the detector."""
    with pytest.raises(UserError, match=r"ImagerPixelSpacing \(0018,1164\) must be present.*got none.*pixel_spacing="):
        beam_from_dicom(dataset, source_to_isocenter=700.0)
    assert beam_from_dicom(dataset, pixel_spacing=(0.3, 0.4), source_to_isocenter=700.0).pixel_spacing == (0.3, 0.4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"DetectorElementSpacing": ["0.07", "0.05"], "DetectorBinning": ["2", "3"]},
        {"DetectorElementSpacing": ["0.14", "0.15"], "FieldOfViewDimensions": ["430", "384"]},
        {
            "DetectorElementSpacing": ["0.15", "0.14"],
            "FieldOfViewRotation": "90",
            "FieldOfViewHorizontalFlip": "NO",
            "FieldOfViewOrigin": ["0", "0"],
            "FieldOfViewDimensions": ["430", "384"],
        },
    ],
    ids=["binned", "confirmed", "turned"],
)
def test_detector_elements_give_the_pitch(attributes):
    """Elements times binning, or elements that fill the field of view, are the pitch; a turn exchanges the two."""
    assert beam_from_dicom(dx(**{SPACING: None}, **attributes), **STAND).pixel_spacing == pytest.approx((0.14, 0.15))


def _collimated(turn: int, flip: str) -> tuple[Any, np.ndarray]:
    """A field of view off the detector's centre, turned and flipped; and its centre on the detector (row, col) [mm]."""
    detector, element = np.array([400, 300]), 0.5
    origin, size = np.array([30, 50]), np.array([200, 120])
    center = (origin + size / 2 - detector / 2) * element
    stored = size[::-1] if turn % 180 else size
    dataset = dx(
        **{SPACING: [element, element]},
        DetectorElementSpacing=[element, element],
        DetectorActiveDimensions=[200, 150],
        DetectorActiveOrigin=[0, 0],
        FieldOfViewOrigin=[30, 50],
        FieldOfViewRotation=turn,
        FieldOfViewHorizontalFlip=flip,
    )
    dataset.Rows, dataset.Columns = (int(value) for value in stored)
    return dataset, center


@pytest.mark.parametrize("flip", ["NO", "YES"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_field_of_view_origin_offsets_the_detector(turn, flip):
    """The detector's centre, painted on its pixels, turned, then flipped, is where the central ray meets the image."""
    dataset, center = _collimated(turn, flip)
    painted = np.zeros((400, 300))
    painted[199:201, 149:151] = 1  # the middle of the active area
    field = np.rot90(painted[30:230, 50:170], k=-turn // 90)
    field = field[:, ::-1] if flip == "YES" else field
    # np.rot90 turns counter-clockwise for positive k; FieldOfViewRotation is clockwise.
    row, col = (float(np.mean(axis)) for axis in np.nonzero(field))
    beam = beam_from_dicom(dataset, **STAND)
    matrix = beam.projection_matrices()[0]
    projected = matrix @ [*beam.isocenter, 1.0]
    np.testing.assert_allclose(projected[:2] / projected[2], (col, row), atol=1e-9)
    assert np.hypot(*beam.detector_offset) == pytest.approx(np.hypot(*center))


def test_offset_within_the_rounding_is_none():
    """Dimensions in rounded millimetres do not shift a full detector; a shifted active area does not, either."""
    full = {"DetectorElementSpacing": [0.14, 0.15], "FieldOfViewOrigin": [0, 0], "DetectorActiveDimensions": [430, 384]}
    assert beam_from_dicom(dx(**full), **STAND).detector_offset == (0.0, 0.0)
    shifted = {**full, "FieldOfViewOrigin": [100, 80], "DetectorActiveOrigin": [100, 80]}
    assert beam_from_dicom(dx(**shifted), **STAND).detector_offset == (0.0, 0.0)
    assert beam_from_dicom(dx(**shifted), detector_offset=(5.0, 0.0), **STAND).detector_offset == (5.0, 0.0)
