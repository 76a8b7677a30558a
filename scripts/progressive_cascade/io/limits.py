# SPDX-License-Identifier: Apache-2.0
"""What a header may promise: told from the header alone, before memory is taken for it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

from progressive_cascade.errors import UserError

MAX_VOXELS = 1 << 29
"""The largest image that is read: 2048 slices of 512²."""
MAX_DEFLATION = 1032
"""Deflate packs at most so many bytes into one (zlib's technical details)."""
DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_INFLATED, _BLOCK = 256 << 20, 1 << 20
# Preamble, prefix, and the group length's own element (PS3.10 7.1).
_META_START = 128 + 4 + 12


def check_shape(shape: Sequence[int], name: object, *, voxel_bytes: int = 1, held: float = math.inf) -> None:
    """Refuses a header that promises more than is read, or than the file can hold.

    Args:
        shape: voxels along each axis.
        name: how an error calls the file.
        voxel_bytes: of each voxel.
        held: bytes that the file can hold, unpacked.

    Raises:
        UserError: naming the file and the shape.
    """
    num_voxels = math.prod(int(size) for size in shape)
    if num_voxels > MAX_VOXELS:
        raise UserError(f"{name} must have at most {MAX_VOXELS} voxels, got shape {tuple(shape)}")
    promised = num_voxels * voxel_bytes
    if promised > held:
        raise UserError(f"{name} must hold the {promised} bytes of its shape {tuple(shape)}, got at most {held}")


def check_inflation(path: Path, name: str) -> None:
    """Refuses a deflated file (PS3.5 A.5) that inflates beyond any image: its reader inflates all of it at once.

    Args:
        path: of a file that may be DICOM.
        name: how an error calls it.

    Raises:
        UserError: naming the limit.
    """
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
        if str(meta.get("TransferSyntaxUID", "")) != DEFLATED:
            return
        start = _META_START + int(meta.FileMetaInformationGroupLength)
    except Exception:  # whatever is wrong with it is told by who reads it
        return
    left, inflate = _MOST_INFLATED, zlib.decompressobj(-zlib.MAX_WBITS)
    with open(path, "rb") as stream:
        stream.seek(start)
        for block in iter(lambda: stream.read(_BLOCK), b""):
            while block and left >= 0:
                try:
                    left -= len(inflate.decompress(block, _BLOCK))
                except zlib.error:
                    return
                block = inflate.unconsumed_tail
            if left < 0:
                raise UserError(f"{name} must inflate to at most {_MOST_INFLATED >> 20} MiB, it is larger")
