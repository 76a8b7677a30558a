# SPDX-License-Identifier: Apache-2.0
"""Volumes as text in a page: rounded as little as the page's size allows, packed for a browser to unpack.

A CT of 256³ voxels is 14 MB as a NIfTI file and 19 MB as its base64 text; two of them would fill no page that can be
sent. Neighbouring voxels are alike, so their differences along x and y are stored, low bytes before high bytes, as PNG
and Blosc do, and then gzipped: 8 MB for a reconstruction in steps of 2 HU. `assets/volumes.js` is the inverse.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np

VOLUME_BUDGET = 20_000_000
"""Characters the volumes of one page may have together."""
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
"""How coarsely HU may be rounded [HU]; the finest that fits is taken."""
_LEVEL = 4
_SAMPLED = 8
# The sample's slices lie apart and compress slightly worse or better than the whole.
_MARGIN = 1.04
_LIMIT = 32000


@dataclass(frozen=True)
class Embedded:
    """A volume as text.

    Args:
        header: NIfTI-1 header with its extension flag (352 bytes), base64.
        shape: voxels (x, y, z).
        step: units per stored whole number [HU].
        text: the packed voxels, base64.
    """

    header: str
    shape: tuple[int, int, int]
    step: int
    text: str


def embed_volumes(volumes: Mapping[str, np.ndarray], affine: np.ndarray, *, budget: int) -> dict[str, Embedded]:
    """Several volumes of one grid, all rounded to the same step.

    Args:
        volumes: arrays (x, y, z) [HU] by name, of one shape.
        affine: (4, 4), voxel index to RAS mm.
        budget: characters they may have together.

    Returns:
        The texts, by name.
    """
    step = choose_step(volumes, budget)
    return {name: embed(volume, affine, step) for name, volume in volumes.items()}


def embed(volume: np.ndarray, affine: np.ndarray, step: int = 1) -> Embedded:
    """One volume.

    Args:
        volume: array (x, y, z).
        affine: (4, 4), voxel index to RAS mm.
        step: what to round to, in the volume's unit.
    """
    packed = gzip.compress(_filter(volume, step), _LEVEL, mtime=0)
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    return Embedded(_header(shape, affine, step), shape, step, base64.b64encode(packed).decode())


def choose_step(volumes: Mapping[str, np.ndarray], budget: int) -> int:
    """The finest of :data:`STEPS` in which the volumes fit, judged by every eighth slice.

    Args:
        volumes: arrays (x, y, z) [HU].
        budget: characters they may have together.

    Returns:
        The step [HU]; the coarsest where none fits.
    """
    for step in STEPS:
        size = 0.0
        for volume in volumes.values():
            sample = volume[..., ::_SAMPLED]
            packed = len(gzip.compress(_filter(sample, step), _LEVEL, mtime=0))
            size += packed * volume.shape[2] / sample.shape[2]
        if size * _MARGIN * 4 / 3 <= budget:
            return step
    return STEPS[-1]


def unpack(embedded: Embedded) -> np.ndarray:
    """The rounded volume (x, y, z), int32: what a browser makes of the text.

    Example:
        >>> volume = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
        >>> bool((unpack(embed(volume, np.eye(4))) == volume).all())
        True
    """
    planes = np.frombuffer(gzip.decompress(base64.b64decode(embedded.text)), np.uint8).reshape(2, -1)
    steps = np.ascontiguousarray(planes.T).view("<i2").reshape(embedded.shape[::-1])
    values = np.cumsum(np.cumsum(steps, axis=1, dtype=np.int16), axis=2, dtype=np.int16)
    return values.T.astype(np.int32) * embedded.step


def shrink(volume: np.ndarray, affine: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of blocks of voxels, so that no axis is longer than ``size``.

    Args:
        volume: array (x, y, z).
        affine: (4, 4), voxel index to RAS mm.
        size: voxels.

    Returns:
        float32 volume, and its affine; what fills no block at an axis' end is left out.
    """
    block = max(1, -(-max(volume.shape) // size))
    x, y, z = (count // block for count in volume.shape)
    whole = volume[: x * block, : y * block, : z * block].astype(np.float32)
    small = whole.reshape(x, block, y, block, z, block).mean(axis=(1, 3, 5))
    moved = affine.astype(np.float64).copy()
    moved[:3, 3] += affine[:3, :3] @ np.full(3, (block - 1) / 2)
    moved[:3, :3] *= block
    return small, moved


def _filter(volume: np.ndarray, step: int) -> bytes:
    """Whole steps, their differences along y, then along x (they wrap around as int16 does), by byte."""
    steps = np.rint(volume.T.astype(np.float32) / step).clip(-_LIMIT, _LIMIT).astype("<i2")
    along_x = np.diff(steps, axis=2, prepend=np.int16(0))
    along_y = np.diff(along_x, axis=1, prepend=np.int16(0))
    return np.ascontiguousarray(along_y.astype("<i2")).view(np.uint8).reshape(-1, 2).T.tobytes()


def _header(shape: tuple[int, int, int], affine: np.ndarray, step: int) -> str:
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_slope_inter(step, 0)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return base64.b64encode(header.binaryblock + bytes(4)).decode()
