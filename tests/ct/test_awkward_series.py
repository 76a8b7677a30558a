# SPDX-License-Identifier: Apache-2.0
"""CTs as hospitals hand them over: awkward DICOM series, other file formats, copies of one patient."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.ct.placement import prepare_case
from progressive_cascade.ct.prepare import Split, find_sources, prepare_dataset
from progressive_cascade.ct.series import find_dicom_series, read_ct
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_nifti
from tests.support.trunk import trunk_affine, trunk_hu

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

SHAPE = (24, 20, 12)
SPACING = np.array([3.0, 3.0, 5.0])
Slices = list[Any]


def _slices(hu: np.ndarray, *, series: str = "1.2.3", tilt: float = 0.0) -> Slices:
    """The images of an axial series, feet to head, as data sets of DICOM; the gantry leans by `tilt` degrees."""
    images = []
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    for k in range(hu.shape[2]):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, "1.2", "1.4"
        ds.Modality, ds.PatientID, ds.ImageType = "CT", "P1", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns, ds.PixelSpacing, ds.SliceThickness = hu.shape[1], hu.shape[0], [3.0, 3.0], 5.0
        ds.ImageOrientationPatient = [1, 0, 0, 0, cosine, sine]
        ds.ImagePositionPatient = [-30.0, -40.0, 100.0 + 5.0 * k]
        ds.InstanceNumber = k + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        _fill(ds, hu[:, :, k])
        images.append(ds)
    return images


def _fill(ds: Any, hu: np.ndarray) -> None:
    stored = (hu.T - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
    ds.PixelData = np.rint(stored).astype(np.uint16).tobytes()


def _save(images: Slices, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(images):
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        ds.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
    return folder


def _hu() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(float)


def _reversed(images: Slices) -> None:
    images.reverse()
    for number, ds in enumerate(images):
        ds.InstanceNumber = number + 1


def _doubled(images: Slices) -> None:
    for ds in images[3:6]:
        copy = pydicom.Dataset()
        copy.update(ds)
        copy.SOPInstanceUID = pydicom.uid.generate_uid()
        images.append(copy)


def _localizer(images: Slices) -> None:
    ds = _slices(_hu()[:, :, :1])[0]
    ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]
    images.insert(0, ds)


def _half_slope(images: Slices) -> None:
    for k, ds in enumerate(images):
        ds.RescaleSlope = 0.5
        _fill(ds, _hu()[:, :, k])


def _feet_first(images: Slices) -> None:
    for ds in images:
        ds.PatientPosition = "FFS"
    _reversed(images)


def _spacing_between(images: Slices) -> None:
    for ds in images:
        del ds.SliceThickness


def _nothing(images: Slices) -> None:
    pass


GOOD: dict[str, tuple[Callable[[Slices], None], str]] = {
    "plain": (_nothing, ""),
    "reversed order": (_reversed, ""),
    "duplicate slices": (_doubled, "3 slices there twice, used once"),
    "localizer inside": (_localizer, "1 localizer images left out"),
    "slope 0.5": (_half_slope, ""),
    "feet first": (_feet_first, ""),
    "no SpacingBetweenSlices, no SliceThickness": (_spacing_between, ""),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_series_reads_as_its_source(kind: str, tmp_path: Path) -> None:
    """Within 1 HU and 0.01 mm, whatever the order of the files; what was left out is said."""
    mend, note = GOOD[kind]
    images = _slices(_hu())
    mend(images)
    (series,) = find_dicom_series(_save(images, tmp_path / "a"))
    assert (series.rejection, "; ".join(series.notes)) == (None, note)
    array, affine = read_ct(tmp_path / "a")
    np.testing.assert_allclose(array, _hu(), atol=1)
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [30, 40, 100, 1], atol=0.01)
    np.testing.assert_allclose(affine @ [1, 2, 11, 1], [27, 34, 155, 1], atol=0.01)


def test_a_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    """Every voxel's place is the one its slice was scanned at."""
    array, affine = read_ct(_save(_slices(_hu(), tilt=12.0), tmp_path / "a"))
    np.testing.assert_allclose(array, _hu(), atol=1)
    y, z = 40 - 3 * np.cos(np.deg2rad(12)), 100 + 5 * 7 + 3 * np.sin(np.deg2rad(12))
    np.testing.assert_allclose(affine @ [0, 1, 7, 1], [30, y, z, 1], atol=0.01)


def test_a_prone_patient_lies_where_the_header_says(tmp_path: Path) -> None:
    """Row and column directions are turned by half a circle, and so is the affine."""
    images = _slices(_hu())
    for ds in images:
        ds.PatientPosition, ds.ImageOrientationPatient = "HFP", [-1, 0, 0, 0, -1, 0]
    array, affine = read_ct(_save(images, tmp_path / "a"))
    np.testing.assert_allclose(array, _hu(), atol=1)
    np.testing.assert_allclose(affine @ [1, 2, 3, 1], [33, 46, 115, 1], atol=0.01)


def _missing(images: Slices) -> None:
    del images[7]


def _jitter(images: Slices) -> None:
    images[5].ImagePositionPatient[2] += 1.5


def _variable(images: Slices) -> None:
    for k, ds in enumerate(images[6:]):
        ds.ImagePositionPatient[2] += 5.0 * k


@pytest.mark.parametrize("spoil", [_missing, _jitter, _variable])
def test_slices_that_are_not_even_are_named_with_their_place(spoil: Callable[[Slices], None], tmp_path: Path) -> None:
    """A gap, a slice out of line or two spacings would deform the patient: refused, with the place."""
    images = _slices(_hu())
    spoil(images)
    with pytest.raises(UserError, match=r"evenly spaced.*z = 1[0-9.]+ mm"):
        read_ct(_save(images, tmp_path / "a"))


def test_two_phases_at_one_place_are_refused(tmp_path: Path) -> None:
    """Of two different images at one position neither is dropped silently."""
    images = [*_slices(_hu()), *_slices(_hu() + 5)]
    (series,) = find_dicom_series(_save(images, tmp_path))
    assert series.rejection == "12 positions hold two different images (several phases?)"


def test_one_slice_and_two_series_are_named(tmp_path: Path) -> None:
    """A single slice is no CT; of two series in one folder each is a case."""
    (series,) = find_dicom_series(_save(_slices(_hu())[:1], tmp_path / "one"))
    assert series.rejection == "a single slice"
    _save([*_slices(_hu()), *_slices(_hu(), series="1.2.9")], tmp_path / "two")
    assert len(find_sources(tmp_path / "two")) == 2
    with pytest.raises(UserError, match="got 2 CT series"):
        read_ct(tmp_path / "two")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
def test_other_formats_read_as_the_nifti_of_the_same_ct(suffix: str, tmp_path: Path) -> None:
    """Values and places agree, and so does the prepared CT."""
    hu = trunk_hu().astype(np.int16)
    save_nifti(hu, trunk_affine(), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"b{suffix}"))
    array, affine = read_ct(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(array, hu)
    np.testing.assert_allclose(affine, trunk_affine(), atol=1e-3)


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
    assert case.notes == ("360 voxels (0.1%) were NaN and are taken for air",)


def test_a_nifti_that_does_not_say_where_the_patient_is_is_refused(tmp_path: Path) -> None:
    """Without qform and sform left and right are a guess."""
    nib.save(nib.Nifti1Image(trunk_hu().astype(np.int16), None), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="by qform or sform"):
        read_ct(tmp_path / "a.nii.gz")


def test_hidden_files_are_no_cases(tmp_path: Path) -> None:
    """What systems leave behind is passed over."""
    for name in ("a.nii.gz", "._a.nii.gz", ".hidden/b.nii.gz", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.case for source in find_sources(tmp_path)] == ["a"]


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
