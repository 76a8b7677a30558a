# SPDX-License-Identifier: Apache-2.0
"""Radiographs in NIfTI, MHA, MHD and NRRD: pixels with an affine, which is honoured however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, check_array, read_nifti
from progressive_cascade.radiograph.record import Radiograph, check_pixels, check_size, nearest_letters

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
# Line integrals of a patient stay well below this; a display intensity of 8 to 16 bits does not.
_LARGEST_LINE_INTEGRAL = 30.0
# Without a patient a radiograph holds noise about 0; 10 mm of water cast 0.2.
_EMPTY_LINE_INTEGRAL = 0.2


def read_volume_file(path: Path) -> Radiograph:
    """Reads a radiograph stored as an image of one slice, (column, row) or (column, row, 1).

    The affine's first two axes say where columns and rows point, if they span a plane of a frontal or lateral view;
    otherwise (an identity, a picture laid on the axial plane) nothing is known of the orientation.

    Args:
        path: the file.

    Returns:
        The radiograph: line integrals where the values can be, else display values.

    Raises:
        UserError: if the file is damaged, in colour, of several slices, or shows no patient.
    """
    array, affine, dimensions = _read(path)
    check_size(path, array.shape[1], array.shape[0])
    pixels = np.ascontiguousarray(array.T, dtype=np.float32)
    is_line_integral = pixels.min() > -1.0 and pixels.max() < _LARGEST_LINE_INTEGRAL
    mask = np.ones(pixels.shape, dtype=bool)
    if pixels.min() == pixels.max():
        raise UserError(f"{path} must show a patient, got the constant value {float(pixels.min()):g}")
    if is_line_integral and float(np.percentile(pixels, 99)) < _EMPTY_LINE_INTEGRAL:
        raise UserError(f"{path} must show a patient, got nothing but values below {_EMPTY_LINE_INTEGRAL:g}")
    meaning = "line_integral" if is_line_integral else "display"
    if meaning == "display":
        check_pixels(path, pixels, mask)
    known, sources = {}, {"meaning": "picture"}
    steps = affine[:3, :2].T
    lengths = np.linalg.norm(steps, axis=1)
    letters = nearest_letters(steps)
    anatomical = dimensions == 3 and sum(letter in "HF" for letter in letters) == 1
    if anatomical:
        known["directions"] = letters
        middle = affine @ np.array([(array.shape[0] - 1) / 2, (array.shape[1] - 1) / 2, 0.0, 1.0])
        known["center"] = (float(middle[0]), float(middle[1]), float(middle[2]))
    if anatomical or not np.allclose(lengths, 1.0):
        known["spacing"] = (float(lengths[1]), float(lengths[0]))
    sources.update(dict.fromkeys(known, "tag"))
    return Radiograph(str(path), pixels, mask, meaning, sources=sources, **known)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Array (column, row), affine to RAS mm, and the file's own dimensions."""
    if path.name.endswith(NIFTI_SUFFIXES):
        array, affine = read_nifti(path, num_dimensions=2)
        return array, affine, 3
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, dimensions = reader.GetSize(), reader.GetDimension()
        check_size(path, *reversed(size[:2]))
        if reader.GetNumberOfComponents() != 1 or dimensions not in (2, 3) or size[2:] not in ((), (1,)):
            raise UserError(f"{path} must be one grey picture, got size {size}")
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:160]
        raise UserError(f"{path} must be a readable image, got: {reason}") from error
    array = sitk.GetArrayFromImage(image).reshape(image.GetHeight(), image.GetWidth()).T
    check_array(array, path)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions)) * np.array(image.GetSpacing())
    affine[:dimensions, :dimensions] = direction
    affine[:dimensions, 3] = image.GetOrigin()
    # ITK's world is LPS.
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, dimensions
