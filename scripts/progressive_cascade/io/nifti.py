# SPDX-License-Identifier: Apache-2.0
"""NIfTI images: whole or absent when they are written, validated when they are read."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from progressive_cascade.errors import UserError
from progressive_cascade.io.files import atomic_path, reason, suffix_of
from progressive_cascade.io.limits import MAX_DEFLATION, check_shape

NIFTI_SUFFIXES = (".nii", ".nii.gz")
# NIfTI-1 code 1: the affine maps to the scanner's (the patient's) millimetres.
_SCANNER_CODE = 1
_STORABLE = (np.dtype("int16"), np.dtype("float32"), np.dtype("uint8"))
_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError)


def nifti_stem(path: str | os.PathLike[str]) -> str:
    """The file's name without `.nii` or `.nii.gz`.

    Example:
        >>> nifti_stem("ct/LIDC-0001.nii.gz")
        'LIDC-0001'
    """
    name = Path(path).name
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def save_nifti(array: np.ndarray, affine: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes a NIfTI file in millimetres whose sform and qform both hold `affine` (code 1, scanner).

    Args:
        array: int16, float32 or uint8 array of two or three dimensions.
        affine: 4x4 matrix, voxel index to RAS mm.
        path: a name that ends in `.nii` or `.nii.gz`.

    Raises:
        TypeError: for another dtype.
        UserError: for another suffix, or where the file cannot be written.
    """
    if array.dtype not in _STORABLE:
        raise TypeError(f"array must be int16, float32 or uint8, got {array.dtype}")
    path = Path(path)
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise UserError(f"output file must end in .nii or .nii.gz, got {path}")
    image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
    image.set_sform(affine, code=_SCANNER_CODE)
    image.set_qform(affine, code=_SCANNER_CODE)
    image.header.set_xyzt_units("mm")
    try:
        with atomic_path(path) as temporary:
            nib.save(image, temporary)
    except OSError as error:
        raise UserError(f"output file {path} must be writable, got: {reason(error)}") from error


def read_nifti(
    path: str | os.PathLike[str], *, num_dimensions: int = 3, allow_nan: bool = False, need_affine: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a NIfTI image and its affine, or says in one line what is wrong with the file.

    Args:
        path: the file.
        num_dimensions: expected dimensions; further axes of length 1 are dropped.
        allow_nan: take NaN (not infinity) as it is.
        need_affine: refuse an affine that cannot be inverted.

    Returns:
        The array (int16 where the file holds integers of that range, else float32) and the float64 4x4 affine
        from voxel index to RAS mm.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: for a file that is no image, is damaged, has another number of dimensions, holds colours or
            complex numbers, NaN or infinity, or has a singular affine.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image must be an existing file, got {path}")
    try:
        image = nib.load(path)
        _check_size(image, path)
        array = smallest_array(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(f"{path} must be a readable NIfTI image, got: {reason(error)}") from error
    check_array(array, path, allow_nan=allow_nan)
    stored_shape = array.shape
    while array.ndim > num_dimensions and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != num_dimensions:
        raise UserError(f"{path} must have {num_dimensions} dimensions, got shape {stored_shape}")
    if need_affine and (not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9):
        raise UserError(f"{path} must have an invertible affine, got {affine.tolist()}")
    return array, affine


def nifti_has_place(path: str | os.PathLike[str]) -> bool:
    """Whether a header says by qform or sform where its voxels are; formats beside NIfTI have no codes to say no."""
    try:
        header: Any = nib.load(path).header
    except _UNREADABLE:  # `read_nifti` says what is wrong
        return True
    return "qform_code" not in header or bool(header["qform_code"]) or bool(header["sform_code"])


def _check_size(image: Any, path: Path) -> None:
    """Refuses a header that promises more than the file can hold, before memory is taken for it."""
    held = path.stat().st_size * (MAX_DEFLATION if path.suffix == ".gz" else 1)
    check_shape(image.shape, path, voxel_bytes=image.get_data_dtype().itemsize, held=held)


def smallest_array(array: np.ndarray) -> np.ndarray:
    """Converts to int16 where the array holds integers of that range, else to float32; what is no number stays."""
    if array.dtype == np.int16 or array.dtype.kind not in "iuf":
        return array
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(np.int16)
        if limits.min <= array.min() and array.max() <= limits.max:
            return array.astype(np.int16)
    return array.astype(np.float32)


def check_array(array: np.ndarray, name: str | Path, *, allow_nan: bool = False) -> None:
    """Refuses an array that is empty or holds anything but finite real numbers.

    Raises:
        UserError: the message begins with `name`.
    """
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} must hold one real number per voxel, got {array.dtype}")
    if array.size == 0:
        raise UserError(f"{name} must hold voxels, got shape {array.shape}")
    if allow_nan and array.dtype.kind == "f" and not np.isinf(array).any() and not np.isnan(array).all():
        return
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        num_bad = int(array.size - np.isfinite(array).sum())
        raise UserError(f"{name} must hold finite numbers, got NaN or infinity in {num_bad} voxels")
