# SPDX-License-Identifier: Apache-2.0
"""A finished case, read back from the files that `reconstruct` and `demo` write."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, ConeBeam
from progressive_cascade.io import NIFTI_SUFFIXES, finish_writing, nifti_stem, read_json, read_nifti, save_nifti
from progressive_cascade.projector import line_integrals
from progressive_cascade.report.page import ReportCase

RADIOGRAPHS_SUFFIX = ".radiographs.nii.gz"
"""What the file of line integrals is called, after the CT's stem."""


def save_radiographs(image: np.ndarray, path: str | PathLike[str]) -> None:
    """Keeps the line integrals a CT was made from.

    Args:
        image: (view, rows, cols).
        path: the file; its axes are column, row, view, and it has no place in the world.
    """
    save_nifti(np.ascontiguousarray(image.transpose(2, 1, 0), dtype=np.float32), np.eye(4), path)


def read_case(result: str | PathLike[str], *, truth: str | PathLike[str] | None = None) -> ReportCase:
    """Reads a finished case.

    Args:
        result: the CT, its sidecar, or the folder that holds one of them.
        truth: the true CT on the same grid, to show beside it.

    Returns:
        What the page shows, without sigma.

    Raises:
        UserError: where it is no result, or its files disagree.
    """
    volume = find_volume(Path(result))
    sidecar = volume.with_name(f"{nifti_stem(volume)}.json")
    record = read_json(sidecar)
    if not isinstance(record, dict) or "geometry" not in record:
        raise UserError(f"{sidecar} must be the sidecar of a reconstruction, it holds no geometry")
    beam = ConeBeam.from_dict(record["geometry"], origin=str(sidecar))
    hu, affine = read_nifti(volume)
    _check_shape(volume, hu, record)
    radiographs = volume.with_name(f"{nifti_stem(volume)}{RADIOGRAPHS_SUFFIX}")
    picture = volume.with_name(f"{nifti_stem(volume)}.png")
    with torch.inference_mode():
        mu = hu_to_mu(torch.from_numpy(hu.astype(np.float32)))[None, None]
        again = line_integrals(mu, beam, affine=affine)[0].numpy()
    return ReportCase(
        name=nifti_stem(volume),
        hu=hu,
        affine=affine,
        beam=beam,
        reprojected=again,
        radiographs=_read_radiographs(radiographs, again.shape) if radiographs.is_file() else None,
        record=record,
        truth=None if truth is None else _read_truth(Path(truth), hu),
        picture=picture if truth is None else None,
    )


def find_volume(result: Path) -> Path:
    """The CT of a result.

    Raises:
        UserError: where there is none, or more than one.
    """
    finish_writing(result if result.is_dir() else result.parent)
    if result.is_dir():
        candidates = [path for suffix in NIFTI_SUFFIXES for path in sorted(result.glob(f"*{suffix}"))]
        found = [path for path in candidates if path.with_name(f"{nifti_stem(path)}.json").is_file()]
        if len(found) != 1:
            raise UserError(f"{result} must hold one CT with its sidecar (CT.nii.gz and CT.json), found {len(found)}")
        return found[0]
    if not result.is_file():
        raise UserError(f"result must be a reconstructed CT or its folder, got {result}, which does not exist")
    if result.name.endswith(".json"):
        for suffix in (".nii.gz", ".nii"):
            volume = result.with_name(f"{result.stem}{suffix}")
            if volume.is_file():
                return volume
        raise UserError(f"{result} must stand beside its CT {result.stem}.nii.gz, there is none")
    if not result.name.endswith(NIFTI_SUFFIXES):
        raise UserError(f"result must be a reconstructed CT (.nii.gz), its .json, or their folder, got {result}")
    if not result.with_name(f"{nifti_stem(result)}.json").is_file():
        raise UserError(f"{result} must stand beside its sidecar {nifti_stem(result)}.json, there is none")
    return result


def _check_shape(volume: Path, hu: np.ndarray, record: dict[str, Any]) -> None:
    expected = tuple(record.get("shape", VOLUME_SHAPE))
    if hu.shape != expected:
        raise UserError(f"{volume} must have {expected} voxels, as its sidecar says, got {hu.shape}")


def _read_radiographs(path: Path, expected: tuple[int, ...]) -> np.ndarray:
    image = read_nifti(path)[0].astype(np.float32).transpose(2, 1, 0)
    if image.shape != expected:
        raise UserError(f"{path} must hold radiographs (view, rows, cols) of {expected}, got {image.shape}")
    return image


def _read_truth(path: Path, hu: np.ndarray) -> np.ndarray:
    truth, _ = read_nifti(path)
    if truth.shape != hu.shape:
        raise UserError(
            f"--truth {path} must have the reconstruction's {hu.shape} voxels, got {truth.shape}; see `compare`"
        )
    return truth
