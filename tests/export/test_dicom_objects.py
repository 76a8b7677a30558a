# SPDX-License-Identifier: Apache-2.0
"""Laws of multi-frame CT and of sigma as DICOM: readers nobody here wrote give values and place back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.export.dicom import write_dicom_series
from progressive_cascade.export.dicom_objects import write_dicom_multiframe, write_dicom_sigma
from progressive_cascade.io import save_nifti
from tests.export.test_dicom import AFFINE, _hu, _radiograph, _to_ras
from tests.support.itk_readers import load_itk

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytestmark = pytest.mark.filterwarnings("ignore:The string:UserWarning")
SIGMA = np.abs(_hu()).astype(np.float32)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _multiframe(path: Path, **options: Any) -> None:
    write_dicom_multiframe(_hu(), AFFINE, path, **options)


def _sigma(path: Path, **options: Any) -> None:
    write_dicom_sigma(SIGMA, _hu(), AFFINE, path, **options)


WRITERS = {"multi-frame": (_multiframe, _hu()), "sigma": (_sigma, SIGMA)}


def _pair(folder: Path) -> list[Path]:
    return [_radiograph(folder / "pa.dcm"), _radiograph(folder / "lateral.dcm")]


@pytest.mark.parametrize("keep", [False, True, None])
@pytest.mark.parametrize("name", WRITERS)
def test_dciodvfy_finds_no_error(name: str, keep: bool | None, tmp_path: Path) -> None:
    """The validator of dicom3tools knows both IODs, of DICOM radiographs and (None) of others."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    sources = [] if keep is None else _pair(tmp_path)
    WRITERS[name][0](tmp_path / "one.dcm", sources=sources, keep_identity=bool(keep))
    done = subprocess.run(["dciodvfy", tmp_path / "one.dcm"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert {"multi-frame": "EnhancedCTImage", "sigma": "ParametricMap"}[name] in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("name", WRITERS)
def test_dcm2niix_gives_the_nifti_back(name: str, tmp_path: Path) -> None:
    """Within 0.5 HU, with the same affine."""
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    write, expected = WRITERS[name]
    write(tmp_path / "one.dcm")
    done = subprocess.run(
        ["dcm2niix", "-f", "out", "-o", tmp_path, tmp_path / "one.dcm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.glob("out*.nii")
    image = nib.load(path)
    array, affine = _to_ras(np.asarray(image.dataobj), image.affine)  # type: ignore[attr-defined]
    np.testing.assert_allclose(array, expected, atol=0.5)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-3)


def _simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image).T, _affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())


def _itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    itk = load_itk()
    image = itk.imread(str(path))
    turn = itk.array_from_matrix(image.GetDirection())
    return itk.array_from_image(image).T, _affine(turn, image.GetSpacing(), image.GetOrigin())


def _affine(direction: Any, spacing: Any, origin: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(np.asarray(direction), (3, 3)) * np.asarray(list(spacing))
    affine[:3, 3] = list(origin)
    return LPS @ affine


@pytest.mark.parametrize("read", [_simpleitk, _itk])
def test_itks_readers_give_the_volume_back(
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    """SimpleITK and itk read the multi-frame file: every voxel in HU where it was."""
    _multiframe(tmp_path / "one.dcm")
    array, affine = _to_ras(*read(tmp_path / "one.dcm"))
    np.testing.assert_array_equal(array, _hu())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-3)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("read", [_simpleitk, _itk])
def test_itks_readers_see_a_nifti_where_it_is(
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]], turned: bool, tmp_path: Path
) -> None:
    """Every voxel of a volume as it is written, RAS or stored the other way round, in the patient's world."""
    hu, affine = _hu(), AFFINE
    if turned:
        last = np.diag([-1.0, -1.0, 1.0, 1.0])
        last[:2, 3] = np.array(hu.shape[:2]) - 1
        hu, affine = np.ascontiguousarray(hu[::-1, ::-1]), affine @ last
    save_nifti(hu, affine, tmp_path / "ct.nii.gz")
    array, place = read(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(array, hu)
    np.testing.assert_allclose(place, affine, atol=1e-3)


def test_dcmtk_and_pydicom_read_what_they_are(tmp_path: Path) -> None:
    """For research, in HU, in the study and frame of reference of the series, with both radiographs as sources."""
    pair = _pair(tmp_path)
    first, *_ = write_dicom_series(_hu(), AFFINE, tmp_path / "ct", sources=pair)
    series = pydicom.dcmread(first)
    images = {pydicom.dcmread(path).SOPInstanceUID for path in pair}
    for name, (write, _) in WRITERS.items():
        path = tmp_path / f"{name}.dcm"
        write(path, sources=pair)
        ds = pydicom.dcmread(path)
        assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == (series.StudyInstanceUID, series.FrameOfReferenceUID)
        assert ds.SeriesInstanceUID != series.SeriesInstanceUID
        assert "RESEARCH ONLY" in ds.SeriesDescription
        assert ds.NumberOfFrames == _hu().shape[2]
    evidence = pydicom.dcmread(tmp_path / "multi-frame.dcm").SourceImageEvidenceSequence
    assert {
        one.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in evidence
    } == images
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is not installed")
    text = subprocess.run(["dcmdump", tmp_path / "sigma.dcm"], capture_output=True, text=True, check=True).stdout
    assert "ParametricMapStorage" in text and "[hnsf'U]" in text


@pytest.mark.parametrize("name", WRITERS)
def test_they_name_nobody_unless_asked_and_are_the_same_for_the_same_input(name: str, tmp_path: Path) -> None:
    """No byte holds the patient, the accession or the study's UID; two runs give one file."""
    write, pair = WRITERS[name][0], _pair(tmp_path)
    for copy in ("one.dcm", "two.dcm"):
        write(tmp_path / copy, sources=pair)
    content = (tmp_path / "one.dcm").read_bytes()
    assert content == (tmp_path / "two.dcm").read_bytes()
    assert [secret for secret in (b"SECRET-1", b"Doe", b"A77", b"1.2.3.4\0") if secret in content] == []
    write(tmp_path / "kept.dcm", sources=pair, keep_identity=True)
    ds = pydicom.dcmread(tmp_path / "kept.dcm")
    assert (ds.PatientID, str(ds.PatientName), ds.StudyInstanceUID) == ("SECRET-1", "Doe^Jane", "1.2.3.4")
    with pytest.raises(UserError, match="none of these is"):
        write(tmp_path / "nobody.dcm", keep_identity=True)
    assert not (tmp_path / "nobody.dcm").exists()
