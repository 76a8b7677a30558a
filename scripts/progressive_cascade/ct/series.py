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

OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
"""Volume files that SimpleITK reads."""
CT_SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
"""Volume files a CT may come as."""


# Two slices closer than this are of one place.
_SAME_PLACE_MM = 0.01
# How far a slice may stand from where even spacing would have it, as a fraction of the spacing.
_JITTER = 0.1


@dataclass(frozen=True)
class DicomSeries:
    """The files of one DICOM series, in the order of their positions.

    Args:
        files: paths, from the first slice to the last.
        uid: SeriesInstanceUID.
        patient: PatientID.
        rejection: why this is no CT volume, or None where it may be one.
        notes: which of its images were left out.
    """

    files: tuple[str, ...]
    uid: str
    patient: str
    rejection: str | None
    notes: tuple[str, ...] = ()


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
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if all(name.startswith(".") or name.endswith((*CT_SUFFIXES, ".json", ".csv", ".txt")) for name in names):
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
        return _read_file(Path(path))
    usable = [series for series in find_dicom_series(path) if not series.rejection]
    if len(usable) != 1:
        raise UserError(f"{path} must be a NIfTI file or a folder of one CT series, got {len(usable)} CT series")
    return read_dicom_series(usable[0])


def is_ct_file(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a volume file (NIfTI, MetaImage or NRRD) that exists."""
    return os.fspath(path).lower().endswith(CT_SUFFIXES) and os.path.isfile(path)


def ct_stem(path: str | os.PathLike[str]) -> str:
    """The file's name without the suffix of its format."""
    name = Path(path).name
    suffix = next((suffix for suffix in reversed(CT_SUFFIXES) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a volume file; NaN stays."""
    if not path.is_file():
        raise FileNotFoundError(f"CT must be an existing file or folder, got {path}")
    if not path.name.lower().endswith(OTHER_SUFFIXES):
        return read_nifti(path, allow_nan=True, need_affine=True)
    try:
        image = _simpleitk().ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} must be a readable image, got: {str(error).strip().splitlines()[-1]}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} must have 3 dimensions and one number per voxel, got {image.GetSize()}")
    array = smallest_array(_simpleitk().GetArrayFromImage(image).transpose(2, 1, 0))
    check_array(array, path, allow_nan=True)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


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
    """Reads the headers: whose series it is, which images make up a volume, and whether it can be a CT's."""
    shown = [file for file in files if not Path(file).name.startswith(".")]
    try:
        headers = [(file, _header(file)) for file in shown]
    except RuntimeError:
        return DicomSeries(tuple(files), uid, "", "a header cannot be read")
    if not headers:
        return DicomSeries(tuple(files), uid, "", "hidden files")
    axial = [(file, header) for file, header in headers if not _is_localizer(header)]
    header = (axial or headers)[0][1]
    modality, patient = _tag(header, "0008|0060"), _tag(header, "0010|0020")
    if modality != "CT":
        return DicomSeries(tuple(files), uid, patient, f"modality {modality or 'unknown'}")
    if not axial:
        return DicomSeries(tuple(files), uid, patient, "a localizer")
    alike = _largest_group(axial)
    kept, doubled = _without_copies(alike)
    notes = [f"{len(headers) - len(axial)} localizer images left out"] if len(axial) < len(headers) else []
    notes += (
        [f"{len(axial) - len(alike)} images of another size or direction left out"] if len(alike) < len(axial) else []
    )
    notes += [f"{len(doubled)} slices there twice, used once"] if doubled else []
    rejection = "a single slice" if len(kept) == 1 and header.GetSize()[2] < 2 else None
    different = [file for file, twin in doubled if not _same_pixels(file, twin)]
    if different:
        rejection = f"{len(different)} positions hold two different images (several phases?)"
    return DicomSeries(tuple(kept), uid, patient, rejection, tuple(notes))


def _is_localizer(header: Any) -> bool:
    kind = _tag(header, "0008|0008").upper()
    return "LOCALIZER" in kind or "SCOUT" in kind


def _largest_group(headers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The images that share a size, a pixel spacing and a direction with most others."""
    groups: dict[tuple, list[tuple[str, Any]]] = {}
    for file, header in headers:
        numbers = (*header.GetDirection(), *header.GetSpacing()[:2])
        groups.setdefault((*header.GetSize(), *(round(number, 3) for number in numbers)), []).append((file, header))
    return max(groups.values(), key=len)


def _without_copies(headers: list[tuple[str, Any]]) -> tuple[list[str], list[tuple[str, str]]]:
    """The files in the order of their places along the slices' normal, and those at one place as pairs."""
    normal = np.array(headers[0][1].GetDirection()).reshape(3, 3)[:, 2]
    order = sorted((float(normal @ np.array(header.GetOrigin())), file) for file, header in headers)
    kept, doubled = [order[0]], []
    for place, file in order[1:]:
        if place - kept[-1][0] < _SAME_PLACE_MM:
            doubled.append((file, kept[-1][1]))
        else:
            kept.append((place, file))
    return [file for _, file in kept], doubled


def _same_pixels(file: str, other: str) -> bool:
    sitk = _simpleitk()
    return np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(name)) for name in (file, other)))


def _check_gaps(positions: np.ndarray, uid: str) -> None:
    """Refuses a series in which slices are missing, doubled, or of several phases."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(gaps))
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    off = np.linalg.norm(positions - even, axis=1)
    if usual == 0 or off.max() > _JITTER * usual:
        worst = int(gaps.argmax())
        raise UserError(
            f"DICOM series {uid} must have evenly spaced slices, got gaps of {gaps.min():.2f} to {gaps.max():.2f} mm, "
            f"the largest behind z = {positions[worst][2]:.1f} mm (slices missing?)"
        )
