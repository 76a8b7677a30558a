# SPDX-License-Identifier: Apache-2.0
"""Pixels and the header that describes them must agree: of DICOM, as they are or packed, and of JPEG.

A decoder believes the stream, an image's header says something else, and what comes out is a picture in shreds, or
memory taken for pixels that are not there. What a stream says of itself stands in its first bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from progressive_cascade.errors import UserError
from progressive_cascade.io.dicom_layout import BITS, COLUMNS, FRAMES, ITEM, ROWS, SAMPLES, UNDEFINED, read_layout
from progressive_cascade.io.limits import DEFLATED

_RLE = "1.2.840.10008.1.2.5"
_JPEG, _JPEG_2000, _JP2 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
# Frame headers of ITU-T T.81 table B.1, and of JPEG-LS (T.87); marker codes without a length.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_BARE = {0x01, *range(0xD0, 0xD9)}
_SCAN = 0xDA
# Two bytes of RLE unpack to 128; so much is unpacked at once.
_MAX_PACKING, _MOST_UNPACKED = 64, 1 << 30
_Bytes = mmap.mmap | bytes | bytearray


class Stream(NamedTuple):
    """What a packed picture says of itself.

    Attributes:
        rows: 0 where it says that later (T.81 B.2.5).
        cols: its width.
        bits: of a sample.
        components: 1 for grey.
        rows_at: where the rows stand in a JPEG.
        unit: rows of a unit that a JPEG is coded in.
    """

    rows: int
    cols: int
    bits: int
    components: int
    rows_at: int = 0
    unit: int = 8


def read_jpeg_header(data: _Bytes, begin: int = 0) -> Stream | None:
    """What a JPEG or JPEG-LS says of itself.

    Args:
        data: what holds it.
        begin: where it begins.

    Returns:
        None where there is no frame header.
    """
    place = begin + 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _BARE or marker == 0xFF:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            return None
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker in _FRAMES:
            bits, rows, cols, components = struct.unpack_from(">BHHB", data, place + 4)
            heights = [data[at] & 15 for at in range(place + 11, min(place + 10 + 3 * components, len(data)), 3)]
            # One component alone is coded block by block, whatever its factors say (T.81 A.2.2).
            unit = 8 * max(heights, default=1) if components > 1 else 8
            return Stream(rows, cols, bits, components, place + 5, unit)
        place += 2 + length
    return None


def check_stored_pixels(path: Path, name: str) -> None:
    """Refuses a DICOM file whose pixels are not those that its header tells of.

    Args:
        path: of the file; what is no DICOM file, or says no size, is passed over.
        name: how an error calls it.

    Raises:
        UserError: as :func:`read_layout`; and if pixels are missing or more than there should be, a packed picture says
            another size than the header, or they are encrypted.
    """
    layout = read_layout(path, name)
    numbers = layout.numbers
    rows, cols, bits = (numbers.get(tag, 0) for tag in (ROWS, COLUMNS, BITS))
    if layout.pixels is None:
        if layout.has_encrypted and layout.syntax != DEFLATED:
            raise UserError(f"{name} must have pixels, got encrypted attributes (0400,0500) in their place")
        return
    told = Stream(rows, cols, bits, numbers.get(SAMPLES, 1))
    if not rows * cols * bits:
        return
    begin, length = layout.pixels
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if length == UNDEFINED:
            for fragment in _fragments(data, begin, name):
                _check_fragment(data, fragment, told, layout.syntax, name)
        elif length > len(data) - begin:
            raise UserError(f"{name} must hold the {length} bytes of its pixels, got {len(data) - begin}")
        else:
            _check_native(length, told, numbers.get(FRAMES, 1) or 1, name)


def _check_native(length: int, told: Stream, frames: int, name: str) -> None:
    row = -(-told.cols * told.components * told.bits // 8)
    promised = -(-told.rows * told.cols * told.components * told.bits * frames // 8)
    # An even length, and whatever else fills up less than a row.
    if not 0 <= length - promised < max(row, 2):
        raise UserError(
            f"{name} must hold the {promised} bytes of {told.rows} Rows, {told.cols} Columns, {told.components} "
            f"SamplesPerPixel and {told.bits} BitsAllocated, got {length}"
        )


def _fragments(data: mmap.mmap, place: int, name: str) -> Iterator[tuple[int, int]]:
    """Where the fragments of packed pixels begin and end, without the table that comes before them (PS3.5 A.4)."""
    is_first = True
    while place + 8 <= len(data):
        group, number, length = struct.unpack_from("<HHI", data, place)
        if group << 16 | number != ITEM:
            return
        begin, place = place + 8, place + 8 + length
        if place > len(data):
            raise UserError(f"{name} must hold the {length} bytes of its packed pixels, got {len(data) - begin}")
        if not is_first:
            yield begin, place
        is_first = False


def _check_fragment(data: mmap.mmap, fragment: tuple[int, int], told: Stream, syntax: str, name: str) -> None:
    begin, end = fragment
    if syntax == _RLE:
        _check_rle(data[begin:end], told, name)
        return
    head = data[begin : min(begin + 4096, end)]
    found = None
    if head.startswith(_JPEG):
        found = read_jpeg_header(data, begin)
    elif head.startswith((_JPEG_2000, _JP2)):
        found = _read_jpeg_2000(head)
    if found is None:  # the rest of a picture, or what its decoder will not take
        return
    same_size = found.rows in (0, told.rows) and found.cols == told.cols
    if not same_size or found.bits > told.bits or found.components != told.components:
        says, tells = (f"{one.rows} × {one.cols} of {one.components} × {one.bits} bits" for one in (told, found))
        raise UserError(f"{name} must have packed pixels as its header says, {says}, got {tells}")


def _read_jpeg_2000(head: bytes) -> Stream | None:
    """The marker SIZ of a code stream (ITU-T T.800 A.5.1), which is its first."""
    place = head.find(_JPEG_2000)
    if place < 0 or len(head) < place + 43:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", head, place + 8)
    components, bits = struct.unpack_from(">HB", head, place + 40)
    return Stream(bottom - top, right - left, (bits & 127) + 1, components)


def _check_rle(frame: bytes, told: Stream, name: str) -> None:
    """Every segment unpacks to one byte of each pixel (PS3.5 G): a decoder writes beyond its end, or takes 64 times."""
    count = told.components * told.bits // 8
    words = struct.unpack_from("<16I", frame) if len(frame) >= 64 else (0,)
    starts = [*words[1 : 1 + count], len(frame)]
    if words[0] != count or starts != sorted(starts) or starts[0] < 64:
        raise UserError(f"{name} must have packed pixels of {count} RLE segments, one for each byte, got others")
    for start, end in pairwise(starts):
        _check_segment(frame[start:end], told.rows * told.cols, name)


def _check_segment(segment: bytes, pixels: int, name: str) -> None:
    if _unpacked_length(segment, pixels) != pixels:
        raise UserError(f"{name} must have RLE segments of the {pixels} pixels that its header tells of, got others")


def _unpacked_length(segment: bytes, pixels: int) -> int:
    """Bytes that a segment unpacks to; -1 where it ends in a run, or goes on behind the last pixel."""
    if _MAX_PACKING * len(segment) <= _MOST_UNPACKED:  # ten times faster than going through it, however it is packed
        from rle.rle import decode_segment

        for padding in (0, 1):
            try:
                return len(decode_segment(segment[: len(segment) - padding]))
            except Exception:  # of Rust; what fills up to an even length looks like a run
                continue
        return -1
    place = unpacked = 0
    while place < len(segment) and unpacked < pixels:
        head = segment[place]
        if head < 128:
            place += head + 2
            unpacked += head + 1
        else:
            place += 1 if head == 128 else 2
            unpacked += 0 if head == 128 else 257 - head
    return unpacked if 0 <= len(segment) - place <= 1 else -1
