# SPDX-License-Identifier: Apache-2.0
"""The geometries a cascade is trained for: drawn one by one in training, asked for one by one in use.

Of a view only four things matter to a network that is told its matrix: how far the source stands, how much of the plane
through the isocenter the detector shows, how the view is turned, and where the isocenter falls on the detector.
Distances from patient to detector and pixel sizes act through the second alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from progressive_cascade.geometry.beam import ConeBeam
from progressive_cascade.geometry.views import opposite_view

# What a checkpoint without a range of its own was trained with: jitter of the distances, and no turn at all.
_JITTER, _ALIGNED_DEGREES = 0.02, 0.5
TOLERANCE = 0.05
"""Share of a border of a range by which a geometry may lie beyond it, with a warning."""


@dataclass(frozen=True)
class Misfit:
    """One thing about a view that lies outside the range.

    Attributes:
        view: index of the view.
        name: what it is, with its unit.
        value: of the view.
        low: least that was trained.
        high: most that was trained.
        beyond: how far the value lies beyond its border, as a share of that border.
    """

    view: int
    name: str
    value: float
    low: float
    high: float
    beyond: float


@dataclass(frozen=True)
class GeometryRange:
    """A range of geometries about the views of one.

    Args:
        source_to_isocenter: least and most [mm].
        field: least and most width of what the detector shows of the plane through the isocenter [mm].
        turn: largest turn of a view about each axis of the world [degrees].
        offset: farthest the isocenter falls from the detector's middle along rows and columns, in its own plane [mm].
        opposite: whether a view may look from its other side: an AP, a right lateral.

    Raises:
        ValueError: if a range does not ascend, or a value is not finite or negative.

    Example:
        >>> GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True).turn
        10.0
    """

    source_to_isocenter: tuple[float, float]
    field: tuple[float, float]
    turn: float = 0.0
    offset: float = 0.0
    opposite: bool = False

    def __post_init__(self) -> None:
        for name in ("source_to_isocenter", "field"):
            low, high = (float(value) for value in getattr(self, name))
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must ascend from above 0 mm, got {[low, high]}")
            object.__setattr__(self, name, (low, high))
        for name in ("turn", "offset"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.turn > 45:
            raise ValueError(f"turn must be at most 45 degrees, got {self.turn}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeometryRange:
        """From the fields by name, as a config holds them.

        Raises:
            ValueError: if a key is unknown or missing, or a value impossible.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"geometry range: unknown keys {unknown}; the keys are {names}")
        if missing := sorted({"source_to_isocenter", "field"} - set(values)):
            raise ValueError(f"geometry range: keys {missing} must be given")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def to_values(self) -> list[float]:
        """Seven numbers, as a checkpoint keeps them."""
        low, high, turn, offset, opposite = astuple(self)
        return [*low, *high, turn, offset, float(opposite)]

    @classmethod
    def from_values(cls, values: Sequence[float]) -> GeometryRange:
        """From the numbers of :meth:`to_values`."""
        near, far, small, large, turn, offset, opposite = (float(value) for value in values)
        return cls((near, far), (small, large), turn, offset, bool(opposite))

    @classmethod
    def around(cls, matrices: np.ndarray, size: int) -> GeometryRange:
        """What a checkpoint that keeps no range was trained for: its own geometry and a little jitter.

        Args:
            matrices: (view, 3, 4), RAS mm about the isocenter to pixels.
            size: pixels per side of the detector.
        """
        poses = [_Pose.of(matrix, size) for matrix in matrices]
        distances = [pose.distance for pose in poses]
        shown = [side for pose in poses for side in pose.fields]
        return cls(
            (min(distances) * (1 - _JITTER), max(distances) * (1 + _JITTER)),
            (min(shown) * (1 - _JITTER), max(shown) * (1 + _JITTER)),
            _ALIGNED_DEGREES,
            max(shown) / 4,
        )

    def draw(self, beam: ConeBeam, random: np.random.Generator) -> np.ndarray:
        """Matrices of one examination.

        Distance and field are drawn once for all views, the rest for each of them.

        Args:
            beam: whose views and detector there are.
            random: where the numbers come from.

        Returns:
            float64 array (view, 3, 4), RAS mm about the isocenter to pixels. A right lateral is read as a left one,
            its columns reversed.
        """
        distance, shown = random.uniform(*self.source_to_isocenter), random.uniform(*self.field)
        matrices = []
        for view in beam.views:
            other = self.opposite and random.random() < 0.5
            turns = random.uniform(-self.turn, self.turn, 3)
            down, right = random.uniform(-self.offset, self.offset, 2)
            name = opposite_view(view) if other else view
            rows, cols = beam.detector_shape
            # The detector stands in the plane of the isocenter itself: rays, not distances behind it, make an image.
            one = ConeBeam(
                distance,
                distance * (1 + 1e-9),
                beam.detector_shape,
                (shown / rows, shown / cols),
                (name,),
                detector_offset=(down, right),
            )
            matrix = one.projection_matrices()[0]
            if name == "right_lateral":
                matrix[0] = (cols - 1) * matrix[2] - matrix[0]
            matrices.append(matrix @ _turned(turns))
        return np.stack(matrices)

    def misfits(self, matrices: np.ndarray, trained: np.ndarray, size: int) -> list[Misfit]:
        """What of a geometry lies outside.

        Args:
            matrices: (view, 3, 4) of the geometry, RAS mm about the isocenter to pixels; right laterals as in
                :meth:`draw`.
            trained: likewise, of the geometry in the middle.
            size: pixels per side of the detector.

        Returns:
            Everything outside, the farthest first.
        """
        found = []
        for view, (matrix, middle) in enumerate(zip(matrices, trained, strict=True)):
            pose, nominal = _Pose.of(matrix, size), _Pose.of(middle, size)
            turn, is_opposite = pose.turn_from(nominal)
            shown = sorted(pose.fields, key=lambda side: max(self.field[0] / side, side / self.field[1]))[-1]
            checks = [
                ("distance from source to isocenter [mm]", pose.distance, *self.source_to_isocenter),
                ("width of the detector's field at the isocenter [mm]", shown, *self.field),
                ("turn [degrees]", turn, 0.0, self.turn),
                ("distance of the isocenter from the detector's middle [mm]", pose.offset, 0.0, self.offset),
            ]
            if is_opposite and not self.opposite:
                checks.append(("turn [degrees]", 180.0 - turn, 0.0, self.turn))
            for name, value, low, high in checks:
                beyond = max(value / high - 1 if high > 0 else math.inf * (value > 1e-6), 1 - value / low if low else 0)
                if beyond > 1e-6:
                    found.append(Misfit(view, name, value, low, high, beyond))
        return sorted(found, key=lambda misfit: -misfit.beyond)


@dataclass(frozen=True)
class GeometryErrors:
    """How far the geometry that is told may be from the one a picture was taken in, each view by itself.

    Args:
        size: largest share by which the picture's size is wrong.
        shift: farthest it lies from where it is said to, along rows and columns, in the plane of the isocenter [mm].
        turn: largest turn about each axis of the world [degrees].

    Raises:
        ValueError: if a value is not finite, negative, or too large.
    """

    size: float = 0.0
    shift: float = 0.0
    turn: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("size", 0.5), ("shift", 200.0), ("turn", 45.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [0, {most:g}], got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeometryErrors:
        """From the fields by name, as a config holds them.

        Raises:
            ValueError: if a key is unknown or a value impossible.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"geometry errors: unknown keys {unknown}; the keys are {names}")
        return cls(**values)

    def apply(self, matrices: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
        """Matrices that are told in place of the true ones.

        Args:
            matrices: (view, 3, 4), RAS mm about the isocenter to pixels.
            size: pixels per side of the detector.
            random: where the numbers come from.

        Returns:
            float64 array of the same shape.
        """
        told, middle = [], (size - 1) / 2
        for matrix in np.asarray(matrices, dtype=np.float64):
            scale = 1 + random.uniform(-self.size, self.size)
            shift = random.uniform(-self.shift, self.shift, 2) * size / np.array(_Pose.of(matrix, size).fields)
            moved = np.diag([scale, scale, 1.0])
            moved[:2, 2] = middle * (1 - scale) + shift
            told.append(moved @ matrix @ _turned(random.uniform(-self.turn, self.turn, 3)))
        return np.stack(told)


@dataclass(frozen=True)
class _Pose:
    """A view's matrix taken apart: distance [mm], sides of the field [mm], axes (columns, rows, along), offset [mm]."""

    distance: float
    fields: tuple[float, float]
    axes: np.ndarray
    offset: float

    @classmethod
    def of(cls, matrix: np.ndarray, size: int) -> _Pose:
        matrix = np.asarray(matrix, dtype=np.float64) / np.linalg.norm(matrix[2, :3])
        along, distance = matrix[2, :3], float(matrix[2, 3])
        axes, shown, off = [], [], []
        for row in range(2):
            across = matrix[row, :3] - (matrix[row, :3] @ along) * along
            focal = float(np.linalg.norm(across))
            axes.append(across / focal)
            shown.append(size * distance / focal)
            off.append(abs(matrix[row, 3] / distance - (size - 1) / 2) * distance / focal)
        return cls(distance, (shown[0], shown[1]), np.stack([*axes, along]), max(off))

    def turn_from(self, other: _Pose) -> tuple[float, bool]:
        """Largest part of the turn's vector [degrees] that leads to this view, and whether from the other side."""
        is_opposite = bool(np.linalg.det(self.axes) * np.linalg.det(other.axes) < 0)
        axes = self.axes * np.array([[1.0], [1.0], [-1.0 if is_opposite else 1.0]])
        turn = other.axes.T @ axes
        twice_sine = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        sine, cosine = np.linalg.norm(twice_sine) / 2, (np.trace(turn) - 1) / 2
        angle = math.degrees(math.atan2(sine, cosine))
        if sine < 1e-9:
            return angle, is_opposite
        return float(angle * np.abs(twice_sine).max() / (2 * sine)), is_opposite


def _turned(degrees: np.ndarray) -> np.ndarray:
    """The world turned about the isocenter, (4, 4), for a vector of angles whose direction is the axis [degrees]."""
    angle = float(np.linalg.norm(degrees))
    turned = np.eye(4)
    if angle > 0:
        x, y, z = degrees / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        radians = math.radians(angle)
        turned[:3, :3] += math.sin(radians) * cross + (1 - math.cos(radians)) * cross @ cross
    return turned


def parse_range(values: GeometryRange | dict | None) -> GeometryRange | None:
    """A range from what a config may hold: null, the mapping of its fields, or the object itself."""
    return values if values is None or isinstance(values, GeometryRange) else GeometryRange.from_dict(dict(values))


def parse_errors(values: GeometryErrors | dict | None) -> GeometryErrors | None:
    """Errors from what a config may hold: null, the mapping of their fields, or the object itself."""
    return values if values is None or isinstance(values, GeometryErrors) else GeometryErrors.from_dict(dict(values))
