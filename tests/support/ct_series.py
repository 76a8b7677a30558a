# SPDX-License-Identifier: Apache-2.0
"""DICOM CT series as scanners write them, for the tests to spoil."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

SHAPE = (60, 50, 24)
"""Columns, rows and slices of a test series: 6 mm wide pixels, slices 5 mm apart."""
Slices = list[Any]


def ct_slices(hu: np.ndarray, *, series: str = "1.2.3", tilt: float = 0.0) -> Slices:
    """The images of an axial series, feet to head, as data sets of DICOM; the gantry leans by `tilt` degrees."""
    images = []
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    for k in range(hu.shape[2]):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, "1.2", "1.4"
        ds.Modality, ds.PatientID, ds.ImageType = "CT", "P1", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns, ds.PixelSpacing, ds.SliceThickness = hu.shape[1], hu.shape[0], [6.0, 6.0], 5.0
        ds.ImageOrientationPatient = [1, 0, 0, 0, cosine, sine]
        ds.ImagePositionPatient = [-30.0, -40.0, 100.0 + 5.0 * k]
        ds.InstanceNumber = k + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        fill(ds, hu[:, :, k])
        images.append(ds)
    return images


def fill(ds: Any, hu: np.ndarray) -> None:
    """Stores a slice (column, row) in the units that its slope and intercept say."""
    stored = (hu.T - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
    ds.PixelData = np.rint(stored).clip(0).astype(np.uint16).tobytes()


def enhanced(images: Slices) -> Any:
    """The images as frames of one enhanced CT, in the order given."""
    ds = deepcopy(images[0])
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del ds[name]
    for name in ("RescaleSlope", "RescaleIntercept"):
        del ds[name]
    ds.SOPClassUID, ds.NumberOfFrames = pydicom.uid.EnhancedCTImageStorage, len(images)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.PixelData = b"".join(image.PixelData for image in images)
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [_item(images[0], "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_item(images[0], "ImageOrientationPatient")]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for image in images:
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = [_item(image, "ImagePositionPatient")]
        frame.PixelValueTransformationSequence = [_item(image, "RescaleSlope", "RescaleIntercept")]
        kind = pydicom.Dataset()
        kind.FrameType = image.ImageType
        frame.CTImageFrameTypeSequence = [kind]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return ds


def save_series(images: Slices, folder: Path) -> Path:
    """Writes data sets as files of a folder, in their order, and gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(images):
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        ds.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
    return folder


def _item(image: Any, *names: str) -> Any:
    item = pydicom.Dataset()
    for name in names:
        item[name] = image[name]
    return item
