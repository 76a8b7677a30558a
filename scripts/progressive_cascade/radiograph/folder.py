# SPDX-License-Identifier: Apache-2.0
"""Pairs of radiographs in a folder: by a CSV, by names, by sub-folders, or by DICOM's study and view."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, nifti_stem
from progressive_cascade.radiograph.study import find_place, kind_by_picture
from progressive_cascade.radiograph.volume_file import ITK_SUFFIXES

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NAME = re.compile(r"(?:(?P<case>.+?)[-_. ])?(?P<view>pa|ap|frontal|lat|lateral|ll|rl)", re.IGNORECASE)
_FRONTAL = ("pa", "ap", "frontal")
_UNSURE = "which its picture does not tell"


@dataclass(frozen=True)
class PairFiles:
    """The files of one patient.

    Attributes:
        case: what the patient is called.
        frontal: None where it is missing.
        lateral: likewise.
        problem: why these files are no pair; empty where they are.
        study: StudyInstanceUID of a pair that was found by it; never written.
        others: files of the case that have no place in it.
    """

    case: str
    frontal: Path | None
    lateral: Path | None
    problem: str = ""
    study: str = ""
    others: tuple[Path, ...] = ()

    def said(self, text: str, folder: Path) -> str:
        """A message as a file may say it: paths below the folder, and none of files that were found by their study."""
        if self.study:
            views = (("frontal", self.frontal), ("lateral", self.lateral), *(("a file", path) for path in self.others))
            for view, path in views:
                text = text.replace(str(path), f"{view} of {self.case}") if path is not None else text
        return text.replace(f"{folder}{os.sep}", "")


def find_pairs(
    folder: Path,
    table: Path | None = None,
    *,
    without: Collection[str] = (),
    name_study: Callable[[str], str] | None = None,
) -> list[PairFiles]:
    """Finds the pairs of a folder.

    Names: ``ID_pa.png`` and ``ID_lat.png`` (pa, ap, frontal; lat, lateral, ll, rl; after ``_``, ``-``, ``.`` or a
    space), or ``pa.*`` and ``lateral.*`` in a folder of their own, whose name is the ID. Other DICOM radiographs are
    paired by StudyInstanceUID and their tags, and where these leave a view open by their pictures; they go by a hash of
    their UIDs, which tells who does not have the files nothing.

    Args:
        folder: searched with its sub-folders.
        table: a CSV with the columns ``case``, ``pa`` and ``lateral``, paths relative to the folder.
        without: names of sub-folders that are passed over.
        name_study: another way from a StudyInstanceUID to a name.

    Returns:
        One for each case, in the order of their names; incomplete ones too, with what is wrong with them.

    Raises:
        UserError: if there is none, or the table is no such table.
    """
    if not folder.is_dir():
        raise UserError(f"--input must be a folder, got {folder}")
    if table is not None:
        return _from_table(folder, table)
    images: dict[str, list[str]] = defaultdict(list)
    paths = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder)]
    seen = sorted(path for path in paths if path.relative_to(folder).parts[0] not in without)
    cases = _grouped({path: _by_name(folder, path) or _by_tags(path, images) for path in seen})
    if not cases:
        raise UserError(f"--input must hold pairs such as ID_pa.png and ID_lat.png, got none in {folder}")
    name_study = name_study or (lambda study: _hashed(study, images[study]))
    pairs = []
    for group, case in cases.items():
        views = case.views.get("frontal"), case.views.get("lateral")
        name = group.name or name_study(group.study)
        pairs.append(PairFiles(name, *views, case.problem, group.study, tuple(case.others)))
    return sorted(pairs, key=lambda pair: pair.case)


def _grouped(placed: Mapping[Path, _Place | None]) -> dict[_Group, _Case]:
    """Files by case and view. Where tags leave a view open, pictures decide; else what they say nothing of is left."""
    cases: dict[_Group, _Case] = defaultdict(_Case)
    unsaid: dict[_Group, list[Path]] = defaultdict(list)
    for path, place in placed.items():
        if place is None:
            continue
        if place.kind is not None:
            cases[place.group].put(path, place.kind, place.group.name)
        elif place.problem:
            cases[place.group].leave(path, place.problem)
        else:
            unsaid[place.group].append(path)
    for group, paths in unsaid.items():
        case = cases[group]
        is_open = not case.is_complete
        for path in paths:
            kind = kind_by_picture(path) if is_open else None
            if kind is None:
                case.leave(path, f"{path} must say its view (ViewPosition, PatientOrientation), {_UNSURE}")
            else:
                case.put(path, kind, group.name)
    return cases


@dataclass
class _Case:
    """Files of a case as they are found.

    Attributes:
        views: by kind.
        others: files that have no place in it.
        doubled: that a view is there twice; which is meant is not guessed.
        left: why the last of the others was left out.
    """

    views: dict[str, Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    doubled: str = ""
    left: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether both views are there."""
        return len(self.views) == 2

    def put(self, path: Path, kind: str, name: str) -> None:
        """A file that shows a view."""
        first = self.views.setdefault(kind, path)
        if first is not path:
            self.others.append(path)
            self.doubled = f"{path} and {first} must not both be the {kind} of {name or 'a study'}"

    def leave(self, path: Path, reason: str) -> None:
        """A file that shows none."""
        self.others.append(path)
        self.left = reason

    @property
    def problem(self) -> str:
        """Why these files are no pair; empty where they are."""
        if self.doubled or self.is_complete:
            return self.doubled
        if self.left:
            return self.left
        ((kind, path),) = self.views.items()
        return f"{path} must have a {'lateral' if kind == 'frontal' else 'frontal'} beside it, got none"


class _Group(NamedTuple):
    """What files have in common: a name, or a study."""

    name: str
    study: str = ""


class _Place(NamedTuple):
    """The case of a file, its kind where that is known, and why it has none where it cannot have one."""

    group: _Group
    kind: str | None
    problem: str = ""


def _hashed(study: str, images: Iterable[str]) -> str:
    """A case's name out of its UIDs: the images' stand in no list that an archive gives away."""
    return f"case_{hashlib.sha256(' '.join([study, *sorted(images)]).encode()).hexdigest()[:12]}"


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file, or a folder it lies in, is hidden: what systems leave behind is no radiograph."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


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


def _by_name(folder: Path, path: Path) -> _Place | None:
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
    return _Place(_Group("_".join(parts)), kind)


def _by_tags(path: Path, images: Mapping[str, list[str]]) -> _Place | None:
    """Study and kind of a DICOM radiograph. Its image's UID is added to its study's."""
    place = find_place(path)
    if place is None:
        return None
    images[place.study].append(place.image)
    return _Place(_Group("", place.study), place.kind, place.problem)


def is_complete(paths: Iterable[Path]) -> bool:
    """Whether all files are there: each is written under a temporary name and renamed when it is whole."""
    return all(path.is_file() for path in paths)
