# SPDX-License-Identifier: Apache-2.0
"""Laws of the geometry read from DICOM radiographs: each attribute does what PS3.3 says, or is refused by name."""

from __future__ import annotations

import sys

import pytest

from progressive_cascade import ConeBeam
from progressive_cascade.errors import UserError
from progressive_cascade.radiograph.dicom_geometry import beam_from_dicom, beam_from_dicoms
from tests.support.dicom_files import LENGTH, SPACING, STAND, code, dx, save, xa


def test_wall_stand_becomes_its_beam(tmp_path):
    """Distances, pitch, size and view of a DX file are those of the beam, from a file as from a dataset."""
    expected = ConeBeam(1650.0, 1800.0, (3072, 2560), (0.14, 0.15), views=("pa",), isocenter=(1.0, 2.0, 3.0))
    path = save(dx(), tmp_path / "pa.dcm")
    for source in (path, str(path), dx()):
        assert beam_from_dicom(source, isocenter=(1.0, 2.0, 3.0), **STAND) == expected


def test_magnification_stands_in_for_the_distance():
    """Without a distance to the isocenter, the estimated magnification gives it; in XA the distance goes first."""
    factor = {"EstimatedRadiographicMagnificationFactor": "1.2"}
    assert beam_from_dicom(dx(**factor)).source_to_isocenter == pytest.approx(1500.0)
    assert beam_from_dicom(xa(DistanceSourceToPatient=None, **factor)).magnification == pytest.approx(1.2)
    assert beam_from_dicom(xa(**factor)).source_to_isocenter == 700.0
    assert beam_from_dicom(dx(DistanceSourceToPatient="1750", **factor)).source_to_isocenter == pytest.approx(1500.0)


@pytest.mark.parametrize("factor", [None, "1.0286"])
def test_distance_to_the_bucky_is_not_that_to_the_isocenter(factor):
    """A DX measures to the support (C.8.11.5); that, or a magnification derived from it, is refused with both named."""
    dataset = dx(DistanceSourceToPatient="1750", EstimatedRadiographicMagnificationFactor=factor)
    with pytest.raises(UserError, match=r"DistanceSourceToPatient \(0018,1111\) must reach.*got 1750.*source_to_isoc"):
        beam_from_dicom(dataset)
    assert beam_from_dicom(dataset, **STAND).source_to_isocenter == 1650.0


def test_pa_and_lateral_become_one_beam(tmp_path):
    """Two files of one stand give one geometry with both views in their order; a thousandth of distance is shared."""
    lateral = dx(ViewPosition="LL", PatientOrientation="P\\F", **{LENGTH: "1801"})
    paths = [save(dx(), tmp_path / "pa.dcm"), save(lateral, tmp_path / "lat.dcm")]
    beam = beam_from_dicoms(paths, **STAND)
    assert beam == ConeBeam(1650.0, 1800.0, (3072, 2560), (0.14, 0.15))
    swapped = beam_from_dicoms(paths[::-1], **STAND)
    assert swapped.views == ("left_lateral", "pa")
    named = beam_from_dicoms(paths, views=("pa", "lao80"), **STAND)
    assert named.views == ("pa", "lao80")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({LENGTH: "1820"}, r"source_to_detector, from DistanceSourceToDetector \(0018,1110\).*1800.0, got 1820.0"),
        (
            {SPACING: ["0.15", "0.15"]},
            r"pixel_spacing, from ImagerPixelSpacing \(0018,1164\).*\(0.14, 0.15\), got \(0.15",
        ),
        ({"Rows": 3000}, r"detector_shape, from Rows \(0028,0010\).*\(3072, 2560\), got \(3000, 2560\)"),
        ({"PatientOrientation": "F\\A"}, r"detector_rotation, from PatientOrientation \(0020,0020\).*0.0, got 90.0"),
        ({"PatientID": "two"}, r"PatientID \(0010,0020\)"),
    ],
)
def test_files_that_differ_are_named(attributes, words, tmp_path):
    """A pair that one geometry cannot hold is told with both files, the attribute and both values."""
    lateral = dx(**{"ViewPosition": "LL", "PatientOrientation": "P\\F", **attributes})
    paths = [save(dx(), tmp_path / "pa.dcm"), save(lateral, tmp_path / "lat.dcm")]
    with pytest.raises(UserError, match=words) as caught:
        beam_from_dicoms(paths, **STAND)
    assert str(caught.value).startswith(str(paths[1]))
    assert str(paths[0]) in str(caught.value)


def test_given_distance_settles_two_readings():
    """What the caller gives counts for both files."""
    lateral = dx(ViewPosition="LL", PatientOrientation="P\\F", **{LENGTH: "1820"})
    assert beam_from_dicoms([dx(), lateral], source_to_detector=1810.0, **STAND).source_to_detector == 1810.0


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            dx(**{LENGTH: None}),
            r"DistanceSourceToDetector \(0018,1110\) must be present, got none; give source_to_det",
        ),
        (dx(**{LENGTH: "0"}), r"DistanceSourceToDetector \(0018,1110\) must be positive, got 0"),
        (dx(**{SPACING: ["0.14"]}), r"ImagerPixelSpacing \(0018,1164\) must hold 2 finite number"),
        (xa(DistanceSourceToPatient="1100"), "source_to_detector must exceed source_to_isocenter"),
        (xa(DistanceSourceToPatient=None), r"DistanceSourceToPatient \(0018,1111\) must be present, or Estimated"),
        (
            xa(DistanceSourceToPatient=None, EstimatedRadiographicMagnificationFactor="1"),
            r"Factor \(0018,1114\) must ex",
        ),
        (xa(PositionerPrimaryAngle="190"), r"PositionerPrimaryAngle \(0018,1510\) must lie between.*got 190"),
        (xa(PositionerSecondaryAngle="-95"), r"PositionerSecondaryAngle \(0018,1511\) must lie between.*got -95"),
        (xa(PositionerPrimaryAngle=""), r"PositionerPrimaryAngle \(0018,1510\) must name the direction.*view="),
        (xa(PositionerMotion="DYNAMIC"), r"PositionerMotion \(0018,1500\) must be STATIC, got DYNAMIC"),
        (xa(DetectorPrimaryAngle="5"), r"DetectorPrimaryAngle \(0018,1530\) must be 0 degrees"),
        (xa(ViewPosition="LL"), r"PositionerPrimaryAngle \(0018,1510\) must agree with the view left_lateral"),
        (xa(SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1.1"), "not Enhanced XA"),
        (xa(Modality="MG"), r"Modality \(0008,0060\) must be one of CR, DX, XA, RF, got MG"),
        (xa(AnatomicalOrientationType="QUADRUPED"), "must be BIPED"),
        (dx(ColumnAngulation="10"), r"ColumnAngulation \(0018,1450\) must be 0 degrees.*got 10"),
        (dx(ViewPosition=None), r"ViewPosition \(0018,5101\) must name the direction.*got none.*give view="),
        (dx(ViewPosition="LATERAL"), r"ViewPosition \(0018,5101\) must name the direction.*got LATERAL"),
        (dx(ViewPosition="LLO"), "got LLO"),
        (
            dx(ViewPosition=None, ViewCodeSequence=code("399067008", "lateral")),
            r"ViewCodeSequence \(0054,0220\) must name the direction.*got 399067008 lateral",
        ),
        (dx(PatientOrientation="R\\F"), r"PatientOrientation \(0020,0020\) must not show a mirror image.*got R.F"),
        (dx(PatientOrientation="A\\F"), r"PatientOrientation \(0020,0020\) must fit the view pa"),
        (dx(PatientOrientation="LEFT\\F"), "must be two directions"),
        (dx(Rows=0), r"Rows \(0028,0010\) must be positive, got 0"),
        (
            dx(PatientOrientation=None, FieldOfViewHorizontalFlip="YES"),
            r"FieldOfViewHorizontalFlip \(0018,7034\) must come with PatientOrientation",
        ),
        (dx(PatientOrientation=None, FieldOfViewRotation="90"), r"FieldOfViewRotation \(0018,7032\) must come with"),
        (dx(PatientOrientation=None, FieldOfViewRotation="45"), "must be 0, 90, 180 or 270, got 45"),
        (
            dx(
                DetectorElementSpacing=["0.1", "0.1"],
                DetectorActiveDimensions="430",
                FieldOfViewOrigin=["9000", "0"],
            ),
            r"FieldOfViewOrigin \(0018,7030\) must place the image on the detector",
        ),
    ],
)
def test_what_cannot_be_read_is_named(dataset, words):
    """Each missing, impossible or inexpressible attribute is told by keyword, number and value."""
    given = {} if dataset.Modality == "XA" else STAND
    with pytest.raises(UserError, match=words):
        beam_from_dicom(dataset, **given)


def test_files_must_be_dicom(tmp_path):
    """No file, no DICOM, no sequence of files, and too few views are told apart."""
    with pytest.raises(FileNotFoundError, match=r"absent\.dcm"):
        beam_from_dicom(tmp_path / "absent.dcm")
    (tmp_path / "text.dcm").write_text("no radiograph")
    with pytest.raises(UserError, match=r"text\.dcm must be a DICOM file"):
        beam_from_dicom(tmp_path / "text.dcm")
    with pytest.raises(ValueError, match="non-empty sequence"):
        beam_from_dicoms("pa.dcm")
    with pytest.raises(ValueError, match="one view per file, 1"):
        beam_from_dicoms([dx()], views=("pa", "left_lateral"))
    with pytest.raises(UserError, match="different views"):
        beam_from_dicoms([dx(), dx()], **STAND)


def test_pydicom_is_asked_for_by_name(monkeypatch):
    """Without pydicom the error says how to get it."""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match="pip install pydicom"):
        beam_from_dicom("pa.dcm")
