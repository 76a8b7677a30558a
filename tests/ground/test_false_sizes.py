# SPDX-License-Identifier: Apache-2.0
"""Sizes that contradict what is there are refused in one line by every reader, with little memory."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate, generate_frames  # noqa: E402

from progressive_cascade.ct.files import read_scan  # noqa: E402
from progressive_cascade.errors import UserError  # noqa: E402
from progressive_cascade.radiograph.read import read_radiograph  # noqa: E402
from progressive_cascade.service.intake import kind_of_file  # noqa: E402
from tests.support.ct_series import ct_slices, save_series  # noqa: E402
from tests.support.dicom_files import dx, save  # noqa: E402
from tests.support.packed_dicom import pack  # noqa: E402

SIDE = 128
PIXELS = np.add.outer(8 * np.arange(SIDE), 8 * np.arange(SIDE)).astype(np.uint16)
_4_GB = 0xFFFFFFF0
_PIXEL_TAG = struct.pack("<HH", 0x7FE0, 0x10)
_PACKED = {"JPEGLSLossless": b"\xff\xf7", "JPEG2000Lossless": b"\xff\x51", "JPEGLosslessSV1": b"\xff\xc3"}


def _plain(folder: Path, **attributes: Any) -> Path:
    dataset = dx(StudyInstanceUID="1.2.3")
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = PIXELS.tobytes()
    dataset.update(attributes)
    return save(dataset, folder / "plain.dcm")


def _element(kind: bytes, length: int, number: int = 0x9999) -> bytes:
    return struct.pack("<HH", 0x28, number) + kind + b"\0\0" + struct.pack("<I", length) + b"abcd"


def _nested() -> bytes:
    return 20000 * (_element(b"SQ", 0xFFFFFFFF)[:-4] + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF))


def _spliced(element: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(_PIXEL_TAG, element + _PIXEL_TAG, 1)


def _enveloped(content: bytes) -> bytes:
    return bytes.fromhex("3082100006092a864886f70d010703a0820ff1") + os.urandom(4081)


SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an element of 4 GB": (_spliced(_element(b"UN", _4_GB)), r"4294967280 bytes .* \(0028,9999\)"),
    "a sequence of 4 GB": (_spliced(_element(b"SQ", _4_GB)), "4294967280 bytes"),
    "sequences without end": (_spliced(_nested()), "64 sequences inside one another"),
    "pixels of 4 GB": (
        lambda content: content[: -2 * SIDE**2 - 4] + struct.pack("<I", _4_GB) + content[-2 * SIDE**2 :],
        "4294967280 bytes",
    ),
    "pixels cut short": (lambda content: content[:-1000], "32768 bytes"),
    "an encrypted envelope": (_enveloped, "encrypted envelope"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_lengths_in_a_radiograph_are_not_believed(name: str, tmp_path: Path, little_memory: None) -> None:
    """By who reads it, and by the service that takes it."""
    spoil, words = SPOILT[name]
    path = _plain(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    for read in (read_radiograph, kind_of_file):
        with pytest.raises(UserError, match=words):
            read(path)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"Rows": 64}, "16384 bytes of 64 Rows"),
        ({"Columns": 1000}, "256000 bytes"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "65536 bytes"),
    ],
)
def test_pixels_are_those_of_the_header(
    attributes: dict[str, Any], words: str, tmp_path: Path, little_memory: None
) -> None:
    """Too few and too many, to the readers of radiographs and of series."""
    path = _plain(tmp_path)
    images = ct_slices(np.zeros((SIDE, SIDE, 4)))
    for dataset in (pydicom.dcmread(path), *images):
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        if dataset not in images:
            dataset.save_as(path)
    series = save_series(images, tmp_path / "ct")
    for read, place in ((read_radiograph, path), (kind_of_file, path), (read_scan, series)):
        with pytest.raises(UserError, match=words):
            read(place)


@pytest.mark.parametrize("syntax", [*_PACKED, "RLELossless"])
@pytest.mark.parametrize("fault", ["larger", "turned", "huge", "bits", "cut"])
def test_packed_pixels_are_those_of_the_header(syntax: str, fault: str, tmp_path: Path, little_memory: None) -> None:
    """Another size; as many pixels in other rows (RLE cannot tell: twice as many); 10^9; more bits; half a file."""
    path = pack(_plain(tmp_path), tmp_path / "a.dcm", syntax)
    dataset = pydicom.dcmread(path)
    if fault == "larger":
        dataset.Rows = dataset.Columns = SIDE // 2
    elif fault == "turned":
        dataset.Rows, dataset.Columns = 2 * SIDE, SIDE // (1 if syntax == "RLELossless" else 2)
    elif fault == "huge":
        dataset.PixelData = encapsulate([_huge(next(generate_frames(dataset.PixelData, number_of_frames=1)), syntax)])
        dataset["PixelData"].is_undefined_length = True
    elif fault == "bits":
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.save_as(path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    for read in (read_radiograph, kind_of_file):
        with pytest.raises(UserError, match=r"packed pixels|RLE segments"):
            read(path)


def _huge(stream: bytes, syntax: str) -> bytes:
    content = bytearray(stream)
    if syntax == "RLELossless":
        struct.pack_into("<I", content, 4, _4_GB)
        return bytes(content)
    place = content.index(_PACKED[syntax])
    if syntax == "JPEG2000Lossless":
        struct.pack_into(">II", content, place + 6, 60000, 60000)
    else:
        struct.pack_into(">HH", content, place + 5, 60000, 60000)
    return bytes(content)


def test_a_trap_in_a_series_is_not_shown_to_its_reader(tmp_path: Path) -> None:
    """SimpleITK would overrun its stack; and of encrypted files one learns that they are."""
    for spoil, words in ((_spliced(_nested()), "64 sequences"), (_enveloped, "encrypted envelope")):
        folder = save_series(ct_slices(np.zeros((8, 8, 4))), tmp_path / words[:2])
        for path in folder.iterdir():
            path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(UserError, match=words):
            read_scan(folder)


def _png(cols: int, rows: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    data = b"".join(b"\0" + bytes(row) for row in (PIXELS >> 4).astype(np.uint8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _jpeg(cols: int, rows: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).convert(options.pop("mode", "L")).save(stream, "JPEG", **options)
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    struct.pack_into(">HH", content, place, rows, cols)
    return bytes(content)


def _tiff(cols: int, rows: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "TIFF", **options)
    content = bytearray(stream.getvalue())
    (place,) = struct.unpack_from("<I", content, 4)
    for entry in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", content, place)[0], 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", content, entry, tag, 4, 1, cols if tag == 256 else rows)
    return bytes(content)


PICTURES: dict[str, Callable[[int, int], bytes]] = {
    "a.png": _png,
    "a.jpg": _jpeg,
    "progressive.jpg": lambda cols, rows: _jpeg(cols, rows, progressive=True),
    "colour.jpg": lambda cols, rows: _jpeg(cols, rows, mode="RGB"),
    "a.tif": _tiff,
    "deflated.tif": lambda cols, rows: _tiff(cols, rows, compression="tiff_deflate"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_pictures_data_are_those_of_its_size(name: str, tmp_path: Path, little_memory: None) -> None:
    """Taken as it is; refused with more rows, more columns, fewer rows or fewer columns than there are."""
    path = tmp_path / name
    path.write_bytes(PICTURES[name](SIDE, SIDE))
    assert read_radiograph(path).pixels.shape == (SIDE, SIDE)
    for cols, rows in ((SIDE, 4 * SIDE), (4 * SIDE, SIDE), (SIDE, SIDE // 2), (SIDE // 2, SIDE)):
        path.write_bytes(PICTURES[name](cols, rows))
        with pytest.raises(UserError, match=r"must h(old|ave)|must be a radiograph"):
            read_radiograph(path)
