# SPDX-License-Identifier: Apache-2.0
"""Which CTs an archive holds, what they are called, and whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from progressive_cascade.ct.files import ct_stem, is_ct_file
from progressive_cascade.ct.series import DicomSeries, find_dicom_series
from progressive_cascade.errors import UserError


@dataclass(frozen=True)
class Source:
    """One input of an archive: a file or a DICOM series, with the names it will go by.

    Args:
        case: its name.
        patient: whose it is.
        location: where it lies.
        series: what is known of it, if it is DICOM.
        listed: where it lies, as a manifest may say; default: ``location``.
    """

    case: str
    patient: str
    location: str
    series: DicomSeries | None = None
    listed: str = ""

    def said(self, text: str) -> str:
        """A message about it, with its place as a manifest may say it."""
        for path in (*((plane.file for plane in self.series.planes) if self.series is not None else ()), self.location):
            text = text.replace(str(path), self.listed or self.location)
        return text


def find_sources(source: str | os.PathLike[str], *, patient_pattern: str | None = None) -> list[Source]:
    """Lists the CTs of an archive, with names that are safe for files and unique.

    A file goes by its file name, and so does its patient. Where file names repeat in different folders, the path
    below `source` names the case and its folder the patient.

    Args:
        source: a CT file, a folder tree of them, or a folder tree of DICOM series.
        patient_pattern: see :func:`prepare_dataset`.

    Returns:
        The inputs: volume files by path, then DICOM series.

    Raises:
        FileNotFoundError: where `source` does not exist.
        UserError: where it holds neither volume files nor DICOM series, or the pattern is no regular expression.
    """
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"input must be an existing file or folder, got {root}")
    if root.is_file():
        return [_file_source(root, Path(root.name), patient_pattern, by_folder=False)]
    paths = sorted(path for path in root.rglob("*") if is_ct_file(path) and not _is_hidden(path.relative_to(root)))
    repeats = len({ct_stem(path) for path in paths}) < len(paths)
    sources = [_file_source(path, path.relative_to(root), patient_pattern, by_folder=repeats) for path in paths]
    sources += [_dicom_source(series) for series in _dicom_series(root, required=not sources)]
    if not sources:
        raise UserError(f"{root} must hold CT files (NIfTI, MHA, NRRD) or DICOM series, got neither")
    return _with_unique_names(sources)


def _is_hidden(below: Path) -> bool:
    """Whether a file, or a folder it lies in, is hidden: what systems leave behind (`._ct.nii`) is no case."""
    return any(part.startswith(".") for part in below.parts)


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    unique: dict[str, Source] = {}
    for item in sources:
        name, number = item.case, 1
        while name in unique:
            number += 1
            name = f"{item.case}_{number}"
        unique[name] = replace(item, case=name)
    return list(unique.values())


def safe_name(name: str) -> str:
    """The name with what no file system minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "unnamed"


def _file_source(path: Path, below: Path, pattern: str | None, *, by_folder: bool) -> Source:
    stem = ct_stem(path)
    nested = by_folder and len(below.parts) > 1
    case = safe_name("_".join([*below.parts[:-1], stem]) if nested else stem)
    patient = "_".join(below.parts[:-1]) if nested else stem
    if pattern is not None:
        try:
            match = re.search(pattern, below.as_posix())
        except re.error as error:
            raise UserError(f"patient pattern must be a regular expression, got {pattern!r}: {error}") from error
        patient = ((match.group(1) if match.re.groups else match.group()) if match else "") or patient
    return Source(case, safe_name(patient), str(path))


def _dicom_series(root: Path, *, required: bool) -> list[DicomSeries]:
    """DICOM below `root`; a folder of files can do without SimpleITK."""
    try:
        return find_dicom_series(root)
    except ImportError:
        if required:
            raise
        return []


def _dicom_source(series: DicomSeries) -> Source:
    patient = safe_name(series.patient or series.uid)
    # The end of the UID tells a patient's series apart, and stays the same when the archive grows.
    return Source(f"{patient}_{series.uid[-8:].replace('.', '')}", patient, series.folder, series)
