# SPDX-License-Identifier: Apache-2.0
"""A CT from whatever it is stored in: NIfTI, MetaImage, NRRD, or a folder of one DICOM series."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.ct.scan import Scan
from progressive_cascade.ct.series import find_dicom_series, read_dicom_series, simpleitk
from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, check_array, nifti_has_place, read_nifti, smallest_array
from progressive_cascade.io.limits import MAX_DEFLATION, check_shape

OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
"""Volume files that SimpleITK reads."""
CT_SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
"""Volume files a CT may come as."""

_HEADER_BYTES = 65536
# What a header must say for its voxels to have a place: MetaImage's matrix and spacing, NRRD's space and its axes.
_PLACE = {
    ".mha": (rb"^(TransformMatrix|Rotation|Orientation)\s*=", rb"^Element(Spacing|Size)\s*="),
    ".nrrd": (rb"^space( dimension)?\s*:", rb"^space directions\s*:"),
}


def read_scan(path: str | os.PathLike[str], *, assume_spacing: Sequence[float] | None = None) -> Scan:
    """Reads a CT from a volume file, or from a folder that holds one DICOM series of a CT.

    Args:
        path: the file or folder.
        assume_spacing: voxel size (3) [mm] of a file that does not say where its voxels are; its axes are then taken
            to run to the patient's right, front and head. None: such a file is refused.

    Returns:
        The scan; its notes say what was assumed.

    Raises:
        FileNotFoundError: where there is no such file or folder.
        UserError: where it is damaged, or the folder holds no CT series or several.
    """
    path = Path(path)
    if path.is_dir():
        found = find_dicom_series(path)
        usable = [series for series in found if not series.rejection]
        if len(usable) != 1:
            why = f": {found[0].rejection}" if len(found) == 1 else ""
            raise UserError(f"{path} must be a CT file or a folder of one CT series, got {len(usable)} CT series{why}")
        return read_dicom_series(usable[0])
    if not path.is_file():
        raise FileNotFoundError(f"CT must be an existing file or folder, got {path}")
    read = _read_image if path.name.lower().endswith(OTHER_SUFFIXES) else _read_nifti
    hu, affine = read(path)
    if affine is not None:
        return Scan(hu, affine)
    if assume_spacing is None:
        raise UserError(
            f"{path} must say where its voxels are and which side is which, its header does not (in a NIfTI file, "
            "neither qform nor sform); --assume-spacing MM takes its axes to run to the right, front and head"
        )
    size = " × ".join(f"{step:g}" for step in assume_spacing)
    note = f"the header names no place: voxels of {size} mm and axes to the patient's right, front and head are assumed"
    return Scan(hu, np.diag([*assume_spacing, 1.0]), (note,))


def read_ct(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a CT from a volume file, or from a folder that holds one DICOM series of a CT.

    Returns:
        Array of int16 or float32 [HU], NaN where nothing was measured, and the 4x4 affine to RAS mm.

    Raises:
        FileNotFoundError: where there is no such file or folder.
        UserError: as :func:`read_scan`.
    """
    scan = read_scan(path)
    return scan.hu, scan.affine


def is_ct_file(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a volume file (NIfTI, MetaImage or NRRD) that exists."""
    return os.fspath(path).lower().endswith(CT_SUFFIXES) and os.path.isfile(path)


def ct_stem(path: str | os.PathLike[str]) -> str:
    """The file's name without the suffix of its format.

    Example:
        >>> ct_stem("archive/LIDC-0001.nrrd")
        'LIDC-0001'
    """
    name = Path(path).name
    suffix = next((suffix for suffix in reversed(CT_SUFFIXES) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    placed = nifti_has_place(path)
    hu, affine = read_nifti(path, allow_nan=True, need_affine=placed)
    return hu, affine if placed else None


def _read_image(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A MetaImage or NRRD file; no affine where it does not say one."""
    sitk = simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
            raise UserError(f"{path} must have 3 dimensions and one number per voxel, got {size}")
        is_alone = path.suffix.lower() in (".mha", ".nrrd")
        # The others' voxels lie in other files; what is packed is not told by SimpleITK.
        check_shape(size, path, held=path.stat().st_size * MAX_DEFLATION if is_alone else math.inf)
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{path} must be a readable image, got: {str(error).strip().splitlines()[-1]}") from error
    hu = smallest_array(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    check_array(hu, path, allow_nan=True)
    return hu, _image_affine(image) if _has_place(path) else None


def _image_affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _has_place(path: Path) -> bool:
    """Whether a header's text names spacing and directions, for which SimpleITK puts 1 mm and the identity."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    patterns = _PLACE[".mha" if path.suffix.lower() in (".mha", ".mhd") else ".nrrd"]
    return all(re.search(pattern, header, re.MULTILINE | re.IGNORECASE) for pattern in patterns)
