# SPDX-License-Identifier: Apache-2.0
"""Any file to a radiograph, with what a sidecar beside it adds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, nifti_stem, read_json
from progressive_cascade.radiograph.dicom import is_dicom, read_dicom
from progressive_cascade.radiograph.picture import read_picture
from progressive_cascade.radiograph.record import MEANINGS, Radiograph, parse_directions
from progressive_cascade.radiograph.volume_file import ITK_SUFFIXES, read_volume_file

SIDECAR_KEYS = (
    "meaning",
    "scale",
    "offset",
    "pixel_spacing",
    "orientation",
    "view",
    "source_to_detector",
    "source_to_isocenter",
)
"""What a JSON file beside a radiograph, of the same name, may say of it; others are passed over."""


def read_radiograph(path: str | os.PathLike[str]) -> Radiograph:
    """Reads a radiograph of any kind, and the sidecar ``NAME.json`` beside ``NAME.png`` (``.dcm``, ``.nii.gz``, ...).

    A sidecar's ``scale`` and ``offset`` bring pixel values to their meaning: ``value = scale pixel + offset``.

    Args:
        path: DICOM, NIfTI, MHA, NRRD, PNG, JPEG, TIFF.

    Returns:
        The radiograph as it is stored.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it is no radiograph; the message names the file and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"radiograph must be an existing file, got {path}")
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES) or path.suffix.lower() in ITK_SUFFIXES:
        radiograph = read_volume_file(path)
    elif is_dicom(path):
        radiograph = read_dicom(path)
    else:
        radiograph = read_picture(path)
    sidecar = path.with_name(f"{nifti_stem(path) if name.endswith(NIFTI_SUFFIXES) else path.stem}.json")
    return _with_sidecar(radiograph, sidecar) if sidecar.is_file() else radiograph


def _with_sidecar(radiograph: Radiograph, path: Path) -> Radiograph:
    values = read_json(path)
    if not isinstance(values, Mapping) or not set(SIDECAR_KEYS) & set(values):
        return radiograph
    changes: dict[str, Any] = {}
    if "meaning" in values:
        if values["meaning"] not in MEANINGS:
            raise UserError(f"{path}: meaning must be one of {', '.join(MEANINGS)}, got {values['meaning']!r}")
        changes["meaning"] = values["meaning"]
    if "pixel_spacing" in values:
        changes["spacing"] = tuple(_numbers(values["pixel_spacing"], 2, "pixel_spacing", path, positive=True))
    if "orientation" in values:
        changes["directions"] = parse_directions(values["orientation"], path)
    if "view" in values:
        changes["view"] = str(values["view"])
    for name in ("source_to_detector", "source_to_isocenter"):
        if name in values:
            changes[name] = _numbers([values[name]], 1, name, path, positive=True)[0]
    scale = _numbers([values.get("scale", 1.0)], 1, "scale", path)[0]
    offset = _numbers([values.get("offset", 0.0)], 1, "offset", path)[0]
    pixels = radiograph.pixels
    if (scale, offset) != (1.0, 0.0):
        pixels = (pixels * np.float32(scale) + np.float32(offset)).astype(np.float32)
    sources = {**radiograph.sources, **dict.fromkeys(changes, "sidecar")}
    return replace(radiograph, pixels=pixels, sources=sources, **changes)


def _numbers(value: Any, count: int, name: str, path: Path, *, positive: bool = False) -> list[float]:
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all() or (positive and min(numbers) <= 0):
        raise UserError(f"{path}: {name} must be {count} {'positive ' if positive else ''}number(s), got {value}")
    return numbers
