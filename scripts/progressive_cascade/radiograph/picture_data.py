# SPDX-License-Identifier: Apache-2.0
"""Pictures whose data are those of their size: decoders fill up what is missing with grey, and pass over what is left.

LZW and PackBits in one TIFF strip are passed over: they do not say how much they hold.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io.pixel_streams import read_jpeg_header

if TYPE_CHECKING:
    from PIL import Image

_BLOCK = 1 << 20
# Larger data are inflated twice, a block after the other, rather than held.
_MOST_STORED = 1 << 28
# libjpeg fills up with blocks of this level; the bits that pad the last byte may make a few blocks before them.
_JPEG_FILL = 128
_MAX_ROWS = 65535
# Columns, rows, and steps of the seven passes of an interlaced PNG (PNG 8.2): x0, y0, dx, dy.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DATA = b"IDAT"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# TIFF 6.0: tags, and compressions without loss.
_BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _COUNTS = 258, 259, 273, 277, 278, 279
_PLAIN, _DEFLATE = 1, (8, 32946)


def load_whole(image: Image.Image, path: Path) -> Image.Image:
    """Decodes a picture that has just been opened.

    Args:
        image: of any format.
        path: of its file.

    Returns:
        The picture.

    Raises:
        UserError: if its data are fewer or more than its header tells of.
    """
    if image.format == "JPEG":
        return _load_jpeg(image, path)
    if image.format == "PNG":
        return _load_png(image, path)
    if image.format == "TIFF":
        _check_tiff(image, path)
    image.load()
    return image


def _check(path: Path, promised: int, held: int, *, play: int = 0) -> None:
    if not 0 <= held - promised <= play:
        raise UserError(f"{path} must hold the {promised} bytes of its rows and columns, got {_amount(held, promised)}")


def _amount(held: int, promised: int) -> str:
    return f"{held}" if held < promised else "more"


def _inflated(pieces: Iterable[bytes | memoryview], limit: int) -> Iterator[bytes]:
    """Blocks of what pieces of deflated data hold, up to one byte more than the limit."""
    inflate, held = zlib.decompressobj(), 0
    for piece in pieces:
        while piece and held <= limit:
            block = inflate.decompress(piece, min(_BLOCK, limit + 1 - held))
            held += len(block)
            yield block
            piece = inflate.unconsumed_tail


def _load_png(image: Image.Image, path: Path) -> Image.Image:
    """Inflates the data once: Pillow is given them stored, so that it has next to nothing to inflate."""
    from PIL import Image

    content = path.read_bytes()
    promised, row = _size_in_png(content)
    large = promised > _MOST_STORED
    deflate, stored, held = zlib.compressobj(0), [], 0
    for block in _inflated((data for name, data in _chunks(content) if name == _DATA), promised + row):
        held += len(block)
        if not large:
            stored.append(deflate.compress(block))
    _check(path, promised, held, play=row - 1)
    if large:
        image.load()
        return image
    with Image.open(io.BytesIO(_with_data(content, [*stored, deflate.flush()]))) as again:
        again.load()
        return again


def _size_in_png(content: bytes) -> tuple[int, int]:
    """Bytes of all rows (PNG 7.2), of each a byte that tells its filter; and of the widest."""
    cols, rows, bits, kind, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    row_bits = bits * _PNG_CHANNELS[kind]
    promised = 0
    for x, y, dx, dy in _PASSES if is_interlaced else ((0, 0, 1, 1),):
        width, height = -(-max(cols - x, 0) // dx), -(-max(rows - y, 0) // dy)
        promised += height * (1 + -(-width * row_bits // 8)) if width else 0
    return promised, 1 + -(-cols * row_bits // 8)


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Names and data of a PNG's chunks."""
    view, place = memoryview(content), 8
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        yield name, view[place + 8 : place + 8 + length]
        place += length + 12


def _with_data(content: bytes, pieces: Iterable[bytes]) -> bytes:
    """A PNG with other data in the place of its own."""
    found, is_open = [content[:8]], True
    for name, data in _chunks(content):
        if name != _DATA:
            found += _chunk(name, data)
        elif is_open:
            is_open = False
            found += _chunk(name, b"".join(pieces))
    return b"".join(found)


def _chunk(name: bytes, data: bytes | memoryview) -> list[bytes | memoryview]:
    return [struct.pack(">I4s", len(data), name), data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))]


def _check_tiff(image: Image.Image, path: Path) -> None:
    """The strips are as many as there should be, and those that are not packed or deflated, as long."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    counts, offsets = tags.get(_COUNTS, ()), tags.get(_OFFSETS, ())
    compression, samples = tags.get(_COMPRESSION, _PLAIN), tags.get(_SAMPLES, 1)
    bits = tags.get(_BITS, (1,))
    rows_per_strip = min(tags.get(_ROWS_PER_STRIP, image.height) or image.height, image.height)
    if not counts or len(counts) != len(offsets):  # tiles, or a writer that says less than it should
        return
    strips = -(-image.height // rows_per_strip)
    if len(counts) not in (strips, strips * samples):
        raise UserError(f"{path} must have {strips} strips of {rows_per_strip} of its rows, got {len(counts)}")
    row = -(-image.width * samples * bits[0] // 8)
    if compression == _PLAIN:
        _check(path, row * image.height, sum(counts), play=len(counts) * (row - 1))
    if compression in _DEFLATE and len(counts) == 1:
        with open(path, "rb") as stream:
            stream.seek(offsets[0])
            held = sum(map(len, _inflated([stream.read(counts[0])], row * image.height)))
            _check(path, row * image.height, held)


def _load_jpeg(image: Image.Image, path: Path) -> Image.Image:
    """Decodes two rows of blocks more than the header tells of: the last must hold nothing, the header's last not."""
    from PIL import Image

    content = bytearray(path.read_bytes())
    header = read_jpeg_header(content)
    if header is None or header.rows != image.height or header.rows + 3 * header.unit > _MAX_ROWS:
        image.load()
        return image
    below = -(-header.rows // header.unit) * header.unit
    struct.pack_into(">H", content, header.rows_at, below + 2 * header.unit)
    with Image.open(io.BytesIO(content)) as taller:
        taller.load()
        filled = _is_fill(np.asarray(taller), header.unit)
        if not filled[-1].all():
            raise UserError(f"{path} must hold the data of {header.cols} × {header.rows} pixels, got more")
        if filled[-3, filled.shape[1] // 2 :].all():
            raise UserError(f"{path} must hold the data of {header.cols} × {header.rows} pixels, got fewer")
        return taller.crop((0, 0, image.width, image.height))


def _is_fill(pixels: np.ndarray, unit: int) -> np.ndarray:
    """Which blocks (rows, columns of units) are of the level that stands for what is missing.

    Of each block only the middle counts: colours of its neighbours are smoothed into its border.
    """
    rows, cols = pixels.shape[0] // unit, max(pixels.shape[1] // unit, 1)
    values = pixels.reshape(*pixels.shape[:2], -1)[: rows * unit, : cols * unit]
    blocks = (values == _JPEG_FILL).all(axis=2)
    blocks = blocks.reshape(rows, unit, cols, -1)[:, unit // 4 : -(unit // 4), :, unit // 4 : -(unit // 4)]
    return blocks.all(axis=(1, 3))
