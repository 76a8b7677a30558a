# SPDX-License-Identifier: Apache-2.0
"""A header that promises what no memory holds is refused by every reader of images before memory is taken for it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from progressive_cascade.ct.files import read_scan
from progressive_cascade.ct.frames import read_frame_planes
from progressive_cascade.ct.series import find_dicom_series, read_dicom_series
from progressive_cascade.errors import UserError
from progressive_cascade.export.dicom import build_slices
from progressive_cascade.radiograph.read import read_radiograph
from tests.support.dicom_files import dx, save
from tests.support.service import deflated_dicom

SIDE = 30000


def _nrrd(*sizes: int) -> bytes:
    lines = ("NRRD0004", "type: short", f"dimension: {len(sizes)}", f"sizes: {' '.join(map(str, sizes))}")
    return "\n".join((*lines, "encoding: raw", "endian: little", "", "")).encode() + bytes(1000)


def _mha(*sizes: int) -> bytes:
    lines = ("ObjectType = Image", f"NDims = {len(sizes)}", f"DimSize = {' '.join(map(str, sizes))}")
    return "\n".join((*lines, "ElementType = MET_SHORT", "ElementDataFile = LOCAL", "")).encode() + bytes(1000)


def _png() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(content)


def _tiff() -> bytes:
    entries = ((256, SIDE), (257, SIDE), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, SIDE), (279, 100))
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(200)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nrrd", _nrrd(SIDE, SIDE), "million pixels"),
        ("a.nrrd", _nrrd(100, 100, 10**7), "one grey picture"),
        ("a.mha", _mha(SIDE, SIDE), "million pixels"),
        ("a.mha", _mha(100, 100, 10**7), "one grey picture"),
        ("a.png", _png(), "million pixels"),
        ("a.jpg", _jpeg(), "million pixels"),
        ("a.tif", _tiff(), "million pixels"),
    ],
)
def test_a_radiograph_is_refused_by_its_header(
    name: str, content: bytes, words: str, tmp_path: Path, little_memory: None
) -> None:
    """Pictures and volume files of a few hundred bytes."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_radiograph(tmp_path / name)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"])
def test_a_dicom_radiograph_is_refused_by_its_header(syntax: str, tmp_path: Path, little_memory: None) -> None:
    """As it is, or packed by JPEG 2000 or RLE."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset = _dataset(dx())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    if UID(syntax).is_compressed:
        dataset.PixelData = encapsulate([bytes(1000)])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UserError, match="million pixels"):
        read_radiograph(tmp_path / "a.dcm")


def _dataset(dataset: Any) -> Any:
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = bytes(1000)
    return dataset


@pytest.mark.parametrize("make", [_nrrd, _mha])
@pytest.mark.parametrize(
    ("size", "words"),
    [(700, "must hold the"), (SIDE, "must have at most"), (10**17, "must be a readable image|voxels")],
)
def test_a_ct_is_refused_by_its_header(
    make: Callable[..., bytes], size: int, words: str, tmp_path: Path, little_memory: None
) -> None:
    """NRRD and MetaImage of a thousand bytes, up to 10^51 voxels."""
    path = tmp_path / f"a.{'nrrd' if make is _nrrd else 'mha'}"
    path.write_bytes(make(size, size, size))
    with pytest.raises(UserError, match=words):
        read_scan(path)


def test_a_series_is_refused_by_its_headers(tmp_path: Path, little_memory: None) -> None:
    """Slices, and the frames of one file."""
    (tmp_path / "ct").mkdir()
    for index in range(2):
        dataset = _dataset(dx(Modality="CT", SeriesInstanceUID="1.2.3", InstanceNumber=index))
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{index}"
        dataset.PixelSpacing, dataset.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, index]
        save(dataset, tmp_path / "ct" / f"{index}.dcm")
    (series,) = find_dicom_series(tmp_path / "ct")
    with pytest.raises(UserError, match="must hold the 1800000000 bytes"):
        read_dicom_series(series)
    with pytest.raises(UserError, match="must have at most"):
        read_frame_planes(str(tmp_path / "ct" / "0.dcm"))


def test_every_reader_of_dicom_inflates_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deflated file that is larger than any radiograph, to those that read radiographs, frames, and sources."""
    monkeypatch.setattr("progressive_cascade.io.limits._MOST_INFLATED", 1 << 20)
    path = tmp_path / "a.dcm"
    path.write_bytes(deflated_dicom(3 << 20))
    hu = np.zeros((2, 2, 2), np.int16)
    for read in (
        read_radiograph,
        lambda path: read_frame_planes(str(path)),
        lambda path: build_slices(hu, np.eye(4), sources=[path]),
    ):
        with pytest.raises(UserError, match="must inflate to at most 1 MiB"):
            read(path)
