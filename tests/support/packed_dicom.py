# SPDX-License-Identifier: Apache-2.0
"""A DICOM file with its pixels packed in each way that archives use, lossless and lossy."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pydicom.uid
from PIL import Image
from pydicom.encaps import encapsulate

LOSSLESS = ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessSV1")
LOSSY = ("JPEGBaseline8Bit", "JPEG2000", "JPEGLSNearLossless")


def pack(plain: Path, path: Path, syntax: str) -> Path:
    """Writes `plain`, of 12 bits in 16, with its pixels packed.

    Args:
        plain: an uncompressed file.
        path: to write.
        syntax: of :data:`LOSSLESS` or :data:`LOSSY`; baseline JPEG keeps the upper 8 of 12 bits.
    """
    dataset = pydicom.dcmread(plain)
    uid = getattr(pydicom.uid, syntax)
    more = {"JPEG2000": {"j2k_cr": [8]}, "JPEGLSNearLossless": {"jls_error": 2}}
    if syntax not in ("JPEGBaseline8Bit", "JPEGLosslessSV1"):
        dataset.compress(uid, **more.get(syntax, {}))
    else:
        pixels = dataset.pixel_array
        if syntax == "JPEGBaseline8Bit":
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            stream = io.BytesIO()
            Image.fromarray((pixels >> 4).astype(np.uint8)).save(stream, "JPEG", quality=90)
            code = stream.getvalue()
        else:
            code = lossless_jpeg(pixels)
        dataset.PixelData = encapsulate([code])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid
    dataset.save_as(path)
    return path


def lossless_jpeg(pixels: np.ndarray, bits: int = 16) -> bytes:
    """A lossless JPEG (process 14, first-order prediction, ITU-T T.81 annex H), which no library here writes.

    Args:
        pixels: whole numbers (rows, cols) below 2^bits.
        bits: of a pixel.
    """
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    # Differences are modulo 2^16; one's size is that of its absolute value, negative ones are stored less one.
    differences = ((values - predicted + 32768) % 65536 - 32768).ravel().tolist()
    words = []
    for difference in differences:
        size = abs(difference).bit_length()
        low = difference if difference > 0 else difference - 1
        # Every size 0 to 16 has a code of 5 bits; of size 16 there is but one difference.
        words.append(f"{size:05b}" + (f"{low & ((1 << size) - 1):0{size}b}" if 0 < size < 16 else ""))
    stream = "".join(words)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, cols = values.shape
    segments = (
        (0xC3, struct.pack(">BHHB3B", bits, rows, cols, 1, 1, 0x11, 0)),
        (0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    )
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + scan + b"\xff\xd9"
