# SPDX-License-Identifier: Apache-2.0
"""CT files as people keep them: other formats, no numbers, no place, hidden, copied."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.ct.files import read_ct, read_scan
from progressive_cascade.ct.placement import prepare_case
from progressive_cascade.ct.prepare import prepare_dataset
from progressive_cascade.ct.sources import find_sources
from progressive_cascade.ct.split import Split
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_nifti
from tests.support.trunk import trunk_affine, trunk_hu

sitk = pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
def test_other_formats_read_as_the_nifti_of_the_same_ct(suffix: str, tmp_path: Path) -> None:
    """Values and places agree, and so does the prepared CT."""
    hu = trunk_hu().astype(np.int16)
    save_nifti(hu, trunk_affine(), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"b{suffix}"))
    array, affine = read_ct(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(array, hu)
    np.testing.assert_allclose(affine, trunk_affine(), atol=1e-3)


@pytest.mark.usefixtures("small_cube")
def test_nan_outside_the_field_of_view_is_air_and_counted(tmp_path: Path) -> None:
    """The rest of the CT is as without them, and the note says how many there were."""
    hu = trunk_hu().astype(np.float32)
    corner = (slice(0, 3), slice(0, 3))
    hu[corner] = -1000
    save_nifti(hu, trunk_affine(), tmp_path / "a.nii.gz")
    expected = prepare_case(tmp_path / "a.nii.gz")
    hu[corner] = np.nan
    save_nifti(hu, trunk_affine(), tmp_path / "b.nii.gz")
    case = prepare_case(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(case.hu, expected.hu)
    assert case.notes == ("360 voxels (0.1%) were padding or not a number and are taken for air",)


def _without_place(folder: Path) -> list[Path]:
    """Files of one CT whose headers do not say where it is: NIfTI, MetaImage without a matrix, NRRD without a space."""
    hu = trunk_hu().astype(np.int16)
    paths = [folder / name for name in ("a.nii.gz", "b.mha", "c.nrrd")]
    nib.save(nib.Nifti1Image(hu, None), paths[0])
    shape = " ".join(map(str, hu.shape))
    voxels = hu.tobytes(order="F")
    heading = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {shape}\n"
    paths[1].write_bytes(f"{heading}ElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode() + voxels)
    heading = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {shape}\nendian: little\nencoding: raw\n\n"
    paths[2].write_bytes(heading.encode() + voxels)
    return paths


def test_a_file_that_does_not_say_where_the_patient_is_is_refused_or_assumed(tmp_path: Path) -> None:
    """Left and right would be a guess; with a spacing from the user it is his, and the note says so."""
    for path in _without_place(tmp_path):
        with pytest.raises(UserError, match="--assume-spacing"):
            read_ct(path)
        scan = read_scan(path, assume_spacing=(3.0, 3.0, 5.0))
        np.testing.assert_array_equal(scan.affine, np.diag([3, 3, 5, 1]))
        np.testing.assert_array_equal(scan.hu, trunk_hu().astype(np.int16))
        assert "3 × 3 × 5 mm" in scan.notes[0]


def test_hidden_files_are_no_cases(tmp_path: Path) -> None:
    """What systems leave behind is passed over."""
    for name in ("a.nii.gz", "._a.nii.gz", ".hidden/b.nii.gz", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.case for source in find_sources(tmp_path)] == ["a"]


@pytest.mark.usefixtures("small_cube")
def test_copies_of_a_ct_are_one_patient(tmp_path: Path) -> None:
    """The same voxels under two names, stored the other way round, stand once, and a split may not part them."""
    hu, affine = trunk_hu().astype(np.int16), trunk_affine()
    save_nifti(hu, affine, tmp_path / "in" / "a.nii.gz")
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = hu.shape[0] - 1
    save_nifti(np.ascontiguousarray(hu[::-1]), affine @ flip, tmp_path / "in" / "b.nii.gz")
    prepare_dataset(tmp_path / "in", tmp_path / "out")
    with (tmp_path / "out" / "manifest.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows["a"]["status"] == "prepared"
    assert rows["b"]["status"] == "skipped"
    assert "same voxels as a" in rows["b"]["reason"]
    assert [path.name for path in (tmp_path / "out" / "ct").iterdir()] == ["a.nii.gz"]
    with pytest.raises(UserError, match="a in training, b in test"):
        prepare_dataset(tmp_path / "in", tmp_path / "out", split=Split(training=("a",), test=("b",)))
