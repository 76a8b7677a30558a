# SPDX-License-Identifier: Apache-2.0
"""A pair of 3000 x 3000 pixels, with noise, in the files that take longest to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

SIDE = 3000
"""Rows and columns."""
_NOISE = 200.0
_SYNTAXES = {
    "DICOM, uncompressed": "ExplicitVRLittleEndian",
    "DICOM, RLE": "RLELossless",
    "DICOM, JPEG-LS": "JPEGLSLossless",
    "DICOM, JPEG 2000 lossless": "JPEG2000Lossless",
    "DICOM, JPEG 2000, 8 to 1": "JPEG2000",
}


def write_large(image: np.ndarray, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Writes the pair in one form after the other.

    Args:
        image: line integrals (2, rows, cols), brought to 3000 x 3000.
        folder: an empty folder.

    Yields:
        Name of the form, frontal, lateral.
    """
    from PIL import Image

    random, levels = np.random.default_rng(0), []
    for view in image:
        large: Any = ndimage.zoom(view, SIDE / len(view), order=1)
        low, high = np.percentile(large, [0.5, 99.5])
        grey = 65535 * np.clip((large - low) / (high - low), 0, 1) + random.normal(0, _NOISE, (SIDE, SIDE))
        levels.append(np.clip(grey, 0, 65535).astype(np.uint16))
    eight = [Image.fromarray((view >> 8).astype(np.uint8)) for view in levels]
    pictures = {
        "PNG of 16 bits": (".png", [Image.fromarray(view) for view in levels]),
        "PNG of 8 bits, grey stored as RGB": ("_rgb.png", [view.convert("RGB") for view in eight]),
        "JPEG of 8 bits": (".jpg", eight),
    }
    for name, (suffix, views) in pictures.items():
        paths = [folder / f"{view}{suffix}" for view in ("pa", "lateral")]
        for path, picture in zip(paths, views, strict=True):
            picture.save(path)
        yield name, paths[0], paths[1]
    for name, syntax in _SYNTAXES.items():
        paths = [folder / f"{view}_{syntax}.dcm" for view in ("pa", "lateral")]
        for path, view, position in zip(paths, levels, ("PA", "LL"), strict=True):
            _save(view >> 4, path, position, syntax)
        yield name, paths[0], paths[1]


def _save(pixels: np.ndarray, path: Path, position: str, syntax: str) -> None:
    """A DX of 12 bits FOR PRESENTATION."""
    import pydicom
    import pydicom.dataset
    import pydicom.uid

    dataset: Any = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.1.1")
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality, dataset.ViewPosition, dataset.PresentationIntentType = "DX", position, "FOR PRESENTATION"
    dataset.PatientOrientation = ["L" if position == "PA" else "P", "F"]
    dataset.ImagerPixelSpacing = [f"{430 / SIDE:.5f}"] * 2
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = pixels.tobytes()
    if syntax != "ExplicitVRLittleEndian":
        lossy: dict[str, Any] = {"j2k_cr": [8]} if syntax == "JPEG2000" else {}
        dataset.compress(getattr(pydicom.uid, syntax), **lossy)
    dataset.save_as(path, enforce_file_format=True)
