# SPDX-License-Identifier: Apache-2.0
"""Where the elements of a DICOM file lie, told without reading their values: what a length promises must be there.

Readers believe an element's length before they look how long the file is, and call themselves for every sequence in a
sequence: one ends for want of memory, another overruns its stack. Sections are those of DICOM PS3.5.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from progressive_cascade.errors import UserError
from progressive_cascade.io.limits import DEFLATED, check_inflation

UNDEFINED = 0xFFFFFFFF
"""The length of what ends with a delimiter (7.5.1)."""
PIXELS, ITEM = 0x7FE00010, 0xFFFEE000
SAMPLES, FRAMES, ROWS, COLUMNS, BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
_SYNTAX, _ENCRYPTED, _ITEM_END, _SEQUENCE_END = 0x00020010, 0x04000500, 0xFFFEE00D, 0xFFFEE0DD
_BIG_ENDIAN, _IMPLICIT = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
_START = 132
# Explicit representations whose length takes 4 bytes (7.1.2).
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
# A structured report of many levels has twenty.
_MAX_DEPTH = 64
_MAX_ELEMENTS = 1 << 20
# What an envelope of CMS begins with (PS3.15 annex D, RFC 5652): a sequence, of the kind envelopedData.
_ENVELOPED = bytes.fromhex("06092a864886f70d010703")
_Bytes = mmap.mmap | bytes


class NestedError(UserError):
    """Sequences inside one another beyond any report: a reader that calls itself for each overruns its stack."""


@dataclass(frozen=True)
class Layout:
    """What a file's elements say of its pixels, and where those lie.

    Attributes:
        syntax: UID of the transfer syntax; empty for what is no DICOM file.
        numbers: whole numbers of the top level in group 0028, by tag.
        pixels: first byte and length of the pixel data in the file, the length may be :data:`UNDEFINED`; None where
            there are none, or they are deflated.
        has_encrypted: whether attributes are encrypted (PS3.15 E.1).
    """

    syntax: str = ""
    numbers: dict[int, int] = field(default_factory=dict)
    pixels: tuple[int, int] | None = None
    has_encrypted: bool = False


class _Element(NamedTuple):
    tag: int
    kind: bytes
    start: int
    length: int
    depth: int


class _Open(NamedTuple):
    """A sequence or an item that is not over: where it ends (None: at its delimiter), and how it is written."""

    end: int | None
    is_item: bool
    is_explicit: bool
    holds_fragments: bool = False


def read_layout(path: Path, name: str) -> Layout:
    """Walks over the elements of a file, down into every sequence, as far as its pixels.

    Args:
        path: of a file that may be DICOM.
        name: how an error calls it.

    Returns:
        The layout; an empty one of what is no DICOM file.

    Raises:
        UserError: if an element before the pixels is longer than the file, sequences lie in sequences beyond any
            report, the file inflates beyond any image, or it is an encrypted envelope.
    """
    with open(path, "rb") as stream, contextlib.ExitStack() as stack:
        head = stream.read(_START)
        if is_envelope(head):
            raise UserError(f"{name} must be plain DICOM, got an encrypted envelope (CMS); decrypt it first")
        if head[128:] != b"DICM":
            return Layout()
        data = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        syntax, begin = _read_meta(data)
        if syntax == DEFLATED:
            check_inflation(path, name)
        return _walk(data, begin, syntax, name)


def is_envelope(head: bytes) -> bool:
    """Whether a file that begins so was encrypted as a whole."""
    return head[:1] == b"\x30" and _ENVELOPED in head[:32]


def _walk(data: _Bytes, begin: int, syntax: str, name: str) -> Layout:
    is_deflated, order = syntax == DEFLATED, ">" if syntax == _BIG_ENDIAN else "<"
    if is_deflated:
        try:
            data, begin = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[begin:]), 0
        except zlib.error:  # told by who reads it
            return Layout(syntax)
    numbers: dict[int, int] = {}
    pixels, has_encrypted = None, False
    for element in _elements(data, begin, order, is_explicit=syntax != _IMPLICIT, name=name):
        if element.depth:
            continue
        if element.tag == PIXELS:
            pixels = None if is_deflated else (element.start, element.length)
        has_encrypted |= element.tag == _ENCRYPTED
        value = _number(data, element, order)
        if value is not None:
            numbers[element.tag] = value
    return Layout(syntax, numbers, pixels, has_encrypted)


def _read_meta(data: _Bytes) -> tuple[str, int]:
    """The transfer syntax, and where the data set begins: group 2 is explicit and little-endian (PS3.10 7.1)."""
    syntax, position = "", _START
    while position + 8 <= len(data) and data[position : position + 2] == b"\x02\x00":
        tag, _, start, length = _header(data, position, "<", is_explicit=True)
        if tag == _SYNTAX:
            syntax = data[start : start + min(length, 64)].rstrip(b"\0 ").decode("ascii", "replace")
        position = start + length
    return syntax, position


def _header(data: _Bytes, position: int, order: str, *, is_explicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, representation, first byte and length of the element at a place; 8 bytes are there."""
    group, number = struct.unpack_from(f"{order}HH", data, position)
    kind = data[position + 4 : position + 6] if is_explicit and group != 0xFFFE else b""
    if kind in _LONG and position + 12 <= len(data):
        return group << 16 | number, kind, position + 12, struct.unpack_from(f"{order}I", data, position + 8)[0]
    if kind.isalpha() and kind.isupper():
        return group << 16 | number, kind, position + 8, struct.unpack_from(f"{order}H", data, position + 6)[0]
    # Files that should be explicit have elements that are not.
    return group << 16 | number, b"", position + 8, struct.unpack_from(f"{order}I", data, position + 4)[0]


def _elements(data: _Bytes, position: int, order: str, *, is_explicit: bool, name: str) -> Iterator[_Element]:
    """Every element, those of sequences with their depth."""
    item = struct.pack(f"{order}HH", ITEM >> 16, ITEM & 0xFFFF)
    opened: list[_Open] = []
    for _ in range(_MAX_ELEMENTS):
        while opened and opened[-1].end is not None and position >= opened[-1].end:
            opened.pop()
        if position + 8 > len(data):
            return
        written = opened[-1].is_explicit if opened else is_explicit
        tag, kind, start, length = _header(data, position, order, is_explicit=written)
        if tag == PIXELS and not opened:  # a header can be read though its pixels are cut short
            yield _Element(tag, kind, start, length, 0)
            return
        end = None if length == UNDEFINED else start + length
        if end is not None and end > len(data):
            raise UserError(
                f"{name} must hold the {length} bytes that the length of its element "
                f"({tag >> 16:04X},{tag & 0xFFFF:04X}) promises, got {len(data) - start}"
            )
        if len(opened) > 2 * _MAX_DEPTH:
            raise NestedError(f"{name} must have at most {_MAX_DEPTH} sequences inside one another, got more")
        position = start
        if tag in (_ITEM_END, _SEQUENCE_END):
            _close(opened, is_item=tag == _ITEM_END)
        elif tag == ITEM:
            if opened and opened[-1].holds_fragments:
                position = len(data) if end is None else end
            else:
                opened.append(_Open(end, True, written))
        else:
            yield _Element(tag, kind, start, length, len(opened))
            if end is None or (length and data[start : start + 4] == item and tag != PIXELS):
                # What is of unknown representation is implicit inside (6.2.2).
                opened.append(_Open(end, False, written and kind != b"UN", tag == PIXELS))
            else:
                position = end
    raise UserError(f"{name} must have at most {_MAX_ELEMENTS} elements, got more")


def _close(opened: list[_Open], *, is_item: bool) -> None:
    """Ends the innermost sequence or item that waits for a delimiter; one without is passed over."""
    for index in range(len(opened) - 1, -1, -1):
        if opened[index].end is None and opened[index].is_item == is_item:
            del opened[index:]
            return


def _number(data: _Bytes, element: _Element, order: str) -> int | None:
    """A whole number of group 0028: two bytes, or digits."""
    if element.tag >> 16 != 0x0028 or not 0 < element.length <= 16:
        return None
    value = data[element.start : element.start + element.length]
    if element.tag == FRAMES:
        digits = value.strip(b"\0 ")
        return int(digits) if digits.isdigit() else None
    return struct.unpack(f"{order}H", value)[0] if element.length == 2 else None
