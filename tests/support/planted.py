# SPDX-License-Identifier: Apache-2.0
"""A patient who is named in every way that DICOM knows, to be looked for in what commands write and print."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import pydicom

PLANTED = {
    "PatientName": "Zwetschkenbaum^Adalbert",
    "PatientID": "ZB-4711-0815",
    "PatientBirthDate": "19410228",
    "StudyDate": "20070131",
    "AccessionNumber": "ACC778899",
    "InstitutionName": "Hospital Weissnichtwo",
    "ReferringPhysicianName": "Quacksalber^Ottokar",
}
"""Elements that lead to the patient."""


def plant(folder: Path, words: Mapping[str, str] = PLANTED) -> None:
    """Writes the elements into every DICOM file below a folder."""
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword, value in words.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)


def text_of(path: Path) -> str:
    """A file's bytes, unpacked, as text."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")
