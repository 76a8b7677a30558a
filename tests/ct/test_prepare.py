# SPDX-License-Identifier: Apache-2.0
"""An archive of NIfTI or DICOM becomes a dataset, split by patient."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.ct.files import read_ct
from progressive_cascade.ct.prepare import ManifestRow, prepare_dataset
from progressive_cascade.ct.series import find_dicom_series
from progressive_cascade.ct.sources import find_sources
from progressive_cascade.ct.split import Split
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_json, read_nifti, save_nifti
from tests.support.cube import place_coarsely
from tests.support.trunk import PIXEL, SLICE, trunk_affine, trunk_hu


def _write_dicom(folder: Path, hu: np.ndarray, *, patient: str, modality: str = "CT") -> None:
    """Writes a CT series of axial slices, feet to head, as a scanner would."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    series, study, frame = (generate_uid() for _ in range(3))
    affine = np.diag([-1, -1, 1, 1]) @ trunk_affine(hu.shape)
    for k in range(hu.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = pydicom.Dataset()
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.PatientID, ds.ImageType = modality, patient, ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = hu.shape[1], hu.shape[0]
        # RAS columns run to the right, DICOM's x to the left.
        ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        ds.ImagePositionPatient = [float(v) for v in (affine @ [0, 0, k, 1])[:3]]
        ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [PIXEL, PIXEL], SLICE, hu.shape[2] - k
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (np.rint(hu[:, :, k].T) + 1024).clip(0).astype(np.uint16).tobytes()
        ds.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def test_a_dicom_series_reads_as_the_nifti_of_the_same_ct(tmp_path: Path) -> None:
    """Values and world position agree."""
    pytest.importorskip("SimpleITK")
    hu = trunk_hu((40, 30, 24)).round()
    _write_dicom(tmp_path / "a", hu, patient="P1")
    array, affine = read_ct(tmp_path)
    np.testing.assert_allclose(affine, trunk_affine(hu.shape), atol=1e-4)
    np.testing.assert_array_equal(array, hu.clip(-1024))


def test_dicom_series_that_are_no_ct_are_found_with_a_reason(tmp_path: Path) -> None:
    """Every series of the tree is listed, and each knows its patient."""
    pytest.importorskip("SimpleITK")
    _write_dicom(tmp_path / "x" / "a", trunk_hu((24, 20, 4)), patient="P1")
    _write_dicom(tmp_path / "x" / "b", trunk_hu((24, 20, 4)), patient="P 2", modality="MR")
    found = {series.patient: series.rejection for series in find_dicom_series(tmp_path)}
    assert found == {"P1": None, "P 2": "modality MR"}
    assert [source.patient for source in find_sources(tmp_path)] == ["P1", "P_2"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, one of them with two CTs, and one file that is no image."""
    folder = tmp_path_factory.mktemp("archive")
    hu = trunk_hu((60, 50, 24)).astype(np.int16)
    affine = trunk_affine() @ np.diag([2, 2, 1.5, 1])
    for name in ("p1_a", "p1_b", "p2_a"):
        # Equal voxels would be one patient.
        voxels = hu[:, :, :2] if name == "p1_b" else hu + (name == "p2_a")
        save_nifti(voxels.astype(np.int16), affine, folder / f"{name}.nii.gz")
    (folder / "p3_a.nii.gz").write_bytes(b"broken")
    return folder


def test_an_archive_becomes_a_dataset_with_a_manifest(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good cases are listed by section, bad ones have a reason, and files agree with the datalist."""
    split = Split(training=("p1",), test=("p2",))
    seen: list[str] = []

    def note(row: ManifestRow) -> None:
        seen.append(row.case)
        place_coarsely(monkeypatch)  # the first CT alone shows its 256³ voxels

    prepare_dataset(archive, tmp_path, split=split, patient_pattern=r"p\d", progress=note)
    assert seen == ["p1_a", "p1_b", "p2_a", "p3_a"]
    with (tmp_path / "manifest.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert [rows[case]["split"] for case in seen] == ["training", "", "test", ""]
    assert "100 mm" in rows["p1_b"]["reason"]
    assert "not named" in rows["p3_a"]["reason"]
    item = load_datalist(tmp_path, "training")[0]
    label, affine = read_nifti(item["label"])
    valid, valid_affine = read_nifti(item["valid"])
    assert label.shape == valid.shape == (256, 256, 256)
    np.testing.assert_allclose(affine, valid_affine)
    assert read_json(tmp_path / "datalist.json")["numTraining"] == 1


def test_an_archive_with_nothing_usable_is_one_clear_error(archive: Path, tmp_path: Path) -> None:
    """The manifest still tells why."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p3.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match="usable CT"):
        prepare_dataset(tmp_path / "in", tmp_path / "out")
    assert "readable NIfTI" in (tmp_path / "out" / "manifest.csv").read_text()
    with pytest.raises(UserError, match=r"unknown .*nobody"):
        prepare_dataset(archive, tmp_path / "out", split=Split(test=("nobody",)))


def test_sources_are_missing_empty_or_named_uniquely(archive: Path, tmp_path: Path) -> None:
    """File names that repeat in folders are told apart by the folder, which is then the patient."""
    with pytest.raises(FileNotFoundError, match="absent"):
        find_sources(tmp_path / "absent")
    with pytest.raises(UserError, match="neither"):
        find_sources(tmp_path)
    for name in ("a/ct.nii.gz", "b/ct.nii.gz", "b/ct 2.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {(source.case, source.patient) for source in find_sources(tmp_path)}
    assert found == {("a_ct", "a"), ("b_ct", "b"), ("b_ct_2", "b")}
    with pytest.raises(UserError, match="regular expression"):
        find_sources(archive, patient_pattern="(")


def test_split_is_seeded_disjoint_and_complete() -> None:
    """Same seed, same sections; every patient in one; fractions kept; training never empty."""
    patients = {f"p{i}" for i in range(50)}
    sections = Split(seed=3).assign(patients)
    assert sections == Split(seed=3).assign(patients)
    assert sections != Split(seed=4).assign(patients)
    assert set(sections) == patients
    assert [list(sections.values()).count(s) for s in ("training", "validation", "test")] == [40, 5, 5]
    for number, expected in ((1, ["training"]), (2, ["test", "training"]), (3, ["test", "training", "validation"])):
        assert sorted(Split().assign({f"p{i}" for i in range(number)}).values()) == expected


def test_split_keeps_named_patients_and_refuses_contradictions() -> None:
    """Named sections are not drawn for; a patient named twice or impossible fractions are errors."""
    sections = Split(validation=("p1",), test=("p2",)).assign({f"p{i}" for i in range(9)})
    assert [p for p, s in sections.items() if s != "training"] == ["p1", "p2"]
    assert not Split(training=("p1",)).wants("p2")
    with pytest.raises(UserError, match="p1"):
        Split(training=("p1",), test=("p1",))
    with pytest.raises(UserError, match="fractions"):
        Split(validation_fraction=0.5, test_fraction=0.5)
