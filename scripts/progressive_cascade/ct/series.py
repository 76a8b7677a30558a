# SPDX-License-Identifier: Apache-2.0
"""DICOM series as CT volumes: finding them in a folder tree, and reading one with its affine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, check_array, read_nifti, smallest_array


@dataclass(frozen=True)
class DicomSeries:
    """The files of one DICOM series, in the order of their positions.

    Args:
        files: paths, from the first slice to the last.
        uid: SeriesInstanceUID.
        patient: PatientID.
        rejection: why this is no CT volume, or None where it may be one.
    """

    files: tuple[str, ...]
    uid: str
    patient: str
    rejection: str | None


def find_dicom_series(folder: str | os.PathLike[str]) -> list[DicomSeries]:
    """Finds every DICOM series below a folder; other files are passed over.

    Args:
        folder: root of the tree.

    Returns:
        The series, in the order of their folders and UIDs.

    Raises:
        ImportError: where SimpleITK is not installed.
    """
    reader = _simpleitk().ImageSeriesReader
    found = []
    for directory, folders, names in os.walk(folder):
        folders.sort()
        if all(name.endswith((*NIFTI_SUFFIXES, ".json", ".csv", ".txt")) for name in names):
            continue
        for uid in sorted(reader.GetGDCMSeriesIDs(directory)):
            found.append(_describe_series(reader.GetGDCMSeriesFileNames(directory, uid), uid))
    return found


def read_dicom_series(series: DicomSeries) -> tuple[np.ndarray, np.ndarray]:
    """Reads a DICOM series in HU.

    The slice axis is taken from the positions of the first and last slice, so that a tilted gantry's shear is kept.

    Args:
        series: what :func:`find_dicom_series` found.

    Returns:
        Array (column, row, slice) of int16 or float32 [HU] and the 4x4 affine to RAS mm.

    Raises:
        UserError: where the series was rejected, its slices are missing or doubled, or a file is damaged.
    """
    sitk = _simpleitk()
    if series.rejection:
        raise UserError(f"DICOM series {series.uid} must be a CT volume, got: {series.rejection}")
    try:
        files = list(series.files)
        image = sitk.ReadImage(files if len(files) > 1 else files[0])
        positions = np.array([_position(file) for file in series.files])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"DICOM series {series.uid} must be readable, got: {reason}") from error
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    if len(positions) > 1:
        _check_gaps(positions, series.uid)
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    array = smallest_array(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    check_array(array, f"DICOM series {series.uid}")
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_ct(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a CT from a NIfTI file or from a folder that holds one DICOM series of a CT.

    Returns:
        Array of int16 or float32 [HU] and the 4x4 affine to RAS mm.

    Raises:
        FileNotFoundError: where there is no such file or folder.
        UserError: where it is damaged, or the folder holds no CT series or several.
    """
    if not Path(path).is_dir():
        return read_nifti(path)
    usable = [series for series in find_dicom_series(path) if not series.rejection]
    if len(usable) != 1:
        raise UserError(f"{path} must be a NIfTI file or a folder of one CT series, got {len(usable)} CT series")
    return read_dicom_series(usable[0])


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError("reading DICOM needs SimpleITK: pip install SimpleITK") from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _header(file: str) -> Any:
    reader = _simpleitk().ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _tag(header: Any, key: str) -> str:
    return header.GetMetaData(key).strip() if header.HasMetaDataKey(key) else ""


def _position(file: str) -> tuple[float, ...]:
    return _header(file).GetOrigin()


def _describe_series(files: tuple[str, ...], uid: str) -> DicomSeries:
    """Reads the first header: whose series it is, and whether it can be a CT volume."""
    try:
        header = _header(files[0])
    except RuntimeError:
        return DicomSeries(tuple(files), uid, "", "its header cannot be read")
    modality, kind = _tag(header, "0008|0060"), _tag(header, "0008|0008").upper()
    rejection = None
    if modality != "CT":
        rejection = f"modality {modality or 'unknown'}"
    elif "LOCALIZER" in kind or "SCOUT" in kind:
        rejection = "a localizer"
    elif len(files) == 1 and header.GetSize()[2] < 2:
        rejection = "a single slice"
    return DicomSeries(tuple(files), uid, _tag(header, "0010|0020"), rejection)


def _check_gaps(positions: np.ndarray, uid: str) -> None:
    """Refuses a series in which slices are missing, doubled, or of several phases."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(gaps))
    if gaps.min() < 0.5 * usual or gaps.max() > 1.5 * usual or usual == 0:
        raise UserError(
            f"DICOM series {uid} must have evenly spaced slices, got gaps of {gaps.min():.2f} to {gaps.max():.2f} mm"
        )
