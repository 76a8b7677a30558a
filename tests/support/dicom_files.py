# SPDX-License-Identifier: Apache-2.0
"""DICOM radiographs made for the tests: a wall stand, a cassette, a C-arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pydicom = pytest.importorskip("pydicom")

STAND = {"source_to_isocenter": 1650.0}
LENGTH = "DistanceSourceToDetector"
SPACING = "ImagerPixelSpacing"


def _dataset(modality: str, **attributes: Any) -> Any:
    dataset = pydicom.Dataset()
    classes = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
    dataset.SOPClassUID = classes.get(modality, "1.2.840.10008.5.1.4.1.1.12.1")
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality = modality
    dataset.Rows, dataset.Columns = 3072, 2560
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def dx(**attributes: Any) -> Any:
    """A PA on a wall stand."""
    usual = {
        LENGTH: "1800",
        SPACING: ["0.14", "0.15"],
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "PositionerType": "COLUMN",
        "PatientID": "one",
    }
    return _dataset("DX", **{**usual, **attributes})


def xa(**attributes: Any) -> Any:
    """A C-arm."""
    usual = {
        LENGTH: "1020",
        "DistanceSourceToPatient": "700",
        SPACING: ["0.2", "0.2"],
        "PositionerPrimaryAngle": "0",
        "PositionerSecondaryAngle": "0",
    }
    return _dataset("XA", **{**usual, **attributes})


def cr(**attributes: Any) -> Any:
    """A cassette."""
    usual = {LENGTH: "1800", SPACING: ["0.2", "0.2"], "ViewPosition": "PA"}
    return _dataset("CR", **{**usual, **attributes})


def code(value: str, meaning: str) -> Any:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return pydicom.Sequence([item])


def save(dataset: Any, path: Path) -> Path:
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path
