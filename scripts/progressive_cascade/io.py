# SPDX-License-Identifier: Apache-2.0
"""Files that are either complete or absent: atomic writing, and validated reading, of NIfTI and JSON."""

from __future__ import annotations

import json
import math
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from progressive_cascade.errors import UserError

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
    suffix = _suffix(name)
    return name[: -len(suffix)] if suffix else name


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary name beside `path`; the file takes its real name only when the block succeeds.

    An interrupted program, or a machine that loses power, therefore never leaves a half-written file under a name
    that somebody reads: the old file stays until the new one is on the disk. The temporary name is hidden and keeps
    the suffix, because writers choose the format by it.

    Args:
        path: the file to be written; missing folders are made.

    Raises:
        UserError: where the folder cannot be made or written.
    """
    with atomic_paths(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(
    *paths: str | os.PathLike[str], obsolete: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[list[Path]]:
    """Yields temporary names for files that belong together, see :func:`atomic_path`; all are replaced, or none.

    An interruption so leaves all of the old files, not a new volume beside the old one's sidecar.

    Args:
        paths: the files to be written; the block must write each.
        obsolete: files of an earlier run that do not belong to the new ones; removed when the block succeeds.

    Raises:
        UserError: where a folder cannot be made or written.
    """
    targets = [Path(path) for path in paths]
    temporaries = [_temporary_name(path) for path in targets]
    try:
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        for path in obsolete:
            Path(path).unlink(missing_ok=True)
        for temporary, path in zip(temporaries, targets, strict=True):
            os.replace(temporary, path)
        for folder in {path.parent for path in targets}:
            sync(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {path.parent} must be writable, got: {_reason(error)}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"output folder {path.parent} must be writable, got: permission denied")
    return path.with_name(f".{uuid.uuid4().hex[:12]}{_suffix(path.name)}")


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folders, and keeps their names itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        raise UserError(f"output file {path} must be writable, got: {_reason(error)}") from error


def read_nifti(
    path: str | os.PathLike[str], *, num_dimensions: int = 3, allow_nan: bool = False, need_affine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a NIfTI image and its affine, or says in one line what is wrong with the file.

    Args:
        path: the file.
        num_dimensions: expected dimensions; further axes of length 1 are dropped.
        allow_nan: take NaN (not infinity) as it is.
        need_affine: refuse a file whose header says neither by qform nor by sform where the patient is.

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
        array = smallest_array(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except _UNREADABLE as error:
        raise UserError(f"{path} must be a readable NIfTI image, got: {_reason(error)}") from error
    if need_affine and not _has_affine(image.header):
        raise UserError(f"{path} must say by qform or sform where the patient is and which side is which, got neither")
    check_array(array, path, allow_nan=allow_nan)
    stored_shape = array.shape
    while array.ndim > num_dimensions and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != num_dimensions:
        raise UserError(f"{path} must have {num_dimensions} dimensions, got shape {stored_shape}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path} must have an invertible affine, got {affine.tolist()}")
    return array, affine


def save_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        UserError: where the file cannot be written.
    """
    text = json.dumps(value, indent=4) + "\n"
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output file {path} must be writable, got: {_reason(error)}") from error


def finite(value: Any) -> Any:
    """The value with None for what JSON cannot hold: infinite and undefined numbers."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: where it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"JSON file must exist, got {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a JSON file, got: {_reason(error)}") from error


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a bare state dict without running any code from it.

    Args:
        path: file written by ``torch.save``.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: if the file is missing or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and EOF errors alike for a file that is none
        raise UserError(f"checkpoint {path} must be a torch state dict, got {type(error).__name__}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"checkpoint {path} must be a bare state dict of tensors, got {type(state).__name__}")
    return state


def smallest_array(array: np.ndarray) -> np.ndarray:
    """Converts to int16 where the array holds integers of that range, else to float32; what is no number stays."""
    if array.dtype == np.int16 or array.dtype.kind not in "iuf":
        return array
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(np.int16)
        if limits.min <= array.min() and array.max() <= limits.max:
            return array.astype(np.int16)
    return array.astype(np.float32)


def _has_affine(header: Any) -> bool:
    """Whether a header has a place for the voxels; formats beside NIfTI have no codes to say that they do not."""
    return "qform_code" not in header or bool(header["qform_code"]) or bool(header["sform_code"])


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


def _suffix(name: str) -> str:
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _reason(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
