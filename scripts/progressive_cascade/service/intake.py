# SPDX-License-Identifier: Apache-2.0
"""What comes from outside: told by its first bytes, within limits before memory is taken, under names of our own.

No name of a client's file is kept, for it may name a patient.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, nifti_stem, read_json
from progressive_cascade.io.dicom_layout import is_envelope, read_layout
from progressive_cascade.io.pixel_streams import check_stored_pixels
from progressive_cascade.radiograph.folder import PairFiles, find_pairs
from progressive_cascade.radiograph.record import check_size

MAX_ENTRIES = 256
"""Files in a zip."""
MAX_RATIO = 200
"""How many times smaller than its content a file in a zip may be."""
PLACES = ("pa", "lateral")
BESIDE = ("geometry.json", "exposure.json")
"""Files beside the frontal radiograph that tell of both."""
_BLOCK = 1 << 20
_HEAD = 512
_ZIP_TAIL = (64 << 10) + 22
_DETACHED = (b"data file:", b"datafile:", b"elementdatafile")


def kind_of_file(path: Path) -> str:
    """The suffix of a radiograph by its content.

    Raises:
        UserError: if it is none, larger than any, or its pixels lie in another file.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
    suffix = _suffix(head)
    if suffix is None:
        raise UserError(f"{path.stem} must be a radiograph (DICOM, NIfTI, MHA, NRRD, PNG, JPEG, TIFF), it is none")
    if suffix in (".png", ".jpg", ".tif"):
        _check_picture(path)
    if suffix == ".dcm":
        _check_dicom(path)
    if suffix in (".nrrd", ".mha"):
        _check_attached(path)
    return suffix


def _suffix(head: bytes) -> str | None:
    starts = {
        b"\x89PNG": ".png",
        b"\xff\xd8\xff": ".jpg",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
        b"\x1f\x8b": ".nii.gz",
        b"NRRD": ".nrrd",
        b"ObjectType": ".mha",
        b"NDims": ".mha",
    }
    if head[128:132] == b"DICM" or is_envelope(head):
        return ".dcm"
    if head[344:348] in (b"n+1\0", b"n+2\0") or head[4:8] == b"n+2\0":
        return ".nii"
    return next((suffix for start, suffix in starts.items() if head.startswith(start)), None)


def _check_picture(path: Path) -> None:
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            check_size(path.stem, image.height, image.width)
    except UserError:
        raise
    except Exception as error:  # Pillow raises whatever a damaged header leads it to
        raise UserError(f"{path.stem} must be a picture, its header is damaged") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_dicom(path: Path) -> None:
    from pydicom import dcmread

    read_layout(path, path.stem)
    try:
        header = dcmread(path, specific_tags=["Rows", "Columns", "NumberOfFrames"], stop_before_pixels=True)
        rows, cols = int(header.Rows), int(header.Columns)
    except Exception as error:  # pydicom raises whatever a damaged header leads it to
        raise UserError(f"{path.stem} must be a DICOM radiograph with Rows and Columns, it is none") from error
    check_size(path.stem, rows, cols)
    check_stored_pixels(path, path.stem)


def _check_attached(path: Path) -> None:
    """Refuses a header that sends its reader to another file of this machine."""
    with open(path, "rb") as stream:
        head = stream.read(64 << 10).lower()
    header = head.partition(b"\n\n")[0] if head.startswith(b"nrrd") else head
    for line in header.splitlines():
        key, _, value = line.partition(b"=")
        if line.strip().startswith(_DETACHED[:2]):
            raise UserError(f"{path.stem} must hold its pixels itself, it names another file")
        if key.strip() == _DETACHED[2]:
            if value.strip() != b"local":
                raise UserError(f"{path.stem} must hold its pixels itself, it names another file")
            return


def place(path: Path, folder: Path, view: str) -> str:
    """Moves a file to where a job expects it.

    Args:
        path: an upload.
        folder: the job's input.
        view: ``pa`` or ``lateral``.

    Returns:
        Its name there.

    Raises:
        UserError: as :func:`kind_of_file`.
    """
    named = path.rename(path.with_name(view))
    target = folder / f"{view}{kind_of_file(named)}"
    shutil.move(named, target)
    return target.name


def take_pair(pair: PairFiles, folder: Path, *, with_geometry: bool = True) -> list[str]:
    """Copies the files of a pair, and what lies beside them, to where a job expects them.

    Args:
        pair: complete.
        folder: the job's input.
        with_geometry: whether a geometry.json beside them counts.

    Returns:
        Arguments of `reconstruct`: the two radiographs and their geometry, relative to the job's folder.

    Raises:
        UserError: if one is no radiograph.
    """
    assert pair.frontal is not None and pair.lateral is not None
    arguments = []
    for view, source in zip(PLACES, (pair.frontal, pair.lateral), strict=True):
        plain = folder / view
        shutil.copyfile(source, plain)
        arguments += [f"--{view}", f"input/{place(plain, folder, view)}"]
        stem = nifti_stem(source) if source.name.endswith(NIFTI_SUFFIXES) else source.stem
        _take_json(source.with_name(f"{stem}.json"), folder / f"{view}.json")
    for name in BESIDE:
        _take_json(pair.frontal.parent / name, folder / name)
    return [*arguments, *(geometry_arguments(folder) if with_geometry else [])]


def geometry_arguments(folder: Path) -> list[str]:
    """`--geometry`, where a job has one."""
    return ["--geometry", "input/geometry.json"] if (folder / "geometry.json").is_file() else []


def _take_json(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)


def check_json(path: Path) -> None:
    """Refuses what is no JSON object, or beyond the limits of :func:`read_json`."""
    try:
        value = read_json(path, path.stem)
    except UserError as error:
        raise UserError(str(error).replace(f" {path}", "")) from error
    if not isinstance(value, dict):
        raise UserError(f"{path.stem} must be a JSON object")


def unpack_study(stream: BinaryIO, folder: Path, *, max_bytes: int, with_geometry: bool = True) -> list[str]:
    """The one pair in a zip, placed for a job.

    Args:
        stream: the zip.
        folder: the job's input.
        max_bytes: of all that it holds, unpacked; counted while unpacking, whatever the headers say.
        with_geometry: as of :func:`take_pair`.

    Returns:
        Arguments of `reconstruct`.

    Raises:
        UserError: if it is no zip, a bomb, leads outside of its folder, or does not hold one pair.
    """
    _check_directory(stream)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        inside = Path(name) / "study"
        inside.mkdir()
        try:
            with zipfile.ZipFile(stream) as archive:
                _unpack(archive, inside, max_bytes)
        except UserError:
            raise
        except Exception as error:  # zipfile and zlib raise whatever a damaged archive leads them to
            raise UserError("study must be a zip that can be unpacked (no password), it is not") from error
        try:
            pairs = find_pairs(inside)
        except UserError:
            pairs = []
        # What is wrong with a pair names its files.
        if len(pairs) != 1 or pairs[0].problem:
            complete = sum(not pair.problem for pair in pairs)
            raise UserError(
                "study must hold one frontal and one lateral radiograph, as pa.* and lateral.* or as DICOM that says "
                f"its view; got {complete} pairs and {len(pairs) - complete} that are incomplete or doubled"
            )
        return take_pair(pairs[0], folder, with_geometry=with_geometry)


def _check_directory(stream: BinaryIO) -> None:
    """Refuses a list of contents that would take memory to read: its size stands at the zip's end (APPNOTE 4.3.16)."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _ZIP_TAIL))
    tail = stream.read()
    for match in re.finditer(rb"PK\x05\x06", tail):
        if int.from_bytes(tail[match.start() + 12 : match.start() + 16], "little") > _BLOCK:
            raise UserError(f"study must hold at most {MAX_ENTRIES} files, its list is longer")
    stream.seek(0)


def _unpack(archive: zipfile.ZipFile, folder: Path, max_bytes: int) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"study must hold at most {MAX_ENTRIES} files, got {len(entries)}")
    left = max_bytes
    for entry in entries:
        target = folder / _safe_name(entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(target, "xb") as sink:
            for block in iter(lambda source=source: source.read(_BLOCK), b""):
                left -= len(block)
                sink.write(block)
                if left < 0:
                    raise UserError(f"study must hold at most {max_bytes >> 20} MiB unpacked, got more")
                if sink.tell() > _BLOCK and sink.tell() > MAX_RATIO * max(entry.compress_size, 1):
                    raise UserError(f"study must not hold files packed more than {MAX_RATIO} times")


def _safe_name(entry: zipfile.ZipInfo) -> PurePosixPath:
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise UserError("study must hold plain files, got a link or a device")
    if name.is_absolute() or ":" in entry.filename or any(_is_bad(part) for part in name.parts) or len(name.parts) > 16:
        raise UserError("study must hold files inside of its own folder, got a name that leads elsewhere")
    return name


def _is_bad(part: str) -> bool:
    return part in ("", ".", "..") or len(part) > 200 or any(ord(letter) < 32 for letter in part)
