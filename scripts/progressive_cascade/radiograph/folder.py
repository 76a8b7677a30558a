# SPDX-License-Identifier: Apache-2.0
"""Pairs of radiographs in a folder: by a CSV, by names, by sub-folders, or by DICOM's study and view."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, nifti_stem
from progressive_cascade.radiograph.dicom import is_dicom
from progressive_cascade.radiograph.dicom_tags import DicomHeader
from progressive_cascade.radiograph.volume_file import ITK_SUFFIXES

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NAME = re.compile(r"(?:(?P<case>.+?)[-_. ])?(?P<view>pa|ap|frontal|lat|lateral|ll|rl)", re.IGNORECASE)
_FRONTAL = ("pa", "ap", "frontal")


@dataclass(frozen=True)
class PairFiles:
    """The files of one patient.

    Attributes:
        case: what the patient is called.
        frontal: None where it is missing.
        lateral: likewise.
        problem: why these files are no pair; empty where they are.
    """

    case: str
    frontal: Path | None
    lateral: Path | None
    problem: str = ""


def find_pairs(folder: Path, table: Path | None = None, *, without: Collection[str] = ()) -> list[PairFiles]:
    """Finds the pairs of a folder.

    Names: ``ID_pa.png`` and ``ID_lat.png`` (pa, ap, frontal; lat, lateral, ll, rl; after ``_``, ``-``, ``.`` or a
    space), or ``pa.*`` and ``lateral.*`` in a folder of their own, whose name is the ID. Other DICOM files are paired
    by StudyInstanceUID and ViewPosition.

    Args:
        folder: searched with its sub-folders.
        table: a CSV with the columns ``case``, ``pa`` and ``lateral``, paths relative to the folder.
        without: names of sub-folders that are passed over.

    Returns:
        One for each case, in the order of their names; incomplete ones too, with what is wrong with them.

    Raises:
        UserError: if there is none, or the table is no such table.
    """
    if not folder.is_dir():
        raise UserError(f"--input must be a folder, got {folder}")
    if table is not None:
        return _from_table(folder, table)
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    problems: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder)):
        if path.relative_to(folder).parts[0] in without:
            continue
        placed = _by_name(folder, path) or _by_tags(path)
        if placed is None:
            continue
        case, kind = placed
        if kind is None:
            problems[case] = f"{path} must say its view (ViewPosition, PatientOrientation), got none"
        elif kind in found[case]:
            problems[case] = f"{path} and {found[case][kind]} must not both be the {kind} of {case}"
        else:
            found[case][kind] = path
    cases = sorted({*found, *problems})
    if not cases:
        raise UserError(f"--input must hold pairs such as ID_pa.png and ID_lat.png, got none in {folder}")
    return [_pair(case, found[case], problems.get(case, "")) for case in cases]


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file, or a folder it lies in, is hidden: what systems leave behind is no radiograph."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _pair(case: str, views: Mapping[str, Path], problem: str) -> PairFiles:
    frontal, lateral = views.get("frontal"), views.get("lateral")
    if not problem and not (frontal and lateral):
        problem = f"{frontal or lateral} must have a {'lateral' if frontal else 'frontal'} beside it, got none"
    return PairFiles(case, frontal, lateral, problem)


def _from_table(folder: Path, table: Path) -> list[PairFiles]:
    try:
        with open(table, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--pairs must be a CSV, got {table}: {error}") from error
    if not rows or not {"case", "pa", "lateral"} <= set(rows[0]):
        raise UserError(f"--pairs must have the columns case, pa, lateral and a row, got {table}")
    short = [
        index for index, row in enumerate(rows, start=2) if not all(row[name] for name in ("case", "pa", "lateral"))
    ]
    if short:
        raise UserError(f"--pairs must name case, pa and lateral in every row, got {table} line {short[0]}")
    names = [row["case"] for row in rows]
    unsafe = [name for name in names if Path(name).name != name or name.startswith(".")]
    if unsafe or len(set(names)) < len(names):
        raise UserError(f"--pairs must name every case once and as a file can be named, got {table}")
    return [PairFiles(row["case"], folder / row["pa"], folder / row["lateral"]) for row in rows]


def _by_name(folder: Path, path: Path) -> tuple[str, str] | None:
    name = path.name.lower()
    suffixes = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *PICTURE_SUFFIXES, ".dcm", ".dicom")
    if not name.endswith(suffixes):
        return None
    stem = nifti_stem(path) if name.endswith(NIFTI_SUFFIXES) else path.stem
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    kind = "frontal" if match["view"].lower() in _FRONTAL else "lateral"
    below = path.parent.relative_to(folder).parts
    parts = [*below, match["case"]] if match["case"] else [*below] or [folder.resolve().name]
    return "_".join(parts), kind


def _by_tags(path: Path) -> tuple[str, str | None] | None:
    """Study and kind of a DICOM file; no kind where it does not say."""
    try:
        if not is_dicom(path):
            return None
        header = DicomHeader(path)
        study, view, letters = (header.text(key) for key in ("StudyInstanceUID", "ViewPosition", "PatientOrientation"))
    except (UserError, OSError):
        return None
    if not study:
        return None
    kind = ("frontal" if view in ("PA", "AP") else "lateral") if view else None
    if kind is None and letters:
        kind = "lateral" if {part[:1] for part in letters.split("\\")} & set("AP") else "frontal"
    # The study's number is no name of a patient.
    return f"study_{study}", kind


def is_complete(paths: Iterable[Path]) -> bool:
    """Whether all files are there: each is written under a temporary name and renamed when it is whole."""
    return all(path.is_file() for path in paths)
