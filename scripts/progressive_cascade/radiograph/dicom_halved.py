# SPDX-License-Identifier: Apache-2.0
"""Large JPEG 2000 radiographs without their finest wavelets, which take three quarters of the time to decode.

What these hold is narrower than two pixels. A pixel of the model is as wide as five or six of a picture of 3000 rows
and averages it away: what is left of the difference is a third of what is left of the picture's own noise (measured in
``benchmarks/radiographs.py``). Every other pixel of the picture is decoded, the rest lies between its neighbours
(ITU-T T.800 F.3.8, with details of zero).
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

# Rows and columns from which on a picture is large: more than four pixels for one of the model's.
_LARGE = 2400
_SYNTAXES = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_START = b"\xff\x4f\xff\x51"


def decode_halved(dataset: Any) -> np.ndarray | None:
    """Stored values of a large radiograph, without its finest details.

    Args:
        dataset: of pydicom.

    Returns:
        Unsigned whole numbers (rows, cols); None where every pixel has to be decoded: the picture is smaller, packed in
        another way, signed, in tiles, damaged, or some of its values mark pixels that fill it up.
    """
    rows, cols = int(dataset.Rows), int(dataset.Columns)
    if str(dataset.file_meta.TransferSyntaxUID) not in _SYNTAXES or min(rows, cols) < _LARGE:
        return None
    if dataset.PixelRepresentation or "PixelPaddingValue" in dataset:
        return None
    try:
        small = _decode_small(dataset, rows, cols)
    except Exception:  # of whatever kind a decoder raises: decoding the whole says what is wrong
        return None
    return None if small is None else _between(small, rows, cols)


def _decode_small(dataset: Any, rows: int, cols: int) -> np.ndarray | None:
    """Every other row and column, smoothed by the wavelets' own low pass."""
    from PIL import Image
    from pydicom.encaps import generate_frames

    code = next(generate_frames(dataset.PixelData, number_of_frames=1))
    bits = _bits_of_plain(code, rows, cols)
    if bits is None or bits != dataset.BitsStored:
        return None
    with Image.open(io.BytesIO(code), formats=("JPEG2000",)) as image:
        image.reduce = 1  # type: ignore[method-assign,assignment]
        image.load()
        # Pillow brings up to 16 bits what has more than 8.
        small = np.asarray(image) >> (16 - bits if bits > 8 else 8 - bits)
    return small if small.shape == (-(-rows // 2), -(-cols // 2)) else None


def _bits_of_plain(code: bytes, rows: int, cols: int) -> int | None:
    """Bits of a grey, unsigned code stream in one tile that begins where the picture does (T.800 A.5.1); else None."""
    if not code.startswith(_START):
        return None
    right, bottom, left, top, tile_cols, tile_rows, tile_left, tile_top = struct.unpack_from(">8I", code, 8)
    (components, bits) = struct.unpack_from(">HB", code, 40)
    at_origin = (left, top, tile_left, tile_top) == (0, 0, 0, 0)
    whole = (bottom, right) == (rows, cols) and tile_rows >= rows and tile_cols >= cols
    return bits + 1 if at_origin and whole and components == 1 and 1 <= bits < 16 else None


def _between(values: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Every other row and column of a picture, and the means between them."""
    found = np.empty((rows, cols), dtype=values.dtype)
    found[::2, ::2] = values
    found[::2, 1::2] = _mean(values[:, : cols // 2], _next(values.T, cols).T)
    found[1::2] = _mean(found[: rows - 1 : 2], _next(found[::2], rows))
    return found


def _next(rows: np.ndarray, count: int) -> np.ndarray:
    """The row after each that has one between them in a picture of `count` rows; the last again at its end."""
    return rows[1:] if count % 2 else np.concatenate((rows[1:], rows[-1:]))


def _mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rounded down, without a sum that overflows."""
    return (first & second) + ((first ^ second) >> 1)
