# SPDX-License-Identifier: Apache-2.0
"""A patient who is named in every way that DICOM knows, to be looked for in what commands write and print."""

from __future__ import annotations

import gzip
import zipfile
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
IN_A_STUDY = {**PLANTED, "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711"}
"""The same, and the study's."""
PERSON = "Zwetschkenbaum_Adalbert_ZB-4711-0815"
"""What his folder and files are called."""


def plant(folder: Path, words: Mapping[str, str] = PLANTED) -> None:
    """Writes the elements into every DICOM file below a folder."""
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword, value in words.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)


def text_of(path: Path) -> str:
    """A file's bytes, unpacked, as text."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return "".join(name + archive.read(name).decode("latin-1") for name in archive.namelist())
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")


def found(folder: Path, said: str) -> list[str]:
    """The planted words that stand in names or bytes below a folder, or in what was printed, each with its place."""
    texts = {"the screen": said}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        texts[f"the name {name}"] = name
        if path.is_file():
            texts[name] = text_of(path)
    texts = {place: text.lower() for place, text in texts.items()}
    words = [PERSON, *(part for value in IN_A_STUDY.values() for part in value.split("^"))]
    return [f"{word} in {place}" for word in words for place, text in texts.items() if word.lower() in text]
