# SPDX-License-Identifier: Apache-2.0
"""One radiograph, whatever file it came in: pixels, what is known of them, and where each fact came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError

MEANINGS = ("line_integral", "detector_signal", "display")
"""What pixel values can be: ∫mu dl; proportional to the X-rays that arrived; grey levels, dense bright."""
SOURCES = ("tag", "sidecar", "option", "picture", "assumed")
"""Where a fact can come from."""
_LETTERS = "RLAPHF"
_SMALLEST_SIDE = 64
_MOST_PIXELS = 80_000_000
# Mean difference of the colour channels over the range: a grey picture stored as JPEG in colour stays below 1 %.
_MOST_COLOUR = 0.02


@dataclass(frozen=True)
class Radiograph:
    """A radiograph as it is stored.

    Attributes:
        path: of its file.
        pixels: float32 (rows, cols). Display values and line integrals are high where the patient is dense, a detector
            signal is low there.
        mask: True where a pixel shows what the X-rays did, same shape.
        meaning: one of :data:`MEANINGS`.
        spacing: pitch (row, column) in the detector's plane [mm], or None.
        directions: letters out of R, L, A, P, H, F along increasing columns, then rows; or None.
        view: a name of :func:`~progressive_cascade.geometry.views.view_axes`, or None.
        source_to_detector: [mm], or None.
        source_to_isocenter: [mm], or None.
        offset: where the stored image's centre lies relative to the foot of the central ray, along its own
            (row, column) axes [mm].
        center: the image's centre in the patient's world, RAS [mm], or None.
        patient: identity for pairing, never written; or empty.
        study: likewise.
        remarks: what its file says that should be doubted, one line each.
        sources: for each fact that is known, one of :data:`SOURCES`.
    """

    path: str
    pixels: np.ndarray
    mask: np.ndarray
    meaning: str
    spacing: tuple[float, float] | None = None
    directions: tuple[str, str] | None = None
    view: str | None = None
    source_to_detector: float | None = None
    source_to_isocenter: float | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float, float] | None = None
    patient: str = ""
    study: str = ""
    remarks: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What a sidecar may say of it: every fact but the patient's identity, each with its source."""
        names = ("meaning", "spacing", "directions", "view", "source_to_detector", "source_to_isocenter")
        return {
            name: {"value": getattr(self, name), "source": self.sources.get(name, "assumed")}
            for name in names
            if getattr(self, name) is not None
        }


def check_size(path: object, rows: int, cols: int) -> None:
    """Refuses, from a header alone, what is too small or too large to be a radiograph.

    Raises:
        UserError: naming the file and its size.
    """
    if min(rows, cols) < _SMALLEST_SIDE or rows * cols > _MOST_PIXELS:
        raise UserError(
            f"{path} must be a radiograph of {_SMALLEST_SIDE} pixels a side to {_MOST_PIXELS // 10**6} million pixels, "
            f"got {rows} x {cols}"
        )


def check_pixels(path: object, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Refuses pixels that show nothing: NaN, one value, hardly a grey level, or cut off at both ends.

    Raises:
        UserError: naming the file.
    """
    if not np.isfinite(pixels).all():
        raise UserError(f"{path} must hold finite numbers, got NaN or infinity")
    seen = pixels[mask]
    if seen.size < _SMALLEST_SIDE**2:
        raise UserError(f"{path} must show a patient, got shutters over all but {seen.size} pixels")
    low, high = float(seen.min()), float(seen.max())
    if low == high:
        raise UserError(f"{path} must show a patient, got the constant value {low:g}")
    between = float(np.mean((seen > low) & (seen < high)))
    if between < 0.3:
        raise UserError(f"{path} must show grey levels, got {1 - between:.0%} of its pixels cut off at black or white")


def grey_of_colours(bands: Sequence[np.ndarray], path: object) -> np.ndarray:
    """Grey levels of a picture that is stored in colours, and shows none.

    Args:
        bands: red, green and blue, each (rows, cols), in the numbers they are stored in.
        path: of the file, for an error.

    Raises:
        UserError: where it does show colours.
    """
    highest, lowest = (reduce(extreme, bands) for extreme in (np.maximum, np.minimum))
    spread = float(np.mean(highest - lowest))
    if spread > _MOST_COLOUR * max(float(highest.max()) - float(lowest.min()), 1.0):
        raise UserError(
            f"{path} must be a grey picture, without annotations in colour, got colours that differ by {spread:.0f} "
            "levels on average"
        )
    return reduce(np.add, bands, np.zeros(bands[0].shape, dtype=np.float32)) / np.float32(3)


def parse_directions(letters: object, name: object) -> tuple[str, str]:
    """Two letters out of R, L, A, P, H and F along different axes; of such as ``LP`` the first letter counts.

    Raises:
        UserError: naming the file.
    """
    values = [str(value).strip().upper()[:1] for value in letters] if isinstance(letters, (list, tuple)) else []
    axes = {_LETTERS.find(value) // 2 for value in values if value and value in _LETTERS}
    if len(values) != 2 or len(axes) != 2:
        raise UserError(f"{name} must have an orientation of two letters out of R, L, A, P, H and F, got {letters}")
    return values[0], values[1]


def nearest_letters(vectors: np.ndarray) -> tuple[str, str]:
    """The letters nearest to directions along columns and rows.

    Args:
        vectors: (2, 3), RAS.
    """
    found = []
    for vector in vectors:
        axis = int(np.abs(vector).argmax())
        # RAS as this package means it: +x is the patient's right (NIfTI's own convention for the letters R and L).
        found.append(_LETTERS[2 * axis + (0 if vector[axis] > 0 else 1)])
    return found[0], found[1]
