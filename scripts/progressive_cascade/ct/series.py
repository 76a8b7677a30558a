# SPDX-License-Identifier: Apache-2.0
"""DICOM series as CT volumes: finding them in a folder tree, and reading one with its affine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.ct.frames import padding_in_hu, read_frame_planes, read_frames
from progressive_cascade.ct.planes import Plane, fill_missing, find_missing, padding_to_nan, select_planes, stack_affine
from progressive_cascade.ct.scan import Scan
from progressive_cascade.errors import UserError
from progressive_cascade.io import check_array, smallest_array
from progressive_cascade.io.dicom_layout import NestedError, read_layout
from progressive_cascade.io.limits import check_shape
from progressive_cascade.io.pixel_streams import check_stored_pixels

# Files beside DICOM that need no look inside.
_OTHER_FILES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".json", ".csv", ".txt")
# Enhanced CT Image Storage, and what an archive made of single slices: Legacy Converted Enhanced CT Image Storage.
_MULTI_FRAME = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")


@dataclass(frozen=True)
class DicomSeries:
    """The images of one DICOM series that make up a volume.

    Args:
        planes: the images, from the first slice to the last.
        folder: where they are stored.
        uid: SeriesInstanceUID.
        patient: PatientID.
        rejection: why this is no CT volume, or None where it may be one.
        notes: which of its images were left out.
    """

    planes: tuple[Plane, ...]
    folder: str
    uid: str
    patient: str
    rejection: str | None
    notes: tuple[str, ...] = ()


def find_dicom_series(folder: str | os.PathLike[str]) -> list[DicomSeries]:
    """Finds every DICOM series below a folder; other files, and hidden ones, are passed over.

    Args:
        folder: root of the tree.

    Returns:
        The series, in the order of their folders and UIDs.

    Raises:
        ImportError: where SimpleITK is not installed.
    """
    reader = simpleitk().ImageSeriesReader
    found = []
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if all(name.startswith(".") or name.lower().endswith(_OTHER_FILES) for name in names):
            continue
        problem = _find_problem(Path(directory), names)
        uids = () if isinstance(problem, NestedError) else sorted(reader.GetGDCMSeriesIDs(directory))
        if problem is not None and not uids:
            found.append(DicomSeries((), directory, "", "", str(problem)))
        for uid in uids:
            files = reader.GetGDCMSeriesFileNames(directory, uid)
            shown = [file for file in files if not Path(file).name.startswith(".")]
            if shown:
                found.append(_describe_series(shown, directory, uid))
    return found


def read_dicom_series(series: DicomSeries) -> Scan:
    """Reads a DICOM series in HU, slices first to last.

    One slice that is missing between two is their mean; what the files declare as padding is NaN.

    Args:
        series: what :func:`find_dicom_series` found.

    Returns:
        The scan (column, row, slice).

    Raises:
        UserError: where the series was rejected, slices are missing or out of line, or a file is damaged.
    """
    name = f"DICOM series {series.uid}"
    if series.rejection:
        raise UserError(f"{name} must be a CT volume, got: {series.rejection}")
    missing = find_missing(series.planes, name)
    hu = _read_planes(series.planes, name)
    check_array(hu, name)
    hu, notes = padding_to_nan(hu, series.planes)
    places = ", ".join(f"{(series.planes[k].origin[2] + series.planes[k + 1].origin[2]) / 2:.1f}" for k in missing)
    if missing:
        notes.append(f"{len(missing)} missing slices filled in from their neighbours, at z = {places} mm")
    affine = stack_affine(series.planes)
    affine[:3, 2] *= (len(series.planes) - 1) / (len(series.planes) - 1 + len(missing))
    return Scan(fill_missing(hu, missing), affine, (*series.notes, *notes))


def simpleitk() -> Any:
    """SimpleITK, without its warnings.

    Raises:
        ImportError: where it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError("reading DICOM, MetaImage and NRRD needs SimpleITK: pip install SimpleITK") from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _find_problem(folder: Path, names: Sequence[str]) -> UserError | None:
    """What is wrong with the first file of a folder that cannot be DICOM; what SimpleITK must not see comes first."""
    problem = None
    for name in names:
        try:
            read_layout(folder / name, f"a file of {folder}")
        except NestedError as error:
            return error
        except UserError as error:  # SimpleITK passes over it
            problem = problem or error
        except OSError:  # a link to nowhere
            continue
    return problem


def _describe_series(files: Sequence[str], folder: str, uid: str) -> DicomSeries:
    """Reads the headers: whose series it is, which images make up a volume, and whether it can be a CT's."""
    try:
        headers = [(file, _header(file)) for file in files]
    except (RuntimeError, UserError):
        return DicomSeries((), folder, uid, "", "a header cannot be read")
    modality, patient = _tag(headers[0][1], "0008|0060"), _tag(headers[0][1], "0010|0020")
    if modality != "CT":
        return DicomSeries((), folder, uid, patient, f"modality {modality or 'unknown'}")
    try:
        planes = [plane for file, header in headers for plane in _planes(file, header)]
        kept, notes, rejection = select_planes(planes, _same_pixels)
        for file in [] if rejection else sorted({plane.file for plane in kept}):
            check_stored_pixels(Path(file), file)
    except (UserError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[-1]
        for file in files:  # its name may be a patient's
            line = line.replace(file, f"a file of {folder}")
        return DicomSeries((), folder, uid, patient, line)
    return DicomSeries(tuple(kept), folder, uid, patient, rejection, tuple(notes))


def _planes(file: str, header: Any) -> list[Plane]:
    columns, rows, *depth = header.GetSize()
    if (depth and depth[0] > 1) or _tag(header, "0008|0016") in _MULTI_FRAME:
        return read_frame_planes(file)
    rescale = (float(_tag(header, "0028|1053") or 1), float(_tag(header, "0028|1052") or 0))
    padding = padding_in_hu(
        _tag(header, "0028|0120"),
        _tag(header, "0028|0121"),
        signed=_tag(header, "0028|0103") == "1",
        bits=int(_tag(header, "0028|0100") or 16),
        rescale=rescale,
    )
    return [
        Plane(
            file=file,
            frame=None,
            shape=(columns, rows),
            origin=header.GetOrigin(),
            direction=header.GetDirection(),
            spacing=header.GetSpacing()[:2],
            kind=_tag(header, "0008|0008"),
            padding=padding,
            rescale=rescale,
        )
    ]


def _read_planes(planes: Sequence[Plane], name: str) -> np.ndarray:
    """The pixels of planes (column, row, slice) [HU]."""
    sitk = simpleitk()
    check_shape((*planes[0].shape, len(planes)), name)
    try:
        if planes[0].frame is not None:
            return smallest_array(_whole(read_frames(planes)))
        files = [plane.file for plane in planes]
        image = sitk.ReadImage(files if len(files) > 1 else files[0])
    except (RuntimeError, OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{name} must be readable, got: {reason}") from error
    return smallest_array(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def _whole(hu: np.ndarray) -> np.ndarray:
    """Whole numbers as such, so that they need half the memory."""
    whole = hu.astype(np.int32)
    return whole if (whole == hu).all() else hu


def _same_pixels(plane: Plane, other: Plane) -> bool:
    return np.array_equal(_read_planes([plane], plane.file), _read_planes([other], other.file))


def _header(file: str) -> Any:
    read_layout(Path(file), file)
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _tag(header: Any, key: str) -> str:
    return header.GetMetaData(key).strip() if header.HasMetaDataKey(key) else ""
