# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a page: radiographs as they are read, and figures that are already drawn, as data addresses."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.report.drawing import DIFFERENCE_LIMIT, diverging_colors, film_tone, view_title

# Toward which side of the patient +x, +y and +z point, and the opposite ones.
_LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
_SIDES = {
    "R": "patient's right",
    "L": "patient's left",
    "A": "patient's front",
    "P": "patient's back",
    "S": "head",
    "I": "feet",
}
_FILM_QUALITY, _STILL_QUALITY = 88, 85


@dataclass(frozen=True)
class Film:
    """One view as the page shows it.

    Args:
        name: of the view, for people.
        again: the re-projection's data address.
        given: the radiograph's, empty where it was not kept.
        difference: the difference's, empty likewise.
        letters: sides of the patient at the image's left, right and top.
        sides: what the first two stand for.
        matrix: world [RAS mm] to pixel (3, 4).
        shape: rows, columns.
    """

    name: str
    again: str
    given: str
    difference: str
    letters: tuple[str, str, str]
    sides: tuple[str, str]
    matrix: list[list[float]]
    shape: tuple[int, int]


def side_letters(beam: ConeBeam, view: int) -> tuple[str, str, str]:
    """The sides of the patient at the left, right and top of a radiograph.

    Args:
        beam: the geometry.
        view: index into its views.

    Returns:
        Letters out of R, L, A, P, S, I.

    Example:
        >>> side_letters(ConeBeam(), 0)
        ('R', 'L', 'S')
    """
    column, row = beam.poses()[2][view][:2]
    return _letter(-column), _letter(column), _letter(-row)


def films(beam: ConeBeam, reprojected: np.ndarray, radiographs: np.ndarray | None) -> list[Film]:
    """All views with their re-projections, bone bright, both on the radiograph's scale.

    Args:
        beam: the geometry.
        reprojected: line integrals of the reconstruction (view, rows, cols).
        radiographs: those it was made from, same shape; None where they are not known.
    """
    matrices = beam.projection_matrices()
    found = []
    for view, name in enumerate(beam.views):
        again = reprojected[view]
        given = again if radiographs is None else radiographs[view]
        letters = side_letters(beam, view)
        known = radiographs is not None
        film = Film(
            name=view_title(name),
            again=jpeg_address(film_tone(again, like=given)),
            given=jpeg_address(film_tone(given)) if known else "",
            difference=jpeg_address(diverging_colors()((again - given) / (2 * DIFFERENCE_LIMIT) + 0.5))
            if known
            else "",
            letters=letters,
            sides=(_SIDES[letters[0]], _SIDES[letters[1]]),
            matrix=matrices[view].tolist(),
            shape=(again.shape[0], again.shape[1]),
        )
        found.append(film)
    return found


def jpeg_address(tone: np.ndarray) -> str:
    """An image as a data address.

    Args:
        tone: brightness (rows, cols), or colours (rows, cols, 3 or 4), in [0, 1].
    """
    from PIL import Image

    pixels = (np.asarray(tone)[..., :3] if np.ndim(tone) == 3 else np.asarray(tone)) * 255
    return _address(Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), _FILM_QUALITY)


def picture_address(path: Path) -> str:
    """A picture file as a data address, as JPEG, because a page is sent around."""
    from PIL import Image

    with Image.open(path) as picture:
        return _address(picture.convert("RGB"), _STILL_QUALITY)


def _address(picture, quality: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _letter(direction: np.ndarray) -> str:
    axis = int(np.abs(direction).argmax())
    return _LETTERS[axis][0 if direction[axis] > 0 else 1]
