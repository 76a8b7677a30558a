# SPDX-License-Identifier: Apache-2.0
"""How large the model's detector is taken for a pair: so that it shows the whole films, within what the model learnt.

The rays stay what they are. A detector of as many pixels shows more or less of the plane through the isocenter as its
pixels are larger or smaller, and a model trained for a range of fields takes any field inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import TOLERANCE, ConeBeam, GeometryRange

# Less than this cut off or padded [mm] is rounding of pitches.
_ROUNDING_MM = 0.5


@dataclass(frozen=True)
class Model:
    """The detector that radiographs are brought to.

    Attributes:
        size: its rows and columns.
        focal_length: source_to_detector over pixel spacing of the geometry the model was built for [pixels].
        trained: the range it was trained for; None: this focal length alone.
    """

    size: int
    focal_length: float
    trained: GeometryRange | None = None


@dataclass(frozen=True)
class Fit:
    """What a detector shows of the films.

    Attributes:
        wanted: width of the field that shows them whole [mm], in the plane through the isocenter.
        field: the width it has [mm].
        least: the smallest width that was trained for [mm].
    """

    wanted: float
    field: float
    least: float

    def notes(self) -> list[str]:
        """What was cut off, or made wider than the films."""
        reach = f"the X-rays reach over {self.wanted:.0f} mm of the plane through the isocenter"
        if self.wanted - self.field > _ROUNDING_MM:
            return [f"{reach}, and the model sees the middle {self.field:.0f} mm"]
        if self.field - self.wanted > _ROUNDING_MM:
            return [f"{reach}, the model sees {self.field:.0f} mm: what lies beside the X-rays does not count"]
        return []

    def check(self, leaves: Sequence[str] | None = None, *, origin: str = "the X-rays") -> None:
        """Refuses films that are much smaller than what was trained, or those of them that show the body cut off.

        Beside a body that they show whole there is air, which is what a wider film would show.

        Args:
            leaves: where the body leaves the films, in words; None: refuse small ones whatever they show.
            origin: what to name.

        Raises:
            UserError: with the width, the least that was trained, and the share.
        """
        short = 1 - self.wanted / self.least
        if short <= TOLERANCE or (leaves is not None and not leaves):
            return
        missing = f"{self.least - self.wanted:.1f} mm ({short:.1%}) less{f', and {leaves[0]}' if leaves else ''}"
        raise UserError(
            f"{origin} must show {self.least:.0f} mm of the plane through the isocenter, the least that these weights "
            f"learnt, got {self.wanted:.1f} mm, {missing}; give the true sizes and distances where these are not they"
        )


def fit_detector(beam: ConeBeam, wanted: float, *, size: int, trained: GeometryRange) -> tuple[ConeBeam, Fit]:
    """The same rays on the model's detector.

    Args:
        beam: sources and planes; its pixels, offset and isocenter's place on the detector do not matter.
        wanted: width of the field that shows the films whole [mm], in the plane through the isocenter.
        size: rows and columns of the model's detector.
        trained: what the model was trained for.

    Returns:
        The geometry with ``size`` x ``size`` square pixels about the central ray, and what it shows.
    """
    low, high = trained.field
    field = min(max(wanted, low), high)
    exact = field * beam.magnification / size
    rounded = float(f"{exact:.6g}")
    pitch = rounded if low <= rounded * size / beam.magnification <= high else exact
    target = replace(beam, detector_shape=(size, size), pixel_spacing=(pitch, pitch), detector_offset=(0.0, 0.0))
    return target, Fit(wanted, field, low)


def field_of(beam: ConeBeam) -> float:
    """Width of the field about the central ray that shows the whole of a detector [mm], at the isocenter."""
    half = np.multiply(beam.detector_shape, beam.pixel_spacing) / 2 + np.abs(beam.detector_offset)
    return 2 * float(half.max()) / beam.magnification


def is_inside(beam: ConeBeam, size: int, trained: GeometryRange) -> bool:
    """Whether a geometry's own detector is one of the model's: its pixels, a field and an offset that were trained."""
    if beam.detector_shape != (size, size):
        return False
    sides = np.multiply(beam.detector_shape, beam.pixel_spacing) / beam.magnification
    offset = np.abs(beam.detector_offset).max() / beam.magnification
    low, high = trained.field
    return bool(low <= sides.min() and sides.max() <= high and offset <= trained.offset)
