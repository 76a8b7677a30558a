# SPDX-License-Identifier: Apache-2.0
"""Radiographs in PNG, JPEG, TIFF and what else Pillow reads: grey levels of 8 to 16 bits, upright as EXIF says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.radiograph.picture_data import load_whole
from progressive_cascade.radiograph.record import Radiograph, check_pixels, check_size, grey_of_colours

if TYPE_CHECKING:
    from PIL import Image

# Pillow refuses large pictures itself, with a warning; the size is checked here, from the header.
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_picture(path: Path) -> Radiograph:
    """Reads a picture; what is known of it is its pixels alone.

    Args:
        path: the file; its content, not its name, says what it is.

    Returns:
        The radiograph, display values with bright taken for dense; fully transparent pixels are masked.

    Raises:
        UserError: if it is no picture, damaged, in colour, or too small or large to be a radiograph.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            check_size(path, image.height, image.width)
            if getattr(image, "n_frames", 1) != 1:
                raise UserError(f"{path} must hold one picture, got {getattr(image, 'n_frames', 1)}")
            upright = ImageOps.exif_transpose(load_whole(image, path))
            pixels, mask = _grey(upright, path)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged header leads them to
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else said
        raise UserError(f"{path} must be a radiograph (DICOM, NIfTI, MHA, PNG, JPEG, TIFF), got: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    check_pixels(path, pixels, mask)
    return Radiograph(str(path), pixels, mask, "display", sources={"meaning": "assumed"})


def _grey(picture: Image.Image, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (rows, cols), and which pixels are not transparent."""
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in _GREY_MODES:
        pixels = np.asarray(picture, dtype=np.float32)
        return pixels, np.ones(pixels.shape, dtype=bool)
    if picture.mode not in ("LA", "RGB", "RGBA"):
        raise UserError(f"{path} must be a grey picture, got mode {picture.mode}")
    # One band after the other, in the bytes they are stored in: large pictures are read in a second.
    bands = [np.asarray(band) for band in picture.split()]
    mask = bands.pop() > 0 if picture.mode in ("LA", "RGBA") else np.ones(bands[0].shape, dtype=bool)
    if picture.mode == "LA":
        return bands[0].astype(np.float32), mask
    return grey_of_colours(bands, path), mask
