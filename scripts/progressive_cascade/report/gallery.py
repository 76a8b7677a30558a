# SPDX-License-Identifier: Apache-2.0
"""Many patients on one page, to be looked at: a coronal and an axial slice and two radiographs of each."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

import numpy as np

from progressive_cascade.io import atomic_path
from progressive_cascade.report.drawing import central_planes, film_tone

_TILE = 112  # pixels
_LINE = 13  # of the title above
_COLUMNS = 3
_WINDOW = (-1000.0, 500.0)  # HU: lung and bone at once
_QUALITY = 84


def save_gallery(patients: Iterable[tuple[str, np.ndarray, np.ndarray]], path: str | PathLike[str]) -> None:
    """Draws the page.

    Args:
        patients: title, CT (x, y, z) on a cube [HU], and line integrals (2, rows, cols), PA and left lateral.
        path: picture to write, .png or .jpg.

    Raises:
        ValueError: if there is no patient.
    """
    from PIL import Image

    strips = [_strip(*patient) for patient in patients]
    if not strips:
        raise ValueError("patients must hold at least one, got none")
    strips += [np.zeros_like(strips[0])] * (-len(strips) % _COLUMNS)
    rows = [np.hstack(strips[first : first + _COLUMNS]) for first in range(0, len(strips), _COLUMNS)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.vstack(rows)).save(temporary, quality=_QUALITY)


def _strip(title: str, hu: np.ndarray, radiographs: np.ndarray) -> np.ndarray:
    """One patient: a title above four square pictures, uint8."""
    from PIL import Image, ImageDraw

    axial, coronal, _ = central_planes(hu, (1.0, 1.0, 1.0))
    low, high = _WINDOW
    pictures = [(plane.image - low) / (high - low) for plane in (coronal, axial)]
    pictures += [film_tone(image) for image in radiographs]
    strip = Image.new("L", (4 * (_TILE + 2) + 8, _TILE + _LINE + 4))
    ImageDraw.Draw(strip).text((2, 0), title, fill=200)
    for column, picture in enumerate(pictures):
        grey = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
        strip.paste(grey.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (column * (_TILE + 2), _LINE))
    return np.asarray(strip)
