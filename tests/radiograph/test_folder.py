# SPDX-License-Identifier: Apache-2.0
"""Laws of folders: pairs by name, by folder, by table and by tags."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.radiograph.dicom import read_dicom
from progressive_cascade.radiograph.folder import find_pairs
from tests.support.radiographs import grey, phantom_pair, save_dx


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing")


def test_pairs_are_found_by_name_and_by_folder(tmp_path: Path):
    """ID_pa and ID_lat belong together, so do pa and lateral of one folder; other files are none."""
    _touch(tmp_path / "a_pa.png", tmp_path / "a_lat.jpg", tmp_path / "b-AP.nii.gz", tmp_path / "notes.txt")
    _touch(tmp_path / "c" / "pa.nii.gz", tmp_path / "c" / "lateral.nii.gz", tmp_path / "spa.png")
    found = {pair.case: (pair.frontal, pair.lateral) for pair in find_pairs(tmp_path)}
    assert found == {
        "a": (tmp_path / "a_pa.png", tmp_path / "a_lat.jpg"),
        "b": (tmp_path / "b-AP.nii.gz", None),
        "c": (tmp_path / "c" / "pa.nii.gz", tmp_path / "c" / "lateral.nii.gz"),
    }


def test_pairs_are_found_by_tags(tmp_path: Path):
    """DICOM files of one study, whatever their names; the case goes by a hash, which stays when the folder grows."""
    pixels = np.zeros((64, 64))
    save_dx(pixels, tmp_path / "1.dcm", StudyInstanceUID="1.2.3")
    save_dx(pixels, tmp_path / "2.dcm", StudyInstanceUID="1.2.3", ViewPosition="LL")
    (pair,) = find_pairs(tmp_path)
    assert (pair.study, pair.frontal, pair.lateral) == ("1.2.3", tmp_path / "1.dcm", tmp_path / "2.dcm")
    assert re.fullmatch("case_[0-9a-f]{12}", pair.case)
    save_dx(pixels, tmp_path / "3.dcm", StudyInstanceUID="1.2.4")
    assert pair in find_pairs(tmp_path)
    (named, _) = find_pairs(tmp_path, name_study=lambda study: study)
    assert named.case == "1.2.3"


def test_pairs_are_found_by_table(tmp_path: Path):
    """A table's rows alone; a name that leaves the folder is refused."""
    table = tmp_path / "pairs.csv"
    table.write_text("case,pa,lateral\none,x.png,y.png\n")
    (pair,) = find_pairs(tmp_path, table)
    assert (pair.case, pair.frontal, pair.lateral) == ("one", tmp_path / "x.png", tmp_path / "y.png")
    table.write_text("case,pa,lateral\n../one,x.png,y.png\n")
    with pytest.raises(UserError, match="name every case"):
        find_pairs(tmp_path, table)


def test_two_files_of_one_view_are_told(tmp_path: Path):
    """Which of two is meant is not guessed, and the other cases are there."""
    _touch(tmp_path / "a_pa.png", tmp_path / "a_pa.jpg", tmp_path / "b_pa.png", tmp_path / "b_lat.png")
    first, second = find_pairs(tmp_path)
    assert "both be the frontal of a" in first.problem
    assert (second.case, second.problem) == ("b", "")


def test_dicom_without_view_is_placed_by_its_orientation_or_told(tmp_path: Path):
    """PatientOrientation names the plane; a file that says neither is no silent gap."""
    pixels = np.zeros((64, 64))
    save_dx(pixels, tmp_path / "1.dcm", StudyInstanceUID="1.2.3")
    save_dx(pixels, tmp_path / "2.dcm", StudyInstanceUID="1.2.3", ViewPosition="", PatientOrientation=["P", "F"])
    save_dx(pixels, tmp_path / "3.dcm", StudyInstanceUID="1.2.4", ViewPosition="", PatientOrientation="")
    first, second = sorted(find_pairs(tmp_path), key=lambda pair: pair.study)
    assert (first.lateral, first.problem) == (tmp_path / "2.dcm", "")
    assert "3.dcm must say its view" in second.problem
    assert second.said(second.problem, tmp_path).startswith(f"a file of {second.case} must say")


_SILENT = {"StudyInstanceUID": "1.2.3", "ViewPosition": "", "PatientOrientation": ""}


def test_dicom_that_says_no_view_is_placed_by_its_picture(tmp_path: Path):
    """As films of cassettes often are: both open, one open, and one that its picture would make a second frontal."""
    frontal, lateral = (grey(image, 4095) for image in phantom_pair())
    one, two, three = (tmp_path / f"{number}.dcm" for number in (1, 2, 3))
    save_dx(lateral, one, **_SILENT)
    save_dx(frontal, two, **_SILENT)
    (pair,) = find_pairs(tmp_path)
    assert (pair.frontal, pair.lateral, pair.problem, pair.others) == (two, one, "", ())
    save_dx(frontal, three, **_SILENT)
    (pair,) = find_pairs(tmp_path)
    assert "must not both be the frontal" in pair.problem and pair.others == (three,)
    # What is open does not matter where tags name both; a decubitus film is no lateral, whatever its name begins with.
    save_dx(frontal, two, StudyInstanceUID="1.2.3")
    save_dx(lateral, one, StudyInstanceUID="1.2.3", ViewPosition="LL")
    save_dx(frontal, three, **{**_SILENT, "ViewPosition": "LLD"})
    (pair,) = find_pairs(tmp_path)
    assert (pair.frontal, pair.lateral, pair.problem, pair.others) == (two, one, "", (three,))


def test_what_is_no_chest_film_does_not_part_a_pair(tmp_path: Path):
    """A dose report and a knee in the study of a pair; a study of knees alone is told."""
    frontal, lateral = (grey(image, 4095) for image in phantom_pair())
    knee = {"BodyPartExamined": "L KNEE", "PatientOrientation": ["L", "F"]}
    save_dx(frontal, tmp_path / "1.dcm", StudyInstanceUID="1.2.3", BodyPartExamined="CHEST_ABDOMEN")
    save_dx(lateral, tmp_path / "2.dcm", StudyInstanceUID="1.2.3", ViewPosition="LL", BodyPartExamined="TORAX")
    save_dx(frontal, tmp_path / "3.dcm", StudyInstanceUID="1.2.3", **knee)
    save_dx(frontal, tmp_path / "4.dcm", StudyInstanceUID="1.2.3", Modality="SR")
    (pair,) = find_pairs(tmp_path)
    assert (pair.frontal, pair.lateral, pair.problem) == (tmp_path / "1.dcm", tmp_path / "2.dcm", "")
    assert pair.others == (tmp_path / "3.dcm",)
    assert [line for line in read_dicom(tmp_path / "3.dcm").remarks if "shows KNEE, no chest" in line]
    save_dx(frontal, tmp_path / "5.dcm", StudyInstanceUID="1.2.4", **knee)
    save_dx(lateral, tmp_path / "6.dcm", StudyInstanceUID="1.2.4", **{**knee, "ViewPosition": "LL"})
    _, knees = sorted(find_pairs(tmp_path), key=lambda pair: pair.study)
    assert (knees.frontal, knees.lateral, len(knees.others)) == (None, None, 2)
    assert "must show a chest, got BodyPartExamined KNEE" in knees.problem
