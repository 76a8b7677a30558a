# SPDX-License-Identifier: Apache-2.0
"""Laws of the DICOM series: other people's readers give the volume back, and it names nobody unasked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.ct import read_ct
from progressive_cascade.errors import UserError
from progressive_cascade.export.dicom import write_dicom_series
from progressive_cascade.geometry import volume_affine
from tests.support.dicom_files import dx

pydicom = pytest.importorskip("pydicom")

SHAPE = (24, 20, 12)
AFFINE = volume_affine(SHAPE, 1.4, (40.0, -130.0, 700.5))


def _hu() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)


def _radiograph(path: Path, patient: str = "SECRET-1") -> Path:
    ds = dx(PatientID=patient, PatientName="Doe^Jane", AccessionNumber="A77", StudyInstanceUID="1.2.3.4")
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def _to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    return np.asarray(image.dataobj), image.affine


def test_simpleitk_reads_the_volume_and_its_place(tmp_path: Path) -> None:
    """Every voxel in HU where it was, by the reader that `prepare` uses."""
    write_dicom_series(_hu(), AFFINE, tmp_path / "ct")
    array, affine = _to_ras(*read_ct(tmp_path / "ct"))
    np.testing.assert_array_equal(array, _hu())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


def test_dcm2niix_gives_the_nifti_back(tmp_path: Path) -> None:
    """Within 0.5 HU, with the same affine."""
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    write_dicom_series(_hu(), AFFINE, tmp_path / "ct")
    done = subprocess.run(
        ["dcm2niix", "-f", "out", "-o", tmp_path, tmp_path / "ct"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.glob("out*.nii")
    image = nib.load(path)
    array, affine = _to_ras(np.asarray(image.dataobj), image.affine)  # type: ignore[attr-defined]
    np.testing.assert_allclose(array, _hu(), atol=0.5)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-3)


@pytest.mark.parametrize("keep", [False, True])
def test_dciodvfy_finds_no_error(keep: bool, tmp_path: Path) -> None:
    """The validator of dicom3tools knows the CT Image IOD."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    source = _radiograph(tmp_path / "pa.dcm")
    first, *_ = write_dicom_series(_hu(), AFFINE, tmp_path / "ct", sources=[source], keep_identity=keep)
    done = subprocess.run(["dciodvfy", first], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert "CTImage" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_dcmtk_reads_what_the_series_is(tmp_path: Path) -> None:
    """Derived, for research, in HU, with its source."""
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is not installed")
    first, *_ = write_dicom_series(_hu(), AFFINE, tmp_path / "ct", sources=[_radiograph(tmp_path / "pa.dcm")])
    text = subprocess.run(["dcmdump", first], capture_output=True, text=True, check=True).stdout
    for part in ("DERIVED\\SECONDARY\\AXIAL", "RESEARCH ONLY", "[HU]", "Source image for image processing operation"):
        assert part in text


def test_a_series_names_nobody_unless_asked(tmp_path: Path) -> None:
    """No byte of any file holds the patient or the accession; with keep_identity it stands in the patient's study."""
    source = _radiograph(tmp_path / "pa.dcm")
    plain = write_dicom_series(_hu(), AFFINE, tmp_path / "plain", sources=[source])
    for secret in (b"SECRET-1", b"Doe", b"A77", b"1.2.3.4\0"):
        assert not any(secret in path.read_bytes() for path in plain), secret
    kept, *_ = write_dicom_series(_hu(), AFFINE, tmp_path / "kept", sources=[source], keep_identity=True)
    ds = pydicom.dcmread(kept)
    assert (ds.PatientID, ds.PatientName, ds.AccessionNumber) == ("SECRET-1", "Doe^Jane", "A77")
    assert ds.StudyInstanceUID == "1.2.3.4"


def test_identity_must_be_one_and_there(tmp_path: Path) -> None:
    """Nobody's and two people's radiographs are refused, and nothing is written."""
    pair = [_radiograph(tmp_path / "a.dcm"), _radiograph(tmp_path / "b.dcm", patient="SECRET-2")]
    for sources, message in (([], "none of these is"), (pair, "2 PatientIDs")):
        with pytest.raises(UserError, match=message):
            write_dicom_series(_hu(), AFFINE, tmp_path / "ct", sources=sources, keep_identity=True)
    assert not (tmp_path / "ct").exists()


def test_the_same_inputs_give_the_same_files(tmp_path: Path) -> None:
    """An archive that gets a series twice keeps it once; another CT has other UIDs."""
    one, two = (write_dicom_series(_hu(), AFFINE, tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    other = write_dicom_series(_hu() + np.int16(1), AFFINE, tmp_path / "other")
    uids = {pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID for path in (one[0], other[0])}
    assert len(uids) == 2
