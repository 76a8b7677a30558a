# SPDX-License-Identifier: Apache-2.0
"""Where a DICOM file belongs: its study, and whether it is a frontal or a lateral by its tags, or else its picture."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from progressive_cascade.errors import UserError
from progressive_cascade.radiograph.dicom import is_dicom, is_radiograph, other_part, read_dicom, read_named_view
from progressive_cascade.radiograph.dicom_tags import DicomHeader
from progressive_cascade.radiograph.record import parse_directions
from progressive_cascade.radiograph.upright import kind_by_tags, kind_of


class Place(NamedTuple):
    """Where a file belongs.

    Attributes:
        study: StudyInstanceUID.
        image: SOPInstanceUID.
        kind: frontal or lateral, None where its tags do not say.
        problem: why it can be neither; empty where it may be one.
    """

    study: str
    image: str
    kind: str | None
    problem: str = ""


def find_place(path: Path) -> Place | None:
    """Study and kind by the tags alone; None of what is no radiograph in DICOM, such as a CT or a dose report."""
    try:
        if not is_dicom(path):
            return None
        header = DicomHeader(path)
        study, image = (header.text(key) for key in ("StudyInstanceUID", "SOPInstanceUID"))
        if not study or not is_radiograph(header):
            return None
        part = other_part(header)
        if part:
            return Place(study, image, None, f"{path} must show a chest, got BodyPartExamined {part}")
    except (UserError, OSError):
        return None
    try:
        return Place(study, image, _kind_by_tags(header))
    except UserError:
        return Place(study, image, None)


def kind_by_picture(path: Path) -> str | None:
    """Frontal or lateral as the picture shows it; None where it is unsure, or there is no picture to read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _kind_seen(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _kind_seen(path: Path, *_state: int) -> str | None:
    """Looked at once for each state of the file: a watch asks every other second."""
    try:
        return kind_of(read_dicom(path))
    except (UserError, OSError):
        return None


def _kind_by_tags(header: DicomHeader) -> str | None:
    letters = header.texts("PatientOrientation")
    directions = parse_directions(list(letters), header.name) if letters else None
    return kind_by_tags(read_named_view(header), directions)
